from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from medtrain.callbacks.previews import Previews
from medtrain.errors import UsageError


def test_drawn_at_a_new_best_only(view: Any, rng: np.random.Generator) -> None:
    view.drawn = {name: rng.integers(0, 255, (6, 8, 3), dtype=np.uint8) for name in ("worst", "roc")}
    callback = Previews(panel_size=96, opacity=0.5)
    view.evaluate(callback, 10, improved=True, val_dice=0.5)
    view.evaluate(callback, 20, improved=False, val_dice=0.4)
    view.drawn = {}
    view.evaluate(callback, 30, improved=True, val_dice=0.6)
    folder = view.run_dir / "previews"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000010.png", "step_00000010_roc.png"]
    assert [(step, tag) for step, tag, _ in view.recorder.images] == [(10, "previews/worst"), (10, "previews/roc")]
    for name, (_, _, sent) in zip(("step_00000010", "step_00000010_roc"), view.recorder.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}.png")), sent)
    assert [(style.title, style.panel_size, style.opacity) for style in view.styles] == [
        ("step 10, epoch 0", 96, 0.5),
        ("step 30, epoch 0", 96, 0.5),
    ]


def test_a_channel_that_is_not_there_is_said_before_training(view: Any) -> None:
    Previews(channel=1).on_fit_start(view)
    with pytest.raises(UsageError, match="channel=2: the images have 2 channel"):
        Previews(channel=2).on_fit_start(view)


def test_tables_without_images_have_no_channel_to_choose(view: Any) -> None:
    view.in_channels = 0
    Previews().on_fit_start(view)
    with pytest.raises(UsageError, match="channel=1: the data have no images"):
        Previews(channel=1).on_fit_start(view)
