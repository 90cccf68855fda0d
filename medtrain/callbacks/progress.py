"""Where training is and how long it will take."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from medtrain.callbacks.base import Callback, EngineView
from medtrain.registry import Range, register
from medtrain.run.log import console, is_live

if TYPE_CHECKING:
    from rich.progress import Progress

_LOG = logging.getLogger(__name__)


@register("callbacks", "progress")
class ProgressDisplay(Callback):
    """Show step, loss, learning rate, speed, time spent waiting for data and time left.

    A bar at the bottom of a terminal, below the log lines; in a pipe and in log.txt a line now and then.

    Args:
        every_s: Seconds between two lines; 0 writes one for every logged step.
    """

    def __init__(self, *, every_s: Annotated[float, Range(ge=0)] = 10.0) -> None:
        self.every_s = every_s
        self._last_line = -math.inf
        self._bar: Progress | None = None

    def on_fit_start(self, view: EngineView) -> None:
        """Show the bar."""
        if is_live():
            self._bar = _make_bar()
            # nothing redraws it in the background: a thread that holds the console would be copied into data workers
            self._bar.start()
            self._bar.add_task("training", total=1.0, numbers="", left="")
            self._bar.update(self._bar.task_ids[0], completed=view.progress, refresh=True)

    def on_log(self, view: EngineView, scalars: Mapping[str, float]) -> None:
        """Redraw the bar, or log a line."""
        now = time.monotonic()
        parts, seconds = describe(view, scalars), view.seconds_left
        left = "" if seconds is None else f"left {format_duration(seconds)}"
        if now - self._last_line >= self.every_s:
            self._last_line = now
            _LOG.info("%s", "  ".join([*parts, left] if left else parts), extra={"screen": self._bar is None})
        if self._bar is not None:
            numbers = "  ".join(parts)
            self._bar.update(self._bar.task_ids[0], completed=view.progress, numbers=numbers, left=left, refresh=True)

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Redraw the bar after the table."""
        if self._bar is not None:
            self._bar.refresh()

    def on_exception(self, view: EngineView, error: BaseException) -> None:
        """Give the terminal back before the error is printed."""
        self._stop()

    def on_fit_end(self, view: EngineView, status: str) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(view: EngineView, scalars: Mapping[str, float]) -> list[str]:
    """The parts of a progress line, the most important first; what was not measured is left out."""
    total = f"/{view.total_steps}" if view.total_steps is not None else ""
    parts = [f"step {view.step}{total}", f"epoch {view.epoch}"]
    if "train/loss" in scalars:
        parts.append(f"loss {scalars['train/loss']:.4f}")
    if "perf/samples_per_s" in scalars:
        parts.append(f"{scalars['perf/samples_per_s']:.1f} samples/s")
    if "train/lr" in scalars:
        parts.append(f"lr {scalars['train/lr']:.2e}")
    if "perf/data_wait" in scalars:
        parts.append(f"data wait {100 * scalars['perf/data_wait']:.0f} %")
    return parts


def format_duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _make_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    # a narrow terminal cuts the numbers alone: they get what the other columns leave
    return Progress(
        BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=console(),
        auto_refresh=False,
        transient=True,
        expand=True,
    )
