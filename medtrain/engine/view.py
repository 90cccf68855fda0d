"""The engine as callbacks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtrain.engine.latency import forward_ms

if TYPE_CHECKING:
    from medtrain.engine.loop import Engine
    from medtrain.loggers.base import LoggerSet
    from medtrain.metrics.spec import MetricSpec
    from medtrain.tasks.base import PictureStyle


class EngineView:
    """Read-only access to a running engine, and the one thing a callback may ask for: to stop.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._engine.step

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self._engine.epoch

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None while it is bounded by time."""
        limit = self._engine.clock.limit
        return limit.max_steps if limit.max_seconds is None else None

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self._engine.clock.progress(self._engine.step)

    @property
    def elapsed_s(self) -> float:
        """Training time of the whole run, earlier sessions of a resumed run included."""
        return self._engine.clock.elapsed()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends, evaluations included; None while that is not known."""
        engine = self._engine
        return engine.clock.seconds_left(engine.step, engine.cadences.evaluate)

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self._engine.run_dir

    @property
    def monitor(self) -> MetricSpec:
        """The metric that decides which model is best."""
        return self._engine.monitor

    @property
    def metrics(self) -> Mapping[str, float]:
        """The newest evaluation."""
        return self._engine.metrics

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """One entry per evaluation, `{"step", "epoch", **metrics}`, the newest last."""
        return self._engine.history

    def pictures(self, style: PictureStyle) -> dict[str, np.ndarray]:
        """Pictures of the newest evaluation by name, uint8 [H, W, 3]; `worst` is the most telling one."""
        return self._engine.task.pictures(self._engine.records, style)

    @property
    def metric_names(self) -> Sequence[str]:
        """Every metric of an evaluation, e.g. `val/dice`, `val/dice/liver`."""
        return [f"val/{name}" for name in self._engine.task.metrics()]

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self._engine.task.in_channels

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by index, background first."""
        return self._engine.task.class_names

    @property
    def loggers(self) -> LoggerSet:
        """Where numbers and pictures go."""
        return self._engine.loggers

    @property
    def parameters(self) -> int:
        """Trainable parameters of the model."""
        return sum(parameter.numel() for parameter in self._engine.parameters)

    def measure_latency(self) -> float:
        """Time of one forward pass of one input, in milliseconds; costs a dozen of them."""
        return forward_ms(self._engine)

    def request_stop(self, reason: str) -> None:
        """Ask the engine to stop after this step, as a run that is done; the reason goes to the log."""
        self._engine.request_stop(reason)
