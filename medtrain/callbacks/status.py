"""Keep the run's status file up to date."""

from __future__ import annotations

from collections.abc import Mapping

from medtrain.callbacks.base import Callback, EngineView
from medtrain.run.folder import Best, RunFolder


class StatusHeartbeat(Callback):
    """Note the step and the best evaluation in status.json, for `medtrain runs`.

    Part of every run, hence not a component that a configuration could leave out.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_log(self, view: EngineView, scalars: Mapping[str, float]) -> None:
        """Note the step, now and then."""
        self._folder.heartbeat(view.step)

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Note a new best at once."""
        name = view.monitor.name
        best = Best(metric=name, value=float(metrics[name]), step=view.step) if improved else None
        self._folder.heartbeat(view.step, best=best)
