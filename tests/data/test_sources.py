import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtrain.data.case import Dataset
from medtrain.data.check import inspect_dataset
from medtrain.data.io.folders import FilesError
from medtrain.data.io.nifti import SourceGrid, read_image, read_label, write_image
from medtrain.data.msd import MsdData
from medtrain.data.nnunet import NnunetData
from medtrain.data.phantom import PhantomData, _draw_grid, make_case
from medtrain.errors import DataError, MedtrainError, UsageError
from medtrain.registry import build, get, names
from medtrain.run.log import close_logging

GRID = SourceGrid(affine=((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 2.0, 0), (0, 0, 0, 1.0)), shape=(4, 3, 2))


def scan(path: Path, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.zeros((channels, 2, 3, 4), np.int16), GRID)
    return path


def msd_task(root: Path, ids: list[str], *, listed: bool = True, **changes: Any) -> Path:
    for name in ids:
        scan(root / "imagesTr" / f"{name}.nii.gz")
        scan(root / "labelsTr" / f"{name}.nii.gz")
    description: dict[str, Any] = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
    }
    if listed:
        description["training"] = [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ids
        ]
    description.update(changes)
    (root / "dataset.json").write_text(
        json.dumps({key: value for key, value in description.items() if value is not None})
    )
    return root


def nnunet_folder(root: Path, ids: list[str], **changes: Any) -> Path:
    for name in ids:
        scan(root / "imagesTr" / f"{name}_0000.nii.gz")
        scan(root / "imagesTr" / f"{name}_0001.nii.gz")
        scan(root / "labelsTr" / f"{name}.nii.gz")
    description: dict[str, Any] = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1, "ignore": 2},
        "numTraining": len(ids),
        "file_ending": ".nii.gz",
    }
    description.update(changes)
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def ids_of(dataset: Dataset) -> list[str]:
    return [case.case_id for case in dataset.cases]


def test_sources_are_registered() -> None:
    assert {"msd", "nnunet", "phantom"} <= set(names("data"))
    for name in ("msd", "nnunet", "phantom"):
        component = get("data", name)
        assert all(param.doc for param in component.params.values())
        assert not [param for param in component.params.values() if param.required]


# --- the Decathlon's layout


def test_msd_task(tmp_path: Path) -> None:
    root = msd_task(tmp_path / "Task03_Liver", ["liver_10", "liver_2"], test=["./imagesTs/liver_7.nii.gz"])
    scan(root / "imagesTs" / "liver_7.nii.gz")
    (root / "imagesTr" / "._liver_2.nii.gz").write_bytes(b"macOS")
    dataset = build("data", {"name": "msd", "root": str(root)}).discover()
    assert dataset.dataset_name == "Liver"
    assert dataset.root == root
    assert dataset.channel_names == ("CT",)
    assert dataset.labels == {"background": 0, "liver": 1, "cancer": 2}
    assert dataset.ignore_value is None
    assert ids_of(dataset) == ["liver_10", "liver_2"]
    assert dataset.cases[0].images == (root / "imagesTr" / "liver_10.nii.gz",)
    assert dataset.cases[0].label == root / "labelsTr" / "liver_10.nii.gz"
    assert dataset.cases[0].group == "liver_10"
    assert [case.case_id for case in dataset.test_cases] == ["liver_7"]
    assert dataset.test_cases[0].label is None


def test_msd_task_is_found_below_the_root(tmp_path: Path) -> None:
    msd_task(tmp_path / "Task03_Liver", ["a"])
    assert MsdData(root=str(tmp_path)).discover().root == tmp_path / "Task03_Liver"
    msd_task(tmp_path / "Task09_Spleen", ["b"])
    assert ids_of(MsdData(root=str(tmp_path), task="Task09_Spleen").discover()) == ["b"]
    with pytest.raises(UsageError, match="holds several data sets: Task03_Liver, Task09_Spleen") as error:
        MsdData(root=str(tmp_path)).discover()
    assert error.value.hint == f"data.root={tmp_path / 'Task03_Liver'}"


def test_msd_without_a_list_pairs_files_by_name(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["b", "a"], listed=False)
    (root / "imagesTr" / "._a.nii.gz").write_bytes(b"macOS")
    scan(root / "imagesTs" / "t.nii.gz")
    dataset = MsdData(root=str(root)).discover()
    assert ids_of(dataset) == ["a", "b"]
    assert [case.case_id for case in dataset.test_cases] == ["t"]
    (root / "labelsTr" / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"labelsTr/a\.nii\.gz: no such file"):
        MsdData(root=str(root)).discover()


def test_msd_names_every_missing_file(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["a", "b", "c"])
    (root / "imagesTr" / "a.nii.gz").unlink()
    (root / "labelsTr" / "c.nii.gz").unlink()
    with pytest.raises(DataError) as error:
        MsdData(root=str(root)).discover()
    assert str(error.value).splitlines() == [
        f"2 of 6 files of {root} are missing:",
        f"{root}/imagesTr/a.nii.gz: no such file",
        f"{root}/labelsTr/c.nii.gz: no such file",
    ]


def test_msd_copies_without_compression_or_test_part(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["a"], test=["./imagesTs/missing.nii.gz"])
    (root / "imagesTr" / "a.nii.gz").unlink()
    scan(root / "imagesTr" / "a.nii")
    dataset = MsdData(root=str(root)).discover()
    assert dataset.cases[0].images[0].name == "a.nii"
    assert dataset.test_cases == ()


def test_msd_lists_a_case_once(tmp_path: Path) -> None:
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    root = msd_task(tmp_path, ["a"], training=[entry, entry])
    with pytest.raises(DataError, match="a: this case is listed more than once"):
        MsdData(root=str(root)).discover()


def test_msd_entries_must_be_pairs(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["a"], training=[{"image": "./imagesTr/a.nii.gz"}, 3])
    with pytest.raises(DataError) as error:
        MsdData(root=str(root)).discover()
    assert len(error.value.problems) == 2
    assert 'training entry 1 is not {"image": FILE, "label": FILE}: 3' in str(error.value)


def test_patients_by_pattern(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["p1_pre", "p1_post", "p2_pre"])
    dataset = MsdData(root=str(root), group_pattern=r"^(p\d+)_").discover()
    assert [case.group for case in dataset.cases] == ["p1", "p1", "p2"]
    with pytest.raises(UsageError, match=r"finds no patient in 2 of 3 case ids, such as 'p1_pre'"):
        MsdData(root=str(root), group_pattern=r"(p\d+)_post").discover()


@pytest.mark.parametrize(
    ("root", "said", "hint"),
    [
        (None, "data.root is not set", "data.root=/path/to/Task03_Liver (or get it: `medtrain data"),
        ("nowhere/at/all", "no such folder: nowhere/at/all", "data.root=/path/to/Task03_Liver"),
        ("Task03_Livr", "no such folder: Task03_Livr", "did you mean data.root=Task03_Liver?"),
        ("empty", "data.root is an empty folder: empty", "put the data there (or get it: `medtrain data"),
        ("other", "other holds no dataset.json and no Task03_Liver/dataset.json", "data.root=/path/to/Task03_Liver"),
        ("file", "data.root is a file, not a folder: file", "data.root=/path/to/Task03_Liver"),
        ("whole/imagesTr", "data.root is a folder inside a data set: whole/imagesTr", "/whole"),
        ("whole/dataset.json", "data.root is a file, not a folder: whole/dataset.json", "/whole"),
    ],
)
def test_roots_that_are_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None, said: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Task03_Liver", "empty", "other/sub", "whole/imagesTr"):
        Path(name).mkdir(parents=True)
    Path("file").touch()
    Path("whole/dataset.json").write_text("{}")
    with pytest.raises(UsageError) as error:
        MsdData(root=root, task="Task03_Liver").discover()
    assert said in str(error.value)
    assert hint in str(error.value.hint)


def test_the_task_is_read_off_the_root(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        MsdData(root=str(tmp_path / "none" / "Task03_Liver")).discover()
    assert "data.root=/path/to/Task03_Liver" in str(error.value.hint)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, 'needs `labels` such as {"background": 0, "liver": 1}'),
        ({"labels": {"1": "liver"}}, "`labels` must name the value 0, the background"),
        ({"labels": {"0": "background"}}, "must name at least one structure beside the background"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "`labels` holds 'a' or the value 2 twice"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "`labels` holds 'b' or the value 1 twice"),
        ({"labels": {"background": 0, "ignore": 1}}, "must name at least one structure beside the background"),
        ({"labels": {"background": 0, "a": True}}, "label 'a' must be a whole number, got True"),
        ({"labels": {"background": 0, "a": 1.5}}, "label 'a' must be a whole number, got 1.5"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions need `regions_class_order`"),
        ({"labels": {"background": 0, "a": -1}}, "label values must be 0 (background) or positive"),
        ({"modality": None}, "needs `channel_names` (or `modality`)"),
        ({"modality": {"1": "CT"}}, "`modality` must be numbered from 0 without gaps, got 1"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    root = msd_task(tmp_path, ["a"], **changes)
    with pytest.raises(DataError) as error:
        MsdData(root=str(root)).discover()
    assert said in str(error.value)
    assert str(root / "dataset.json") in str(error.value)


def test_all_faults_of_a_description_come_at_once(tmp_path: Path) -> None:
    root = msd_task(tmp_path, ["a"], modality=None, labels=None)
    with pytest.raises(DataError) as error:
        MsdData(root=str(root)).discover()
    assert len(error.value.problems) == 2


def test_broken_json_is_located(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{\n "name": "Liver",\n "labels": {"0": background}\n}')
    with pytest.raises(DataError, match=r"dataset\.json: not valid JSON: line 3, column 18: Expecting value"):
        MsdData(root=str(tmp_path)).discover()


# --- nnU-Net's layout


def test_nnunet_raw(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "Dataset001_Brain", ["b_1", "a_2"])
    scan(root / "imagesTs" / "t_0000.nii.gz")
    scan(root / "imagesTs" / "t_0001.nii.gz")
    dataset = NnunetData(root=str(root)).discover()
    assert dataset.dataset_name == "Dataset001_Brain"
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.labels == {"background": 0, "tumour": 1}
    assert dataset.ignore_value == 2
    assert ids_of(dataset) == ["a_2", "b_1"]
    assert [path.name for path in dataset.cases[0].images] == ["a_2_0000.nii.gz", "a_2_0001.nii.gz"]
    assert dataset.cases[0].label == root / "labelsTr" / "a_2.nii.gz"
    assert [case.case_id for case in dataset.test_cases] == ["t"]
    assert NnunetData(root=str(tmp_path)).discover() == dataset


def test_nnunets_regions_are_read(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    root = nnunet_folder(tmp_path / "Dataset001_Brain", ["a"], labels=labels, regions_class_order=[1, 2])
    dataset = NnunetData(root=str(root)).discover()
    assert dataset.labels == {"background": 0, "label_1": 1, "core": 2}
    assert dataset.regions == {"whole": (1, 2), "core": (2,)}
    assert dataset.ignore_value == 3


def test_nnunet_missing_channels_and_labels(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path, ["a", "b"])
    (root / "imagesTr" / "a_0001.nii.gz").unlink()
    (root / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DataError) as error:
        NnunetData(root=str(root)).discover()
    assert [Path(problem.where).name for problem in error.value.problems] == ["a_0001.nii.gz", "b.nii.gz"]
    assert isinstance(error.value, FilesError)
    assert ids_of(error.value.dataset) == ["a", "b"]


def test_nnunet_trains_without_a_channel_of_a_test_case(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path, ["a"])
    scan(root / "imagesTs" / "t_0000.nii.gz")
    dataset = NnunetData(root=str(root)).discover()
    assert [case.case_id for case in dataset.test_cases] == ["t"]
    assert "imagesTs/t_0001.nii.gz: no such file" in [str(problem) for problem in inspect_dataset(dataset).problems]


def test_nnunet_files_that_do_not_fit(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path, ["a"])
    scan(root / "imagesTr" / "b.nii.gz")
    scan(root / "imagesTr" / "c_0002.nii.gz")
    with pytest.raises(DataError) as error:
        NnunetData(root=str(root)).discover()
    assert [problem.message for problem in error.value.problems] == [
        "expected CASE_0000.nii.gz: the case, then the channel in four digits",
        "channel 2, but dataset.json names 2",
    ]


def test_nnunet_endings_and_empty_folders(tmp_path: Path) -> None:
    root = tmp_path / "a"
    root.mkdir()
    nnunet_folder(root, [])
    with pytest.raises(DataError, match=r"imagesTr: holds no CASE_0000\.nii\.gz files"):
        NnunetData(root=str(root)).discover()
    nnunet_folder(root, ["a"], file_ending=".nrrd")
    with pytest.raises(DataError, match=r"file_ending '\.nrrd' is not supported"):
        NnunetData(root=str(root)).discover()


# --- the phantom


def phantom(root: Path, **parameters: Any) -> PhantomData:
    return PhantomData(root=str(root), **{"num_cases": 2, "num_test_cases": 1, **parameters})


def test_phantom_is_a_pure_function_of_seed_and_case() -> None:
    image, label, grid = make_case(0, 3)
    again = make_case(0, 3)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], label)
    assert again[2] == grid
    assert make_case(0, 4)[2] != grid
    assert make_case(1, 3)[2] != grid


def test_phantom_looks_like_what_it_claims() -> None:
    shapes, orientations = set(), set()
    for index in range(8):
        image, label, grid = make_case(0, index)
        assert image.dtype == np.int16
        assert label.dtype == np.uint8
        assert image.shape == label.shape == grid.canonical_shape
        assert 30 <= image.shape[0] <= 50
        assert all(55 <= size <= 75 for size in image.shape[1:])
        liver, tumour = image[label == 1], image[label == 2]
        assert 0.02 < (label > 0).mean() < 0.12
        assert tumour.size >= 20
        assert 80 < np.median(liver) < 130
        assert np.median(tumour) < np.median(liver) - 15
        assert np.median(image[:, 0, 0]) < -950  # air around the body
        assert np.percentile(image, 99.9) > 200  # the spine
        # the spleen: as bright as the liver, not labelled, on the patient's left
        smooth = image[:, :, : image.shape[2] // 3]
        assert ((smooth > 80) & (label[:, :, : image.shape[2] // 3] == 0)).sum() > 200
        shapes.add(image.shape)
        orientations.add(grid.axis_codes)
    assert len(shapes) == 8
    assert len(orientations) > 1


def test_phantom_is_written_once_in_msd_layout(tmp_path: Path) -> None:
    root = tmp_path / "outputs" / "phantom"
    dataset = phantom(root).discover()
    assert dataset.labels == {"background": 0, "liver": 1, "cancer": 2}
    assert dataset.channel_names == ("CT",)
    assert ids_of(dataset) == ["phantom_000", "phantom_001"]
    assert [case.case_id for case in dataset.test_cases] == ["phantom_002"]
    image, label, grid = make_case(0, 1)
    np.testing.assert_array_equal(read_image(dataset.cases[1].images).array[0], image)
    assert dataset.cases[1].label is not None
    back = read_label(dataset.cases[1].label)
    np.testing.assert_array_equal(back.array, label)
    assert back.grid == grid
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert phantom(root).discover() == dataset
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    assert ids_of(MsdData(root=str(root)).discover()) == ids_of(dataset)
    assert os.listdir(root.parent) == ["phantom"]


def test_phantom_says_when_it_writes_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "phantom"
    close_logging()  # of an earlier test
    phantom(root).discover()  # as in `medtrain show`, which sets up no log
    assert capsys.readouterr() == ("", f"generating the phantom in {root}: 3 cases\n")
    with caplog.at_level(logging.INFO):
        phantom(root).discover()
        assert caplog.messages == []
        phantom(root, phantom_seed=7).discover()
    assert caplog.messages == [f"generating the phantom in {root}: 3 cases"]
    assert capsys.readouterr() == ("", "")


def test_phantom_with_other_parameters_replaces_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    phantom(root).discover()
    second = phantom(root, num_cases=3, phantom_seed=7).discover()
    assert len(second.cases) == 3
    assert read_label(second.cases[0].images[0]).grid == make_case(7, 0)[2]
    (root / "imagesTr" / "phantom_001.nii.gz").unlink()
    assert len(phantom(root, num_cases=3, phantom_seed=7).discover().cases) == 3
    assert os.listdir(tmp_path) == ["phantom"]


def test_phantom_never_overwrites_what_is_not_its_own(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    (root / "precious.nii.gz").write_bytes(b"scan")
    with pytest.raises(UsageError, match="holds files that are not this phantom's"):
        phantom(root).discover()
    root = tmp_path / "phantom"
    phantom(root).discover()
    (root / "imagesTr" / "my_prediction.nii.gz").write_bytes(b"mine")
    assert len(phantom(root).discover().cases) == 2  # the same phantom: nothing is written
    with pytest.raises(UsageError, match=r"such as .*my_prediction\.nii\.gz; they are not overwritten"):
        phantom(root, num_cases=3).discover()
    assert (root / "imagesTr" / "my_prediction.nii.gz").read_bytes() == b"mine"


def test_a_failed_phantom_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, index: int, *, true_scale: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtrain.data.phantom.make_case", fail)
    with pytest.raises(MedtrainError, match="the disk is full"):
        phantom(tmp_path / "phantom").discover()
    assert os.listdir(tmp_path) == []


def test_phantom_can_be_made_by_two_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: phantom(tmp_path / "phantom").discover(), range(2)))
    assert results[0] == results[1]
    assert os.listdir(tmp_path) == ["phantom"]


def test_phantom_without_a_root() -> None:
    with pytest.raises(UsageError, match=r"data\.root is not set"):
        PhantomData(root=None).discover()


def test_true_scale_draws_liver_sized_grids() -> None:
    for seed in range(50):
        shape, spacing = _draw_grid(np.random.default_rng(seed), True)
        assert shape[1:] == (512, 512)
        assert 75 <= shape[0] <= 700
        assert 0.6 <= spacing[1] == spacing[2] <= 0.85
        assert 250 < shape[0] * spacing[0] < 490


def test_a_phantom_whose_files_a_crash_cut_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    phantom(root).discover()
    cut = root / "imagesTr" / "phantom_001.nii.gz"
    data = cut.read_bytes()
    cut.write_bytes(data[:100])
    phantom(root).discover()
    assert cut.read_bytes() == data
