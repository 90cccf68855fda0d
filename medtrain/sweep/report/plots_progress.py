"""Pictures of trials on their way: what they reported, and when and where they ran."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from medtrain.sweep.report.canvas import (
    BEST,
    FAILED,
    GREY,
    MAIN,
    PRUNED,
    ROUND,
    RUNNING,
    foot_legend,
    integer_axis,
    new_figure,
    place,
    plain,
    style,
)
from medtrain.sweep.report.names import count_of, elide, format_duration, format_number
from medtrain.sweep.report.records import Record, SweepState
from medtrain.sweep.report.values import Mode

_STATE_COLORS: dict[str, Any] = {"complete": MAIN, "pruned": PRUNED, "failed": FAILED, "running": RUNNING}
_MOST_LANES = 40
_PAUSE = 0.08  # of the time in which something ran: longer breaks are cut out
_PAUSE_WIDTH = 0.03
_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def draw_curves(sweep: SweepState) -> Figure | None:
    """What the trials reported on their way, and where they were ended; None when nothing was reported."""
    records = [record for record in sweep.records if record.curve and record.is_finished]
    if not records or sweep.is_multi:
        return None
    objective = sweep.definition.objectives[0]
    figure = new_figure(9, 5.1, "Curves of the trials", _curves_note(sweep, records))
    axes = figure.add_subplot()
    place(figure, left=0.8, right=0.15, top=0.85, bottom=0.95)
    style(axes)
    best = sweep.best[0].number if sweep.best else None
    for layer, state in enumerate(("failed", "pruned", "complete"), start=2):
        _draw_group(axes, [r for r in records if r.state == state and not r.violated], best, state, layer)
    _draw_group(axes, [record for record in records if record.violated], None, "misses a constraint", 2)
    for record in records:
        if record.number == best:
            steps, values = zip(*record.curve)
            mark = "o" if len(steps) == 1 else None
            label = f"best (trial {best})"
            axes.plot(steps, values, color=BEST, linewidth=2, marker=mark, markersize=4, zorder=6, label=label)
    axes.set_ylim(*_curve_limits(records, objective.mode))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axes.set_ylabel(plain(elide(objective.metric, 28)), fontsize=9, color=GREY)
    axes.set_xlabel("fold" if sweep.num_folds else "percent of the budget", fontsize=9, color=GREY)
    if sweep.num_folds:
        integer_axis(axes.xaxis)
    else:
        axes.set_xlim(0, 101)
    foot_legend(figure, [axes])
    return figure


def _curves_note(sweep: SweepState, records: Sequence[Record]) -> str:
    note = "What each trial reported; a dot is where one was ended early, or its only report"
    silent = sweep.num_finished - len(records)
    return f"{note}\n{count_of(silent, 'trial')} that ended without a report not shown" if silent else note


def _draw_group(axes: Any, group: Sequence[Record], best: int | None, name: str, layer: int) -> None:
    """The curves of trials that ended alike; the best, which is drawn by itself, is counted among them."""
    look: dict[str, Any] = {"color": _STATE_COLORS.get(name, PRUNED)}
    look |= {} if name in _STATE_COLORS else {"linestyle": (0, (3, 2))}
    alpha = 0.9 if len(group) < 20 else 0.55 if len(group) < 60 else 0.35
    if group:
        axes.plot([], [], label=f"{name} ({len(group)})", **look)
    for record in group:
        if record.number == best:
            continue
        steps, values = zip(*record.curve)
        color = look["color"]
        axes.plot(steps, values, linewidth=1.0, alpha=alpha, zorder=layer, **look)
        if record.state != "complete" or len(steps) == 1:
            axes.plot(steps[-1], values[-1], marker="o", markersize=3.2, color=color, zorder=layer, linestyle="none")


def _curve_limits(records: Sequence[Record], mode: Mode) -> tuple[float, float]:
    """All values after the first fifth of the way, but for the worst: how trials begin would squeeze the rest."""
    last = max(record.curve[-1][0] for record in records)
    values = [value for record in records for step, value in record.curve if step >= 0.2 * last]
    low, high = np.quantile(values, (0.02, 1.0) if mode == "max" else (0.0, 0.98)).tolist()
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


@dataclass(frozen=True)
class Bar:
    """A trial on the timeline, in seconds since the first one began.

    Args:
        record: The trial.
        start: Where it begins.
        end: Where it ends, or how far it is known to have come.
    """

    record: Record
    start: float
    end: float


def timeline_bars(sweep: SweepState) -> list[Bar]:
    """The trials that have ended or run, by start; none before the first has ended, as no time is known till then.

    A trial that was put back is left out: when it was stopped is not kept. Of one that was continued, no more is shown
    than the time for which it worked, up to its end, and nothing before the start that is known.
    """
    records = [record for record in sweep.records if record.started is not None and record.state != "waiting"]
    if all(record.ended is None for record in records):
        return []
    known = [time for record in records for time in (record.started, record.ended) if time is not None]
    first, last = min(known), max(known)
    bars = []
    for record in records:
        assert record.started is not None
        start = _seconds(record.started, first)
        end = _seconds(record.ended or last, first)
        if record.ended is not None and record.seconds < end - start:  # it was interrupted and continued later
            start = end - record.seconds
        bars.append(Bar(record, start, end))
    return sorted(bars, key=lambda bar: (bar.start, bar.record.number))


def lanes(bars: Sequence[Bar]) -> list[tuple[str, list[Bar]]]:
    """The bars of each machine, on as many lines as it ran trials at the same time.

    Args:
        bars: By start.
    """
    machines: dict[str, list[list[Bar]]] = {}
    for bar in bars:
        rows = machines.setdefault(bar.record.machine, [])
        # clocks and rounding: a trial may seem to begin just before the one it followed
        free = [row for row in rows if row[-1].end <= bar.start + 0.5 and row[-1].record.state != "running"]
        if free:
            max(free, key=lambda row: row[-1].end).append(bar)
        else:
            rows.append([bar])
    return [(machine, row) for machine, rows in machines.items() for row in rows]


def cut_pauses(bars: Sequence[Bar]) -> list[tuple[float, float]]:
    """Long times in which no trial ran, as (begin, end).

    Args:
        bars: By start.
    """
    gaps, busy, reached = [], 0.0, bars[0].start
    for bar in bars:
        if bar.start > reached:
            gaps.append((reached, bar.start))
        busy += max(bar.end - max(bar.start, reached), 0.0)
        reached = max(reached, bar.end)
    return [(begin, end) for begin, end in gaps if end - begin > max(_PAUSE * busy, 60.0)]


def draw_timeline(sweep: SweepState) -> Figure | None:
    """What ran when and where; None before the first one has ended."""
    bars = timeline_bars(sweep)
    if not bars:
        return None
    rows = lanes(bars)
    shown = rows[:_MOST_LANES]
    pauses = cut_pauses(bars)
    total = max(bar.end for bar in bars) - sum(end - begin for begin, end in pauses)
    width_s = _PAUSE_WIDTH * (total or 1.0)
    shift = [(end, end - begin - width_s) for begin, end in pauses]

    def at(time: float) -> float:
        return time - sum(cut for end, cut in shift if time >= end)

    name, unit = next(((name, unit) for name, unit in _UNITS if total >= 2 * unit), _UNITS[-1])
    figure = new_figure(9, 1.65 + 0.36 * len(shown), "Timeline", _timeline_note(sweep, rows))
    axes = figure.add_subplot()
    place(figure, left=1.25, right=0.15, top=0.8, bottom=0.85)
    style(axes, grid="x")
    span = at(max(bar.end for bar in bars)) or 1.0
    axes.set_xlim(-0.01 * span / unit, 1.01 * span / unit)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    best = {record.number for record in sweep.best[: len(sweep.best) if sweep.is_multi else 1]}
    for height, (_, row) in enumerate(shown):
        for bar in row:
            _draw_bar(axes, bar, height, at(bar.start) / unit, at(bar.end) / unit, bar.record.number in best)
    for begin, end in pauses:
        axes.axvspan(at(begin) / unit, at(end) / unit, color="#f0f0f0", zorder=0)
        middle = (at(begin) + at(end)) / 2 / unit
        text = f"pause {format_duration(end - begin)}"
        axes.text(middle, -0.62, text, fontsize=7.5, color=GREY, ha="center", va="bottom")
    axes.set_yticks(range(len(shown)), _lane_names(shown), fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{name} of work" if pauses else name, fontsize=9, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    _timeline_legend(figure, bars, best, sweep.is_multi)
    return figure


def _draw_bar(axes: Any, bar: Bar, height: int, start: float, end: float, is_best: bool) -> None:
    record = bar.record
    color = BEST if is_best else _STATE_COLORS[record.state]
    least = 0.002 * (axes.get_xlim()[1] - axes.get_xlim()[0])  # a trial that failed at once is seen too
    axes.barh(
        height, max(end - start, least), 0.74, left=start, color=color, edgecolor="white", linewidth=0.5, zorder=3
    )
    pixels = axes.transData.transform([(start, 0), (end, 0)])
    if pixels[1, 0] - pixels[0, 0] > 7.5 * len(str(record.number)) + 4:
        dark = "white" if record.state != "pruned" or is_best else "black"
        axes.text(
            (start + end) / 2, height, str(record.number), fontsize=7, color=dark, ha="center", va="center", zorder=4
        )


def _lane_names(rows: Sequence[tuple[str, list[Bar]]]) -> list[str]:
    machines = list(dict.fromkeys(machine for machine, _ in rows))
    counts = {machine: sum(other == machine for other, _ in rows) for machine in machines}
    seen: dict[str, int] = {}
    names = []
    for machine, _ in rows:
        seen[machine] = seen.get(machine, 0) + 1
        name = elide(machine, 18) if len(machines) > 1 or counts[machine] == 1 else ""
        lane = f"place {seen[machine]}" if counts[machine] > 1 else ""
        if name and lane:
            names.append(plain(name) if seen[machine] == 1 else "")
        else:
            names.append(plain(name or lane or "machine"))
    return names


def _timeline_note(sweep: SweepState, rows: Sequence[tuple[str, list[Bar]]]) -> str:
    parts = [f"{len(rows)} at a time" if len(rows) > 1 else "one after the other"]
    overheads = [record.overhead_s for record in sweep.records if math.isfinite(record.overhead_s)]
    if overheads:
        parts.append(f"{format_duration(statistics.median(overheads))} from a trial's start to its first step (median)")
    left_out = [record for record in sweep.records if record.state == "waiting" and record.started is not None]
    if left_out:
        parts.append(f"{count_of(len(left_out), 'stopped trial')} that will go on not shown")
    if len(rows) > _MOST_LANES:
        parts.append(f"{len(rows) - _MOST_LANES} more lines are not drawn")
    return "; ".join(parts)


def _timeline_legend(figure: Figure, bars: Sequence[Bar], best: set[int], is_multi: bool) -> None:
    there = {bar.record.state for bar in bars if bar.record.number not in best}
    patches = [Patch(color=color, label=state) for state, color in _STATE_COLORS.items() if state in there]
    if any(bar.record.number in best for bar in bars):
        patches.append(Patch(color=BEST, label="on the front" if is_multi else "best"))
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), fontsize=8.5, frameon=False)


def _seconds(time: datetime.datetime, first: datetime.datetime) -> float:
    return float(np.round((time - first).total_seconds(), 3))
