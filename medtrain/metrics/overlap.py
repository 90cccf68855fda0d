"""Overlap of two label maps: Dice, IoU, precision and recall per class, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

OVERLAP_METRICS = ("dice", "iou", "precision", "recall")

_BLOCK = 2**17


def confusion_matrix(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    num_classes: int,
    *,
    ignore_index: int | None = None,
) -> np.ndarray:
    """Count the voxels of every pair (true class, predicted class) in one pass.

    Args:
        prediction: Class indices [*S], integers in 0..num_classes-1.
        label: Class indices [*S] of the same shape; may also hold `ignore_index`.
        num_classes: K, background included.
        ignore_index: Voxels with this label are left out.

    Returns:
        Counts [K, K], int64: rows are true classes, columns predicted classes.
    """
    predicted, true = as_label_map(prediction).ravel(), as_label_map(label).ravel()
    assert predicted.size == true.size, f"{predicted.size} predicted voxels for {true.size} labelled ones"
    if ignore_index is not None:
        kept = true != ignore_index
        predicted, true = predicted[kept], true[kept]
    if predicted.size == 0:
        return np.zeros((num_classes, num_classes), dtype=np.int64)
    for name, values in (("prediction", predicted), ("label", true)):
        low, high = int(values.min()), int(values.max())
        # An index out of range would be counted silently in a neighbouring cell.
        assert 0 <= low <= high < num_classes, f"{name} holds class indices {low}..{high} of {num_classes} classes"
    codes = num_classes**2
    dtype = np.dtype(np.uint8 if codes <= 2**8 else np.int16 if codes <= 2**15 else np.int64)
    counts = np.zeros(codes, dtype=np.int64)
    # numpy widens what it counts to 64 bits: in blocks that stay in the cache.
    for start in range(0, true.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        code = np.multiply(true[block], num_classes, dtype=dtype, casting="unsafe")
        np.add(code, predicted[block], out=code, casting="unsafe")
        counts += np.bincount(code, minlength=codes)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of structures that may overlap.

    Args:
        right: In both maps [R].
        true: In the label [R].
        predicted: In the prediction [R].
    """

    right: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def count_voxels(confusion: np.ndarray, regions: Sequence[Sequence[int]]) -> VoxelCounts:
    """Count the voxels of regions, which are made of classes.

    Args:
        confusion: Counts [K, K] of `confusion_matrix`.
        regions: Class indices of every region.
    """
    members = np.zeros((len(regions), len(confusion)), dtype=np.int64)
    for row, region in zip(members, regions, strict=True):
        row[list(region)] = 1
    return VoxelCounts(
        right=((members @ confusion) * members).sum(axis=1),
        true=members @ confusion.sum(axis=1),
        predicted=members @ confusion.sum(axis=0),
    )


def overlap_scores(confusion: np.ndarray, regions: Sequence[Sequence[int]] | None = None) -> dict[str, np.ndarray]:
    """Compute Dice, IoU, precision and recall of every class, or of regions.

    With TP, FP, FN the voxels of a class that are right, wrongly added and missed:
    dice = 2 TP / (2 TP + FP + FN), iou = TP / (TP + FP + FN), precision = TP / (TP + FP), recall = TP / (TP + FN).

    Empty classes: a class in neither map has nothing to be judged, all four are NaN and means leave it out (nnU-Net's
    rule). A class in only one of the two maps scores 0 in all four, also where the formula would be 0 / 0
    (precision of an empty prediction, recall of an empty label).

    Args:
        confusion: Counts [K, K] of `confusion_matrix`.
        regions: Class indices of every region; every class by itself if None.

    Returns:
        One float64 array [K], or one value per region, per metric of `OVERLAP_METRICS`, in [0, 1] or NaN.
    """
    counts = count_voxels(confusion, [(index,) for index in range(len(confusion))] if regions is None else regions)
    true_positive = counts.right.astype(np.float64)
    true, predicted = counts.true.astype(np.float64), counts.predicted.astype(np.float64)
    present = (true + predicted) > 0

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.where(present, numerator / np.maximum(denominator, 1.0), np.nan)

    return {
        "dice": ratio(2 * true_positive, true + predicted),
        "iou": ratio(true_positive, true + predicted - true_positive),
        "precision": ratio(true_positive, predicted),
        "recall": ratio(true_positive, true),
    }


def as_label_map(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Bring a label map to the CPU as an integer (or bool turned uint8) array, without a copy where possible."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    assert np.issubdtype(array.dtype, np.integer), f"a label map holds integers, not {array.dtype}"
    return array
