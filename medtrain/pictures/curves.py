"""How well scores rank and mean what they say: ROC, precision-recall and calibration curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from medtrain.metrics.calibration import Reliability
from medtrain.metrics.ranking import auroc, average_precision, precision_recall_curve, roc_curve
from medtrain.pictures.figure import (
    FAINT,
    GRID,
    INK,
    SIZE,
    TOP,
    add_axes,
    distinct,
    draw_sentence,
    fit,
    line_style,
    new_figure,
    render,
    text_width,
)

_SIDE = 400
_LONGEST_NAME = 220
_LEGEND_ROW = 20
_MISSING = "undefined, of one class only:"


@dataclass(frozen=True)
class Scores:
    """Scores of one class against the others.

    Args:
        name: Of the class.
        scores: [N], higher is more positive.
        labels: [N], 0 or 1; NaN is unlabelled.
        threshold: The chosen threshold, if there is one.
    """

    name: str
    scores: np.ndarray
    labels: np.ndarray
    threshold: float | None = None

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels of the labelled samples."""
        kept = np.isfinite(np.asarray(self.labels, dtype=np.float64))
        return np.asarray(self.scores)[kept], np.asarray(self.labels)[kept]


@dataclass(frozen=True)
class _Curve:
    name: str
    index: int
    x: np.ndarray
    y: np.ndarray
    area: float
    mark: tuple[float, float, float] | None  # x, y, threshold


def scores_of_classes(
    probs: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    thresholds: Mapping[str, float] | None = None,
) -> list[Scores]:
    """Split probabilities into one set of scores per class; with two classes, those of the second one alone.

    Args:
        probs: [N, K].
        labels: Class indices [N], or 0, 1 and NaN [N, K] where classes do not exclude each other.
        class_names: K names.
        thresholds: Chosen thresholds by class name.
    """
    probs, labels = np.asarray(probs), np.asarray(labels, dtype=np.float64)
    exclusive = labels.ndim == 1
    columns = [1] if exclusive and len(class_names) == 2 else list(range(len(class_names)))
    chosen = thresholds or {}
    found = []
    for k in columns:
        truth = np.where(np.isnan(labels), np.nan, labels == k) if exclusive else labels[:, k]
        found.append(Scores(class_names[k], probs[:, k], truth, chosen.get(class_names[k])))
    return found


def draw_roc(scores: Sequence[Scores], *, title: str = "ROC curve") -> np.ndarray:
    """Draw the ROC curve of one class, or those of several classes each against the others.

    The area under each curve stands beside its name; a class without positives or without negatives has none. The
    chosen threshold is a dot.

    Args:
        scores: One per class.
        title: Heading.

    Returns:
        uint8 [H, W, 3].
    """
    curves, missing = [], []
    names = distinct([one.name for one in scores], _LONGEST_NAME)
    for index, (one, name) in enumerate(zip(scores, names, strict=True)):
        values, labels = one.known()
        x, y, _ = roc_curve(values, labels)
        mark = None
        if x.size and one.threshold is not None and np.isfinite(one.threshold):
            accepted = values >= one.threshold
            mark = float(accepted[labels == 0].mean()), float(accepted[labels == 1].mean()), one.threshold
        if x.size:
            curves.append(_Curve(name, index, x, y, auroc(values, labels), mark))
        else:
            missing.append(name)
    reason = "The ROC curve needs positive and negative samples"
    if not curves:
        return draw_sentence(title, _nothing(reason, missing))
    figure, axes = _plot(curves, missing, title, "AUROC", steps=False)
    axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xlabel("false positive rate  (1 - specificity)")
    axes.set_ylabel("true positive rate  (sensitivity)")
    return render(figure)


def draw_precision_recall(scores: Sequence[Scores], *, title: str = "precision-recall curve") -> np.ndarray:
    """Draw the precision-recall curve of one class, or those of several classes each against the others.

    The average precision stands beside each name; what chance reaches, the share of positives, is a dotted line where
    there is one class. The chosen threshold is a dot.

    Args:
        scores: One per class.
        title: Heading.

    Returns:
        uint8 [H, W, 3].
    """
    curves, missing, prevalence = [], [], 0.0
    names = distinct([one.name for one in scores], _LONGEST_NAME)
    for index, (one, name) in enumerate(zip(scores, names, strict=True)):
        values, labels = one.known()
        precision, recall, _ = precision_recall_curve(values, labels)
        mark = None
        if recall.size and one.threshold is not None and np.isfinite(one.threshold):
            accepted = values >= one.threshold
            if accepted.any():
                mark = float(accepted[labels == 1].mean()), float(labels[accepted].mean()), one.threshold
        if recall.size:
            prevalence = float(labels.mean())
            x, y = np.concatenate([[0.0], recall]), np.concatenate([precision[:1], precision])
            curves.append(_Curve(name, index, x, y, average_precision(values, labels), mark))
        else:
            missing.append(name)
    if not curves:
        return draw_sentence(title, _nothing("The precision-recall curve needs positive and negative samples", missing))
    figure, axes = _plot(curves, missing, title, "average precision", steps=True)
    if len(curves) == 1:
        axes.axhline(prevalence, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        above = prevalence < 0.9
        axes.text(
            0.01,
            prevalence,
            "share of positives",
            size=SIZE - 1,
            color=FAINT,
            va="bottom" if above else "top",
            zorder=4,
        )
    axes.set_xlabel("recall  (sensitivity)")
    axes.set_ylabel("precision  (positive predictive value)")
    return render(figure)


def draw_calibration(curves: Mapping[str, Reliability], *, title: str = "calibration") -> np.ndarray:
    """Draw what was said against what came true, over a histogram of what was said.

    Args:
        curves: By name, such as before and after temperature scaling; with the same bins.
        title: Heading.

    Returns:
        uint8 [H, W, 3].
    """
    filled = {name: curve for name, curve in curves.items() if curve.weight.sum() > 0}
    if not filled:
        return draw_sentence(title, "There is no labelled sample: nothing is known of the calibration.")
    errors = {name: f"{curve.error:.3f}" for name, curve in filled.items()}
    single = len(filled) == 1
    subtitle = f"expected calibration error {next(iter(errors.values()))}" if single else "expected calibration error"
    legend = 0 if single else _LEGEND_ROW * len(filled) + 8
    figure = new_figure(_SIDE + 96, TOP + _SIDE + 16 + 90 + 50 + legend, title, subtitle)
    top = add_axes(figure, 68, TOP, _SIDE, _SIDE)
    bottom = add_axes(figure, 68, TOP + _SIDE + 16, _SIDE, 90)
    top.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
    top.text(0.03, 0.96, "says too little", size=SIZE - 1, color=FAINT, va="top")
    top.text(0.97, 0.04, "says too much", size=SIZE - 1, color=FAINT, ha="right")
    for index, curve in enumerate(filled.values()):
        some = curve.weight > 0
        style = line_style(index)
        sizes = 20 + 100 * np.sqrt(curve.weight[some] / curve.weight.sum())
        top.plot(curve.confidence[some], curve.frequency[some], linewidth=1.8, zorder=3 + index, **style)
        top.scatter(
            curve.confidence[some], curve.frequency[some], sizes, style["color"], zorder=3 + index, linewidths=0
        )
        widths = np.diff(curve.edges) / len(filled)
        bottom.bar(curve.edges[:-1] + index * widths, curve.weight, widths * 0.92, align="edge", color=style["color"])
    for axes in (top, bottom):
        axes.grid(True, color=GRID, linewidth=0.6)
        axes.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.02, 1.02)
    top.tick_params(labelbottom=False)
    top.set_ylabel("share that came true")
    bottom.set_ylabel("samples")
    bottom.set_xlabel("predicted probability")
    bottom.locator_params(axis="y", nbins=3, integer=True)
    figure.align_ylabels((top, bottom))
    if not single:
        names = [f"{short}  {error}" for short, error in zip(distinct(list(filled), _LONGEST_NAME), errors.values())]
        _legend(figure, [line_style(index) for index in range(len(names))], names, 56, TOP + _SIDE + 16 + 90 + 46)
    return render(figure)


def _plot(curves: list[_Curve], missing: list[str], title: str, area: str, *, steps: bool) -> tuple[Any, Any]:
    """The square with all curves, and beside it their names and areas, the largest first."""
    single = len(curves) == 1 and not missing
    mean = float(np.mean([curve.area for curve in curves]))
    subtitle = (
        f"{curves[0].name}:  {area} {mean:.3f}" if single else f"each class against the others;  mean {area} {mean:.3f}"
    )
    if single and curves[0].mark:
        subtitle += f";  threshold {curves[0].mark[2]:.3f}"
    curves = sorted(curves, key=lambda curve: (-curve.area, curve.index))
    names = [f"{curve.area:.3f}   {curve.name}" for curve in curves]
    legend = 0 if single else 60 + max(map(text_width, [*names, *missing, _MISSING if missing else ""]))
    rows = len(names) + (len(missing) + 1 if missing else 0)
    height = TOP + max(_SIDE + 50, 0 if single else rows * _LEGEND_ROW + 16)
    figure = new_figure(int(68 + _SIDE + 24 + legend), int(height), title, subtitle)
    axes = add_axes(figure, 68, TOP, _SIDE, _SIDE)
    many = len(curves) > 8
    for order, curve in enumerate(curves):
        style = line_style(curve.index)
        how = {"drawstyle": "steps-pre"} if steps else {}
        zorder = 3 + len(curves) - order
        axes.plot(curve.x, curve.y, linewidth=1.2 if many else 1.8, zorder=zorder, **style, **how)
        if curve.mark:
            axes.plot(*curve.mark[:2], "o", markersize=7, color=style["color"], markeredgecolor="white", zorder=99)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    if not single:
        _legend(figure, [line_style(curve.index) for curve in curves], names, 68 + _SIDE + 20, TOP)
        for row, name in enumerate([_MISSING, *missing] if missing else []):
            y = TOP + (len(names) + row) * _LEGEND_ROW + 10
            _write(figure, 68 + _SIDE + 20, y, name, FAINT)
    return figure, axes


def _legend(figure: Any, styles: Sequence[Mapping[str, Any]], names: Sequence[str], left: float, top: float) -> None:
    """Write names below each other, each behind a piece of its line."""
    width, height = figure.get_size_inches() * figure.dpi
    for row, (style, name) in enumerate(zip(styles, names, strict=True)):
        y = top + row * _LEGEND_ROW + 10
        figure.add_artist(Line2D((left / width, (left + 30) / width), (1 - y / height,) * 2, linewidth=1.8, **style))
        _write(figure, left + 38, y, name, INK)


def _write(figure: Any, x: float, y: float, text: str, color: str) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, 1 - y / height, fit(text, np.inf), size=SIZE, color=color, va="center_baseline")


def _nothing(reason: str, missing: Sequence[str]) -> str:
    names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"{reason}: all labelled samples are alike for {names}." if missing else f"{reason}; there are none."
