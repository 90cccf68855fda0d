"""Metrics of grades: the golden kappa, distances, and the rest of the report."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from medtrain.metrics.confusion import class_confusion
from medtrain.metrics.ordinal import expected_grade, grade_metrics, ordinal_metrics, ordinal_specs

GRADES = ["none", "mild", "moderate", "severe", "proliferative"]


def _random(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, count, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    return rng.dirichlet(np.ones(5), count) * 0.6 + 0.4 * np.eye(5)[labels], labels


def test_golden_kappa_and_distances_by_hand() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 3, 4, 4, 2]), np.array([0, 1, 1, 2, 4, 4, 3, 0])
    found = grade_metrics(class_confusion(predicted, labels, 5))
    assert found["qwk"] == pytest.approx(0.810811, abs=5e-7)
    assert found["mae"] == pytest.approx((1 + 1 + 1 + 2) / 8)
    # grade 0: (0 + 1) / 2, 1: 0, 2: (0 + 2) / 2, 3: 1, 4: (0 + 1) / 2
    assert found["mae_macro"] == pytest.approx((0.5 + 0 + 1 + 1 + 0.5) / 5)
    assert found["accuracy_within_1"] == pytest.approx(7 / 8)


def test_parity_and_keys() -> None:
    probs, labels = _random(0)
    found = ordinal_metrics(probs, labels, GRADES)
    chosen = probs.argmax(axis=1)
    assert list(found) == list(ordinal_specs(GRADES))
    assert next(iter(found)) == "qwk"  # trap 003-T3: not accuracy, half the eyes have grade 0
    assert found["qwk"] == pytest.approx(sk.cohen_kappa_score(labels, chosen, weights="quadratic"))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, chosen))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, chosen))
    assert found["spearman"] == pytest.approx(spearmanr(probs @ np.arange(5), labels).statistic)
    assert {key for key, spec in ordinal_specs(GRADES).items() if spec.mode == "min"} == {
        "mae",
        "mae_macro",
        "ece",
        "brier",
        "nll",
        "n_undefined",
    }


def test_always_the_commonest_grade_is_accurate_and_worthless() -> None:
    labels = np.repeat([0, 1, 4], [90, 5, 5])
    found = ordinal_metrics(np.tile([0.9, 0.1, 0, 0, 0], (100, 1)), labels, GRADES)
    assert found["accuracy"] == 0.9
    assert found["qwk"] == pytest.approx(0)
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["mae_macro"] == pytest.approx((0 + 1 + 4) / 3)
    assert math.isnan(found["spearman"])


def test_grades_chosen_by_the_model_are_judged() -> None:
    probs, labels = _random(1)
    chosen = np.minimum(probs.argmax(axis=1) + 1, 4)
    labels[::4] = -1
    known = labels != -1
    found = ordinal_metrics(probs, labels, GRADES, predicted=chosen, ignore_index=-1)
    assert found["qwk"] == pytest.approx(
        sk.cohen_kappa_score(labels[known], chosen[known], weights="quadratic", labels=range(5))
    )
    assert found["auroc"] == ordinal_metrics(probs, labels, GRADES, ignore_index=-1)["auroc"]


def test_expected_grade_of_equal_rows_is_equal() -> None:
    probs = np.tile(np.random.default_rng(2).dirichlet(np.ones(5)), (37, 1))
    assert np.unique(expected_grade(probs)).size == 1
    assert expected_grade(np.array([[0.5, 0, 0.5]])).tolist() == [1.0]


def test_weights_repeat_samples_and_order_does_not_matter() -> None:
    probs, labels = _random(3, 60)
    times = np.random.default_rng(0).integers(0, 3, 60)
    weighted = ordinal_metrics(probs, labels, GRADES, weights=times)
    repeated = ordinal_metrics(np.repeat(probs, times, axis=0), np.repeat(labels, times), GRADES)
    for found in (weighted, repeated):
        found.pop("spearman")  # its ranks take no weights
    assert weighted == pytest.approx(repeated, nan_ok=True)
    order = np.random.default_rng(1).permutation(60)
    assert ordinal_metrics(probs[order], labels[order], GRADES) == pytest.approx(ordinal_metrics(probs, labels, GRADES))


def test_a_hundred_thousand_samples() -> None:
    probs, labels = _random(4, 100_000)
    assert ordinal_metrics(probs, labels, GRADES)["n_undefined"] == 0
