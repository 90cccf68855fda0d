"""Metrics of a classification into exclusive classes, over a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.metrics.arrays import Values, count_undefined, defined_mean, label_values, sample_weights
from medtrain.metrics.calibration import brier_score, calibration_error, log_loss, probabilities
from medtrain.metrics.confusion import class_confusion, confusion_metrics, confusion_specs
from medtrain.metrics.ranking import auroc, average_precision, one_vs_rest
from medtrain.metrics.spec import MetricSpec

_RANKING = {"auroc": auroc, "average_precision": average_precision}
_PROBABILITY_SPECS = (
    MetricSpec("auroc", "max"),
    MetricSpec("average_precision", "max"),
    MetricSpec("ece", "min"),
    MetricSpec("brier", "min"),
    MetricSpec("nll", "min"),
)


def classification_metrics(
    probs: Values,
    labels: Values,
    class_names: Sequence[str],
    *,
    ignore_index: int | None = None,
    threshold: float = 0.5,
    weights: Values | None = None,
) -> dict[str, float]:
    """Judge the probabilities of a whole split; keys are those of `classification_specs`.

    `auroc` and `average_precision` are those of the positive (second) class with two classes, otherwise one-vs-rest,
    averaged over the classes that are labelled. For accuracy, F1 and the like see `confusion_metrics`. Undefined values
    are NaN and counted in `n_undefined`.

    Args:
        probs: Probabilities [N, K], or of the second of two classes [N].
        labels: Class indices [N].
        class_names: K names.
        ignore_index: Samples with this label are left out.
        threshold: With two classes, the least probability of the second that is called positive.
        weights: Weights of the samples [N], or None.
    """
    values, true, counted = labelled_samples(probs, labels, weights, ignore_index=ignore_index)
    assert values.shape[1] == len(class_names), f"{values.shape[1]} columns for {len(class_names)} classes"
    predicted = predicted_classes(values, threshold=threshold)
    confusion = class_confusion(predicted, true, len(class_names), weights=counted)
    metrics = confusion_metrics(confusion, class_names)
    metrics |= probability_metrics(values, true, class_names, weights=counted)
    found = count_undefined(metrics)
    return {name: found[name] for name in classification_specs(class_names)}


def classification_specs(class_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `classification_metrics`, the default monitor first.

    It is `auroc` with two classes and `f1_macro` with more: neither is raised by a common class.

    Args:
        class_names: K names.
    """
    specs = {**confusion_specs(class_names), **probability_specs(class_names)}
    first = "auroc" if len(class_names) == 2 else "f1_macro"
    specs = {first: specs[first], **specs}
    whole = {name: spec for name, spec in specs.items() if "/" not in name}
    return {**whole, "n_undefined": MetricSpec("n_undefined", "min"), **specs}


def predicted_classes(probs: Values, *, threshold: float = 0.5) -> np.ndarray:
    """Choose a class per sample: the most probable one; with two, the second from `threshold` on.

    Args:
        probs: [N, K], or of the second of two classes [N].
        threshold: Least probability of the second of two classes that is called positive.

    Returns:
        Class indices [N], int64.
    """
    assert threshold == threshold, "the threshold is NaN: none could be chosen on the validation data"
    values = class_probabilities(probs)
    return (values[:, 1] >= threshold).astype(np.int64) if values.shape[1] == 2 else values.argmax(axis=1)


def class_probabilities(probs: Values) -> np.ndarray:
    """Bring probabilities into the form [N, K], float64.

    Args:
        probs: [N, K], or of the second of two classes [N].
    """
    values = probabilities(probs)
    return np.stack([1 - values, values], axis=1) if values.ndim == 1 else values


def labelled_samples(
    probs: Values, labels: Values, weights: Values | None = None, *, ignore_index: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leave out the samples without a label.

    Args:
        probs: [N, K] or [N].
        labels: Class indices [N]; NaN is unlabelled.
        weights: [N] or None.
        ignore_index: Samples with this label are left out.

    Returns:
        Probabilities [M, K], class indices [M] and weights [M].
    """
    values, true = class_probabilities(probs), label_values(labels)
    assert true.shape == values.shape[:1], f"labels {true.shape} for probabilities {values.shape}"
    kept = np.isfinite(true) if ignore_index is None else np.isfinite(true) & (true != ignore_index)
    return values[kept], true[kept].astype(np.int64), sample_weights(weights, true.size)[kept]


def probability_metrics(
    probs: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """The metrics that need probabilities: `auroc`, `average_precision` (both also per class), `ece`, `brier`, `nll`.

    Args:
        probs: [N, K].
        labels: Class indices [N].
        class_names: K names.
        weights: [N] or None.
    """
    metrics: dict[str, float] = {}
    per_class: dict[str, float] = {}
    for name, function in _RANKING.items():
        values = one_vs_rest(function, probs, labels, weights=weights)
        metrics[name] = float(values[1]) if len(class_names) == 2 else defined_mean(values)
        per_class |= {f"{name}/{label}": float(value) for label, value in zip(class_names, values, strict=True)}
    metrics["ece"] = calibration_error(probs, labels, weights=weights)
    metrics["brier"] = brier_score(probs, labels, weights=weights)
    metrics["nll"] = log_loss(probs, labels, weights=weights)
    return {**metrics, **per_class}


def probability_specs(class_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `probability_metrics` by key.

    Args:
        class_names: K names.
    """
    specs = {spec.name: spec for spec in _PROBABILITY_SPECS}
    names = [f"{name}/{label}" for name in _RANKING for label in class_names]
    return {**specs, **{name: MetricSpec(name, "max") for name in names}}
