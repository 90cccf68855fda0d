"""Pictures of what won: the front of several objectives, and the best trained again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from medtrain.sweep.report.canvas import (
    BEST,
    GREY,
    MAIN,
    PRUNED,
    ROUND,
    draw_bound,
    foot_legend,
    new_figure,
    place,
    plain,
    style,
    value_limits,
)
from medtrain.sweep.report.names import count_of, elide, format_number
from medtrain.sweep.report.records import Record, SweepState
from medtrain.sweep.report.rerun_summary import RerunRow
from medtrain.sweep.result import Objective

_BEATEN = "#9db8d0"
_MOST_PAIRS = 6
_MOST_RERUNS = 12


def draw_pareto(sweep: SweepState) -> Figure | None:
    """Each pair of objectives, with the trials that no other one beats; None for one objective or no complete trial."""
    objectives = sweep.definition.objectives
    records = [record for record in sweep.select("complete") if all(map(math.isfinite, record.values))]
    if not sweep.is_multi or not records:
        return None
    pairs = [(a, b) for b in range(len(objectives)) for a in range(b)][:_MOST_PAIRS]
    columns = 1 if len(pairs) == 1 else 3
    rows = math.ceil(len(pairs) / columns)
    width, height = (8.0, 6.1) if columns == 1 else (13.5, 1.4 + 4.1 * rows)
    note = _pareto_note(sweep)
    figure = new_figure(width, height, "Pareto front", note)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    place(figure, left=0.85, right=0.3, top=0.85, bottom=1.0, wspace=0.3, hspace=0.3)
    for axes, (a, b) in zip(grid, pairs):
        _pareto_panel(axes, sweep, records, b, a)
    for axes in grid[len(pairs) :]:
        axes.remove()
    foot_legend(figure, grid[: len(pairs)])
    return figure


def _pareto_note(sweep: SweepState) -> str:
    note = "No trial beats one of the front in every objective; numbers are trials"
    metrics = {objective.metric for objective in sweep.definition.objectives}
    hidden = [str(limit) for limit in sweep.definition.constraints if limit.metric not in metrics]
    return f"{note}\nAlso asked for: {elide(', '.join(hidden), 90)}" if hidden else note


def _pareto_panel(axes: Any, sweep: SweepState, records: Sequence[Record], a: int, b: int) -> None:
    """The later objective (a cost, as a rule) to the right, the earlier one up."""
    style(axes)
    right, up = sweep.definition.objectives[a], sweep.definition.objectives[b]
    limits = {}
    for axis, objective, index in ((axes.xaxis, right, a), (axes.yaxis, up, b)):
        values, kept = ([record.values[index] for record in group] for group in (records, sweep.best))
        bounds = [limit.bound for limit in sweep.definition.constraints if limit.metric == objective.metric]
        limits[index] = value_limits(axis, values, objective.mode, keep=[*kept, *_near(bounds, values)])
        better = "higher is better" if objective.mode == "max" else "lower is better"
        axis.set_label_text(plain(f"{elide(objective.metric, 30)} ({better})"), fontsize=9, color=GREY)
    front = {record.number for record in sweep.best}
    beaten = [record for record in records if record.number not in front and record.is_candidate]
    outside = [record for record in records if record.number not in front and not record.is_candidate]
    looks: tuple[dict[str, Any], ...] = ({"s": 24, "color": _BEATEN}, {"s": 26, "color": PRUNED, "marker": "x"})
    for group, look, label in zip((beaten, outside), looks, ("beaten", "misses a constraint")):
        if group:
            # far outliers on the bad side are drawn at the edge
            places = [np.clip([record.values[index] for record in group], *limits[index]) for index in (a, b)]
            axes.scatter(*places, linewidth=1, zorder=3, label=label, clip_on=False, **look)
    for constraint in sweep.definition.constraints:
        for way, objective in (("x", right), ("y", up)):
            if constraint.metric == objective.metric:
                draw_bound(axes, way, constraint.bound, str(constraint))  # type: ignore[arg-type]
    best = sorted(sweep.best, key=lambda record: (record.values[a], record.values[b]))
    xs, ys = ([record.values[index] for record in best] for index in (a, b))
    if len(sweep.definition.objectives) == 2:
        # the corner between two neighbours lies on the worse side of both
        axes.step(xs, ys, where="post" if right.mode == "min" else "pre", color=BEST, linewidth=1.2, zorder=4)
    if best:
        axes.scatter(xs, ys, s=40, color=BEST, zorder=5, label=f"front ({count_of(len(best), 'trial')})")
    _number_points(axes, best, a, b, (right, up))


def _near(bounds: Sequence[float], values: Sequence[float]) -> list[float]:
    """The limits for which the axis need not be made much longer."""
    low, high = min(values), max(values)
    room = 0.5 * (high - low)
    return [bound for bound in bounds if low - room <= bound <= high + room]


def _number_points(axes: Any, best: Sequence[Record], a: int, b: int, objectives: tuple[Objective, Objective]) -> None:
    """Numbers beside the points of the front, on the better side, where no point lies; close ones are left out."""
    dx, dy = (5 if objective.mode == "max" else -5 for objective in objectives)
    points = [axes.transData.transform((record.values[a], record.values[b])) for record in best]
    taken: list[np.ndarray] = []
    for record, point in zip(best, points):
        label = point + 3 * np.array([dx, dy])  # its middle
        near = [np.abs(label - other) for other in (*points, *taken)]
        if any(away[0] < 16 and away[1] < 11 for away in near):
            continue
        taken.append(label)
        axes.annotate(
            str(record.number),
            (record.values[a], record.values[b]),
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="bottom" if dy > 0 else "top",
            fontsize=8,
            color=BEST,
            zorder=6,
        )


def draw_reruns(sweep: SweepState, rows: Sequence[RerunRow]) -> Figure | None:
    """The best trained again: each run, mean and spread, and what the search had said; None when none was."""
    objective = sweep.definition.objectives[0]
    rows = [row for row in rows if row.runs][:_MOST_RERUNS]
    if not rows:
        return None
    note = f"{elide(objective.metric, 40)} of every run; a value from the search alone is often luck"
    figure = new_figure(9, 1.75 + 0.42 * len(rows), "The best, trained again", note)
    axes = figure.add_subplot()
    place(figure, left=0.95, right=0.3, top=0.75, bottom=0.8)
    style(axes, grid="x")
    searched = {record.number: record.values[0] for record in sweep.records}
    for height, row in enumerate(rows):
        _rerun_row(axes, height, row, searched.get(row.trial, math.nan))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [f"trial {row.trial}" for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor="black")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND))
    unique = dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(unique.values(), unique.keys(), loc="lower center", ncols=4, fontsize=8.5, frameon=False)
    return figure


def _rerun_row(axes: Any, height: int, row: RerunRow, searched: float) -> None:
    color = BEST if height == 0 else MAIN
    values, mean, std = row.values(), row.mean(), row.std()
    if math.isfinite(std):
        label = "standard deviation"
        axes.barh(height, 2 * std, 0.5, left=mean - std, color=color, alpha=0.18, linewidth=0, zorder=2, label=label)
    axes.vlines(mean, height - 0.32, height + 0.32, color=color, linewidth=2.4, zorder=4, label="mean")
    axes.scatter(values, [height] * len(values), s=22, color=color, alpha=0.75, linewidth=0, zorder=5, label="one run")
    if math.isfinite(searched):
        options = {"s": 44, "marker": "D", "facecolor": "white", "edgecolor": GREY, "linewidth": 1.2}
        axes.scatter([searched], [height], zorder=3, label="value in the search", **options)
