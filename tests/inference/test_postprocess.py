"""Keep-largest-component on hand-made label maps."""

from __future__ import annotations

import numpy as np
import pytest

from medtrain.errors import UsageError
from medtrain.inference.postprocess import class_indices, keep_largest_components
from medtrain.inference.sliding_window import SlidingWindow


def _two_blobs() -> np.ndarray:
    label = np.zeros((6, 8, 10), dtype=np.uint8)  # [D, H, W]
    label[1:3, 1:4, 1:4] = 1  # 18 voxels
    label[4, 5:7, 5:8] = 1  # 6 voxels
    label[0, 7, 9] = 2
    label[5, 0, 0:2] = 2
    return label


def test_only_the_largest_component_of_the_class_stays() -> None:
    label = _two_blobs()
    before = label.copy()
    kept = keep_largest_components(label, [1])
    expected = before.copy()
    expected[4, 5:7, 5:8] = 0
    assert (kept == expected).all()
    assert kept.dtype == np.uint8
    assert (label == before).all()
    assert (keep_largest_components(label, [1, 2]) == 2).sum() == 2


def test_diagonal_neighbours_are_one_component() -> None:
    label = np.zeros((3, 3, 3), dtype=np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 2] = 1
    assert keep_largest_components(label, [1]) is label


def test_equal_sizes_keep_the_first() -> None:
    label = np.array([[1, 0, 1, 0, 1]])
    assert keep_largest_components(label, [1]).tolist() == [[1, 0, 0, 0, 0]]


def test_absent_class_and_no_class_change_nothing() -> None:
    label = _two_blobs()
    assert keep_largest_components(label, [3]) is label
    assert keep_largest_components(label, []) is label


def test_settings_name_the_classes() -> None:
    names = ("background", "liver", "cancer")
    label = _two_blobs()
    kept = SlidingWindow(keep_largest=("liver",)).postprocess(label, names)
    assert (kept == 1).sum() == 18
    assert (kept == 2).sum() == 3
    assert SlidingWindow().postprocess(label, names) is label


def test_unknown_class_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no foreground class is named `livre`") as caught:
        class_indices(["livre"], ("background", "liver", "cancer"))
    assert caught.value.hint == "did you mean `liver`?"
    with pytest.raises(UsageError, match="named `background`"):
        class_indices(["background"], ("background", "liver"))
