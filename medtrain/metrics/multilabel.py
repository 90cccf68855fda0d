"""Metrics of labels that do not exclude each other, some of which nobody gave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.metrics.arrays import Values, count_undefined, defined_mean, finite_values, label_values, ratio
from medtrain.metrics.calibration import brier_score, calibration_error, log_loss
from medtrain.metrics.confusion import class_confusion, class_scores
from medtrain.metrics.ranking import auroc, average_precision
from medtrain.metrics.spec import MetricSpec

_SPECS = (
    MetricSpec("auroc", "max"),
    MetricSpec("average_precision", "max"),
    MetricSpec("f1", "max"),
    MetricSpec("balanced_accuracy", "max"),
    MetricSpec("accuracy", "max"),
    MetricSpec("precision", "max"),
    MetricSpec("sensitivity", "max"),
    MetricSpec("specificity", "max"),
    MetricSpec("ece", "min"),
    MetricSpec("brier", "min"),
    MetricSpec("nll", "min"),
)


def multilabel_metrics(
    probs: Values,
    labels: Values,
    label_names: Sequence[str],
    *,
    ignore_index: int | None = None,
    thresholds: float | Sequence[float] = 0.5,
) -> dict[str, float]:
    """Judge every label on the samples for which it is known; keys are those of `multilabel_specs`.

    `auroc/<label>` is that of one label, `auroc` the mean over the labels for which it is defined; so for all. In the
    mean precision, a label with positives of which none is predicted counts as 0. `f1_micro` pools the known entries of
    all labels.

    Args:
        probs: Probabilities [N, L].
        labels: 0, 1, or NaN where nobody labelled [N, L].
        label_names: L names.
        ignore_index: Another value that stands for an unknown entry, e.g. -1.
        thresholds: The least probability that is called positive: one, or one per label; NaN means 0.5.
    """
    values, true, known = _entries(probs, labels, ignore_index)
    assert values.shape[1] == len(label_names), f"{values.shape[1]} columns for {len(label_names)} labels"
    limits = np.nan_to_num(np.broadcast_to(np.asarray(thresholds, dtype=np.float64), len(label_names)), nan=0.5)
    columns: list[dict[str, float]] = []
    pooled = np.zeros((2, 2))
    for index, limit in enumerate(limits):
        said, outcome = values[known[:, index], index], true[known[:, index], index].astype(np.int64)
        confusion = class_confusion(said >= limit, outcome, 2)
        pooled += confusion
        scores = {name: float(score[1]) for name, score in class_scores(confusion).items()}
        columns.append(
            {
                "auroc": auroc(said, outcome),
                "average_precision": average_precision(said, outcome),
                "f1": scores["f1"],
                "balanced_accuracy": (scores["recall"] + scores["specificity"]) / 2,
                "accuracy": float(ratio(np.trace(confusion), confusion.sum())),
                "precision": scores["precision"],
                "sensitivity": scores["recall"],
                "specificity": scores["specificity"],
                "ece": calibration_error(said, outcome),
                "brier": brier_score(said, outcome),
                "nll": log_loss(said, outcome),
            }
        )
    metrics: dict[str, float] = {}
    for spec in _SPECS:
        found = [column[spec.name] for column in columns]
        missed = [spec.name == "precision" and column["sensitivity"] == 0 for column in columns]
        metrics[spec.name] = defined_mean(np.where(missed, 0.0, found))
        metrics |= {f"{spec.name}/{name}": value for name, value in zip(label_names, found, strict=True)}
    metrics["f1_micro"] = float(class_scores(pooled)["f1"][1])
    metrics = count_undefined(metrics)
    return {name: metrics[name] for name in multilabel_specs(label_names)}


def multilabel_specs(label_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `multilabel_metrics`; the default monitor, `auroc`, first.

    Args:
        label_names: L names.
    """
    specs = {spec.name: spec for spec in (*_SPECS, MetricSpec("f1_micro", "max"), MetricSpec("n_undefined", "min"))}
    for spec in _SPECS:
        specs |= {f"{spec.name}/{name}": MetricSpec(f"{spec.name}/{name}", spec.mode) for name in label_names}
    return specs


def _entries(probs: Values, labels: Values, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, true = finite_values(probs, "probabilities"), label_values(labels).astype(np.float64)
    assert values.ndim == 2, f"probabilities {values.shape}, expected [N, L]"
    assert values.shape == true.shape, f"labels {true.shape} for probabilities {values.shape}"
    known = ~np.isnan(true) if ignore_index is None else ~np.isnan(true) & (true != ignore_index)
    return values, true, known
