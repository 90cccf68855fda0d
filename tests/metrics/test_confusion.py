"""Metrics of a confusion matrix against scikit-learn, hand-computed values and the rules for absent classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from medtrain.metrics.confusion import (
    class_averages,
    class_confusion,
    class_scores,
    cohen_kappa,
    confusion_metrics,
    confusion_specs,
)


def _random(seed: int, classes: int = 5, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    predicted = np.where(rng.random(count) < 0.5, labels, rng.integers(0, classes, count))
    return predicted, labels, rng.random(count)


def test_rows_are_true_classes_and_tensors_are_read() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    assert class_confusion(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_a_class_out_of_range_is_not_counted_elsewhere() -> None:
    with pytest.raises(AssertionError, match="label holds class indices"):
        class_confusion(np.array([0, 1]), np.array([0, 3]), 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_parity_with_scikit_learn(weighted: bool) -> None:
    predicted, labels, weights = _random(1)
    weights = weights if weighted else None
    names = list("abcde")
    confusion = class_confusion(predicted, labels, 5, weights=weights)
    assert np.allclose(confusion, sk.confusion_matrix(labels, predicted, sample_weight=weights))
    found = confusion_metrics(confusion, names)
    assert list(found) == list(confusion_specs(names))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted, sample_weight=weights))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted, sample_weight=weights)
    )
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predicted, sample_weight=weights))
    for average in ("macro", "weighted"):
        expected = sk.precision_recall_fscore_support(labels, predicted, average=average, sample_weight=weights)
        got = [found[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(expected[:3])
    per_class = sk.precision_recall_fscore_support(labels, predicted, average=None, sample_weight=weights)
    for row, name in enumerate(("precision", "recall", "f1")):
        assert [found[f"{name}/{label}"] for label in names] == pytest.approx(per_class[row])
    assert [found[f"accuracy/{label}"] for label in names] == pytest.approx(per_class[1])


@pytest.mark.parametrize("weighting", ["none", "linear", "quadratic"])
def test_kappa_parity(weighting: str) -> None:
    predicted, labels, _ = _random(2)
    expected = sk.cohen_kappa_score(labels, predicted, weights=None if weighting == "none" else weighting)
    assert cohen_kappa(class_confusion(predicted, labels, 5), weighting) == pytest.approx(expected)


def test_quadratic_weighted_kappa_golden() -> None:
    confusion = class_confusion(np.array([0, 1, 1, 2, 4, 4, 3, 0]), np.array([0, 0, 1, 2, 3, 4, 4, 2]), 5)
    assert cohen_kappa(confusion, "quadratic") == pytest.approx(0.810811, abs=5e-7)


def test_kappa_keeps_absent_classes_in_their_place() -> None:
    """Grades 0 and 4 only: the distance is four grades, not one."""
    labels, predicted = np.array([0, 0, 4, 4, 2]), np.array([0, 4, 4, 4, 2])
    expected = sk.cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(5))
    assert cohen_kappa(class_confusion(predicted, labels, 5), "quadratic") == pytest.approx(expected)


def test_kappa_of_one_class_everywhere_is_undefined_and_of_constant_predictions_chance() -> None:
    assert math.isnan(cohen_kappa(class_confusion(np.ones(4, int), np.ones(4, int), 3), "quadratic"))
    assert cohen_kappa(class_confusion(np.ones(4, int), np.array([0, 1, 1, 2]), 3), "quadratic") == pytest.approx(0)


def test_binary_by_hand() -> None:
    # 3 positives: 2 found; 5 negatives: 4 rejected
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])  # [8]
    predicted = np.array([1, 1, 0, 1, 0, 0, 0, 0])
    found = confusion_metrics(class_confusion(predicted, labels, 2), ["healthy", "ill"])
    expected = {"sensitivity": 2 / 3, "specificity": 4 / 5, "ppv": 2 / 3, "npv": 4 / 5, "f1": 2 / 3, "accuracy": 6 / 8}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["specificity/healthy"] == pytest.approx(found["sensitivity"])


def test_a_perfect_prediction_of_some_classes_scores_one() -> None:
    """Trap 004-T2: dividing by all classes, one of which is masked out, gave 0.8."""
    labels = np.array([0, 1, 2, 3, 3])
    found = confusion_metrics(class_confusion(labels, labels, 5), list("abcde"))
    for name in ("f1_macro", "f1_weighted", "precision_macro", "recall_macro", "balanced_accuracy", "accuracy"):
        assert found[name] == 1.0, name
    assert math.isnan(found["f1/e"])
    assert math.isnan(found["recall/e"])


def test_a_class_never_predicted_lowers_the_average_as_in_scikit_learn() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1])
    averages = class_averages(class_confusion(predicted, labels, 4))
    expected = sk.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert [averages[f"{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    scores = class_scores(class_confusion(predicted, labels, 4))
    assert math.isnan(scores["precision"][2])
    assert scores["recall"][2] == 0
    assert scores["f1"][2] == 0
    assert np.isnan([scores[name][3] for name in ("precision", "recall", "f1")]).all()


def test_nothing_to_judge_is_nan_throughout() -> None:
    found = confusion_metrics(np.zeros((3, 3)), list("abc"))
    assert all(math.isnan(value) for value in found.values())


def test_shards_add_up() -> None:
    predicted, labels, _ = _random(3)
    whole = class_confusion(predicted, labels, 5)
    parts = [class_confusion(predicted[k::3], labels[k::3], 5) for k in range(3)]
    assert (sum(parts) == whole).all()
    means = np.mean([confusion_metrics(part, list("abcde"))["f1_macro"] for part in parts])
    assert abs(means - confusion_metrics(whole, list("abcde"))["f1_macro"]) > 1e-4  # why means of batch means are wrong
