"""Pictures of the search space: where the good values lie, in one parameter, in two and in all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from scipy.stats import binned_statistic, binned_statistic_2d

from medtrain.config.space import Dimension
from medtrain.sweep.report.canvas import (
    BEST,
    BETTER,
    BOUND,
    FAILED,
    GREY,
    MAIN,
    PRUNED,
    Scale,
    add_note,
    axis_name,
    beyond,
    jitter,
    new_figure,
    place,
    plain,
    style,
    value_limits,
)
from medtrain.sweep.report.names import elide, format_number, short_names
from medtrain.sweep.report.records import Record, SweepState
from medtrain.sweep.report.values import goodness, robust_limits

_MOST_SLICES = 16
_MOST_AXES = 12
_MOST_PAIRS = 6
_BAND = 0.09  # of the height of a slice
_LEAST_POINTS = 10  # in a pair of parameters, for a picture of it
_PARTS = 8  # of a range, each with its median
_CELLS = 6  # of a range on a map
_LEAST_FOR_MEDIAN = 3
_SPREAD = 0.12  # of a category's part of an axis
_HAIR = 0.006  # of the height of an axis: lines through one category touch, and none seems to have another value


def draw_slice(sweep: SweepState, keys: Sequence[str], objective: int = 0) -> Figure | None:
    """The objective over each parameter; None without a complete trial.

    Args:
        sweep: The sweep.
        keys: Parameters, the most important first.
        objective: Its index.
    """
    records = [record for record in sweep.select("complete") if math.isfinite(record.values[objective])]
    shown = [sweep.dimension(key) for key in keys[:_MOST_SLICES] if any(key in record.params for record in records)]
    if not shown:
        return None
    aim = sweep.definition.objectives[objective]
    columns = 3 if len(shown) in (5, 6, 9) else min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    width = max(1.0 + 3.05 * columns, 6.2)
    crowded = [any(Scale(each).is_crowded for each in shown[row * columns :][:columns]) for row in range(rows)]
    heights = [part for is_crowded in crowded for part in (1.9, 0.95 if is_crowded else 0.58)]  # panels, labels, ...
    height = 0.92 + sum(heights)
    better = "higher is better" if aim.mode == "max" else "lower is better"
    figure = new_figure(width, height, f"{elide(aim.metric, 40)} over each parameter ({better})")
    parts = figure.subplots(2 * rows, columns, sharey=True, squeeze=False, height_ratios=heights)
    place(figure, left=0.75, right=0.15, top=0.92, bottom=0.0, wspace=0.1, hspace=0.0)
    grid = parts[::2].ravel()
    limits = value_limits(grid[0].yaxis, [record.values[objective] for record in records], aim.mode)
    add_note(figure, _slice_note(records, objective, limits))
    _make_room(grid[0], limits)
    short = short_names(dimension.key for dimension in sweep.definition.space.dimensions)
    for index, (axes, dimension) in enumerate(zip(grid, shown)):
        _slice_panel(axes, sweep, dimension, objective, limits)
        axes.set_xlabel(axis_name(dimension.key, short, 30), fontsize=9.5, color="black")
        if index % columns:
            axes.tick_params(axis="y", length=0, labelleft=False)
        else:
            axes.set_ylabel(plain(elide(aim.metric, 22)), fontsize=9, color=GREY)
    for axes in (*grid[len(shown) :], *parts[1::2].ravel()):
        axes.remove()
    return figure


def _slice_note(records: Sequence[Record], objective: int, limits: tuple[float, float]) -> str:
    note = "Dots: complete trials; star: the best; lines: medians; ticks: pruned (grey), failed (violet)"
    hollow = "" if all(record.is_candidate for record in records) else "hollow: misses a constraint"
    more = "; ".join(filter(None, [hollow, beyond(records, objective, limits)]))
    return f"{note}\n{more[:1].upper()}{more[1:]}" if more else note


def _make_room(axes: Any, limits: tuple[float, float]) -> None:
    """Leave a band below the lower limit, for the ticks of trials without a value."""
    low, high = limits
    share = 1 / (1 - _BAND)
    log = axes.get_yscale() == "log"
    axes.set_ylim(high * (low / high) ** share if log else high - (high - low) * share, high)


def _slice_panel(
    axes: Any, sweep: SweepState, dimension: Dimension, objective: int, limits: tuple[float, float]
) -> None:
    style(axes)
    scale = Scale(dimension)
    key = dimension.key
    records = [r for r in sweep.select("complete") if key in r.params and math.isfinite(r.values[objective])]
    exact = np.array([record.values[objective] for record in records])
    values = np.clip(exact, *limits)
    places = np.array([scale.position(record.params[key]) for record in records])
    _draw_medians(axes, scale, places, values)
    shifted = places + jitter(len(places), 1, _SPREAD) if scale.is_named else places
    allowed = np.array([record.is_candidate for record in records], dtype=bool)
    for inside, marker in ((exact == values, "o"), (exact < values, "v"), (exact > values, "^")):
        for mask, face in ((allowed & inside, MAIN), (~allowed & inside, "white")):
            look = {"facecolor": face, "edgecolor": MAIN, "linewidth": 0.6, "alpha": 0.7, "zorder": 3}
            if mask.any():
                axes.scatter(shifted[mask], values[mask], s=17 if marker == "o" else 26, marker=marker, **look)
    best = best_record(sweep, objective)
    for place_, record, value in zip(shifted, records, values):
        if best is not None and record.number == best.number:
            axes.plot(place_, value, marker="*", markersize=13, color=BEST, zorder=5)
    axes.add_patch(Rectangle((0, 0), 1, _BAND, transform=axes.transAxes, color="#eeeeee", zorder=0.5, linewidth=0))
    _draw_ticks(axes, scale, sweep.select("pruned"), 0.01, PRUNED)
    _draw_ticks(axes, scale, sweep.select("failed"), _BAND / 2, FAILED)
    scale.apply(axes.xaxis, rotate=True)


def _draw_ticks(axes: Any, scale: Scale, records: Sequence[Record], height: float, color: Any) -> None:
    """A tick in the band for each trial without a value."""
    key = scale.dimension.key
    places = np.array([scale.position(record.params[key]) for record in records if key in record.params])
    if places.size:
        places = places + jitter(len(places), 2, _SPREAD) if scale.is_named else places
        where = {"transform": axes.get_xaxis_transform(), "linewidth": 1, "zorder": 2}
        axes.vlines(places, height, height + _BAND / 2 - 0.01, color=color, **where)


def _draw_medians(axes: Any, scale: Scale, places: np.ndarray, values: np.ndarray) -> None:
    """The median of each slot, or of each part of a range, where there are enough trials for one."""
    edges = scale.edges(_PARTS)
    medians, _, _ = binned_statistic(places, values, "median", edges)
    counts, _ = np.histogram(places, edges)
    enough = counts >= _LEAST_FOR_MEDIAN
    gap = 0.15 if scale.slots else 0.0
    axes.hlines(medians[enough], edges[:-1][enough] + gap, edges[1:][enough] - gap, color=GREY, linewidth=2, zorder=4)


def best_record(sweep: SweepState, objective: int = 0) -> Record | None:
    """The best trial that may win in one objective."""
    sign = 1 if sweep.definition.objectives[objective].mode == "max" else -1
    return max(
        (record for record in sweep.records if record.is_candidate),
        key=lambda record: sign * record.values[objective],
        default=None,
    )


def draw_parallel(sweep: SweepState, keys: Sequence[str]) -> Figure | None:
    """Every trial as a line through all parameters to its objectives; None with fewer than two complete trials.

    Args:
        sweep: The sweep.
        keys: Parameters, the most important first.
    """
    records = [record for record in sweep.select("complete") if all(map(math.isfinite, record.values))]
    shown = [sweep.dimension(key) for key in keys[:_MOST_AXES] if any(key in record.params for record in records)]
    if len(records) < 2 or not shown:
        return None
    objectives = sweep.definition.objectives
    count = len(shown) + len(objectives)
    width = max(9.0, 1.6 + 0.98 * count)
    red = "front" if sweep.is_multi else "best"
    figure = new_figure(width, 5.55, f"Parallel coordinates: the way to {elide(objectives[0].metric, 40)}")
    axes = figure.add_axes((0.75 / width, 0.085, 1 - 1.5 / width, 0.665))
    axes.set_xlim(0, count - 1)
    axes.set_ylim(-0.13, 1.0)
    axes.axis("off")
    scales = [Scale(dimension, 16) for dimension in shown]
    ends = [objective_limits(sweep, records, index) for index in range(len(objectives))]
    heights = np.array([_heights(record, scales, ends, nth) for nth, record in enumerate(records)])
    add_note(figure, _parallel_note(records, red, ends))
    _draw_paths(axes, sweep, records, heights)
    for index, limits in enumerate(ends):
        _draw_beyond(axes, records, index, len(shown) + index, limits)
    short = short_names(dimension.key for dimension in sweep.definition.space.dimensions)
    names = [axis_name(dimension.key, short, 18) for dimension in shown]
    names += [plain(elide(objective.metric, 18)) for objective in objectives]
    labels = [_axis_labels(scale) for scale in scales]
    labels += [[(s, format_number(low + s * (high - low), 3)) for s in (0.0, 0.5, 1.0)] for low, high in ends]
    turn = 20 if max(map(len, names)) > 12 else 0
    for x, name in enumerate(names):
        _draw_axis(axes, x, name, labels[x], turn=turn, bold=x >= len(shown))
        if x < len(shown) and shown[x].when:
            axes.text(x, -0.135, "none", ha="center", va="top", fontsize=8, color=GREY)
    return figure


def _parallel_note(records: Sequence[Record], red: str, ends: Sequence[tuple[float, float]]) -> str:
    note = (
        f"Complete trials; the darker the better, the {red} in red. A line below an axis does not have that parameter"
    )
    faint = "" if all(record.is_candidate for record in records) else "grey, dashed: misses a constraint"
    out = next(filter(None, (beyond(records, index, limits) for index, limits in enumerate(ends))), "")
    more = "; ".join(filter(None, [faint, out]))
    return f"{note}\n{more[:1].upper()}{more[1:]}" if more else note


def _draw_paths(axes: Any, sweep: SweepState, records: Sequence[Record], heights: np.ndarray) -> None:
    """The lines, the good ones on top; what may not win is faint, however good it is."""
    allowed = [nth for nth, record in enumerate(records) if record.is_candidate]
    values = [records[nth].values[0] for nth in allowed]
    good = goodness(values, sweep.definition.objectives[0].mode).tolist() if values else []
    top = _highlighted(sweep, records)
    for nth in set(range(len(records))) - set(allowed):
        _draw_path(axes, heights[nth], PRUNED, 0.8, 0.45, 2.5, dashed=True)
    for nth, strength in sorted(zip(allowed, good), key=lambda pair: pair[1]):
        is_top = records[nth].number in top
        color = BEST if is_top else BETTER(0.15 + 0.85 * strength)
        width = 2.0 if is_top else 0.7 + 0.7 * strength
        alpha = 1.0 if is_top else 0.4 + 0.45 * strength
        _draw_path(axes, heights[nth], color, width, alpha, 3 + strength + 2 * is_top)


def _draw_beyond(axes: Any, records: Sequence[Record], index: int, x: int, limits: tuple[float, float]) -> None:
    """A triangle at the end of an objective's axis where a value lies beyond it."""
    low, high = limits
    for edge, marker, is_out in ((0.0, "v", lambda value: value < low), (1.0, "^", lambda value: value > high)):
        if any(is_out(record.values[index]) for record in records):
            axes.plot(x, edge, marker=marker, color=MAIN, markersize=6, linestyle="none", clip_on=False, zorder=7)


def _highlighted(sweep: SweepState, records: Sequence[Record]) -> set[int]:
    """The front, or the best trial."""
    if sweep.is_multi:
        return {record.number for record in sweep.best[:5]}
    return {record.number for record in sweep.best[:1]} & {record.number for record in records}


def objective_limits(sweep: SweepState, records: Sequence[Record], index: int) -> tuple[float, float]:
    """Ends of an objective's axis: all values, but for far outliers on the bad side."""
    values = [record.values[index] for record in records]
    low, high = robust_limits(values, sweep.definition.objectives[index].mode)
    return (low, high) if high > low else (low - 1, high + 1)


def _heights(record: Record, scales: Sequence[Scale], ends: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """Where a trial's line crosses each axis: at its value."""
    spread = jitter(len(scales), seed, _HAIR)
    heights = []
    for scale, offset in zip(scales, spread):
        key = scale.dimension.key
        if key not in record.params:
            heights.append(-0.10)
        else:
            heights.append(scale.unit(record.params[key]) + (float(offset) if scale.is_named else 0.0))
    heights += [float(np.clip((v - low) / (high - low), 0, 1)) for v, (low, high) in zip(record.values, ends)]
    return heights


def _draw_path(
    axes: Any, heights: np.ndarray, color: Any, width: float, alpha: float, layer: float, *, dashed: bool = False
) -> None:
    """A curve that is level at every axis, so that lines can be followed through it."""
    points: list[tuple[float, float]] = [(0.0, float(heights[0]))]
    codes = [Outline.MOVETO]
    for x, (here, there) in enumerate(itertools.pairwise(heights.tolist())):
        points += [(x + 0.4, here), (x + 0.6, there), (x + 1.0, there)]
        codes += [Outline.CURVE4] * 3
    axes.add_patch(
        PathPatch(
            Outline(points, codes),
            facecolor="none",
            edgecolor=color,
            linewidth=width,
            linestyle=(0, (4, 3)) if dashed else "-",
            alpha=alpha,
            zorder=layer,
            clip_on=False,
        )
    )


def _axis_labels(scale: Scale) -> list[tuple[float, str]]:
    if scale.slots:
        return [((index + 0.5) / len(scale.slots), label) for index, label in enumerate(scale.labels)]
    low, high = scale.dimension.low, scale.dimension.high
    assert low is not None
    assert high is not None
    middle = math.sqrt(low * high) if scale.log else (low + high) / 2
    middle = round(middle) if scale.dimension.kind == "int" else middle
    return [(scale.unit(value), format_number(value, digits)) for value, digits in ((low, 3), (middle, 2), (high, 3))]


def _draw_axis(axes: Any, x: int, name: str, labels: Sequence[tuple[float, str]], *, turn: int, bold: bool) -> None:
    axes.plot([x, x], [0, 1], color="black" if bold else "#888888", linewidth=1.6 if bold else 1.0, zorder=2)
    heading = {"va": "bottom", "fontsize": 9, "fontweight": "bold" if bold else None}
    axes.text(x, 1.045, name, ha="left" if turn else "center", rotation=turn, rotation_mode="anchor", **heading)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
    step = max(1, math.ceil(len(labels) / 12))
    for share, text in labels[::step]:
        axes.text(x + 0.03, share, text, ha="left", va="center", fontsize=7.5, color="#333333", bbox=box, zorder=8)


def draw_contour(sweep: SweepState, keys: Sequence[str], objective: int = 0) -> Figure | None:
    """The objective over pairs of the most important parameters; None where too few trials have both.

    Args:
        sweep: The sweep.
        keys: Parameters, the most important first.
        objective: Its index.
    """
    records = [record for record in sweep.select("complete") if math.isfinite(record.values[objective])]
    pairs = _contour_pairs(records, keys)
    if not pairs:
        return None
    aim = sweep.definition.objectives[objective]
    columns = len(pairs) if len(pairs) <= 3 else 2 if len(pairs) == 4 else 3
    rows = math.ceil(len(pairs) / columns)
    width = 1.2 + (3.9 if columns > 1 else 5.2) * columns
    note = "Dots are complete trials, on the median of each part; the darker the better"
    if not all(record.is_candidate for record in records):
        note += "; crosses miss a constraint"
    figure = new_figure(width, 0.9 + 3.5 * rows, f"{elide(aim.metric, 40)} over two parameters", note)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    place(figure, left=1.0, right=1.0, top=0.8, bottom=0.75, wspace=0.46, hspace=0.42)
    values = [record.values[objective] for record in records]
    low, high = objective_limits(sweep, records, objective)
    inside = [min(max(value, low), high) for value in values]
    norm = Normalize(min(inside), max(inside)) if max(inside) > min(inside) else Normalize(low, high)
    colors = BETTER if aim.mode == "max" else BETTER.reversed()
    short = short_names(dimension.key for dimension in sweep.definition.space.dimensions)
    for axes, (first, second) in zip(grid, pairs):
        _contour_panel(axes, sweep, records, (first, second), objective, norm, colors)
        axes.set_xlabel(axis_name(first, short), fontsize=9.5)
        axes.set_ylabel(axis_name(second, short, 20), fontsize=9.5)
    for axes in grid[len(pairs) :]:
        axes.remove()
    _color_bar(figure, norm, colors)
    return figure


def _contour_pairs(records: Sequence[Record], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of the first keys with enough different points."""
    pairs = []
    for second in range(1, min(len(keys), 6)):
        for first in range(second):
            points = {
                (record.params[keys[first]], record.params[keys[second]])
                for record in records
                if keys[first] in record.params and keys[second] in record.params
            }
            there = sum(keys[first] in record.params and keys[second] in record.params for record in records)
            if there >= _LEAST_POINTS and all(len({p[i] for p in points}) > 1 for i in (0, 1)):
                pairs.append((keys[first], keys[second]))
    return pairs[:_MOST_PAIRS]


def _contour_panel(
    axes: Any,
    sweep: SweepState,
    records: Sequence[Record],
    pair: tuple[str, str],
    objective: int,
    norm: Normalize,
    colors: Any,
) -> None:
    here = [record for record in records if pair[0] in record.params and pair[1] in record.params]
    x, y = (Scale(sweep.dimension(key), 11) for key in pair)
    values = np.clip([record.values[objective] for record in here], norm.vmin, norm.vmax)
    axes.spines[:].set_color("#999999")
    axes.tick_params(labelsize=8.5, labelcolor=GREY, color="#999999")
    xs = np.array([x.position(record.params[pair[0]]) for record in here])
    ys = np.array([y.position(record.params[pair[1]]) for record in here])
    medians, x_edges, y_edges, _ = binned_statistic_2d(xs, ys, values, "median", [x.edges(_CELLS), y.edges(_CELLS)])
    axes.pcolormesh(x_edges, y_edges, medians.T, cmap=colors, norm=norm, zorder=1)
    xs = xs + jitter(len(xs), 3) if x.slots else xs
    ys = ys + jitter(len(ys), 4) if y.slots else ys
    allowed = np.array([record.is_candidate for record in here], dtype=bool)
    look = {"cmap": colors, "norm": norm, "edgecolor": "#8794a0", "linewidth": 0.7, "zorder": 3}
    axes.scatter(xs[allowed], ys[allowed], s=15, c=values[allowed], **look)
    axes.scatter(xs[~allowed], ys[~allowed], s=18, marker="x", color=BOUND, linewidth=1.1, zorder=3)
    best = best_record(sweep, objective)
    for at, up, record in zip(xs, ys, here):
        if best is not None and record.number == best.number:
            axes.plot(at, up, marker="*", markersize=14, color=BEST, markeredgecolor="white", zorder=5)
    x.apply(axes.xaxis, rotate=True)
    y.apply(axes.yaxis)


def _color_bar(figure: Figure, norm: Normalize, colors: Any) -> None:
    width, height = figure.get_size_inches()
    bar_axes = figure.add_axes((1 - 0.75 / width, 0.75 / height, 0.14 / width, min(2.6, height - 1.6) / height))
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=bar_axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, labelcolor=GREY, color="#999999")
