"""What a callback is told and what it may see.

Callbacks are for side effects: pictures, tables, early stopping, notices. Nothing that changes the numbers of a step
is a callback. In a distributed run only the main process has callbacks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medtrain.errors import MedtrainError
from medtrain.loggers.base import LoggerSet
from medtrain.metrics.spec import MetricSpec

if TYPE_CHECKING:
    from medtrain.tasks.base import PictureStyle

_LOG = logging.getLogger(__name__)


class EngineView(Protocol):
    """The engine as callbacks see it: everything is read-only but `request_stop`."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def epoch(self) -> float:
        """Epochs completed."""
        ...

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None while it is bounded by time."""
        ...

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        ...

    @property
    def elapsed_s(self) -> float:
        """Training time of the whole run, earlier sessions of a resumed run included."""
        ...

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends, evaluations included; None while that is not known."""
        ...

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        ...

    @property
    def monitor(self) -> MetricSpec:
        """The metric that decides which model is best."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """The newest evaluation."""
        ...

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """One entry per evaluation, `{"step", "epoch", **metrics}`, the newest last."""
        ...

    def pictures(self, style: PictureStyle) -> dict[str, np.ndarray]:
        """Pictures of the newest evaluation by name, uint8 [H, W, 3]; `worst` is the most telling one."""
        ...

    @property
    def metric_names(self) -> Sequence[str]:
        """Every metric of an evaluation, e.g. `val/dice`, `val/dice/liver`."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by index, background first."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def loggers(self) -> LoggerSet:
        """Where numbers and pictures go."""
        ...

    @property
    def parameters(self) -> int:
        """Trainable parameters of the model."""
        ...

    def measure_latency(self) -> float:
        """Time of one forward pass of one input, in milliseconds; costs a dozen of them."""
        ...

    def request_stop(self, reason: str) -> None:
        """Ask the engine to stop after this step, as a run that is done; the reason goes to the log."""
        ...


class Callback:
    """Does nothing; override what is needed.

    The order of a run: `on_fit_start`, then for every logged step `on_log`, for every evaluation `on_evaluation_end`
    and for every checkpoint `on_checkpoint`, `on_exception` if an error ends the run, and `on_fit_end` in any case.

    Scalars that `on_log` receives: `train/loss` and its parts, `train/lr`, `train/grad_norm`, and timings under
    `perf/`: `perf/samples_per_s` and `perf/data_wait` (share of the time spent waiting for data, 0 to 1).
    """

    def on_fit_start(self, view: EngineView) -> None:
        """Training starts or continues; raise here what would make the callback fail later."""

    def on_log(self, view: EngineView, scalars: Mapping[str, float]) -> None:
        """The numbers of a training step were logged."""

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """An evaluation is over; `improved` says whether the monitored metric reached a new best."""

    def on_checkpoint(self, view: EngineView, path: Path) -> None:
        """A checkpoint was written to `path`."""

    def on_exception(self, view: EngineView, error: BaseException) -> None:
        """An error ends the run."""

    def on_fit_end(self, view: EngineView, status: str) -> None:
        """Training is over with `status` `done`, `stopped` or `failed`."""

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume: tensors and primitives only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class CallbackSet:
    """Passes everything on to several callbacks.

    One that fails is switched off with a warning, for a picture must not cost a run.

    Args:
        callbacks: Callbacks by the name they have in the configuration.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self._callbacks = dict(callbacks)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call a method of every callback.

        Args:
            event: Name of the method.
            arguments: What it takes.

        Raises:
            MedtrainError: A setting of a callback is wrong.
        """
        for name, callback in list(self._callbacks.items()):
            try:
                getattr(callback, event)(*arguments)
            except MedtrainError:
                raise
            except Exception as error:
                del self._callbacks[name]
                _LOG.warning("callback %s failed and is switched off: %s: %s", name, type(error).__name__, error)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each by its name."""
        return {name: callback.state_dict() for name, callback in self._callbacks.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `state_dict` returned; callbacks that had none begin anew."""
        for name, callback in self._callbacks.items():
            if name in state:
                callback.load_state_dict(state[name])
