"""Pictures of an evaluation at each new best model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from medtrain.callbacks.base import Callback, EngineView
from medtrain.pictures.case import check_channel
from medtrain.registry import Range, register
from medtrain.run.atomic import atomic_write
from medtrain.tasks.base import PictureStyle


@register("callbacks", "previews")
class Previews(Callback):
    """Draw the evaluation whenever the model reaches a new best.

    Segmentation shows the worst case with label, prediction and errors. Tasks on whole images show their worst and most
    uncertain samples, confusion matrices and curves. Saved as previews/step_<step>.png, the others as
    previews/step_<step>_<name>.png, and sent to the loggers.

    Args:
        channel: Channel of the image to show; a 2-D picture with three channels is shown in colour instead.
        panel_size: Pixels of the longer side of a panel.
        opacity: How strongly the areas of the overlays are coloured.
    """

    def __init__(
        self,
        *,
        channel: Annotated[int, Range(ge=0)] = 0,
        panel_size: Annotated[int, Range(ge=64, le=1024)] = 300,
        opacity: Annotated[float, Range(ge=0, le=1)] = 0.35,
    ) -> None:
        self._style = PictureStyle(channel=channel, panel_size=panel_size, opacity=opacity)

    def on_fit_start(self, view: EngineView) -> None:
        """Check that the images, where there are any, have the channel."""
        if view.in_channels or self._style.channel:
            check_channel(self._style.channel, view.in_channels)

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Draw, if this is a new best."""
        if not improved:
            return
        style = replace(self._style, title=f"step {view.step}, epoch {view.epoch}")
        for name, pixels in view.pictures(style).items():
            suffix = "" if name == "worst" else f"_{name}"
            save_picture(view.run_dir / "previews" / f"step_{view.step:08d}{suffix}.png", pixels)
            view.loggers.log_image(view.step, f"previews/{name}", pixels)


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG, complete or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue(), sync=False)
