"""Whether probabilities mean what they say: calibration error, Brier score, log loss, temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from medtrain.metrics.arrays import Values, finite_values, label_values, ratio, sample_weights

DEFAULT_BINS = 10
_TEMPERATURES = (1e-3, 1e3)


@dataclass(frozen=True)
class Reliability:
    """A calibration curve: what was said and what came true, per bin of equal width.

    Args:
        edges: Of the bins [B + 1], from 0 to 1.
        confidence: Mean probability said [B]; NaN in an empty bin.
        frequency: Share that came true [B]; NaN in an empty bin.
        weight: Weight of the samples [B].
    """

    edges: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    weight: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean over samples of |confidence - frequency| of their bin; NaN without any."""
        gaps = np.abs(np.nan_to_num(self.confidence - self.frequency))
        return float(ratio((self.weight * gaps).sum(), self.weight.sum()))


def probabilities(values: Values) -> np.ndarray:
    """Check that values are probabilities: in [0, 1], and rows of [N, K] sum to 1.

    Args:
        values: [N] of one class, or [N, K] over all classes.

    Returns:
        float64 of the same shape.
    """
    probs = finite_values(values, "probabilities")
    if probs.size:
        assert probs.min() >= 0, "probabilities are expected, not logits"
        assert probs.max() <= 1 + 1e-6, "probabilities are expected, not logits"
        # rows of a softmax in half precision sum to 1 within 1e-2
        assert probs.ndim == 1 or np.abs(probs.sum(axis=1) - 1).max() < 2e-2, "rows of probabilities must sum to 1"
    return np.minimum(probs, 1.0)


def reliability(
    probs: Values, outcomes: Values, *, weights: Values | None = None, bins: int = DEFAULT_BINS
) -> Reliability:
    """Compare said probabilities with outcomes in bins of equal width (0, 1/B], (1/B, 2/B], ...; 0 is in the first.

    Args:
        probs: Probability of an event [N].
        outcomes: Whether it came true [N], 0 or 1.
        weights: [N] or None.
        bins: B, >= 1.
    """
    said, true = probabilities(probs), label_values(outcomes).astype(np.float64)
    assert said.ndim == 1, f"probabilities {said.shape}, expected [N]"
    assert said.shape == true.shape, f"{said.shape} probabilities for {true.shape} outcomes"
    counted = sample_weights(weights, said.size)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.searchsorted(edges[1:-1], said, side="left")
    total, sums, hits = (np.bincount(index, counted * values, bins) for values in (np.ones_like(said), said, true))
    return Reliability(edges, ratio(sums, total), ratio(hits, total), total)


def top_label_reliability(
    probs: Values, labels: Values, *, weights: Values | None = None, bins: int = DEFAULT_BINS
) -> Reliability:
    """The reliability of the most probable class: how often is it right (Guo et al., ICML 2017).

    Args:
        probs: [N, K].
        labels: Class indices [N].
        weights: [N] or None.
        bins: Number of bins of equal width.
    """
    values = probabilities(probs)
    right = values.argmax(axis=1) == label_values(labels)
    return reliability(values.max(axis=1, initial=0.0), right, weights=weights, bins=bins)


def calibration_error(
    probs: Values, labels: Values, *, weights: Values | None = None, bins: int = DEFAULT_BINS
) -> float:
    """Expected calibration error (ECE) with bins of equal width.

    With two classes, or scores [N], of the probability of the positive (second) class; with more, of the most probable
    class.

    Args:
        probs: [N] or [N, K].
        labels: Class indices [N].
        weights: [N] or None.
        bins: Number of bins.
    """
    values = probabilities(probs)
    if values.ndim == 2 and values.shape[1] > 2:
        return top_label_reliability(values, labels, weights=weights, bins=bins).error
    return reliability(values if values.ndim == 1 else values[:, 1], labels, weights=weights, bins=bins).error


def brier_score(probs: Values, labels: Values, *, weights: Values | None = None) -> float:
    """Mean squared error of the probabilities (Brier, Mon. Weather Rev. 78, 1950).

    With two classes, or scores [N], of the positive class: 0 to 1. With more, summed over the classes: 0 to 2.

    Args:
        probs: [N] or [N, K].
        labels: Class indices [N].
        weights: [N] or None.
    """
    values, true = probabilities(probs), label_values(labels)
    if values.ndim == 2 and values.shape[1] > 2:
        errors = ((values - (true[:, None] == np.arange(values.shape[1]))) ** 2).sum(axis=1)
    else:
        errors = ((values if values.ndim == 1 else values[:, 1]) - true) ** 2
    counted = sample_weights(weights, errors.size)
    return float(ratio((counted * errors).sum(), counted.sum()))


def log_loss(probs: Values, labels: Values, *, weights: Values | None = None) -> float:
    """Mean negative log-likelihood; a probability of 0 counts as 2e-16 (scikit-learn's rule).

    Args:
        probs: [N] or [N, K].
        labels: Class indices [N].
        weights: [N] or None.
    """
    values, true = probabilities(probs), label_values(labels).astype(np.int64)
    if values.ndim == 1:
        values = np.stack([1 - values, values], axis=1)
    said = np.take_along_axis(values, true[:, None], axis=1)[:, 0]
    counted = sample_weights(weights, said.size)
    return float(-ratio((counted * np.log(np.maximum(said, np.finfo(np.float64).eps))).sum(), counted.sum()))


def fit_temperature(logits: Values, labels: Values, *, ignore_index: int | None = None) -> float:
    """Find the temperature T with which softmax(logits / T), or the sigmoid, fits the labels best.

    Fit it on validation data, never on those it is judged on. The class with the largest logit stays the same (Guo et
    al., On Calibration of Modern Neural Networks, ICML 2017). The likelihood has one maximum in T, sought from 1e-3 to
    1e3. Where it has none (perfectly separated data; logits that mislead) T is one beyond which nothing is gained.

    Args:
        logits: [*S, K] for a softmax over K classes, or of the shape of the labels for sigmoids.
        labels: Class indices [*S], or 0 and 1 of the shape of the logits; NaN is unlabelled.
        ignore_index: Label of entries to leave out.

    Returns:
        T > 0; above 1 where the model is overconfident. NaN without a label.
    """
    values, true = finite_values(logits, "logits"), label_values(labels)
    exclusive = true.shape == values.shape[:-1]
    assert exclusive or true.shape == values.shape, f"logits {values.shape} for labels {true.shape}"
    known = np.isfinite(true) if ignore_index is None else np.isfinite(true) & (true != ignore_index)
    values, true = values[known], true[known]
    if not true.size:
        return float("nan")
    index, sign = true.astype(np.int64)[..., None], np.where(true == 1, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        scaled = values / np.exp(log_temperature)
        if not exclusive:
            return float(-log_expit(sign * scaled).mean())
        return float(-np.take_along_axis(log_softmax(scaled, axis=-1), index, axis=-1).mean())

    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    # The bounded search never evaluates its limits; a flat loss keeps the model as it is.
    best = min((0.0, low, high, float(found.x)), key=lambda x: (loss(x) > loss(float(found.x)) + 1e-15, abs(x)))
    return float(np.exp(best))


def apply_temperature(logits: Values, temperature: float, *, exclusive: bool) -> np.ndarray:
    """Turn logits into probabilities at a temperature.

    Args:
        logits: [*S, K].
        temperature: > 0.
        exclusive: Softmax over the last axis; sigmoids otherwise.

    Returns:
        float64 of the same shape.
    """
    assert temperature > 0, f"a temperature is above 0, not {temperature}"
    values = finite_values(logits, "logits") / temperature
    return np.asarray(softmax(values, axis=-1) if exclusive else expit(values))
