"""Multilabel: several findings per sample that do not exclude each other, some of which nobody labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.metrics.arrays import defined_mean
from medtrain.metrics.calibration import apply_temperature, fit_temperature, reliability
from medtrain.metrics.multilabel import multilabel_metrics, multilabel_specs
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.tasks.base import Record
from medtrain.tasks.classification import choose_threshold
from medtrain.tasks.gallery import Caption
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import (
    Decision,
    Outcome,
    Rows,
    classes_of,
    columns,
    doubt_at,
    label_or_nan,
    logit,
    one_by_one,
    only_value,
)


@register("task", "multilabel", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Multilabel(ImageTask):
    """Several findings per sample, each there or not; every target column is one, and may be unlabelled.

    Metrics are computed per finding on the samples that are labelled, then averaged. The default monitor is AUROC.
    """

    def make_outcome(self) -> Outcome:
        """The names of the targets."""
        for target in self.plan.targets:
            classes = classes_of(target, "multilabel")
            if len(classes) != 2:
                raise UsageError(
                    f"task=multilabel: {target.target_name} has {len(classes)} classes, not two",
                    hint="choose task=multitask for targets of several classes",
                )
        return LabelOutcome(tuple(target.target_name for target in self.plan.targets), self.inference)


class LabelOutcome(Outcome):
    """L labels that do not exclude each other.

    Args:
        label_names: L names.
        inference: Where thresholds come from.
    """

    takes_threshold = True
    takes_temperature = True
    judged_by = "probability of the truth"

    def __init__(self, label_names: tuple[str, ...], inference: ImageInference) -> None:
        self.class_names = label_names
        self.num_predictions = len(label_names)
        self.fixed_threshold = inference.fixed_threshold
        self.keys = [f"prob/{name}" for name in label_names]
        self.label_keys = [f"label/{name}" for name in label_names]
        self.predicted_keys = [f"predicted/{name}" for name in label_names]

    def flatten(self, predicted: Tensor) -> Tensor:
        """Probabilities [B, L] of being there."""
        return predicted[..., 1]

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """`label/<label>`, `predicted/<label>` and `prob/<label>`."""
        probs = self.calibrated(predictions, decision)
        chosen = probs >= self.thresholds(decision)
        rows: Rows = [{} for _ in probs]
        if target is not None:
            for row, true in zip(rows, target, strict=True):
                row.update({key: label_or_nan(value) for key, value in zip(self.label_keys, true, strict=True)})
        for row, said, prob in zip(rows, chosen, probs, strict=True):
            row.update({key: int(value) for key, value in zip(self.predicted_keys, said, strict=True)})
            row.update({key: float(value) for key, value in zip(self.keys, prob, strict=True)})
        return rows

    def calibrated(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Probabilities [N, L] at the temperature that was chosen."""
        if "temperature" not in decision:
            return probs
        return apply_temperature(logit(probs), decision["temperature"], exclusive=False)

    def thresholds(self, decision: Decision) -> np.ndarray:
        """The least probability that is called positive [L]."""
        return np.array([decision.get(f"threshold/{name}", self.fixed_threshold) for name in self.class_names])

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """Probabilities [N, L]."""
        return columns(records, self.keys)

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `multilabel_metrics`: first AUROC."""
        return multilabel_specs(self.class_names)

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `multilabel_metrics`."""
        labels = columns(records, self.label_keys)
        thresholds = [float(value) for value in self.thresholds(decision)]
        return multilabel_metrics(self.read(records), labels, self.class_names, thresholds=thresholds)

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Mean probability of the truth over the known labels."""
        probs, labels = self.read(records), columns(records, self.label_keys)
        true = np.where(np.isnan(labels), np.nan, np.where(labels == 1, probs, 1 - probs))
        return np.array([defined_mean(row) for row in true])

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """One temperature for all labels, then a threshold per label."""
        probs, labels = self.read(records), columns(records, self.label_keys)
        decision: dict[str, float] = {}
        if inference.calibrate:
            decision["temperature"] = fit_temperature(logit(probs), labels)
        if inference.chooses_threshold:
            probs = self.calibrated(probs, decision)
            for index, name in enumerate(self.class_names):
                known = ~np.isnan(labels[:, index])
                found = choose_threshold(probs[known, index], labels[known, index], inference)
                decision[f"threshold/{name}"] = found
        return decision

    def doubts(self, records: Sequence[Record], decision: Decision) -> np.ndarray:
        """Nearness to its threshold of the label that is nearest."""
        return np.asarray(doubt_at(self.read(records), self.thresholds(decision)).max(axis=1))

    def constant(self, records: Sequence[Record]) -> str:
        """The same labels of every sample."""
        said, true = columns(records, self.predicted_keys), columns(records, self.label_keys)
        values = [only_value(said[:, index], true[:, index]) for index in range(len(self.class_names))]
        if any(value is None for value in values):
            return ""
        return ", ".join(name for name, value in zip(self.class_names, values, strict=True) if value) or "no label"

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """Every label, whether or not it is predicted."""
        return one_by_one(self.class_names, np.ones((len(records), len(self.class_names))))

    def caption(self, record: Record) -> Caption:
        """The labels that are there; right if all known ones are."""
        known = [name for name in self.class_names if record.get(f"label/{name}", np.nan) in (0, 1)]
        true = [name for name in known if record[f"label/{name}"] == 1]
        right = all(record[f"predicted/{name}"] == record[f"label/{name}"] for name in known) if known else None
        shown = (", ".join(true) or "none") if known else ""
        return Caption(truth=shown, predicted=self.readable(record)["predicted"] or "none", correct=right)

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """ROC and precision-recall curves of every label, calibration of all known entries."""
        from medtrain.pictures.curves import draw_calibration, draw_precision_recall, draw_roc, scores_of_classes

        probs, labels = self.read(records), columns(records, self.label_keys)
        thresholds = dict(zip(self.class_names, self.thresholds(decision).tolist(), strict=True))
        scores = scores_of_classes(probs, labels, self.class_names, thresholds=thresholds)
        known = ~np.isnan(labels)
        return {
            "roc": draw_roc(scores),
            "precision_recall": draw_precision_recall(scores),
            "calibration": draw_calibration({"predicted": reliability(probs[known], labels[known])}),
        }

    def readable(self, record: Record) -> dict[str, Any]:
        """The labels that are there, as text."""
        said = [name for name, key in zip(self.class_names, self.predicted_keys, strict=True) if record.get(key) == 1]
        return {"predicted": ", ".join(said)}
