"""ROC, precision-recall and thresholds against scikit-learn and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from medtrain.errors import NonFiniteError
from medtrain.metrics.ranking import (
    auroc,
    average_precision,
    one_vs_rest,
    precision_recall_curve,
    roc_curve,
    sensitivity_threshold,
    youden_threshold,
)


def _random(seed: int, *, ties: bool, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    scores = rng.normal(size=count) + labels
    return (np.round(scores) if ties else scores), labels, rng.random(count)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_areas_agree_with_scikit_learn(ties: bool, weighted: bool) -> None:
    scores, labels, weights = _random(1, ties=ties)
    weights = weights if weighted else None
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert auroc(scores, labels, weights=weights) == pytest.approx(expected, abs=1e-12)
    expected = sk.average_precision_score(labels, scores, sample_weight=weights)
    assert average_precision(scores, labels, weights=weights) == pytest.approx(expected, abs=1e-12)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    # pairs (positive, negative): .8>.5, .8>.5, .8>.1, .5=.5 twice, .5>.1 -> (4 + 2/2) / 6
    scores, labels = np.array([0.8, 0.5, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0, 0])
    assert auroc(scores, labels) == pytest.approx(5 / 6)
    assert auroc(-scores, labels) == pytest.approx(1 / 6)
    assert auroc(np.full(5, 0.3), labels) == 0.5


def test_curves_agree_with_scikit_learn() -> None:
    scores, labels, _ = _random(2, ties=True)
    expected = sk.roc_curve(labels, scores, drop_intermediate=False)
    for got, wanted in zip(roc_curve(scores, labels), expected, strict=True):
        assert np.allclose(got, wanted)
    precision, recall, thresholds = precision_recall_curve(scores, labels)
    wanted_precision, wanted_recall, wanted_thresholds = sk.precision_recall_curve(labels, scores)
    assert np.allclose(precision[::-1], wanted_precision[:-1])
    assert np.allclose(recall[::-1], wanted_recall[:-1])
    assert np.allclose(thresholds[::-1], wanted_thresholds)


def test_one_vs_rest_macro_agrees_with_scikit_learn_and_leaves_absent_classes_undefined() -> None:
    rng = np.random.default_rng(3)
    probs, labels = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    found = one_vs_rest(auroc, probs, labels)
    assert found.mean() == pytest.approx(sk.roc_auc_score(labels, probs, multi_class="ovr"))
    found = one_vs_rest(auroc, probs, np.where(labels == 2, 1, labels))
    assert np.isnan(found).tolist() == [False, False, True, False]


@pytest.mark.parametrize("function", [auroc, average_precision, youden_threshold])
@pytest.mark.parametrize("labels", [np.zeros(4, int), np.ones(4, int), np.zeros(0, int)])
def test_one_class_only_is_undefined(function: Callable[..., float], labels: np.ndarray) -> None:
    assert math.isnan(function(np.linspace(0, 1, labels.size), labels))
    assert not roc_curve(np.linspace(0, 1, labels.size), labels)[0].size


def test_youden_accepts_what_scikit_learns_best_threshold_accepts() -> None:
    for seed in range(20):
        scores, labels, _ = _random(seed, ties=seed % 2 == 0, count=60)
        false_rate, true_rate, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
        best = thresholds[np.flatnonzero(true_rate - false_rate >= (true_rate - false_rate).max() - 1e-12)[0]]
        threshold = youden_threshold(scores, labels)
        assert ((scores >= threshold) == (scores >= best)).all()


def test_youden_lies_between_two_scores() -> None:
    # accepting .7 and above finds both positives and no negative
    assert youden_threshold(np.array([0.9, 0.7, 0.3, 0.1]), np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    assert math.isnan(youden_threshold(np.full(4, 0.5), np.array([1, 1, 0, 0])))
    neighbours = np.array([np.nextafter(0.5, 1), 0.5])
    assert ((neighbours >= youden_threshold(neighbours, np.array([1, 0]))) == [True, False]).all()


def test_a_threshold_chosen_where_it_is_judged_flatters() -> None:
    """Trap: on noise the best threshold of a split has J > 0 on that split, and about 0 on another."""
    rng = np.random.default_rng(4)

    def youden(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
        return float((scores >= threshold)[labels == 1].mean() - (scores >= threshold)[labels == 0].mean())

    own, other = [], []
    for _ in range(100):
        scores, labels = rng.random((2, 60)), np.tile([0, 1], 30)
        threshold = youden_threshold(scores[0], labels)
        own.append(youden(scores[0], labels, threshold))
        other.append(youden(scores[1], labels, threshold))
    assert np.mean(own) > 0.1
    assert abs(np.mean(other)) < 0.05


def test_threshold_at_a_sensitivity_is_the_strictest_that_reaches_it() -> None:
    scores = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.2])
    labels = np.array([1, 0, 1, 1, 0, 1])
    assert sensitivity_threshold(scores, labels, 0.5) == pytest.approx(0.5)
    assert sensitivity_threshold(scores, labels, 0.75) == pytest.approx(0.35)
    assert sensitivity_threshold(scores, labels, 1.0) == pytest.approx(0.2)


def test_order_does_not_matter_and_monotone_maps_do_not() -> None:
    scores, labels, _ = _random(5, ties=True)
    order = np.random.default_rng(0).permutation(labels.size)
    for function in (auroc, average_precision, youden_threshold):
        assert function(scores[order], labels[order]) == function(scores, labels)
    assert auroc(np.exp(scores), labels) == auroc(scores, labels)


def test_weights_repeat_samples() -> None:
    scores, labels, _ = _random(6, ties=True, count=50)
    times = np.random.default_rng(0).integers(0, 3, 50)
    for function in (auroc, average_precision):
        repeated = function(np.repeat(scores, times), np.repeat(labels, times))
        assert function(scores, labels, weights=times) == pytest.approx(repeated)


def test_what_is_not_finite_is_an_error_and_half_precision_is_read() -> None:
    with pytest.raises(NonFiniteError, match="1 of 3 scores are NaN"):
        auroc(np.array([0.1, np.nan, 0.3]), np.array([0, 1, 1]))
    assert auroc(torch.tensor([0.1, 0.9], dtype=torch.bfloat16), torch.tensor([0, 1])) == 1.0


def test_a_hundred_thousand_samples() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 100_000)
    scores = rng.normal(size=labels.size) + labels
    # two normals one standard deviation apart: Phi(1 / sqrt(2))
    assert auroc(scores, labels) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.005)
