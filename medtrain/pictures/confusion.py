"""Confusion matrices: of classes, of grades, and one per zone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from medtrain.metrics.arrays import ratio
from medtrain.metrics.ordinal import grade_metrics
from medtrain.pictures.figure import (
    EMPTY,
    FAINT,
    INK,
    SIZE,
    TOP,
    add_axes,
    distinct,
    draw_sentence,
    fit,
    new_figure,
    render,
    text_width,
    widest,
)

_LONGEST_NAME = 190
_LONGEST_ZONE_CLASS = 120
_BAR = 12


def draw_confusion(
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "confusion matrix",
    predicted_names: Sequence[str] | None = None,
    ordered: bool = False,
) -> np.ndarray:
    """Draw a confusion matrix: the count in every cell, and as colour its share of the true class.

    Up to 12 classes the share is written too. A class without a sample is a grey row.

    Args:
        confusion: Counts [K, P]; rows are true classes.
        class_names: K names.
        title: Heading.
        predicted_names: P names of the columns; those of the classes when None.
        ordered: The classes are grades: frame the cells that are off by one at most, and name the kappa.

    Returns:
        uint8 [H, W, 3].
    """
    class_names = distinct(class_names, _LONGEST_NAME)
    columns = class_names if predicted_names is None else distinct(predicted_names, _LONGEST_NAME)
    assert confusion.shape == (len(class_names), len(columns)), f"{confusion.shape} counts, {len(columns)} columns"
    if not confusion.sum():
        return draw_sentence(title, "There is no labelled sample: nothing can be compared.")
    cell = _cell(confusion)
    rows = [f"{name}  ({_count(total)})" for name, total in zip(class_names, confusion.sum(1))]
    left = 44 + widest(rows)
    upright = any(text_width(name) > cell - 6 for name in columns)
    below = 34 + (widest(columns) if upright else 16)
    width, height = cell * len(columns), cell * len(rows)
    summary = _summary(confusion, ordered=ordered)
    whole = int(max(left + width + 90, text_width(summary) + 24)), int(TOP + height + below + 8)
    figure = new_figure(*whole, title, summary)
    axes = add_axes(figure, left, TOP, width, height)
    shown = _draw_cells(axes, confusion, cell)
    _name_axis(axes.yaxis, rows, math.inf)
    _name_axis(axes.xaxis, columns, math.inf if upright else cell, upright=upright)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class  (samples)" if height > 150 else "true class")
    axes.yaxis.set_label_coords(-(left - 18) / width, 0.5)
    axes.xaxis.set_label_coords(0.5, -(below - 14) / height)
    if ordered:
        _frame_neighbours(axes, len(rows))
    _draw_scale(figure, shown, left + width + 16, TOP, height)
    return render(figure)


def draw_zone_confusions(
    confusions: np.ndarray,
    class_names: Sequence[str],
    zone_names: Sequence[str],
    *,
    title: str = "confusion matrix of each zone",
    columns: int | None = None,
) -> np.ndarray:
    """Draw one confusion matrix per zone; coloured by the share of the true class.

    Args:
        confusions: Counts [Z, K, K] of `zone_confusions`.
        class_names: K names.
        zone_names: Z names.
        title: Heading.
        columns: Matrices side by side; when None, two for an even number of up to eight zones, as zones of the chest
            come in pairs of right and left, else as many as make a square.

    Returns:
        uint8 [H, W, 3].
    """
    zones, classes = len(zone_names), len(class_names)
    class_names = distinct(class_names, _LONGEST_ZONE_CLASS)
    assert confusions.shape == (zones, classes, classes), f"{confusions.shape} counts, {zones} zones"
    if not confusions.sum():
        return draw_sentence(title, "There is no labelled zone: nothing can be compared.")
    if columns is None:
        columns = 2 if zones % 2 == 0 and zones <= 8 else math.ceil(math.sqrt(zones))
    lines = math.ceil(zones / columns)
    cell = min(_cell(confusions[index]) for index in range(zones))
    side = cell * classes
    upright = any(text_width(name) > cell - 6 for name in class_names)
    left = 44 + widest(class_names)
    below = 40 + (widest(class_names) if upright else 16)
    step_x, step_y = side + 24, side + 32
    whole = int(left + columns * step_x + 74), int(TOP + lines * step_y + below)
    figure = new_figure(*whole, title, "each row of a matrix is a true class; colour is its share")
    for zone, name in enumerate(zone_names):
        line, column = divmod(zone, columns)
        counts = confusions[zone]
        axes = add_axes(figure, left + column * step_x, TOP + 22 + line * step_y, side, side)
        right = f"{float(ratio(np.trace(counts), counts.sum())):.0%} of {_count(counts.sum())} right"
        right = right if counts.sum() else "no label"
        axes.set_title(fit(name, side - text_width(right) - 10, bold=True), loc="left", size=SIZE, weight="bold", pad=4)
        axes.set_title(right, loc="right", size=SIZE, color=FAINT, pad=4)
        shown = _draw_cells(axes, counts, cell)
        _name_axis(axes.yaxis, class_names if column == 0 else [""] * classes, math.inf)
        last = zone + columns >= zones
        _name_axis(axes.xaxis, class_names if last else [""] * classes, math.inf if upright else cell, upright=upright)
    middle = TOP + 22 + (lines * step_y - 10) / 2
    figure.text(18 / whole[0], 1 - middle / whole[1], "true class", size=SIZE, color=INK, rotation=90, va="center")
    center = (left + (columns * step_x - 24) / 2) / whole[0]
    figure.text(center, 14 / whole[1], "predicted class", size=SIZE, color=INK, ha="center", va="center")
    _draw_scale(figure, shown, left + columns * step_x - 6, TOP + 22, lines * step_y - 32)
    return render(figure)


def _summary(confusion: np.ndarray, *, ordered: bool) -> str:
    right, total = np.trace(confusion), confusion.sum()
    text = f"{_count(right)} of {_count(total)} samples right ({right / total:.1%})"
    if not ordered:
        return text
    grades = grade_metrics(confusion)
    kappa = "undefined" if math.isnan(grades["qwk"]) else f"{grades['qwk']:.3f}"
    return f"{text};  {grades['accuracy_within_1']:.1%} within one grade;  quadratic kappa {kappa}"


def _cell(confusion: np.ndarray) -> int:
    """Pixels of a cell: enough for what is written into it."""
    longest = max(text_width(_count(value)) for value in confusion.flat)
    least = (
        96
        if max(confusion.shape) <= 3
        else 58
        if max(confusion.shape) <= 6
        else 50
        if max(confusion.shape) <= 12
        else 30
    )
    return int(max(least, longest + 10))


def _draw_cells(axes: Any, confusion: np.ndarray, cell: int) -> Any:
    """Colours and numbers; the image that the scale belongs to."""
    total = confusion.sum(axis=1, keepdims=True)
    share = ratio(confusion, total)
    colors = matplotlib.colormaps["Blues"].with_extremes(bad=EMPTY)
    image = axes.imshow(share, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    for edge in range(1, confusion.shape[0]):
        axes.axhline(edge - 0.5, color="white", linewidth=1)
    for edge in range(1, confusion.shape[1]):
        axes.axvline(edge - 0.5, color="white", linewidth=1)
    both = max(confusion.shape) <= 12 and cell >= 46
    for (row, column), value in np.ndenumerate(confusion):
        if not value:
            continue
        ink = "white" if share[row, column] > 0.55 else INK
        if both:
            place = 11 / cell
            axes.text(column, row - place, _count(value), size=SIZE, color=ink, ha="center", va="center")
            axes.text(
                column, row + place, f"{share[row, column]:.0%}", size=SIZE - 1, color=ink, ha="center", va="center"
            )
        else:
            axes.text(column, row, _count(value), size=SIZE - 1, color=ink, ha="center", va="center")
    return image


def _name_axis(axis: Any, names: Sequence[str], width: float, *, upright: bool = False) -> None:
    axis.set_ticks(range(len(names)), [fit(name, width) for name in names], rotation=90 if upright else 0)
    axis.set_tick_params(length=0, pad=5)


def _frame_neighbours(axes: Any, classes: int) -> None:
    """Outline the cells that are off by one at most."""
    xs, ys = [-0.5], [-0.5]
    for index in range(classes):
        right = min(index + 1.5, classes - 0.5)
        xs += [right, right]
        ys += [index - 0.5, index + 0.5]
    for first, second in ((xs, ys), (ys, xs)):
        axes.plot(first, second, color=FAINT, linewidth=1.2, linestyle=(0, (3, 2)), clip_on=False)


def _draw_scale(figure: Any, image: Any, left: float, top: float, height: float) -> None:
    axes = add_axes(figure, left, top, _BAR, min(height, 220))
    bar = figure.colorbar(image, cax=axes, ticks=(0, 0.5, 1))
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], size=SIZE - 1, color=INK)
    bar.ax.tick_params(length=2, color=FAINT)
    bar.outline.set_visible(False)


def _count(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
