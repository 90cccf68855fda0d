"""Classification: one of several exclusive classes per sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import entr

from medtrain.inference.images import ImageInference
from medtrain.metrics.calibration import apply_temperature, fit_temperature, reliability, top_label_reliability
from medtrain.metrics.classification import classification_metrics, classification_specs, predicted_classes
from medtrain.metrics.confusion import class_confusion
from medtrain.metrics.ranking import sensitivity_threshold, youden_threshold
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.tasks.base import Record
from medtrain.tasks.gallery import Caption
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import (
    FOR_THE_PREDICTION,
    FOR_THE_TRUTH,
    Decision,
    Outcome,
    Rows,
    classes_of,
    column,
    columns,
    doubt_at,
    label_or_nan,
    log_probs,
    one_target,
    only_value,
)


@register("task", "classification", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Classification(ImageTask):
    """One of K classes per image, bag or patient, with a softmax (or, of two classes, a sigmoid).

    The default monitor is AUROC with two classes and macro F1 with more: neither is raised by a common class.
    """

    def make_outcome(self) -> Outcome:
        """The classes of the only target."""
        target = one_target(self.plan.targets, "classification")
        return ClassOutcome(classes_of(target, "classification"), self.inference)


class ClassOutcome(Outcome):
    """One of K classes; of two classes, the second is the positive one.

    Args:
        class_names: K names.
        inference: Where the threshold comes from.
    """

    takes_temperature = True
    judged_by = "probability of the truth"
    ordered = False
    """Whether the classes are grades."""

    def __init__(self, class_names: tuple[str, ...], inference: ImageInference) -> None:
        self.class_names = class_names
        self.num_predictions = len(class_names)
        self.takes_threshold = len(class_names) == 2
        self.fixed_threshold = inference.fixed_threshold
        self.keys = [f"prob/{name}" for name in class_names]

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """`label`, `predicted` and `prob/<class>`."""
        probs = self.calibrated(predictions, decision)
        chosen = self.choose(probs, decision)
        labels = [{}] * len(probs) if target is None else [{"label": label_or_nan(value)} for value in target[:, 0]]
        return [
            {**label, "predicted": int(index), **dict(zip(self.keys, map(float, row), strict=True))}
            for label, index, row in zip(labels, chosen, probs, strict=True)
        ]

    def calibrated(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Probabilities [N, K] at the temperature that was chosen."""
        if "temperature" not in decision:
            return probs
        return apply_temperature(log_probs(probs), decision["temperature"], exclusive=True)

    def choose(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Class indices [N] of probabilities [N, K]."""
        return predicted_classes(probs, threshold=self.threshold(decision))

    def threshold(self, decision: Decision) -> float:
        """The least probability of the second of two classes that is called positive."""
        return decision.get(f"threshold/{self.class_names[-1]}", self.fixed_threshold)

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """Probabilities [N, K]."""
        return columns(records, self.keys)

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `classification_metrics`: first AUROC with two classes, macro F1 with more."""
        return classification_specs(self.class_names)

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `classification_metrics`."""
        labels = column(records, "label")
        return classification_metrics(self.read(records), labels, self.class_names, threshold=self.threshold(decision))

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Probability of the true class."""
        labels = column(records, "label")
        known = ~np.isnan(labels)
        index = np.where(known, labels, 0).astype(np.int64)
        return np.where(known, np.take_along_axis(self.read(records), index[:, None], axis=1)[:, 0], np.nan)

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """Temperature first, then the threshold of the calibrated probability."""
        probs, labels = self.read(records), column(records, "label")
        decision: dict[str, float] = {}
        if inference.calibrate:
            decision["temperature"] = fit_temperature(log_probs(probs), labels)
        if inference.chooses_threshold:
            known = ~np.isnan(labels)
            positive = self.calibrated(probs, decision)[known, -1]
            decision[f"threshold/{self.class_names[-1]}"] = choose_threshold(positive, labels[known], inference)
        return decision

    def tables(self, records: Sequence[Record]) -> dict[str, Rows]:
        """The confusion matrix, `confusion`."""
        labels = column(records, "label")
        return {"confusion": confusion_rows(column(records, "predicted"), labels, self.class_names)}

    def doubts(self, records: Sequence[Record], decision: Decision) -> np.ndarray:
        """Entropy of the probabilities; of two classes, nearness to the threshold."""
        probs = self.read(records)
        return doubt_at(probs[:, 1], self.threshold(decision)) if self.takes_threshold else entropy(probs)

    def printed(self, names: Iterable[str]) -> list[str]:
        """Of two classes, what there is of the positive one; the other one's, and means of both, follow from it."""
        if len(self.class_names) != 2:
            return list(names)
        return [name for name in names if "/" not in name and name not in _SAME_OF_TWO]

    def constant(self, records: Sequence[Record]) -> str:
        """The class that every sample is said to be."""
        labels = column(records, "label")
        value = only_value(column(records, "predicted"), labels)
        if value is None:
            return ""
        share = float((labels[~np.isnan(labels)] == value).mean())
        return f"{self.class_names[int(value)]}, and the accuracy is the share of these samples, {share:.4f}"

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """The predicted and the true class."""
        return {FOR_THE_PREDICTION: columns(records, ["predicted"]), FOR_THE_TRUTH: columns(records, ["label"])}

    def caption(self, record: Record) -> Caption:
        """Both classes, with their probabilities."""
        named = {"label": "", **self.readable(record)}
        said, true = named["predicted"], named["label"]
        return Caption(
            truth=true,
            predicted=said,
            correct=said == true if true else None,
            truth_probability=record[f"prob/{true}"] if true else None,
            predicted_probability=record[f"prob/{said}"],
        )

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """Confusion matrix, ROC and precision-recall curves, calibration."""
        from medtrain.pictures.confusion import draw_confusion  # matplotlib takes its time to import
        from medtrain.pictures.curves import draw_calibration, draw_precision_recall, draw_roc, scores_of_classes

        probs, labels = self.read(records), column(records, "label")
        known = ~np.isnan(labels)
        confusion = class_confusion(column(records, "predicted")[known], labels[known], len(self.class_names))
        thresholds = {self.class_names[-1]: self.threshold(decision)} if self.takes_threshold else None
        scores = scores_of_classes(probs, labels, self.class_names, thresholds=thresholds)
        if len(self.class_names) == 2:
            curve = reliability(probs[known, 1], labels[known])
        else:
            curve = top_label_reliability(probs[known], labels[known])
        return {
            "confusion": draw_confusion(confusion, self.class_names, ordered=self.ordered),
            "roc": draw_roc(scores),
            "precision_recall": draw_precision_recall(scores),
            "calibration": draw_calibration({"predicted": curve}),
        }

    def readable(self, record: Record) -> dict[str, Any]:
        """The names of the predicted class and of the label."""
        return named_classes(record, ("predicted", "label"), self.class_names)


_SAME_OF_TWO = (
    *("recall_macro", "recall_weighted", "specificity_macro"),  # balanced accuracy, accuracy, balanced accuracy
    *("precision_macro", "precision_weighted", "f1_weighted"),
)


def entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy in nats [N] of probabilities [N, K]."""
    return np.asarray(entr(probs).sum(axis=1))


def choose_threshold(scores: np.ndarray, labels: np.ndarray, inference: ImageInference) -> float:
    """The threshold that was asked for, on validation data.

    Args:
        scores: Probability of being positive [N].
        labels: 0 or 1 [N].
        inference: Says which.

    Returns:
        NaN where there are no positives, no negatives, or all scores are equal.
    """
    if inference.min_sensitivity is not None:
        return sensitivity_threshold(scores, labels, inference.min_sensitivity)
    return youden_threshold(scores, labels)


def confusion_rows(predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Rows:
    """A confusion matrix as a table: one row per true class, one column per predicted class.

    Args:
        predicted: Class indices [N].
        labels: Class indices [N]; NaN is left out.
        class_names: K names.
    """
    known = ~np.isnan(labels)
    counts = class_confusion(predicted[known], labels[known], len(class_names))
    return [
        {"label": name, **{f"predicted {said}": int(count) for said, count in zip(class_names, row, strict=True)}}
        for name, row in zip(class_names, counts, strict=True)
    ]


def named_classes(record: Record, keys: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    """The class names of some columns of a record; empty text where unlabelled."""
    return {key: "" if record[key] != record[key] else class_names[int(record[key])] for key in keys if key in record}
