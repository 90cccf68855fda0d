"""What a sweep is doing, while it does it: a live table on a terminal, log lines in a pipe and in the log file."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain.run.log import console, is_live
from medtrain.sweep.report.names import format_duration, format_params, format_score, short_names
from medtrain.sweep.result import Objective

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_LOG = logging.getLogger(__name__)

_REDRAW_S = 0.25
_LINE_S = 60.0  # between two lines on the running trials in a pipe
_NARROW = 60  # characters; below, there is no room for bars
_FRAME = 6  # lines of the terminal that are not for running trials
_FINISHED = ("complete", "pruned", "failed")


@dataclass
class _Row:
    """A running trial."""

    params: Mapping[str, Any]
    started: float
    percent: float = 0.0
    value: float = math.nan


class SweepTable:
    """Shows the running trials, the best so far, how many have ended and how long the rest may take.

    Args:
        objectives: What is optimized; the first one is shown while a trial runs.
        total: Trials to finish; None when it is not known.
        folder: The sweep's folder.
        counts: Trials that have ended before, by state: a sweep that is continued.
        best: The best of them: its number, metrics and point.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        total: int | None,
        folder: Path,
        *,
        counts: Mapping[str, int] | None = None,
        best: tuple[int, Mapping[str, float], Mapping[str, Any]] | None = None,
    ) -> None:
        self._objectives, self._total, self._folder = tuple(objectives), total, folder
        self._counts: Counter[str] = Counter(counts or {})
        self._best = best
        self._rows: dict[int, _Row] = {}
        self._short: dict[str, str] = {}
        self._started = self._drawn = self._said = time.monotonic()
        self._finished_before = sum(self._counts[state] for state in _FINISHED)
        self._live: Live | None = None
        if is_live():
            self._live = _make_live(self._draw())

    def started(self, number: int, params: Mapping[str, Any], *, again: bool = False) -> None:
        """A trial begins, or begins again after a crash."""
        self._rows[number] = _Row(params, time.monotonic())
        if not params.keys() <= self._short.keys():
            self._short = short_names(dict.fromkeys([*self._short, *params]))
        again_text = " again" if again else ""
        screen = self._live is None
        _LOG.info("trial %d starts%s: %s", number, again_text, self._point(params), extra={"screen": screen})
        self._redraw(now=True)

    def progress(self, number: int, percent: float, metrics: Mapping[str, float]) -> None:
        """A trial is so far, with its newest numbers; those of the last evaluation stay until the next."""
        row = self._rows.get(number)
        if row is None:
            return
        row.percent = percent
        row.value = metrics.get(self._objectives[0].metric, row.value)
        if self._live is None and time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            running = ", ".join(f"trial {key} {self._so_far(row)}" for key, row in self._rows.items())
            _LOG.info("%s; running: %s", "; ".join(self._summary()), running)
        self._redraw()

    def finished(self, number: int, state: str, values: Mapping[str, float], message: str, *, best: bool) -> None:
        """A trial has ended.

        Args:
            number: Its number.
            state: `complete`, `pruned` or `failed`; `again` (crashed, tried again), `stopped` (saved, to be continued)
                or `lost` (another worker has it now), which do not count.
            values: Its metrics.
            message: Why it ended; empty when it is complete.
            best: Whether it is the best so far; with several objectives, whether it is on the front.
        """
        row = self._rows.pop(number, None)
        self._counts[state] += 1
        if best:
            self._best = (number, values, row.params if row is not None else {})
        seconds = f", {format_duration(time.monotonic() - row.started)}" if row is not None else ""
        level = logging.WARNING if state in ("failed", "again") else logging.INFO
        done = sum(self._counts[state] for state in _FINISHED)
        position = f" ({done}/{self._total})" if self._total is not None else f" ({done})"
        _LOG.log(level, "trial %d %s%s%s", number, self._outcome(state, values, message, best=best), seconds, position)
        self._redraw(now=True)

    def refresh(self) -> None:
        """Let the times go on; cheap enough to be called in a loop."""
        self._redraw()

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _outcome(self, state: str, values: Mapping[str, float], message: str, *, best: bool) -> str:
        reason = f": {message}" if message else ""
        if state == "complete":
            news = ", on the front" if len(self._objectives) > 1 else ", the best so far"
            return f"complete: {self._scores(values)}{news if best else ''}"
        texts = {
            "again": f"crashed and is tried again{reason}",
            "stopped": "is saved, to be continued",
            "lost": "was taken over by another worker",
        }
        return texts.get(state, message if message.startswith(state) else f"{state}{reason}")

    def _scores(self, values: Mapping[str, float]) -> str:
        scores = ((goal.metric, values.get(goal.metric, math.nan)) for goal in self._objectives)
        return ", ".join(f"{metric} {format_score(float(value))}" for metric, value in scores)

    def _point(self, params: Mapping[str, Any]) -> str:
        return format_params(params, self._short) or "the configuration as it is"

    def _so_far(self, row: _Row) -> str:
        value = "" if math.isnan(row.value) else f" {format_score(row.value)}"
        return f"{row.percent:.0f} %{value}"

    def _summary(self) -> list[str]:
        """Counts and times, the most important first."""
        finished = sum(self._counts[state] for state in _FINISHED)
        of_all = f"/{self._total}" if self._total is not None else ""
        elapsed = time.monotonic() - self._started
        left = self._left(finished, elapsed)
        parts = [f"{finished}{of_all} trials"]
        parts += [f"about {format_duration(left)} left"] if left is not None else []
        parts += [f"{self._counts[state]} {state}" for state in ("pruned", "failed") if self._counts[state]]
        return [*parts, f"{format_duration(elapsed)} so far"]

    def _left(self, finished: int, elapsed: float) -> float | None:
        """Seconds, at the pace of this session; running trials count as far as they are."""
        if self._total is None or finished >= self._total:
            return None
        running = sum(row.percent / 100 for row in self._rows.values())
        done = finished - self._finished_before + running
        if done < 0.5:  # no pace yet
            return None
        return max(elapsed / done * (self._total - finished - running), 0.0)

    def _redraw(self, *, now: bool = False) -> None:
        if self._live is not None and (now or time.monotonic() - self._drawn >= _REDRAW_S):
            self._drawn = time.monotonic()
            self._live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        width, height = console().size
        parts: list[RenderableType] = [Text("  ".join(self._summary()), no_wrap=True, overflow="ellipsis")]
        if self._best is not None:
            number, values, params = self._best
            what = "on the front" if len(self._objectives) > 1 else "best"
            point = f": {format_params(params, self._short)}" if params else ""
            text = f"{what} {self._scores(values)}, trial {number}{point}"
            parts.append(Text(text, style="green", no_wrap=True, overflow="ellipsis"))
        if self._rows:
            parts.append(self._running(width, max(height - _FRAME, 1)))
        return Group(*parts)

    def _running(self, width: int, most: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, expand=True, pad_edge=False, show_edge=False, header_style="dim")
        wide = width >= _NARROW
        table.add_column("trial", justify="right", no_wrap=True)
        if wide:
            table.add_column("", width=14)
        table.add_column("done", justify="right", no_wrap=True)
        table.add_column(self._objectives[0].metric, justify="right", no_wrap=True, max_width=max(width // 4, 8))
        table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        for number, row in list(self._rows.items())[:most]:
            bar = [ProgressBar(total=100.0, completed=row.percent, width=14)] if wide else []
            point = Text(format_params(row.params, self._short), style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(str(number), *bar, f"{row.percent:.0f} %", format_score(row.value), point)
        hidden = len(self._rows) - most
        if hidden > 0:
            table.add_row(*[""] * (3 if wide else 2), "", Text(f"and {hidden} more", style="dim"))
        return table


def _make_live(first: RenderableType) -> Live:
    from rich.live import Live

    # redrawn at every event and not by a thread, so that nothing holds the console while processes are forked
    live = Live(first, console=console(), auto_refresh=False, transient=True, vertical_overflow="ellipsis")
    live.start(refresh=True)
    return live
