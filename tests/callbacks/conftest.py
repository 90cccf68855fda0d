"""A stand-in for the engine, as callbacks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtrain.callbacks.base import Callback, EngineView
from medtrain.loggers.base import Logger, LoggerSet
from medtrain.metrics.spec import MetricSpec
from medtrain.tasks.base import PictureStyle


class ImageRecorder(Logger):
    """Keeps the pictures it is given."""

    def __init__(self) -> None:
        self.images: list[tuple[int, str, np.ndarray]] = []

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        self.images.append((step, tag, image))


@dataclass
class FakeView:
    """Every attribute can be set by a test."""

    run_dir: Path
    step: int = 0
    epoch: int = 0
    total_steps: int | None = 100
    progress: float = 0.0
    elapsed_s: float = 1e9
    seconds_left: float | None = None
    monitor: MetricSpec = field(default_factory=lambda: MetricSpec("val/dice", "max"))
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: list[Mapping[str, float]] = field(default_factory=list)
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    styles: list[PictureStyle] = field(default_factory=list)
    metric_names: list[str] = field(default_factory=lambda: ["val/dice", "val/dice/liver", "val/hd95"])
    in_channels: int = 2
    class_names: list[str] = field(default_factory=lambda: ["background", "liver", "tumour"])
    recorder: ImageRecorder = field(default_factory=ImageRecorder)
    stops: list[str] = field(default_factory=list)

    @property
    def loggers(self) -> LoggerSet:
        return LoggerSet({"recorder": self.recorder})

    def pictures(self, style: PictureStyle) -> dict[str, np.ndarray]:
        self.styles.append(style)
        return self.drawn

    def request_stop(self, reason: str) -> None:
        self.stops.append(reason)

    def evaluate(self, callback: Callback, step: int, *, improved: bool = False, **metrics: float) -> None:
        """Do what the engine does after an evaluation; `val_dice` stands for `val/dice`."""
        self.step = step
        self.metrics = {key.replace("_", "/", 1): value for key, value in metrics.items()}
        self.history.append({"step": step, "epoch": self.epoch, **self.metrics})
        view: EngineView = self
        callback.on_evaluation_end(view, self.metrics, improved)

    def log(self, callback: Callback, step: int, scalars: Mapping[str, Any]) -> None:
        """Do what the engine does after a logged step."""
        self.step = step
        callback.on_log(self, scalars)


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    """An engine at the start of a run."""
    run_dir = tmp_path / "liver" / "20261120-09-abcd"
    run_dir.mkdir(parents=True)
    return FakeView(run_dir)
