"""Stop when a metric has not improved for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from medtrain.callbacks.base import Callback, EngineView
from medtrain.errors import UsageError
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import Range, closest, register

_LOG = logging.getLogger(__name__)


@register("callbacks", "early_stopping")
class EarlyStopping(Callback):
    """End the run when the monitored metric has not improved for `patience` evaluations in a row.

    Args:
        patience: Evaluations without improvement that are tolerated.
        min_delta: Smallest change that counts as an improvement.
        monitor: Metric to watch, e.g. `val/hd95_mm`; null is the run's own monitor.
        mode: Which way is better for `monitor`; null for the run's own.
    """

    def __init__(
        self,
        *,
        patience: Annotated[int, Range(ge=1)] = 10,
        min_delta: Annotated[float, Range(ge=0)] = 0.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        self._patience = patience
        self._min_delta = min_delta
        self._monitor = monitor
        self._mode = mode
        self._best: float | None = None
        self._best_step = 0
        self._bad = 0

    def on_fit_start(self, view: EngineView) -> None:
        """Check that it is known what to watch and which way is better; a run that was stopped here stays so."""
        spec = self._spec(view)
        if self._monitor is not None:
            _check_name(spec.name, view.metric_names)
        self._stop_if_used_up(view, spec)

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Count the evaluations without improvement."""
        spec = self._spec(view)
        _check_name(spec.name, metrics)
        value = metrics[spec.name]
        if spec.improves(value, self._best, min_delta=self._min_delta):
            self._best, self._best_step, self._bad = float(value), view.step, 0
            return
        self._bad += 1
        self._stop_if_used_up(view, spec)

    def state_dict(self) -> dict[str, Any]:
        """The best value and the count."""
        return {"best": self._best, "best_step": self._best_step, "bad": self._bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting where the checkpoint was."""
        self._best, self._best_step, self._bad = state["best"], state["best_step"], state["bad"]

    def _stop_if_used_up(self, view: EngineView, spec: MetricSpec) -> None:
        if self._bad < self._patience:
            return
        best = "no valid value yet" if self._best is None else f"best {self._best:.4f} at step {self._best_step}"
        reason = f"early stopping: {spec.name} has not improved for {self._bad} evaluations ({best})"
        _LOG.info(reason)
        view.request_stop(reason)

    def _spec(self, view: EngineView) -> MetricSpec:
        if self._monitor is None or self._monitor == view.monitor.name:
            if self._mode not in (None, view.monitor.mode):
                raise UsageError(
                    f"callbacks.early_stopping.mode={self._mode}: {view.monitor.name} has the mode {view.monitor.mode}",
                    hint="leave callbacks.early_stopping.mode out",
                )
            return view.monitor
        if self._mode is None:
            raise UsageError(
                f"callbacks.early_stopping.monitor={self._monitor} needs callbacks.early_stopping.mode",
                hint="callbacks.early_stopping.mode=max if larger values are better, else min",
            )
        return MetricSpec(self._monitor, self._mode)


def _check_name(name: str, metrics: Iterable[str]) -> None:
    if name not in metrics:
        close = closest(name, metrics)
        raise UsageError(
            f"callbacks.early_stopping.monitor={name}: no such metric; there are: {', '.join(metrics)}",
            hint=f"did you mean callbacks.early_stopping.monitor={close}?" if close else None,
        )
