"""Calibration error, Brier score and log loss by hand and against scikit-learn; the temperature against its optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from medtrain.metrics.calibration import (
    apply_temperature,
    brier_score,
    calibration_error,
    fit_temperature,
    log_loss,
    reliability,
    top_label_reliability,
)


def test_reliability_by_hand() -> None:
    # bins (0, .5] and (.5, 1]: .2 and .5 said, one true; .6, .9, .9 said, two true
    probs, outcomes = np.array([0.2, 0.5, 0.6, 0.9, 0.9]), np.array([0, 1, 1, 0, 1])
    curve = reliability(probs, outcomes, bins=2)
    assert curve.confidence == pytest.approx([0.35, 0.8])
    assert curve.frequency == pytest.approx([0.5, 2 / 3])
    assert curve.weight.tolist() == [2, 3]
    assert curve.error == pytest.approx((2 * 0.15 + 3 * (0.8 - 2 / 3)) / 5)


def test_the_ends_and_the_edges_are_in_a_bin() -> None:
    curve = reliability(np.array([0.0, 0.1, 0.2, 1.0]), np.array([0, 0, 0, 1]), bins=10)
    assert curve.weight.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert np.isnan(curve.confidence[2])
    assert curve.error == pytest.approx((2 * 0.05 + 0.2) / 4)


def test_calibration_error_is_of_the_positive_class_with_two_and_of_the_top_label_with_more() -> None:
    probs, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])
    assert calibration_error(probs, labels) == pytest.approx((0.1 + 0.8) / 2)
    assert calibration_error(probs[:, 1], labels) == pytest.approx(0.45)
    # top labels: .6 right, .6 wrong (one bin: .6 said, .5 right), .9 right
    probs, labels = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.05, 0.9, 0.05]]), np.array([0, 1, 1])
    assert calibration_error(probs, labels) == pytest.approx((2 * 0.1 + 0.1) / 3)
    assert top_label_reliability(probs, labels).weight.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 0]


def test_calibrated_probabilities_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    probs = rng.random(100_000)
    outcomes = rng.random(probs.size) < probs
    assert calibration_error(probs, outcomes) < 0.01
    assert calibration_error(expit(3 * np.log(probs / (1 - probs))), outcomes) > 0.1


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_agree_with_scikit_learn(classes: int, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    probs, labels = rng.dirichlet(np.ones(classes), 200), rng.integers(0, classes, 200)
    weights = rng.random(200) if weighted else None
    said = probs[:, 1] if classes == 2 else probs
    assert brier_score(probs, labels, weights=weights) == pytest.approx(
        sk.brier_score_loss(labels, said, sample_weight=weights)
    )
    assert log_loss(probs, labels, weights=weights) == pytest.approx(sk.log_loss(labels, probs, sample_weight=weights))


def test_a_binary_score_may_be_one_column() -> None:
    rng = np.random.default_rng(2)
    said, labels = rng.random(50), rng.integers(0, 2, 50)
    both = np.stack([1 - said, said], axis=1)
    for function in (brier_score, log_loss, calibration_error):
        assert function(said, labels) == function(both, labels)


def test_certainty_that_is_wrong_costs_much_but_not_all() -> None:
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-math.log(np.finfo(float).eps))


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(AssertionError, match="not logits"):
        brier_score(np.array([[2.0, -1.0, 0.3]]), np.array([0]))
    with pytest.raises(AssertionError, match="must sum to 1"):
        brier_score(np.array([[0.9, 0.9, 0.3]]), np.array([0]))


def test_nothing_to_judge_is_nan() -> None:
    empty = np.empty((0, 3)), np.empty(0, int)
    assert all(math.isnan(function(*empty)) for function in (brier_score, log_loss, calibration_error))
    assert math.isnan(fit_temperature(*empty))


def test_the_temperature_that_made_the_logits_is_found() -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.normal(size=(20_000, 4))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    temperature = fit_temperature(2.5 * logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)
    said, raw = apply_temperature(2.5 * logits, temperature, exclusive=True), softmax(2.5 * logits, axis=1)
    assert (said.argmax(axis=1) == raw.argmax(axis=1)).all()
    assert calibration_error(said, labels) < 0.02 < calibration_error(raw, labels)


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_other_temperature_fits_better(exclusive: bool) -> None:
    rng = np.random.default_rng(4)
    logits = 4 * rng.normal(size=(300, 3))
    noisy = logits + 6 * rng.normal(size=logits.shape)
    labels = noisy.argmax(axis=1) if exclusive else (noisy > 0).astype(int)

    def loss(temperature: float) -> float:
        if exclusive:
            return float(-log_softmax(logits / temperature, axis=1)[np.arange(300), labels].mean())
        return log_loss(expit(logits / temperature).ravel(), labels.ravel())

    best = fit_temperature(logits, labels)
    assert all(loss(best) <= loss(best * factor) + 1e-12 for factor in (0.1, 0.9, 0.999, 1.001, 1.1, 10))


def test_the_temperature_of_a_perfect_model_is_bounded_and_of_an_ignorant_one_changes_nothing() -> None:
    assert 1e-3 <= fit_temperature(3 * np.eye(3), np.arange(3)) < 0.1  # exp(-3 / T) is nothing any more
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1.0
    assert fit_temperature(-3 * np.eye(3), np.arange(3)) == pytest.approx(1e3)


def test_entries_without_a_label_do_not_count() -> None:
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(100, 6, 4)), rng.integers(0, 4, (100, 6))  # zones
    labels[::3, 2] = -1
    known = labels != -1
    assert fit_temperature(logits, labels, ignore_index=-1) == fit_temperature(logits[known], labels[known])
    logits, outcomes = rng.normal(size=(100, 3)), rng.integers(0, 2, (100, 3)).astype(float)
    outcomes[::4, 1] = np.nan
    known = ~np.isnan(outcomes)
    assert fit_temperature(logits, outcomes) == fit_temperature(logits[known], outcomes[known])
