from pathlib import Path

import numpy as np
import pytest

from medtrain.data.case import Dataset
from medtrain.data.labels import LabelMap
from medtrain.errors import ConfigError

LIVER = {"background": 0, "liver": 1, "cancer": 2}


def dataset(labels: dict[str, int], ignore_value: int | None = None) -> Dataset:
    return Dataset("Liver", Path("."), ("CT",), labels, ignore_value, (), ())


def test_values_become_positions() -> None:
    labels = LabelMap.from_dataset(dataset({"background": 0, "liver": 10, "cancer": 4}, ignore_value=255))
    assert labels.class_names == ("background", "liver", "cancer")
    assert labels.label_values == (0, 10, 4)
    assert (labels.num_classes, labels.ignore_index) == (3, 3)
    classes = labels.to_classes(np.array([[0, 10], [4, 255]], dtype=np.uint8))
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, [[0, 1], [2, 3]])


def test_negative_and_wide_values() -> None:
    labels = LabelMap.from_dataset(dataset({"background": 0, "a": -3, "b": 1000}))
    np.testing.assert_array_equal(labels.to_classes(np.array([-3, 0, 1000], dtype=np.int16)), [1, 0, 2])


def test_joined_classes_keep_place_and_value() -> None:
    labels = LabelMap.from_dataset(dataset(LIVER), {"liver": ["liver", "cancer"]})
    assert (labels.class_names, labels.label_values) == (("background", "liver"), (0, 1))
    np.testing.assert_array_equal(labels.to_classes(np.array([0, 1, 2])), [0, 1, 1])

    renamed = LabelMap.from_dataset(dataset({**LIVER, "spleen": 3}), {"lesion": ["cancer", "spleen"]})
    assert (renamed.class_names, renamed.label_values) == (("background", "liver", "lesion"), (0, 1, 2))
    np.testing.assert_array_equal(renamed.to_classes(np.array([0, 1, 2, 3])), [0, 1, 2, 2])

    dropped = LabelMap.from_dataset(dataset(LIVER), {"background": ["background", "cancer"]})
    assert (dropped.class_names, dropped.label_values) == (("background", "liver"), (0, 1))
    np.testing.assert_array_equal(dropped.to_classes(np.array([0, 1, 2])), [0, 1, 0])


def test_a_new_name_for_the_background_keeps_index_0() -> None:
    labels = LabelMap.from_dataset(dataset(LIVER), {"rest": ["cancer", "background"]})
    assert (labels.class_names, labels.label_values) == (("rest", "liver"), (0, 1))


def test_every_mistake_in_merge_labels_is_named() -> None:
    merge = {"organ": ["livr"], "liver": ["cancer"], "twice": ["cancer"], "nothing": []}
    with pytest.raises(ConfigError) as error:
        LabelMap.from_dataset(dataset(LIVER), merge)
    problems = {problem.where: problem for problem in error.value.problems}
    assert problems["data.merge_labels.organ"].message == "unknown class `livr`; known: background, liver, cancer"
    assert problems["data.merge_labels.organ"].hint == "did you mean `liver`?"
    assert "`cancer` is already joined into `liver`" in problems["data.merge_labels.twice"].message
    assert "names no class" in problems["data.merge_labels.nothing"].message
    assert "`liver` is a class of its own" in problems["data.merge_labels.liver"].message


def test_undeclared_values_are_counted() -> None:
    labels = LabelMap.from_dataset(dataset(LIVER))
    with pytest.raises(ValueError, match=r"values 3 \(2 voxels\), 7 \(1 voxel\); declared are 0, 1, 2$"):
        labels.to_classes(np.array([0, 3, 3, 7, 2], dtype=np.uint8))
    with pytest.raises(ValueError, match="undeclared label values -1"):
        labels.to_classes(np.array([0, -1], dtype=np.int16))
    with pytest.raises(ValueError, match="no label"):
        labels.to_classes(np.array([0, 1 << 30], dtype=np.int32))


def test_many_classes_need_two_bytes() -> None:
    labels = LabelMap.from_dataset(dataset({f"c{i}": i for i in range(300)}))
    values = np.arange(300, dtype=np.int16)
    assert labels.to_classes(values).dtype == np.int16
    np.testing.assert_array_equal(labels.to_classes(values), values)
