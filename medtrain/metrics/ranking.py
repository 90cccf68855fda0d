"""How well scores separate positives from negatives: ROC and precision-recall, their areas, and thresholds.

A sample is called positive when its score is at least the threshold. All functions want at least one positive and one
negative; with samples of one class only nothing can be ranked and the result is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medtrain.metrics.arrays import Values, finite_values, label_values, ratio, sample_weights


@dataclass(frozen=True)
class ThresholdCounts:
    """What every threshold accepts, from the strictest to the laxest.

    Args:
        thresholds: The distinct scores [T], descending.
        true_positives: Weight of the accepted positives [T].
        false_positives: Weight of the accepted negatives [T].
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def positives(self) -> float:
        """Weight of all positives."""
        return float(self.true_positives[-1]) if self.true_positives.size else 0.0

    @property
    def negatives(self) -> float:
        """Weight of all negatives."""
        return float(self.false_positives[-1]) if self.false_positives.size else 0.0

    @property
    def rankable(self) -> bool:
        """Whether there are positives and negatives."""
        return self.positives > 0 and self.negatives > 0


def threshold_counts(scores: Values, labels: Values, *, weights: Values | None = None) -> ThresholdCounts:
    """Count at every distinct score what it accepts as a threshold.

    Args:
        scores: [N], higher is more positive; probabilities or logits.
        labels: [N], 1 or True for positives, 0 or False for negatives.
        weights: [N], >= 0, or None.
    """
    values, true = finite_values(scores, "scores"), label_values(labels)
    assert values.ndim == 1, f"scores {values.shape}, expected [N]"
    assert values.shape == true.shape, f"{values.shape} scores for {true.shape} labels"
    assert ((true == 0) | (true == 1)).all(), "labels must be 0 or 1"
    counted = sample_weights(weights, values.size)
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], true[order] == 1
    # the last sample of every run of equal scores: ties are accepted together
    ends = np.flatnonzero(np.diff(values, append=-np.inf) != 0)
    accepted = np.cumsum(np.where(positive, counted[order], 0.0))[ends]
    alarms = np.cumsum(np.where(positive, 0.0, counted[order]))[ends]
    return ThresholdCounts(values[ends], accepted, alarms)


def roc_curve(scores: Values, labels: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False positive rates, true positive rates and thresholds of the ROC curve, from (0, 0) to (1, 1).

    Args:
        scores: [N].
        labels: [N], 0 or 1.

    Returns:
        Three arrays [T + 1], the first threshold is infinite; all empty where one class is missing.
    """
    counts = threshold_counts(scores, labels)
    if not counts.rankable:
        return np.empty(0), np.empty(0), np.empty(0)
    false_rate = np.concatenate([[0.0], counts.false_positives / counts.negatives])
    true_rate = np.concatenate([[0.0], counts.true_positives / counts.positives])
    return false_rate, true_rate, np.concatenate([[np.inf], counts.thresholds])


def precision_recall_curve(
    scores: Values, labels: Values, *, weights: Values | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and thresholds, from the strictest threshold to the laxest.

    Args:
        scores: [N].
        labels: [N], 0 or 1.
        weights: [N] or None.

    Returns:
        Three arrays [T]; all empty where one class is missing.
    """
    counts = threshold_counts(scores, labels, weights=weights)
    if not counts.rankable:
        return np.empty(0), np.empty(0), np.empty(0)
    precision = ratio(counts.true_positives, counts.true_positives + counts.false_positives)
    return precision, counts.true_positives / counts.positives, counts.thresholds


def auroc(scores: Values, labels: Values, *, weights: Values | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.

    Args:
        scores: [N]. Saturated probabilities tie; logits do not.
        labels: [N], 0 or 1.
        weights: [N] or None.
    """
    counts = threshold_counts(scores, labels, weights=weights)
    if not counts.rankable:
        return float("nan")
    widths = np.diff(counts.false_positives, prepend=0.0)
    before = np.concatenate([[0.0], counts.true_positives[:-1]])
    area = (widths * (before + counts.true_positives)).sum() / 2
    return float(area / (counts.positives * counts.negatives))


def average_precision(scores: Values, labels: Values, *, weights: Values | None = None) -> float:
    """Precision averaged over recall in steps, without interpolation: sum of (R_t - R_(t-1)) P_t.

    Args:
        scores: [N].
        labels: [N], 0 or 1.
        weights: [N] or None.
    """
    precision, recall, _ = precision_recall_curve(scores, labels, weights=weights)
    if not recall.size:
        return float("nan")
    # A leading threshold of zero weight accepts nothing: it has no precision and no step.
    return float((np.diff(recall, prepend=0.0) * np.nan_to_num(precision)).sum())


def one_vs_rest(
    function: Callable[..., float], probs: Values, labels: Values, *, weights: Values | None = None
) -> np.ndarray:
    """Apply a function of binary scores to every class against the others; NaN for a class that is absent.

    Args:
        function: `auroc` or `average_precision`.
        probs: Scores of every class [N, K].
        labels: Class indices [N].
        weights: [N] or None.

    Returns:
        float64 [K].
    """
    values, true = finite_values(probs, "scores"), label_values(labels)
    return np.array([function(values[:, k], true == k, weights=weights) for k in range(values.shape[1])])


def youden_threshold(scores: Values, labels: Values) -> float:
    """Choose the threshold with the largest sensitivity + specificity - 1 (Youden, Cancer 3, 1950).

    Choose it on validation data and apply it, unchanged, to others: chosen where it is judged, it flatters. It lies
    half-way to the next lower score, so that rounding does not change what it accepts; of several, it is the strictest.

    Args:
        scores: [N].
        labels: [N], 0 or 1.

    Returns:
        NaN where one class is missing or all scores are equal.
    """
    counts = threshold_counts(scores, labels)
    if not counts.rankable or counts.thresholds.size < 2:
        return float("nan")
    index = counts.true_positives / counts.positives - counts.false_positives / counts.negatives
    # Equal indices differ by rounding; the strictest of the best is meant.
    return _between(counts.thresholds, int(np.flatnonzero(index >= index.max() - 1e-12)[0]))


def sensitivity_threshold(scores: Values, labels: Values, sensitivity: float) -> float:
    """Choose the strictest threshold that reaches a sensitivity; on validation data, like `youden_threshold`.

    Args:
        scores: [N].
        labels: [N], 0 or 1.
        sensitivity: The least share of the positives to find, in (0, 1].

    Returns:
        NaN where one class is missing or all scores are equal.
    """
    assert 0 < sensitivity <= 1, f"a sensitivity is in (0, 1], not {sensitivity}"
    counts = threshold_counts(scores, labels)
    if not counts.rankable or counts.thresholds.size < 2:
        return float("nan")
    reached = counts.true_positives / counts.positives >= sensitivity - 1e-12
    return _between(counts.thresholds, int(np.flatnonzero(reached)[0]))


def _between(thresholds: np.ndarray, index: int) -> float:
    """A threshold that accepts `thresholds[:index + 1]` and no other, away from both neighbours."""
    accepted = float(thresholds[index])
    if index + 1 == thresholds.size:
        return accepted
    rejected = float(thresholds[index + 1])
    middle = rejected + (accepted - rejected) / 2
    return middle if middle > rejected else accepted
