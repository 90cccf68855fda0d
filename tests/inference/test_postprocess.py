"""Keep-largest-component on hand-made label maps."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import ndimage

from medtrain.errors import UsageError
from medtrain.inference.postprocess import Structure, decide, find_structures, keep_largest_components
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
    kept = keep_largest_components(label, [Structure((1,))])
    expected = before.copy()
    expected[4, 5:7, 5:8] = 0
    assert (kept == expected).all()
    assert kept.dtype == np.uint8
    assert (label == before).all()
    assert (keep_largest_components(label, [Structure((1,)), Structure((2,))]) == 2).sum() == 2


def test_diagonal_neighbours_are_one_component() -> None:
    label = np.zeros((3, 3, 3), dtype=np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 2] = 1
    assert keep_largest_components(label, [Structure((1,))]) is label


def test_equal_sizes_keep_the_first() -> None:
    label = np.array([[1, 0, 1, 0, 1]])
    assert keep_largest_components(label, [Structure((1,))]).tolist() == [[1, 0, 0, 0, 0]]


def test_components_take_little_memory() -> None:
    # noise, so that components are many and the box is the whole: a byte of mask, four of component, one of result
    label = (np.random.default_rng(0).random((96, 64, 64)) < 0.05).astype(np.uint8)
    keep_largest_components(label[:4], [Structure((1,))])  # imports
    tracemalloc.start()
    try:
        kept = keep_largest_components(label, [Structure((1,))])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < kept.sum() < label.sum()
    assert peak < 7.5 * label.size


def test_many_components_as_scipy_counts_them() -> None:
    label = (np.random.default_rng(1).random((20, 30, 25)) < 0.04).astype(np.uint8)
    components, count = ndimage.label(label, structure=np.ones((3, 3, 3)))
    sizes = [int((components == number).sum()) for number in range(1, count + 1)]
    assert count > 20
    np.testing.assert_array_equal(
        keep_largest_components(label, [Structure((1,))]), components == 1 + sizes.index(max(sizes))
    )


def test_absent_class_and_no_class_change_nothing() -> None:
    label = _two_blobs()
    assert keep_largest_components(label, [Structure((3,))]) is label
    assert keep_largest_components(label, []) is label


def test_settings_name_the_classes() -> None:
    names = ("background", "liver", "cancer")
    label = _two_blobs()
    kept = SlidingWindow(keep_largest=("liver",)).postprocess(label, names)
    assert (kept == 1).sum() == 18
    assert (kept == 2).sum() == 3
    assert SlidingWindow().postprocess(label, names) is label


def test_foreground_is_all_classes_together() -> None:
    label = _two_blobs()
    label[1, 4, 1:4] = 2  # touches the larger blob of class 1: 21 voxels together
    kept = SlidingWindow(keep_largest=("foreground",)).postprocess(label, ("background", "liver", "cancer"))
    assert ((kept == 1).sum(), (kept == 2).sum()) == (18, 3)
    assert find_structures(["foreground"], ("background", "foreground")) == [
        Structure((1,))
    ]  # a class of that name is meant


def test_unknown_class_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no foreground class is named `livre`") as caught:
        find_structures(["livre"], ("background", "liver", "cancer"))
    assert caught.value.hint == "did you mean `liver`?"
    with pytest.raises(UsageError, match="named `background`"):
        find_structures(["background"], ("background", "liver"))


REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
"""Of a tumour: edema 1, necrosis 2, enhancing 3."""
NAMES = ("background", "edema", "necrosis", "enhancing")


def test_regions_are_named_and_those_around_them_stay() -> None:
    label = np.array([[1, 1, 2, 3, 3, 2, 1, 3, 1, 0, 1, 2, 0, 2]], dtype=np.uint8)
    core = SlidingWindow(keep_largest=("core",)).postprocess(label, NAMES, REGIONS)
    # three stray cores become edema, the part of the whole tumour that is no core
    assert core.tolist() == [[1, 1, 2, 3, 3, 2, 1, 1, 1, 0, 1, 1, 0, 1]]
    assert ((core > 0) == (label > 0)).all()
    whole = SlidingWindow(keep_largest=("whole", "core")).postprocess(label, NAMES, REGIONS)
    assert whole.tolist() == [[1, 1, 2, 3, 3, 2, 1, 1, 1, 0, 0, 0, 0, 0]]


def test_what_is_removed_of_a_region_becomes_none_of_its_siblings() -> None:
    names = ("background", "left", "right", "liver")
    kidneys = {"kidneys": (1, 2), "left": (1,), "right": (2,)}
    label = np.array([[1, 1, 0, 2, 2, 0, 1, 0, 2]], dtype=np.uint8)
    sides = find_structures(["left", "right"], names, kidneys)
    assert sides == [Structure((1,)), Structure((2,))]  # no kidney is neither
    assert keep_largest_components(label, sides).tolist() == [[1, 1, 0, 2, 2, 0, 0, 0, 0]]
    organs = {"organs": (3, 1, 2), **kidneys}
    assert find_structures(["left", "kidneys"], names, organs) == [Structure((1,), 3), Structure((1, 2), 3)]
    # a class of the region around it that another region, which crosses that, would gain
    assert find_structures(["core"], NAMES, {**REGIONS, "odd": (1, 4)}) == [Structure((2, 3))]


def test_a_region_is_meant_where_a_class_is_called_alike() -> None:
    label = np.array([[3, 3, 2, 1, 3]], dtype=np.uint8)
    assert SlidingWindow(keep_largest=("enhancing",)).postprocess(label, NAMES).tolist() == [[3, 3, 2, 1, 0]]
    kept = SlidingWindow(keep_largest=("enhancing",)).postprocess(label, NAMES, REGIONS)
    assert kept.tolist() == [[3, 3, 2, 1, 2]]  # within the core, which is around it
    found = find_structures(["necrosis", "foreground"], NAMES, REGIONS)
    assert found == [Structure((2,)), Structure(())]
    with pytest.raises(
        UsageError, match="no region or foreground class is named `cor`; the regions and classes are whole,"
    ):
        find_structures(["cor"], NAMES, REGIONS)


def test_the_largest_logit_wins_and_of_equal_ones_the_first() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, -1.0], [0.0, 3.0, 2.5]])  # [K=3, W=3]

    label = decide(logits, None)

    assert label.dtype == torch.uint8
    assert label.tolist() == [0, 1, 2]


def test_regions_are_painted_in_order_with_the_first_of_their_classes() -> None:
    # whole = {1, 2, 3}, core = {2, 3} painted over it; a logit of 0 is a probability of one half, which is not in
    logits = torch.tensor([[-1.0, 2.0, 2.0, -1.0, 0.0], [-1.0, -3.0, 0.5, 4.0, 0.0]])  # [R=2, W=5]

    assert decide(logits, ((1, 2, 3), (2, 3))).tolist() == [0, 1, 2, 2, 0]
    assert decide(logits.flip(0), ((2, 3), (1, 2, 3))).tolist() == [0, 1, 1, 2, 0]


def test_many_classes_do_not_overflow() -> None:
    logits = torch.zeros(300, 2)  # [K=300, W=2]
    logits[299, 1] = 1.0

    assert decide(logits, None).tolist() == [0, 299]
    assert decide(logits[:1] + 1, ((299,),)).tolist() == [299, 299]
