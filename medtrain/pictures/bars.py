"""A table of metrics per class in which every number is a bar with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from medtrain.metrics.bootstrap import Interval
from medtrain.pictures.figure import (
    EMPTY,
    FAINT,
    INK,
    MAIN,
    SIZE,
    TOP,
    distinct,
    draw_sentence,
    fit,
    new_figure,
    render,
    widest,
)

_ROW, _BAR_WIDTH, _NUMBER_WIDTH, _GAP = 26, 110, 118, 22
_LIGHT = "#a6cbe3"


def draw_class_metrics(
    values: Mapping[str, Interval | float],
    class_names: Sequence[str],
    metrics: Sequence[str],
    *,
    support: Sequence[float] | None = None,
    title: str = "metrics of each class",
    note: str = "",
) -> np.ndarray:
    """Draw a row per class and a column per metric; each cell has a bar from 0 to 1, its number and its interval.

    Args:
        values: By key `<metric>/<class>`, such as `recall/liver`; the metric alone, such as `recall_macro`, is looked
            up as `<metric>_macro` and `<metric>` for a last row. NaN and absent keys are undefined.
        class_names: Classes, one per row.
        metrics: Names of ratios, one per column.
        support: Samples of every class.
        title: Heading.
        note: Subtitle, such as how the intervals were made.

    Returns:
        uint8 [H, W, 3].
    """
    keys = [f"{metric}/{name}" for metric in metrics for name in class_names]
    if not any(math.isfinite(_interval(values.get(key)).value) for key in keys):
        return draw_sentence(title, "No metric is defined for any class.")
    rows = distinct(class_names, 200)
    named = rows if support is None else [f"{name}  ({count:g})" for name, count in zip(rows, support, strict=True)]
    whole_keys = {metric: next((k for k in (f"{metric}_macro", metric) if k in values), None) for metric in metrics}
    overall = any(whole_keys.values())
    left = 24 + widest([*named, "all classes"])
    column = _BAR_WIDTH + _NUMBER_WIDTH + _GAP
    size = (
        int(left + column * len(metrics) + 8),
        int(TOP + 26 + _ROW * (len(rows) + overall) + (8 if overall else 0) + 12),
    )
    figure = new_figure(max(size[0], 320), size[1], title, note)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, max(size[0], 320))
    axes.set_ylim(size[1], 0)
    axes.set_axis_off()
    for order, metric in enumerate(metrics):
        x = left + order * column
        axes.text(
            x,
            TOP + 10,
            fit(metric.replace("_", " "), column - _GAP),
            size=SIZE,
            color=INK,
            weight="bold",
            va="center_baseline",
        )
    for row in range(len(rows)):
        y = TOP + 26 + row * _ROW
        axes.text(
            left - 10, y + _ROW / 2, fit(named[row], math.inf), size=SIZE, color=INK, ha="right", va="center_baseline"
        )
        for order, metric in enumerate(metrics):
            _draw_cell(axes, left + order * column, y, _interval(values.get(f"{metric}/{class_names[row]}")))
    if overall:
        y = TOP + 26 + len(rows) * _ROW + 8
        axes.plot((12, size[0] - 12), (y - 4, y - 4), color=FAINT, linewidth=0.8)
        axes.text(
            left - 10,
            y + _ROW / 2,
            "all classes",
            size=SIZE,
            color=INK,
            weight="bold",
            ha="right",
            va="center_baseline",
        )
        for order, metric in enumerate(metrics):
            key = whole_keys[metric]
            if key is not None:
                _draw_cell(axes, left + order * column, y, _interval(values.get(key)))
    return render(figure)


def _interval(value: Interval | float | None) -> Interval:
    if isinstance(value, Interval):
        return value
    return Interval(math.nan if value is None else float(value), math.nan, math.nan, 0, 0)


def _draw_cell(axes: Any, x: float, y: float, interval: Interval) -> None:
    middle = y + _ROW / 2
    axes.add_patch(Rectangle((x, y + 5), _BAR_WIDTH, _ROW - 10, facecolor=EMPTY, linewidth=0))
    if math.isnan(interval.value):
        axes.text(x + _BAR_WIDTH + 8, middle, "undefined", size=SIZE - 1, color=FAINT, va="center_baseline")
        return
    axes.add_patch(
        Rectangle(
            (x, y + 5), _BAR_WIDTH * float(np.clip(interval.value, 0, 1)), _ROW - 10, facecolor=_LIGHT, linewidth=0
        )
    )
    text = f"{interval.value:.3f}"
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        ends = [x + _BAR_WIDTH * float(np.clip(end, 0, 1)) for end in (interval.low, interval.high)]
        axes.plot(ends, (middle, middle), color=MAIN, linewidth=1.6, solid_capstyle="butt")
        for end in ends:
            axes.plot((end, end), (middle - 4, middle + 4), color=MAIN, linewidth=1.6, solid_capstyle="butt")
        range_text = f"{_short(interval.low)}-{_short(interval.high)}"
        axes.text(x + _BAR_WIDTH + 56, middle, range_text, size=SIZE - 1, color=FAINT, va="center_baseline")
    axes.text(x + _BAR_WIDTH + 8, middle, text, size=SIZE, color=INK, va="center_baseline")


def _short(value: float) -> str:
    """Two digits after the point, without the zero in front of it."""
    return f"{value:.2f}".replace("0.", ".", 1) if 0 <= value < 0.995 else f"{value:.2f}"
