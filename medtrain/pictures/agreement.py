"""How predicted numbers agree with true ones: measurements, average scores of zones, grades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba

from medtrain.metrics.arrays import pearson
from medtrain.metrics.regression import scalar_metrics
from medtrain.metrics.zones import RISK_CUTS, RISK_NAMES, risk_class, score_metrics
from medtrain.pictures.figure import (
    FAINT,
    GRID,
    MAIN,
    SECOND,
    SIZE,
    TOP,
    add_axes,
    cut,
    distinct,
    draw_sentence,
    fit,
    new_figure,
    render,
    text_width,
    widest,
)

_SIDE = 400
_LIMITS = 1.96


def draw_agreement(
    predicted: np.ndarray, true: np.ndarray, *, title: str = "predicted and true values", unit: str = ""
) -> np.ndarray:
    """Draw predicted against true values with the line of identity, and beside it a Bland-Altman plot.

    The latter shows the difference over the mean of the two, with the mean difference and, dashed, the limits of
    agreement, 1.96 standard deviations to either side of it (Bland & Altman, Lancet 327, 1986).

    Args:
        predicted: [N].
        true: [N]; NaN is unlabelled.
        title: Heading.
        unit: Of the values, such as `mm`.

    Returns:
        uint8 [H, W, 3].
    """
    known = np.isfinite(true)
    said, truth = np.asarray(predicted, np.float64)[known], np.asarray(true, np.float64)[known]
    if not truth.size:
        return draw_sentence(title, "There is no labelled sample: nothing can be compared.")
    scores = scalar_metrics(said, truth)
    text = f"{truth.size} samples;  mean absolute error {_number(scores['mae'])}{_unit(unit)};  "
    figure = new_figure(2 * _SIDE + 216, TOP + _SIDE + 52, title, text + _correlation(said, truth))
    left, right = add_axes(figure, 68, TOP, _SIDE, _SIDE), add_axes(figure, 68 + _SIDE + 76, TOP, _SIDE, _SIDE)
    _square(left, np.concatenate([said, truth]))
    _scatter(left, truth, said)
    left.set_xlabel(f"true{_unit(unit, ' [{}]')}")
    left.set_ylabel(f"predicted{_unit(unit, ' [{}]')}")

    difference = said - truth
    mean, spread = float(difference.mean()), float(difference.std(ddof=1)) if truth.size > 1 else 0.0
    _scatter(right, (said + truth) / 2, difference)
    right.grid(True, color=GRID, linewidth=0.6)
    right.axhline(0, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    lines = [(mean, f"{mean:+#.3g}")]
    if spread:
        lines += [(mean + sign * _LIMITS * spread, f"{mean + sign * _LIMITS * spread:+#.3g}") for sign in (1, -1)]
    reach = max(*(abs(value) for value, _ in lines), float(np.abs(difference).max())) * 1.15 or 1.0
    right.set_ylim(-reach, reach)
    right.margins(x=0.12)
    for value, place, name in _apart(lines, 2 * reach * 18 / _SIDE):
        right.axhline(value, color=SECOND, linewidth=1.4, linestyle="-" if value == mean else (0, (4, 2)), zorder=4)
        right.annotate(name, (1.015, place), xycoords=("axes fraction", "data"), size=SIZE, color=SECOND, va="center")
    right.set_xlabel(f"mean of predicted and true{_unit(unit, ' [{}]')}")
    right.set_ylabel(f"predicted - true{_unit(unit, ' [{}]')}")
    return render(figure)


def draw_global_scores(
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    title: str = "average score of each image",
    cuts: Sequence[float] = RISK_CUTS,
    risk_names: Sequence[str] = RISK_NAMES,
    highest: float | None = None,
) -> np.ndarray:
    """Draw the predicted against the true average score of the zones, with the cuts between the risk classes.

    An image in a shaded square is put into the right risk class. Images whose true score is defined and whose predicted
    one is not stand below the axes, as crosses; images without a true score are counted in the subtitle.

    Args:
        predicted: [N]; NaN where undefined.
        true: [N]; NaN where undefined.
        title: Heading.
        cuts: Upper ends of the risk classes but the last.
        risk_names: Names of the risk classes.
        highest: The highest grade; of the data when None.

    Returns:
        uint8 [H, W, 3].
    """
    assert len(risk_names) == len(cuts) + 1, f"{len(cuts)} cuts make {len(cuts) + 1} classes, not {len(risk_names)}"
    scores = score_metrics(predicted, true)
    defined = np.isfinite(true)
    both = defined & np.isfinite(predicted)
    if not defined.any():
        return draw_sentence(title, "No image has a true score: every zone is unknown or unlabelled.")
    said, truth = predicted[both], true[both]
    if both.any():
        right = np.mean(risk_class(said, cuts) == risk_class(truth, cuts)) * both.sum() / defined.sum()
        text = f"mean absolute error {scores['score_mae']:.3f};  {_correlation(said, truth)};  "
        text += f"risk class right {right:.1%}"
    else:
        text = "no image has a predicted score"
    undefined = int(scores["n_score_undefined"])
    abstained = int(scores["n_score_abstained"])
    more = f"{abstained} without a predicted score (x);  " if abstained else ""
    more += f"{undefined} without a true score, not shown" if undefined else ""
    figure = new_figure(_SIDE + 130, TOP + 22 + _SIDE + 60 + (22 if more else 0), title, text)
    axes = add_axes(figure, 68, TOP + 22, _SIDE, _SIDE)
    top = max(highest or 0.0, float(np.nanmax(np.where(defined, true, np.nan))), *said.tolist(), *cuts)
    low, high = -0.04 * top, 1.04 * top
    _square(axes, np.array([0.0, top]), limits=(low, high))
    edges = [low, *cuts, high]
    for index, name in enumerate(distinct(list(risk_names), 110)):
        start, size = edges[index], edges[index + 1] - edges[index]
        axes.fill_between([start, start + size], start, start + size, color=MAIN, alpha=0.09, linewidth=0, zorder=0)
        room = size / (high - low) * _SIDE - 4
        middle = start + size / 2
        axes.text(middle, high, fit(name, room), size=SIZE, color=FAINT, ha="center", va="bottom")
        axes.text(high + 0.02 * top, middle, fit(name, room), size=SIZE, color=FAINT, va="center", rotation=270)
    for value in cuts:
        axes.axhline(value, color=FAINT, linewidth=0.8, zorder=1)
        axes.axvline(value, color=FAINT, linewidth=0.8, zorder=1)
    _scatter(axes, truth, said)
    lost = true[defined & ~both]
    axes.plot(lost, np.full(lost.size, low), "x", color=SECOND, markersize=6, clip_on=False, zorder=6)
    axes.set_xlabel("true average score")
    axes.set_ylabel("predicted average score")
    if more:
        height = figure.get_size_inches()[1] * figure.dpi
        figure.text(12 / (_SIDE + 130), 14 / height, more.rstrip("; "), size=SIZE, color=FAINT)
    return render(figure)


def draw_grades(
    expected: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, title: str = "expected and true grade"
) -> np.ndarray:
    """Draw the expected grade of every sample over its true grade, with the median and the middle half of each grade.

    Args:
        expected: Mean grade under the probabilities [N], 0 to K - 1.
        labels: True grades [N]; NaN is unlabelled.
        class_names: K names, in order.
        title: Heading.

    Returns:
        uint8 [H, W, 3].
    """
    known = np.isfinite(labels)
    said, truth = np.asarray(expected, np.float64)[known], np.asarray(labels, np.float64)[known].astype(int)
    if not truth.size:
        return draw_sentence(title, "There is no labelled sample: nothing can be compared.")
    classes = len(class_names)
    slot = max(64, min(110, 560 // classes))
    names = distinct(class_names, 130)
    left, height = 44 + widest(names), max(280, 44 * classes)
    text = f"{truth.size} samples;  mean absolute error {np.abs(said - truth).mean():.3f};  {_correlation(said, truth)}"
    width = int(max(left + slot * classes + 24, text_width(text) + 24))
    figure = new_figure(width, TOP + height + 76, title, text)
    axes = add_axes(figure, left, TOP, slot * classes, height)
    axes.grid(True, axis="y", color=GRID, linewidth=0.6)
    for grade in range(classes):
        values = np.sort(said[truth == grade])
        axes.plot((grade - 0.42, grade + 0.42), (grade, grade), color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        if not values.size:
            axes.text(grade, grade, "no sample", size=SIZE - 1, color=FAINT, ha="center", va="bottom")
            continue
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        spread = (np.arange(values.size) * 0.61803398875) % 1.0 - 0.5  # the golden ratio spreads any number evenly
        axes.plot(grade + 0.62 * spread, values, "o", markersize=3.5, color=to_rgba(MAIN, _opacity(values.size)), mew=0)
        axes.fill_between((grade - 0.38, grade + 0.38), low, high, color=SECOND, alpha=0.22, linewidth=0, zorder=3)
        axes.plot((grade - 0.38, grade + 0.38), (middle, middle), color=SECOND, linewidth=2, zorder=4)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(-0.3, classes - 0.7)
    counts = np.bincount(truth, minlength=classes)
    below = [f"{fit(name, slot - 6)}\n({count})" for name, count in zip(names, counts, strict=True)]
    axes.set_xticks(range(classes), below, linespacing=1.4)
    axes.set_yticks(range(classes), [fit(name, np.inf) for name in names])
    axes.set_xlabel("true grade  (samples)")
    axes.set_ylabel("expected grade")
    axes.yaxis.set_label_coords((18 - left) / (slot * classes), 0.5)
    return render(figure)


def _square(axes: Any, values: np.ndarray, *, limits: tuple[float, float] | None = None) -> None:
    """Give both axes the same range, with the line on which they are equal."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    low, high = limits or (low - margin, high + margin)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.plot((low, high), (low, high), color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)


def _scatter(axes: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Draw every point once, as large as the number of samples it stands for."""
    if not x.size:
        return
    points, counts = np.unique(np.round(np.stack([x, y]), 9), axis=1, return_counts=True)
    area = 16 * np.minimum(counts, 40)
    axes.scatter(
        *points, area, color=[to_rgba(MAIN, _opacity(points.shape[1]))], edgecolors="white", linewidths=0.4, zorder=3
    )


def _opacity(points: int) -> float:
    return float(np.clip(12 / np.sqrt(max(points, 1)), 0.25, 0.75))


def _correlation(said: np.ndarray, truth: np.ndarray) -> str:
    value = pearson(said, truth)
    return "correlation undefined" if np.isnan(value) else f"correlation {value:.3f}"


def _apart(lines: list[tuple[float, str]], least: float) -> list[tuple[float, float, str]]:
    """The lines upwards, each with a place for its text: at its value, but not within a text's height of the last."""
    placed: list[tuple[float, float, str]] = []
    for value, name in sorted(lines):
        place = max(value, placed[-1][1] + least) if placed else value
        placed.append((value, place, name))
    return placed


def _unit(unit: str, form: str = " {}") -> str:
    return form.format(cut(unit, 60)).replace("$", r"\$") if unit else ""


def _number(value: float) -> str:
    return f"{value:.3g}"
