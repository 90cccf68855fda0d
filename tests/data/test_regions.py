"""Regions: names, order, what a painted map can hold, and nnU-Net's way to write them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from medtrain.data.case import Dataset
from medtrain.data.io.description import read_description
from medtrain.data.labels import LabelMap
from medtrain.data.regions import RegionMap, painted_first
from medtrain.data.volume_data import VolumeData
from medtrain.errors import ConfigError, DataError
from medtrain.inference.postprocess import decide
from tests.data.test_plan import HIPPOCAMPUS, plan_of

BRAIN = {"background": 0, "edema": 1, "core": 2, "enhancing": 3}
NESTED = {"whole": ["edema", "core", "enhancing"], "tumour core": ["core", "enhancing"], "active": ["enhancing"]}


def dataset(regions: dict[str, tuple[int, ...]] | None = None) -> Dataset:
    return Dataset("Brain", Path("."), ("T1",), BRAIN, None, (), (), regions)


def resolve(regions: dict[str, list[str]] | None, data: Dataset | None = None) -> RegionMap | None:
    data = data or dataset()
    return RegionMap.from_settings(data, LabelMap.from_dataset(data), regions)


def test_a_region_is_painted_with_the_class_that_no_later_one_covers() -> None:
    assert painted_first([(1, 2, 3), (2, 3), (3,)]) == [(1, 2, 3), (2, 3), (3,)]
    assert painted_first([(3, 2, 1), (3, 2), (3,)]) == [(1, 3, 2), (2, 3), (3,)]
    assert painted_first([(1, 2), (1,), (2,)]) == [(1, 2), (1,), (2,)]  # nothing is left: the first


def test_nested_regions_give_back_every_map() -> None:
    found = resolve(NESTED)
    assert found is not None
    assert (found.region_names, found.members) == (("whole", "tumour core", "active"), ((1, 2, 3), (2, 3), (3,)))
    assert found.notes == ()
    label = torch.arange(4)
    logits = torch.stack([torch.isin(label, torch.tensor(members)) for members in found.members]).float() - 0.5
    assert torch.equal(decide(logits, found.members).long(), label)


def test_overlaps_and_classes_left_out_are_told() -> None:
    found = resolve({"a": ["edema", "core"], "b": ["core", "enhancing"]})
    assert found is not None
    assert found.notes == (
        "`a` and `b` overlap and neither holds the other: a label map shows `b` where both are found, painted as core",
        "`b` is written as core; no region tells enhancing apart",
    )
    left = resolve({"tumour core": ["core", "enhancing"]})
    assert left is not None
    assert left.notes == (
        "in no region, and so never predicted: edema",
        "`tumour core` is written as core; no region tells enhancing apart",
    )
    one = resolve({"whole": ["edema", "core", "enhancing"]})
    assert one is not None
    assert one.notes == ("`whole` is written as edema; no region tells core, enhancing apart",)


@pytest.mark.parametrize(
    ("regions", "where", "said", "hint"),
    [
        ({"a": []}, "data.regions.a", "names no class", None),
        ({"a": ["background"]}, "data.regions.a", "`background` is the background", None),
        ({"a": ["edem"]}, "data.regions.a", "unknown class `edem`; known: edema, core, enhancing", "mean `edema`"),
        ({"a": ["core"], "b": ["core"]}, "data.regions.a", "has the same classes as `b`", "name it once"),
        ({"a": ["core"], "b": ["edema", "core"]}, "data.regions.a", "lies within `b`", "put `a` after `b`"),
    ],
)
def test_regions_that_make_no_sense(regions: dict[str, list[str]], where: str, said: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(regions)
    (problem,) = error.value.problems
    assert problem.where == where
    assert said in problem.message
    assert hint is None or hint in str(problem.hint)


def test_regions_of_the_data_set_unless_others_or_none_are_wanted() -> None:
    data = dataset({"whole": (1, 2, 3), "core": (2, 3)})
    own = resolve(None, data)
    assert own is not None
    assert own.members == ((1, 2, 3), (2, 3))
    assert resolve({}, data) is None
    other = resolve({"core": ["core"]}, data)
    assert other is not None
    assert other.members == ((2,),)


def test_regions_of_the_data_set_follow_joined_classes() -> None:
    data = dataset({"whole": (1, 2, 3), "core": (2, 3)})
    joined = RegionMap.from_settings(data, LabelMap.from_dataset(data, {"inner": ["core", "enhancing"]}), None)
    assert joined is not None
    assert joined.members == ((1, 2), (2,))
    removed = LabelMap.from_dataset(data, {"background": ["background", "core"]})
    with pytest.raises(ConfigError, match="holds the background"):
        RegionMap.from_settings(data, removed, None)


def test_the_plan_has_an_output_per_region() -> None:
    plan = plan_of(HIPPOCAMPUS, dataset(), settings=VolumeData(regions=NESTED))
    assert (plan.num_classes, plan.num_outputs) == (4, 3)
    assert plan.regions == ((1, 2, 3), (2, 3), (3,))
    assert plan.judged_names == ("whole", "tumour core", "active")
    assert plan.runtime()["regions"] == plan.regions


def description(tmp_path: Path, labels: Any, order: Any = None) -> Path:
    content = {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nii.gz"}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content if order is None else {**content, "regions_class_order": order}))
    return path


def test_nnunets_description(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    found = read_description(description(tmp_path, labels, [1, 2, 3]))
    assert found.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert found.labels == {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 3}
    assert found.ignore_value == 4

    kidney = {"background": 0, "kidney": [1, 2, 3], "mass": [2, 3], "tumour": 2}
    assert read_description(description(tmp_path, kidney, [1, 3, 2])).regions == {
        "kidney": (1, 2, 3),
        "mass": (3, 2),
        "tumour": (2,),
    }


@pytest.mark.parametrize(
    ("labels", "order", "said"),
    [
        ({"background": 0, "a": [1, 2]}, None, "regions need `regions_class_order`"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "the value that each of a, b is painted with"),
        ({"background": 0, "a": [1, 2]}, [3], "paints 'a' with 3, which is none of its values [1, 2]"),
        ({"background": 0, "a": []}, [1], "label 'a' must be a whole number or a list of them, got []"),
        ({"background": 0, "a": [0, 1]}, [1], "must be above 0"),
        ({"a": [1, 2]}, [1], "regions need `background`"),
        ({"background": 0, "a": [1, 2], "ignore": 2}, [1], "`ignore` is part of a region"),
        ({"background": 0, "a": [1, 2], "ignore": [2, 3]}, [1], "`ignore` must be one value"),
    ],
)
def test_wrong_regions_of_a_description(tmp_path: Path, labels: Any, order: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        read_description(description(tmp_path, labels, order))
    assert said in str(error.value)


def test_regions_are_told_and_what_a_map_cannot_hold_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset({"whole": (1, 2, 3), "core": (2,)})
    (told,) = VolumeData()._region_values(data, plan_of(HIPPOCAMPUS, data))
    assert told.value == {"whole": ["edema", "core", "enhancing"], "core": ["core"]}
    assert not told.fills

    settings = VolumeData(regions={"core": ["core"]})
    with caplog.at_level(logging.WARNING):
        assert settings._region_values(data, plan_of(HIPPOCAMPUS, data, settings=settings)) == []
    assert "never predicted: edema, enhancing" in caplog.text
