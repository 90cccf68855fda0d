"""Metrics of grades: classes that have an order, such as the five stages of diabetic retinopathy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from medtrain.metrics.arrays import Values, count_undefined, defined_mean, label_values, pearson, ratio
from medtrain.metrics.classification import labelled_samples, probability_metrics, probability_specs
from medtrain.metrics.confusion import class_confusion, cohen_kappa, confusion_metrics, confusion_specs
from medtrain.metrics.spec import MetricSpec

_SPECS = (
    MetricSpec("qwk", "max"),
    MetricSpec("mae", "min"),
    MetricSpec("mae_macro", "min"),
    MetricSpec("accuracy_within_1", "max"),
    MetricSpec("spearman", "max"),
)


def ordinal_metrics(
    probs: Values,
    labels: Values,
    class_names: Sequence[str],
    *,
    predicted: Values | None = None,
    ignore_index: int | None = None,
    weights: Values | None = None,
) -> dict[str, float]:
    """Judge graded predictions of a whole split; keys are those of `ordinal_specs`.

    `qwk` is the quadratic-weighted kappa, `mae` the mean distance between the predicted and the true grade, `mae_macro`
    its mean over the true grades (Baccianella et al., ISDA 2009: a rare grade counts as much as a common one),
    `accuracy_within_1` the share that is off by one at most, `spearman` the (unweighted) rank correlation of the
    expected grade with the true one. The others are those of a classification.

    Args:
        probs: Probabilities of the grades [N, K].
        labels: Grades [N], 0..K-1; NaN is unlabelled.
        class_names: K names, in order.
        predicted: Grades chosen by the model [N]; the most probable ones when None.
        ignore_index: Samples with this label are left out.
        weights: Weights of the samples [N], or None.
    """
    values, true, counted = labelled_samples(probs, labels, weights, ignore_index=ignore_index)
    assert values.shape[1] == len(class_names), f"{values.shape[1]} columns for {len(class_names)} classes"
    if predicted is None:
        chosen = values.argmax(axis=1)
    else:
        given = label_values(labels)
        known = np.isfinite(given) if ignore_index is None else np.isfinite(given) & (given != ignore_index)
        chosen = label_values(predicted)[known]
    confusion = class_confusion(chosen, true, len(class_names), weights=counted)
    metrics = confusion_metrics(confusion, class_names)
    metrics |= probability_metrics(values, true, class_names, weights=counted)
    metrics |= grade_metrics(confusion)
    metrics["spearman"] = pearson(rankdata(expected_grade(values)), rankdata(true))
    metrics = count_undefined(metrics)
    return {name: metrics[name] for name in ordinal_specs(class_names)}


def ordinal_specs(class_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `ordinal_metrics`; the default monitor, `qwk`, first.

    Accuracy would be a poor one: half the eyes of a screening have grade 0.

    Args:
        class_names: K names, in order.
    """
    specs = {spec.name: spec for spec in _SPECS}
    specs |= {**confusion_specs(class_names), **probability_specs(class_names)}
    whole = {name: spec for name, spec in specs.items() if "/" not in name}
    return {**whole, "n_undefined": MetricSpec("n_undefined", "min"), **specs}


def grade_metrics(confusion: np.ndarray) -> dict[str, float]:
    """The metrics of grades that follow from a confusion matrix: `qwk`, `mae`, `mae_macro`, `accuracy_within_1`.

    Args:
        confusion: Counts [K, K], rows are true grades.
    """
    grades = np.arange(len(confusion), dtype=np.float64)
    distance = np.abs(grades[:, None] - grades[None, :])
    total, support = confusion.sum(), confusion.sum(axis=1)
    return {
        "qwk": cohen_kappa(confusion, "quadratic"),
        "mae": float(ratio((distance * confusion).sum(), total)),
        "mae_macro": defined_mean(ratio((distance * confusion).sum(axis=1), support)),
        "accuracy_within_1": float(ratio(confusion[distance <= 1].sum(), total)),
    }


def expected_grade(probs: np.ndarray) -> np.ndarray:
    """Mean grade under the probabilities, [N] in [0, K - 1].

    Args:
        probs: [N, K].
    """
    # Not a matrix product: equal rows must give equal grades, or rounding would break ties in a ranking.
    return (np.asarray(probs, dtype=np.float64) * np.arange(probs.shape[1])).sum(axis=1)
