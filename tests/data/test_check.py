import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medtrain.cli.data import app
from medtrain.data.case import Case, Dataset
from medtrain.data.check import count_values, inspect_dataset
from medtrain.data.msd import MsdData
from medtrain.errors import DataError, Problem

IDS = ("a", "b", "c")


class Folder:
    """A small, sound data set of three cases that a test then spoils."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        for name in IDS:
            label = np.zeros((6, 7, 8), np.uint8)
            label[2:4, 2:4, 2:5] = 1
            label[4, 4, 4] = 2
            self.save("imagesTr", name, rng.normal(size=(6, 7, 8)).astype(np.float32))
            self.save("labelsTr", name, label)
        description = {
            "name": "Small",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "liver", "2": "cancer"},
        }
        (root / "dataset.json").write_text(json.dumps(description))

    def path(self, part: str, name: str) -> Path:
        return self.root / part / f"{name}.nii.gz"

    def save(self, part: str, name: str, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
        (self.root / part).mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.5, 1.0]) if affine is None else affine), self.path(part, name)
        )

    def load(self, part: str, name: str) -> np.ndarray:
        return np.asanyarray(nib.load(self.path(part, name)).dataobj).copy()

    def dataset(self) -> Dataset:
        return MsdData(root=str(self.root)).discover()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "small"
    root.mkdir()
    return Folder(root)


def lines(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


def test_a_sound_data_set(folder: Folder) -> None:
    seen: list[tuple[int, int, str]] = []
    report = inspect_dataset(folder.dataset(), progress=lambda *args: seen.append(args))
    assert report.problems == ()
    assert report.warnings == ()
    assert seen == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]
    case = report.cases[0]
    assert case.case_id == "a"
    assert case.shape == (8, 7, 6)
    assert case.spacing == (2.5, 1.0, 1.0)
    assert case.orientation == "RAS"
    assert case.dtype == "float32"
    assert case.voxels == {0: 336 - 13, 1: 12, 2: 1}
    image = folder.load("imagesTr", "a")
    assert case.intensity == (image.min(), image.max())


def truncate(folder: Folder) -> None:
    path = folder.path("imagesTr", "b")
    path.write_bytes(path.read_bytes()[:-200])


def empty(folder: Folder) -> None:
    folder.path("labelsTr", "b").write_bytes(b"")


def no_nifti(folder: Folder) -> None:
    folder.path("labelsTr", "b").write_bytes(b"<html>404</html>" * 100)


def nan(folder: Folder) -> None:
    image = folder.load("imagesTr", "b")
    image[0, 0, :2] = np.nan
    image[1, 1, 1] = np.inf
    folder.save("imagesTr", "b", image)


def shape(folder: Folder) -> None:
    folder.save("labelsTr", "b", folder.load("labelsTr", "b")[:5])


def moved(folder: Folder) -> None:
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    affine[0, 3] = 3
    folder.save("labelsTr", "b", folder.load("labelsTr", "b"), affine)


def flipped(folder: Folder) -> None:
    affine = np.diag([-1.0, 1.0, 2.5, 1.0])
    affine[0, 3] = 5
    folder.save("labelsTr", "b", folder.load("labelsTr", "b"), affine)


def undeclared(folder: Folder) -> None:
    label = folder.load("labelsTr", "b")
    label[0, 0, :3] = 7
    label[0, 1, 0] = 255
    folder.save("labelsTr", "b", label)


def fraction(folder: Folder) -> None:
    folder.save("labelsTr", "b", folder.load("labelsTr", "b") * np.float32(0.5))


def channels(folder: Folder) -> None:
    image = folder.load("imagesTr", "b")
    folder.save("imagesTr", "b", np.stack([image, image], axis=-1))


def duplicate(folder: Folder) -> None:
    # the same voxels in another orientation and compression
    image, affine = folder.load("imagesTr", "a")[::-1], np.diag([-1.0, 1.0, 2.5, 1.0])
    affine[0, 3] = 5
    folder.save("imagesTr", "b", image, affine)
    folder.save("labelsTr", "b", folder.load("labelsTr", "a")[::-1], affine)


SPOILED: list[tuple[Callable[[Folder], None], str]] = [
    (truncate, "imagesTr/b.nii.gz: truncated: the file ends before its voxels do; copy or download it again"),
    (empty, "labelsTr/b.nii.gz: the file is empty"),
    (no_nifti, "labelsTr/b.nii.gz: not a NIfTI file, or its header is damaged"),
    (nan, "imagesTr/b.nii.gz: 3 voxels are NaN or infinite"),
    (shape, "labelsTr/b.nii.gz: shape 5 x 7 x 8 differs from 6 x 7 x 8 of the image b.nii.gz"),
    (moved, "labelsTr/b.nii.gz: position (affine) differs by up to 3 mm from that of the image b.nii.gz"),
    (flipped, "labelsTr/b.nii.gz: orientation LAS differs from RAS of the image b.nii.gz"),
    (
        undeclared,
        "labelsTr/b.nii.gz: label values 7 (3 voxels), 255 (1 voxel) are not declared; "
        "declared are 0 background, 1 liver, 2 cancer",
    ),
    (fraction, "labelsTr/b.nii.gz: 12 voxels are not a whole number, such as 0.5"),
    (channels, "imagesTr/b.nii.gz: holds 2 channels, but dataset.json names 1 (CT)"),
    (duplicate, "imagesTr/b.nii.gz: the same image as a"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILED, ids=[spoil.__name__ for spoil, _ in SPOILED])
def test_each_fault_is_named_once(folder: Folder, spoil: Callable[[Folder], None], said: str) -> None:
    spoil(folder)
    before = sorted(path.name for path in folder.root.rglob("*"))
    assert lines(inspect_dataset(folder.dataset()).problems) == [said]
    assert sorted(path.name for path in folder.root.rglob("*")) == before


def test_all_faults_come_at_once(folder: Folder) -> None:
    truncate(folder)
    undeclared(folder)
    label = folder.load("labelsTr", "c")
    folder.save("labelsTr", "c", label[:, :6])
    folder.path("imagesTr", "a").write_bytes(b"")
    problems = inspect_dataset(folder.dataset(), workers=2).problems
    assert [problem.where for problem in problems] == [
        "imagesTr/a.nii.gz",
        "imagesTr/b.nii.gz",
        "labelsTr/b.nii.gz",
        "labelsTr/c.nii.gz",
    ]


def test_the_result_does_not_depend_on_threads_or_memory(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    undeclared(folder)
    one = inspect_dataset(folder.dataset(), workers=1)
    monkeypatch.setattr("medtrain.data.check._MEMORY_BYTES", 1)  # every case goes alone
    assert inspect_dataset(folder.dataset(), workers=3) == one


def test_files_that_vanish_are_named(folder: Folder) -> None:
    dataset = folder.dataset()
    folder.path("imagesTr", "a").unlink()
    folder.path("labelsTr", "c").unlink()
    assert lines(inspect_dataset(dataset).problems) == [
        "imagesTr/a.nii.gz: no such file",
        "labelsTr/c.nii.gz: no such file",
    ]


def test_quick_looks_at_headers_only(folder: Folder) -> None:
    shape(folder)
    nan_label = folder.load("labelsTr", "c")
    nan_label[0, 0, 0] = 9
    folder.save("labelsTr", "c", nan_label)
    report = inspect_dataset(folder.dataset(), deep=False)
    assert [problem.where for problem in report.problems] == ["labelsTr/b.nii.gz"]
    assert report.cases[0].intensity is None


def test_what_is_unusual_is_a_warning(folder: Folder) -> None:
    for name in IDS:
        label = folder.load("labelsTr", name)
        folder.save("labelsTr", name, np.where(label == 2, 0, label).astype(np.uint8))
    folder.save("labelsTr", "b", np.zeros((6, 7, 8), np.uint8))
    folder.save("imagesTr", "c", np.full((6, 7, 8), 4, np.int16))
    report = inspect_dataset(folder.dataset())
    assert report.problems == ()
    assert lines(list(report.warnings)) == [
        "labelsTr/b.nii.gz: nothing but background is labelled",
        "imagesTr/c.nii.gz: every voxel is 4",
        f"{folder.root}: no case holds the label 2 cancer",
    ]


def test_a_duplicate_of_the_same_patient_is_no_leak(folder: Folder) -> None:
    duplicate(folder)
    cases = [Case(case.case_id, case.images, case.label, group="one patient") for case in folder.dataset().cases]
    dataset = folder.dataset()
    same = Dataset(**{**vars(dataset), "cases": tuple(cases)})
    report = inspect_dataset(same)
    assert report.problems == ()
    assert lines(list(report.warnings)) == ["imagesTr/b.nii.gz: the same image as a"]


def test_a_test_case_that_was_trained_on_is_found(folder: Folder) -> None:
    folder.save("imagesTs", "t", folder.load("imagesTr", "c"))
    report = inspect_dataset(folder.dataset())
    assert lines(list(report.problems)) == ["imagesTs/t.nii.gz: the same image as c"]
    assert [case.case_id for case in report.test_cases] == ["t"]


def test_no_cases_and_ids_twice(folder: Folder) -> None:
    dataset = folder.dataset()
    none = Dataset(**{**vars(dataset), "cases": ()})
    assert lines(inspect_dataset(none).problems) == [f"{folder.root}: there is no labelled case"]
    twice = Dataset(**{**vars(dataset), "test_cases": (Case("a", dataset.cases[1].images, None, "a"),)})
    assert "a: 2 cases have this id" in lines(inspect_dataset(twice).problems)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_values_are_counted_in_chunks(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.data.check._CHUNK", 1000)
    label = np.random.default_rng(0).integers(-3 if dtype != np.uint8 else 0, 9, size=(20, 21, 22)).astype(dtype)
    values, counts = np.unique(label, return_counts=True)
    assert count_values(label) == dict(zip(values.tolist(), counts.tolist()))


def test_wide_values_are_counted_too() -> None:
    assert count_values(np.array([[-(2**30), 0, 2**30, 0]], np.int32)) == {-(2**30): 1, 0: 2, 2**30: 1}
    assert count_values(np.zeros((0, 2, 2), np.uint8)) == {}


# --- the command


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_command_describes_a_sound_data_set(folder: Folder) -> None:
    result = run("check", "data=msd", f"data.root={folder.root}")
    assert result.exit_code == 0, result.output
    for said in ("Small", "3 labelled, of 3 patients", "8 x 7 x 6", "2.5 x 1 x 1", "no problems found"):
        assert said in result.stdout
    liver = next(line for line in result.stdout.splitlines() if "liver" in line)
    assert liver.split() == ["1", "liver", "3", "3.571%", "0.03", "mL"]  # 12 of 336 voxels of 2.5 mm3
    assert result.stderr == ""


def test_command_names_problems_and_fails(folder: Folder) -> None:
    truncate(folder)
    undeclared(folder)
    result = run("check", "data=msd", f"data.root={folder.root}")
    assert result.exit_code == 1
    assert "2 problems:" in result.stdout
    assert "  imagesTr/b.nii.gz: truncated: the file ends" in result.stdout
    assert "label values 7 (3 voxels), 255 (1 voxel) are not declared" in result.stdout
    assert "Traceback" not in result.output


def test_command_names_missing_files_with_everything_else(folder: Folder) -> None:
    """dataset.json lists a file that is not there; another case is cut off, a third has undeclared labels."""
    undeclared(folder)
    truncate(folder)
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in ("gone", *IDS)]
    description = folder.root / "dataset.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "training": listed}))
    result = run("check", "data=msd", f"data.root={folder.root}")
    assert result.exit_code == 1
    assert "4 problems:" in result.stdout
    assert "  imagesTr/gone.nii.gz: no such file" in result.stdout
    assert "  labelsTr/gone.nii.gz: no such file" in result.stdout
    assert "  imagesTr/b.nii.gz: truncated" in result.stdout
    assert "label values 7 (3 voxels), 255 (1 voxel) are not declared" in result.stdout
    with pytest.raises(DataError, match="2 of 8 files"):  # what training calls
        folder.dataset()


def test_command_names_what_dataset_json_gets_wrong_with_everything_else(folder: Folder) -> None:
    """A case listed twice, another id used for two files, an entry without a label; a third case is cut off."""
    truncate(folder)
    (folder.root / "more").mkdir()
    folder.save("more", "c", np.zeros((6, 7, 8), np.float32))
    listed: list[dict[str, str]] = [
        {"image": f"{part}/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
        for part, name in [*(("imagesTr", name) for name in ("a", *IDS)), ("more", "c")]
    ]
    listed.append({"image": "imagesTr/d.nii.gz"})
    description = folder.root / "dataset.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "training": listed}))
    result = run("check", "data=msd", f"data.root={folder.root}")
    assert result.exit_code == 1
    said = [line.strip() for line in result.stdout.splitlines()]
    start = said.index("4 problems:")
    assert said[start + 1 : start + 4] == [
        "dataset.json: training entry 5 is not {\"image\": FILE, \"label\": FILE}: {'image': 'imagesTr/d.nii.gz'}",
        "a: this case is listed more than once",
        "c: this case is listed more than once",
    ]
    assert said[start + 4].startswith("imagesTr/b.nii.gz: truncated")
    assert "1 warning:" in said  # more/c holds one value; a, listed twice, was read once
    with pytest.raises(DataError) as error:  # what training calls
        folder.dataset()
    assert len(error.value.problems) == 3


def test_command_names_wrongly_named_files_with_everything_else(tmp_path: Path) -> None:
    """nnU-Net's layout: a file without a channel, a channel too many, a file cut off."""
    root = tmp_path / "Dataset001_Small"
    root.mkdir()
    folder = Folder(root)
    for name in ("a", "b"):
        folder.path("imagesTr", name).rename(folder.path("imagesTr", f"{name}_0000"))
    shutil.copy(folder.path("imagesTr", "b_0000"), folder.path("imagesTr", "b_0001"))
    empty(folder)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "cancer": 2}}
    (root / "dataset.json").write_text(json.dumps(description))
    result = run("check", "data=nnunet", f"data.root={root}")
    assert result.exit_code == 1
    said = [line.strip() for line in result.stdout.splitlines()]
    assert said[said.index("3 problems:") + 1 :] == [
        "imagesTr/b_0001.nii.gz: channel 1, but dataset.json names 1",
        "imagesTr/c.nii.gz: expected CASE_0000.nii.gz: the case, then the channel in four digits",
        "labelsTr/b.nii.gz: the file is empty",
    ]


def test_command_without_data(tmp_path: Path) -> None:
    result = run("check", "data=msd", f"data.root={tmp_path / 'Task03_Liver'}")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"error: data.root: no such folder: {tmp_path / 'Task03_Liver'}"
    assert "medicaldecathlon.com" in result.stderr


def test_prepare_works_once(tmp_path: Path) -> None:
    args = [
        "prepare",
        f"data.root={tmp_path / 'phantom'}",
        f"data.store={tmp_path / 'store'}",
        "data.num_cases=3",
        "data.num_folds=3",
    ]
    first, second = run(*args), run(*args)
    assert first.exit_code == 0, first.output
    assert "3 prepared: 3 now, 0 before" in first.stdout
    assert "3 prepared: 0 now, 3 before" in second.stdout


@pytest.mark.data
def test_real_scans(tmp_path: Path) -> None:
    report = inspect_dataset(MsdData(root=os.environ["MEDTRAIN_DATA"], task="Task04_Hippocampus").discover())
    assert report.problems == ()
    assert report.warnings == ()
    assert len(report.cases) == 208
