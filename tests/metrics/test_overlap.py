"""Overlap metrics against hand-computed values, scikit-learn and the empty-class rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from medtrain.metrics.overlap import confusion_matrix, overlap_scores


def test_confusion_matrix_rows_are_true_classes() -> None:
    label = np.array([[0, 0, 1], [1, 1, 2]])  # [2, 3]
    prediction = np.array([[0, 1, 1], [1, 2, 0]])
    expected = [[1, 1, 0], [0, 2, 1], [1, 0, 0]]
    assert confusion_matrix(prediction, label, 3).tolist() == expected


def test_hand_computed_scores() -> None:
    label = np.array([1, 1, 1, 1, 0, 0, 0, 0])  # [8]
    prediction = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    scores = overlap_scores(confusion_matrix(prediction, label, 2))
    assert scores["dice"][1] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores["iou"][1] == pytest.approx(3 / 5)
    assert scores["precision"][1] == pytest.approx(3 / 4)
    assert scores["recall"][1] == pytest.approx(3 / 4)


@pytest.mark.parametrize("num_classes", [2, 5, 17, 200])
def test_parity_with_scikit_learn(num_classes: int) -> None:
    """The four counting types (uint8, int16, int64 codes) all agree with scikit-learn."""
    rng = np.random.default_rng(num_classes)
    label = rng.integers(0, num_classes, (6, 20, 30)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.7, label, rng.integers(0, num_classes, label.shape))
    classes = np.arange(num_classes)
    counts = confusion_matrix(prediction, label, num_classes)
    assert (counts == sk.confusion_matrix(label.ravel(), prediction.ravel(), labels=classes)).all()
    scores = overlap_scores(counts)
    precision, recall, dice, _ = sk.precision_recall_fscore_support(
        label.ravel(), prediction.ravel(), labels=classes, zero_division=0
    )
    iou = sk.jaccard_score(label.ravel(), prediction.ravel(), labels=classes, average=None, zero_division=0)
    for name, expected in (("precision", precision), ("recall", recall), ("dice", dice), ("iou", iou)):
        np.testing.assert_allclose(scores[name], expected, rtol=1e-12)


def test_class_in_neither_map_is_nan() -> None:
    scores = overlap_scores(confusion_matrix(np.array([0, 1]), np.array([0, 1]), 3))
    assert all(np.isnan(values[2]) for values in scores.values())


@pytest.mark.parametrize(("prediction", "label"), [([0, 0], [0, 1]), ([0, 1], [0, 0])])
def test_class_in_one_map_only_scores_zero(prediction: list[int], label: list[int]) -> None:
    scores = overlap_scores(confusion_matrix(np.array(prediction), np.array(label), 2))
    assert {name: float(values[1]) for name, values in scores.items()} == dict.fromkeys(scores, 0.0)


def test_ignored_voxels_are_left_out() -> None:
    label = np.array([0, 1, 2, 2])  # 2 = ignore
    prediction = np.array([0, 1, 1, 0])
    assert confusion_matrix(prediction, label, 2, ignore_index=2).tolist() == [[1, 0], [0, 1]]
    assert confusion_matrix(prediction, np.full(4, 2), 2, ignore_index=2).sum() == 0


def test_index_out_of_range_is_not_counted_elsewhere() -> None:
    with pytest.raises(AssertionError, match=r"label holds class indices 0\.\.2 of 2 classes"):
        confusion_matrix(np.array([0, 1]), np.array([0, 2]), 2)


def test_torch_tensors_give_the_same_counts() -> None:
    label, prediction = torch.randint(0, 4, (2, 9, 8, 7), generator=torch.Generator().manual_seed(0))
    expected = confusion_matrix(prediction.numpy(), label.numpy(), 4)
    assert (confusion_matrix(prediction, label, 4) == expected).all()
    assert (confusion_matrix(prediction.to(torch.uint8), label, 4) == expected).all()
