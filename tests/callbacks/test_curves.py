from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medtrain.callbacks.curves import Curves, file_names, group_by_class, part_names
from medtrain.callbacks.plots import Line, _draw_family, family_name, smooth


def _train(callback: Curves, view: Any, steps: int = 40) -> None:
    for step in range(1, steps + 1):
        view.log(callback, step, {"train/loss": 1 / step, "train/lr": 0.1 / step, "perf/step_s": 1.0})
        if step % 10 == 0:
            metrics = {"val_dice/liver": step / 50, "val_hd95_mm": math.nan if step < 20 else 100 / step}
            view.evaluate(callback, step, improved=True, val_dice=step / 60, **metrics)


def test_a_picture_of_the_run_and_one_per_metric(view: Any) -> None:
    callback = Curves()
    view.elapsed_s = -1.0  # no time to draw before the end
    _train(callback, view)
    assert not (view.run_dir / "progress.png").exists()
    callback.on_fit_end(view, "done")
    assert {path.name for path in (view.run_dir / "curves").iterdir()} == {
        *("train_loss.png", "train_lr.png", "val_dice.png", "val_hd95_mm.png")
    }
    for path in [view.run_dir / "progress.png", *(view.run_dir / "curves").iterdir()]:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[0] > 400
        assert 0.005 < (pixels < 200).mean() < 0.3, path.name  # lines on white
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []  # no figure is left in memory


def test_the_curves_move_with_the_numbers(view: Any) -> None:
    callback = Curves(time_share=1.0)
    _train(callback, view, 20)
    before = (view.run_dir / "progress.png").read_bytes()
    view.evaluate(callback, 30, val_dice=0.9)
    assert (view.run_dir / "progress.png").read_bytes() != before


def test_drawing_takes_a_bounded_share_of_the_time(view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("medtrain.callbacks.curves.time.monotonic", lambda: next(clock))
    callback = Curves(time_share=0.1)  # each drawing takes 10 s, so once per 100 s
    monkeypatch.setattr(callback, "_draw", lambda view: drawn.append(view.step))
    for step in range(1, 31):
        view.elapsed_s = 10.0 * step
        view.evaluate(callback, step, val_dice=0.1)
    assert drawn == [1, 10, 20, 30]
    callback.on_fit_end(view, "stopped")
    assert drawn[-1] == 30
    assert len(drawn) == 5


def test_nothing_to_draw_is_no_error(view: Any) -> None:
    Curves().on_fit_end(view, "failed")
    assert not (view.run_dir / "progress.png").exists()


def test_state_continues_the_curves(view: Any) -> None:
    first = Curves()
    view.elapsed_s = -1.0  # never draw
    _train(first, view, 15)
    second = Curves()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert set(first.state_dict()) == {"train/loss", "train/lr"}


def test_classes_join_their_mean() -> None:
    lines = [Line(name, [1], [1]) for name in ("val/dice/liver", "val/dice", "val/dice/tumour", "val/loss")]
    families = group_by_class(lines, ["background", "liver", "tumour"])
    assert [[line.name for line in family] for family in families] == [
        ["val/dice", "val/dice/liver", "val/dice/tumour"],
        ["val/loss"],
    ]


def test_classes_without_a_mean_are_not_called_one() -> None:
    """A metric that exists per class only: the first class is no mean of the others."""
    classes = [Line(f"val/f1/{name}", [1, 2], [0.5, 0.6]) for name in ("0", "1")]
    assert family_name(classes, ["0", "1"]) == "val/f1"
    assert family_name(classes[:1], ["0", "1"]) == "val/f1/0"
    assert family_name([Line("val/f1", [1], [1]), *classes], ["0", "1"]) == "val/f1"
    axes = Figure().add_subplot()
    _draw_family(axes, classes, ["0", "1"], None)
    assert axes.get_legend_handles_labels()[1] == ["0", "1"]
    axes = Figure().add_subplot()
    _draw_family(axes, [Line("val/f1", [1, 2], [0.4, 0.5]), *classes], ["0", "1"], None)
    assert axes.get_legend_handles_labels()[1] == ["0", "1", "mean"]


def test_file_names_never_collide() -> None:
    assert file_names(["val/dice", "val dice", "VAL/Dice", "a/b.c"]) == [
        *("val_dice.png", "val_dice_2.png", "VAL_Dice_3.png", "a_b.c.png")
    ]


def test_smoothing_keeps_constants_and_ends() -> None:
    values = np.r_[np.zeros(100), np.ones(100)]
    smoothed = smooth(values.tolist())
    assert smoothed[0] == 0
    assert smoothed[-1] == 1
    np.testing.assert_allclose(smoothed[97:103], [0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-12)  # window of 5
    np.testing.assert_allclose(smooth([3.0] * 500), 3.0)


def test_zones_share_a_picture_with_their_mean() -> None:
    keys = ["val/f1", "val/f1/left", "val/f1/right", "val/mae", "val/mae/left", "val/ill/auroc", "val/ill/ece"]
    names = part_names(keys, ["no"])
    assert names == ["no", "left", "right"]
    families = group_by_class([Line(key, [1, 2], [0.1, 0.2]) for key in keys], names)
    assert [[line.name for line in family] for family in families] == [
        ["val/f1", "val/f1/left", "val/f1/right"],
        ["val/mae", "val/mae/left"],
        ["val/ill/auroc"],
        ["val/ill/ece"],
    ]
