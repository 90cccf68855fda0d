"""The metrics of one case, and their summary over cases.

Empty structures, the one rule (`EMPTY_RULE`, also in every summary.json): a structure in neither map has nothing to be
judged and is NaN in all metrics but the volume errors, which are 0. A structure in only one of the maps scores 0 in
dice, iou, precision, recall and nsd; its distances hd95_mm and asd_mm do not exist and are NaN. What was not annotated
in a case is NaN in all of that case's metrics. Means are taken over the cases in which a metric is defined, and the
number of the others is told (`n_undefined`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medtrain.metrics.lesions import (
    CANDIDATES,
    COUNTS,
    LESION_METRICS,
    LesionRule,
    ScoredCase,
    froc_scores,
    lesion_row,
    lesion_scores,
    match_lesions,
    scored_cases,
)
from medtrain.metrics.overlap import OVERLAP_METRICS, as_label_map, confusion_matrix, count_voxels, overlap_scores
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.surface import SURFACE_METRICS, bounding_box, surface_metrics

EMPTY_RULE = (
    "A structure in neither map is NaN in all metrics but the volume errors, which are 0. A structure in only one map "
    "scores 0 in dice, iou, precision, recall and nsd, and NaN in hd95_mm and asd_mm, which do not exist. What was not "
    "annotated in a case is NaN there. Means are over the cases in which a metric is defined."
)

CASE_METRICS = (
    MetricSpec("dice", "max"),
    MetricSpec("nsd", "max"),
    MetricSpec("hd95_mm", "min", "mm"),
    MetricSpec("asd_mm", "min", "mm"),
    MetricSpec("iou", "max"),
    MetricSpec("precision", "max"),
    MetricSpec("recall", "max"),
    MetricSpec("volume_error_ml", "min", "mL"),
)
"""Metrics of a case that are averaged."""

VOLUMES = ("volume_bias_ml", "volume_ml")
"""Columns of a case that have no better direction: predicted minus true volume, and the true volume."""


def metric_specs(
    class_names: Sequence[str], lesions: Sequence[str] = (), *, froc: bool = False
) -> dict[str, MetricSpec]:
    """The metrics of `summarize` by key, the default monitor first: `dice`, ..., `dice/liver`, ...

    Args:
        class_names: Name of every class index, background first; or any name and those of the regions.
        lesions: Those that are made of lesions.
        froc: Whether lesions have scores.
    """
    of_lesions = [spec for spec in LESION_METRICS if lesions and (froc or spec.name != "froc")]
    groups: list[tuple[Sequence[MetricSpec], Sequence[str]]] = [(CASE_METRICS, class_names[1:]), (of_lesions, lesions)]
    specs = {spec.name: spec for metrics, _ in groups for spec in metrics}
    for metrics, names in groups:
        for spec in metrics:
            for name in names:
                key = f"{spec.name}/{name}"
                specs[key] = MetricSpec(key, spec.mode, spec.unit)
    return specs


def evaluate_case(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    spacing: Sequence[float],
    class_names: Sequence[str],
    *,
    regions: Sequence[Sequence[int]] | None = None,
    annotated: Sequence[bool] | None = None,
    surface: bool = True,
    nsd_tolerance_mm: float | Mapping[str, float] = 1.0,
    ignore_index: int | None = None,
    lesions: LesionRule | None = None,
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compare a predicted label map with the true one, per foreground class or region.

    Keys are `dice/<class>`, `iou/`, `precision/`, `recall/`, `volume_error_ml/` (absolute difference of the volumes),
    `volume_bias_ml/` (predicted minus true volume), `volume_ml/` (true volume), with `surface` `hd95_mm/`, `nsd/`,
    `asd_mm/`, and for lesions `lesions_found/`, `lesions_missed/`, `lesions_false/` and, with probabilities,
    `lesion_peaks/` (a text).
    Empty structures: see the module.

    Args:
        prediction: Class indices [*S].
        label: Class indices [*S]; may hold `ignore_index`.
        spacing: Voxel size in mm per axis of S.
        class_names: Name of every class index, background first; with regions, any name and those of the regions.
        regions: Class indices of every region, which may overlap; None judges every class by itself.
        annotated: Whether each class or region was annotated; None where all were.
        surface: Whether to compute the surface metrics.
        nsd_tolerance_mm: Surface distance that still counts as right, >= 0; by name, 1 mm for those not named.
        ignore_index: Voxels with this label are left out; for surfaces and lesions they are background in both maps.
        lesions: Which structures are made of lesions.
        probabilities: Bytes [*S] of every lesion's probability by name, that score candidates; see `match_lesions`.
    """
    members = [(index,) for index in range(1, len(class_names))] if regions is None else [tuple(r) for r in regions]
    names = class_names[1:]
    assert len(members) == len(names), f"{len(members)} regions named {', '.join(names)}"
    predicted, true = as_label_map(prediction), as_label_map(label)
    assert predicted.shape == true.shape, f"prediction {predicted.shape}, label {true.shape}"
    box = _where_anything_is(predicted, true, probabilities or {})
    outside = true.size
    predicted, true = predicted[box], true[box]
    outside -= true.size
    highest = max((index for region in members for index in region), default=0)
    if regions is not None:  # classes that are part of no region
        highest = max(highest, int(predicted.max(initial=0)), int(true.max(initial=0)))
    confusion = confusion_matrix(predicted, true, highest + 1, ignore_index=ignore_index)
    confusion[0, 0] += outside
    row: dict[str, Any] = _overlap_row(confusion, names, members, math.prod(spacing) / 1000.0)
    ignored = true == ignore_index if ignore_index is not None and (true == ignore_index).any() else None
    if ignored is not None:
        predicted, true = np.where(ignored, 0, predicted), np.where(ignored, 0, true)
    for name, region in zip(names, members):
        masks = _mask(predicted, region, highest), _mask(true, region, highest)
        if surface:
            values = surface_metrics(*masks, spacing, nsd_tolerance_mm=tolerance_of(nsd_tolerance_mm, name))
            row |= {f"{metric}/{name}": values[metric] for metric in SURFACE_METRICS}
        if lesions is not None and name in lesions.lesions:
            sure = None if probabilities is None else probabilities[name][box]
            if sure is not None and ignored is not None:
                sure = np.where(ignored, np.uint8(0), sure)
            match = match_lesions(*masks, iou=lesions.iou, certainty=sure)
            row |= lesion_row(name, match, scored=sure is not None)
    return row if annotated is None else _forget_unannotated(row, names, annotated)


def _where_anything_is(
    predicted: np.ndarray, true: np.ndarray, probabilities: Mapping[str, np.ndarray]
) -> tuple[slice, ...]:
    """The box outside of which both maps are background, and sure to hold no lesion."""
    seen = predicted | true
    for certainty in probabilities.values():
        seen = (seen != 0) | (certainty > 0)
    return bounding_box(seen) or (slice(0, 0),) * true.ndim


def tolerance_of(given: float | Mapping[str, float], name: str) -> float:
    """The tolerance of a class or region in mm.

    Args:
        given: One for all; or by name, where the others have 1 mm.
        name: Of the class or region.
    """
    return given.get(name, 1.0) if isinstance(given, Mapping) else given


def _overlap_row(
    confusion: np.ndarray, names: Sequence[str], members: Sequence[Sequence[int]], millilitres: float
) -> dict[str, float]:
    scores, counts = overlap_scores(confusion, members), count_voxels(confusion, members)
    bias = (counts.predicted - counts.true) * millilitres
    row: dict[str, float] = {}
    for index, name in enumerate(names):
        row |= {f"{metric}/{name}": float(scores[metric][index]) for metric in OVERLAP_METRICS}
        row |= {f"volume_error_ml/{name}": abs(float(bias[index])), f"volume_bias_ml/{name}": float(bias[index])}
        row[f"volume_ml/{name}"] = float(counts.true[index]) * millilitres
    return row


def _forget_unannotated(row: dict[str, Any], names: Sequence[str], annotated: Sequence[bool]) -> dict[str, Any]:
    unknown = {name for name, known in zip(names, annotated, strict=True) if not known}
    return {key: math.nan if key.partition("/")[2] in unknown else value for key, value in row.items()}


def _mask(label: np.ndarray, region: Sequence[int], highest: int) -> np.ndarray:
    if len(region) == 1:
        return label == region[0]
    table = np.zeros(highest + 1, dtype=bool)
    table[list(region)] = True
    return table[label]


class CaseTable:
    """The metrics of cases as columns, of which any rows can be summarised, several times over.

    Args:
        records: Rows of `evaluate_case`; other columns are passed over.
        class_names: Name of every class index, background first.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        self.num_cases = len(records)
        present = {key for record in records for key in record}
        self.metrics: dict[str, list[str]] = {}
        names = class_names[1:]
        for metric in (spec.name for spec in CASE_METRICS):
            if any(f"{metric}/{name}" in present for name in names):
                self.metrics[metric] = [f"{metric}/{name}" for name in names]
        keys = [key for columns in self.metrics.values() for key in columns]
        self.keys = {key: place for place, key in enumerate(keys)}
        self.values = _array(records, keys)
        self.lesions = [name for name in names if f"{COUNTS[0]}/{name}" in present]
        self.counts = {name: _array(records, [f"{key}/{name}" for key in COUNTS]) for name in self.lesions}
        self.scored = {name: self._scored(records, name) for name in self.lesions}

    def _scored(self, records: Sequence[Mapping[str, Any]], name: str) -> list[ScoredCase | None] | None:
        """The scored lesions case by case; None for all where some have no scores."""
        if scored_cases(records, name) is None or not any(f"{CANDIDATES}/{name}" in record for record in records):
            return None
        return [next(iter(scored_cases([record], name) or ()), None) for record in records]

    def summary(self, chosen: np.ndarray | None = None) -> dict[str, float]:
        """See `summarize`.

        Args:
            chosen: Indices of the cases [M], which may occur several times; all of them if None.
        """
        rows = np.arange(self.num_cases) if chosen is None else chosen
        values = self.values[rows]
        defined = ~np.isnan(values)
        count = defined.sum(axis=0)
        means = np.where(count > 0, np.where(defined, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
        summary: dict[str, float] = {}
        for metric, keys in self.metrics.items():
            found = means[[self.keys[key] for key in keys]]
            summary[metric] = _mean(found)
            summary |= dict(zip(keys, found.tolist()))
        return {**summary, **self._lesion_summary(rows)}

    def froc(self, name: str, chosen: np.ndarray | None = None) -> dict[float, float]:
        """Sensitivity by false positives per case; empty where lesions have no scores.

        Args:
            name: Of the structure.
            chosen: Indices of the cases [M], which may occur several times; all of them if None.
        """
        scored = self.scored.get(name)
        if scored is None:
            return {}
        rows = range(self.num_cases) if chosen is None else chosen.tolist()
        return froc_scores([case for row in rows if (case := scored[row]) is not None])

    def _lesion_summary(self, rows: np.ndarray) -> dict[str, float]:
        by_name: dict[str, dict[str, float]] = {}
        for name in self.lesions:
            counts = self.counts[name][rows]
            counts = counts[~np.isnan(counts).any(axis=1)]
            found, missed, false = counts.sum(axis=0).tolist()
            scores = lesion_scores(found, missed, false, len(counts))
            if self.scored[name] is not None:
                scores["froc"] = _mean(np.array(list(self.froc(name, rows).values())))
            by_name[name] = scores
        summary: dict[str, float] = {}
        for spec in LESION_METRICS:
            found = {
                f"{spec.name}/{name}": scores[spec.name] for name, scores in by_name.items() if spec.name in scores
            }
            if found:
                summary[spec.name] = _mean(np.array(list(found.values())))
                summary |= found
        return summary


def summarize(records: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, float]:
    """Average over cases per class, then over the foreground classes.

    `dice/liver` is the mean over the cases in which it is defined, `dice` the mean of the classes' means (nnU-Net's
    foreground mean); NaN where it is defined in no case. Lesions are counted over all cases, see
    `medtrain.metrics.lesions`.

    Args:
        records: Rows of `evaluate_case`; other columns are passed over.
        class_names: Name of every class index, background first.
    """
    return CaseTable(records, class_names).summary()


def worst_cases(records: Sequence[Mapping[str, Any]], count: int = 5) -> list[tuple[str, float]]:
    """The cases with the lowest mean Dice over their classes, the worst first, with that mean.

    Args:
        records: `case_id` and metrics of every case.
        count: How many.
    """
    scores = []
    for record in records:
        values = [value for key, value in record.items() if key.startswith("dice/") and not math.isnan(value)]
        if values:
            scores.append((str(record["case_id"]), float(np.mean(values))))
    return sorted(scores, key=lambda item: (item[1], item[0]))[:count]


def _array(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> np.ndarray:
    """Columns of records [N, K]; NaN where a record lacks one."""
    values = [[_number(record.get(key)) for key in keys] for record in records]
    return np.array(values, dtype=np.float64).reshape(len(records), len(keys))


def _number(value: Any) -> float:
    return math.nan if value is None or value == "" else float(value)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
