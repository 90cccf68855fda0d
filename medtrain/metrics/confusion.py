"""Metrics that follow from a confusion matrix: accuracy, precision, recall, F1, specificity, kappa.

Averages are taken over the classes that occur in the labels or in the predictions, so that a perfect prediction scores
1 whichever classes the split holds. There, a class of which nothing was predicted has precision 0 and a class of which
nothing was labelled has recall 0 (scikit-learn's convention: else never predicting a class would raise the average);
the class's own value, 0 / 0, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medtrain.metrics.arrays import Values, defined_mean, label_values, ratio, sample_weights
from medtrain.metrics.spec import MetricSpec

CONFUSION_METRICS = (
    "f1_macro",
    "balanced_accuracy",
    "accuracy",
    "f1_weighted",
    "precision_macro",
    "precision_weighted",
    "recall_macro",
    "recall_weighted",
    "specificity_macro",
    "kappa",
)
CLASS_METRICS = ("accuracy", "precision", "recall", "f1", "specificity")
BINARY_METRICS = ("f1", "sensitivity", "specificity", "ppv", "npv")


def class_confusion(
    predicted: Values, labels: Values, num_classes: int, *, weights: Values | None = None
) -> np.ndarray:
    """Count the samples of every pair (true class, predicted class).

    Args:
        predicted: Class indices [N].
        labels: Class indices [N].
        num_classes: K.
        weights: Weights of the samples [N], or None.

    Returns:
        Counts [K, K], float64: rows are true classes, columns predicted classes.
    """
    chosen, true = label_values(predicted).astype(np.int64), label_values(labels).astype(np.int64)
    assert chosen.shape == true.shape, f"{chosen.shape} predictions for {true.shape} labels"
    for name, values in (("prediction", chosen), ("label", true)):
        if values.size:
            low, high = int(values.min()), int(values.max())
            # An index out of range would be counted silently in a neighbouring cell.
            assert 0 <= low <= high < num_classes, f"{name} holds class indices {low}..{high} of {num_classes} classes"
    code = (true * num_classes + chosen).ravel()
    counted = None if weights is None else sample_weights(weights, code.size)
    return np.bincount(code, counted, num_classes**2).astype(np.float64).reshape(num_classes, num_classes)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of every class against the others, NaN where their denominator is 0.

    precision (PPV) = TP / (TP + FP), recall (sensitivity) = TP / (TP + FN), f1 = 2 TP / (2 TP + FP + FN),
    specificity = TN / (TN + FP), npv = TN / (TN + FN). `accuracy` of a class is the share of its samples that are
    right, which is its recall.

    Args:
        confusion: Counts [K, K] of `class_confusion`.

    Returns:
        One float64 array [K] per score.
    """
    right = np.diagonal(confusion)
    true, predicted, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    rejected = total - true - predicted + right
    recall = ratio(right, true)
    return {
        "accuracy": recall,
        "precision": ratio(right, predicted),
        "recall": recall,
        "f1": ratio(2 * right, true + predicted),
        "specificity": ratio(rejected, total - true),
        "npv": ratio(rejected, total - predicted),
    }


def class_averages(confusion: np.ndarray, classes: Sequence[int] | None = None) -> dict[str, float]:
    """Macro and weighted averages of precision, recall and F1, and macro specificity.

    Args:
        confusion: Counts [K, K].
        classes: The classes to average over, all by default; only those that occur count.

    Returns:
        `f1_macro`, `f1_weighted`, ..., NaN where none of the classes occurs; weighted ones where none is labelled.
    """
    kept = np.arange(len(confusion)) if classes is None else np.asarray(classes, dtype=np.int64)
    support = confusion.sum(axis=1)
    kept = kept[(support + confusion.sum(axis=0))[kept] > 0]
    scores = class_scores(confusion)
    averages: dict[str, float] = {}
    for name in ("f1", "precision", "recall"):
        values = np.nan_to_num(scores[name][kept])
        averages[f"{name}_macro"] = defined_mean(values)
        averages[f"{name}_weighted"] = defined_mean(values, support[kept])
    averages["specificity_macro"] = defined_mean(scores["specificity"][kept])
    return averages


def cohen_kappa(confusion: np.ndarray, weighting: Literal["none", "linear", "quadratic"] = "none") -> float:
    """Agreement beyond chance, 1 - sum(w * observed) / sum(w * expected).

    Expected counts are those of independent margins. Cohen, Educ. Psychol. Meas. 20 (1960) and, weighted,
    Psychol. Bull. 70 (1968).

    Args:
        confusion: Counts [K, K].
        weighting: The disagreement w of classes i and j: 1 if they differ, |i - j|, or (i - j)^2.

    Returns:
        <= 1; 0 is chance. NaN where chance alone agrees always: one and the same class in labels and predictions.
    """
    index = np.arange(len(confusion), dtype=np.float64)
    distance = np.abs(index[:, None] - index[None, :])
    disagreement = {"none": (distance > 0).astype(np.float64), "linear": distance, "quadratic": distance**2}[weighting]
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    expected = np.outer(true, predicted)
    observed = (disagreement * confusion).sum() * confusion.sum()
    return float(1.0 - ratio(observed, (disagreement * expected).sum()))


def confusion_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """All that a confusion matrix tells: `CONFUSION_METRICS`, and `CLASS_METRICS` as `f1/<class>`, ...

    With two classes also `BINARY_METRICS`, of which the second class is the positive one.

    Args:
        confusion: Counts [K, K].
        class_names: K names.
    """
    assert len(class_names) == len(confusion), f"{len(class_names)} names for {len(confusion)} classes"
    scores, averages = class_scores(confusion), class_averages(confusion)
    found = {
        **averages,
        "accuracy": float(ratio(np.trace(confusion), confusion.sum())),
        # over the classes that are labelled, as in scikit-learn
        "balanced_accuracy": defined_mean(scores["recall"]),
        "kappa": cohen_kappa(confusion),
    }
    metrics = {name: found[name] for name in CONFUSION_METRICS}
    if len(class_names) == 2:
        names = ("f1", "recall", "specificity", "precision", "npv")
        metrics |= {key: float(scores[name][1]) for key, name in zip(BINARY_METRICS, names, strict=True)}
    for name in CLASS_METRICS:
        metrics |= {f"{name}/{label}": float(scores[name][index]) for index, label in enumerate(class_names)}
    return metrics


def confusion_specs(class_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `confusion_metrics` by key.

    Args:
        class_names: K names.
    """
    names = [*CONFUSION_METRICS, *(BINARY_METRICS if len(class_names) == 2 else ())]
    names += [f"{name}/{label}" for name in CLASS_METRICS for label in class_names]
    return {name: MetricSpec(name, "max") for name in names}
