"""Which components are kept: decided by mean Dice over the held-out cases, hurting no class."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from medtrain.crossval.components import HeldOut, Judged, choose_components
from medtrain.inference.postprocess import keep_largest_components

CLASSES = Judged(("background", "liver", "cancer"), ("liver", "cancer"), ((1,), (2,)))


def given(*pairs: tuple[list[int], list[int]]) -> Callable[[], Iterable[HeldOut]]:
    """Cases of one row of voxels: what was predicted, what is true."""
    cases = [HeldOut(np.array([[a]], dtype=np.uint8), np.array([[b]], dtype=np.uint8)) for a, b in pairs]
    return lambda: iter(cases)


def test_a_stray_component_that_no_case_has_is_removed() -> None:
    # liver: 3 of 3 found and 1 too many: 2 * 3 / (4 + 3) = 6/7; without the stray one 1
    choice = choose_components(given(([1, 1, 1, 0, 1, 0, 2], [1, 1, 1, 0, 0, 0, 2])), CLASSES)
    assert choice.before == {"liver": 6 / 7, "cancer": 1.0, "mean": (6 / 7 + 1) / 2}
    assert choice.after == {"liver": 1.0, "cancer": 1.0, "mean": 1.0}
    # all foreground as one would keep the liver alone and lose the cancer
    assert choice.keep_largest == ("liver",)
    assert [(trial.keep_largest, trial.verdict) for trial in choice.tried] == [
        ("foreground", "lowers cancer"),
        ("liver", "taken"),
        ("cancer", "changes nothing for the better"),
    ]
    assert choice.num_cases == 1


def test_foreground_comes_first_and_classes_are_judged_on_top_of_it() -> None:
    # one organ of two classes, and strays of both
    case = ([1, 1, 2, 2, 0, 1, 0, 2], [1, 1, 2, 2, 0, 0, 0, 0])
    choice = choose_components(given(case), CLASSES)
    assert choice.keep_largest == ("foreground",)
    assert choice.before == {"liver": 4 / 5, "cancer": 4 / 5, "mean": 4 / 5}
    assert choice.after["mean"] == 1.0


def test_what_helps_on_average_and_hurts_a_class_is_left() -> None:
    # two livers are true in the second case, more than what the stray one costs in the first
    first = ([1, 1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0])
    second = ([1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1])
    choice = choose_components(given(first, second), CLASSES)
    assert choice.keep_largest == ()
    assert choice.after["liver"] == choice.before["liver"] == (8 / 9 + 1) / 2
    assert choice.tried[1].verdict == "lowers liver"


def test_classes_that_are_nowhere_decide_nothing() -> None:
    choice = choose_components(given(([1, 0, 1, 1], [0, 0, 1, 1])), CLASSES)
    assert np.isnan(choice.before["cancer"])
    assert choice.before["mean"] == choice.before["liver"] == 4 / 5
    assert choice.keep_largest == ("foreground",)  # the only class there is


def test_one_class_is_not_tried_twice() -> None:
    judged = Judged(("background", "organ"), ("organ",), ((1,),))
    choice = choose_components(given(([1, 0, 1, 1], [0, 0, 1, 1])), judged)
    assert [trial.keep_largest for trial in choice.tried] == ["organ"]
    assert choice.keep_largest == ("organ",)
    assert choose_components(given(), judged).num_cases == 0


def test_regions_are_judged_and_classes_treated() -> None:
    # whole = edema + core, core = core: the stray core voxel costs both regions
    judged = Judged(("background", "edema", "core"), ("whole", "core"), ((1, 2), (2,)))
    choice = choose_components(given(([1, 1, 2, 2, 0, 2], [1, 1, 2, 2, 0, 0])), judged)
    assert choice.before == {"whole": 8 / 9, "core": 4 / 5, "mean": (8 / 9 + 4 / 5) / 2}
    assert choice.keep_largest == ("foreground",)
    assert choice.after["mean"] == 1.0


def test_regions_are_tried_one_by_one() -> None:
    # two tumours, and a stray core in the edema of the second one
    judged = Judged(("background", "edema", "core"), ("whole", "core"), ((1, 2), (2,)))
    case = ([2, 2, 0, 0, 1, 1, 2, 1], [2, 2, 0, 0, 1, 1, 1, 1])
    choice = choose_components(given(case), judged)
    assert [trial.keep_largest for trial in choice.tried] == ["foreground", "whole", "core"]
    assert choice.keep_largest == ("core",)
    assert choice.after == {"whole": 1.0, "core": 1.0, "mean": 1.0}
    assert judged.structures(["core"])[0].becomes == 1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_chosen_is_what_prediction_does(seed: int) -> None:
    """The numbers before and after are those of the plain functions on every case."""
    random = np.random.default_rng(seed)
    cases = []
    for _ in range(3):
        label = np.zeros((6, 10, 10), dtype=np.uint8)
        label[1:4, 2:7, 2:7] = 1
        label[2, 4:6, 4:6] = 2
        prediction = label.copy()
        prediction[random.random(label.shape) < 0.03] = random.integers(0, 3)
        cases.append(HeldOut(prediction, label))
    choice = choose_components(lambda: iter(cases), CLASSES)
    structures = CLASSES.structures(choice.keep_largest)
    after = np.array([CLASSES.dice(keep_largest_components(a, structures), b) for a, b, _ in cases]).mean(axis=0)
    assert [choice.after["liver"], choice.after["cancer"]] == pytest.approx(after.tolist(), abs=1e-12)
    assert choice.after["mean"] >= choice.before["mean"]
    # an independent Dice
    for position, index in enumerate((1, 2)):
        each = [
            2 * ((a == index) & (b == index)).sum() / ((a == index).sum() + (b == index).sum()) for a, b, _ in cases
        ]
        assert list(choice.before.values())[position] == pytest.approx(np.mean(each), abs=1e-12)


def test_ignored_voxels_do_not_count() -> None:
    judged = Judged(("background", "organ"), ("organ",), ((1,),), ignore_index=2)
    assert judged.dice(np.array([1, 1, 1]), np.array([1, 2, 0])).tolist() == [2 / 3]


def test_what_nobody_annotated_decides_nothing() -> None:
    """A finding of a class that was not annotated is not wrong; kept as a part of the foreground it would be lost."""
    # liver and a cancer apart, which was annotated in the last case alone; there it touches the liver
    apart = HeldOut(np.array([[[1, 1, 1, 0, 2, 2]]]), np.array([[[1, 1, 1, 0, 0, 0]]]), (True, False))
    whole = HeldOut(np.array([[[1, 1, 1, 2, 2, 0]]]), np.array([[[1, 1, 1, 2, 2, 0]]]))
    cases = [apart, apart, whole]
    choice = choose_components(lambda: iter(cases), CLASSES)
    assert choice.before == choice.after == {"liver": 1.0, "cancer": 1.0, "mean": 1.0}
    assert choice.keep_largest == ()
    absent = [case._replace(annotated=None) for case in cases]
    assert choose_components(lambda: iter(absent), CLASSES).before["cancer"] == 1 / 3
    assert choose_components(lambda: iter(absent), CLASSES).keep_largest == ("foreground",)
    # what is annotated in no case is not known before or after
    unknown = choose_components(lambda: iter([apart]), CLASSES)
    assert np.isnan(unknown.before["cancer"])
    assert np.isnan(unknown.after["cancer"])
