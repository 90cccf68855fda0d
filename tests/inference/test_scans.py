"""How files become scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medtrain.errors import UsageError
from medtrain.inference.scans import Scan, find_scans
from tests.inference.runs import write_scan

THREE = ("T1", "T2", "FLAIR")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "imagesTs"
    scans.mkdir()
    return scans


def _write(folder: Path, *names: str, channels: int = 1) -> None:
    shape = (4, 4, 4) if channels == 1 else (4, 4, 4, channels)
    for name in names:
        write_scan(folder / name, np.ones(shape, dtype=np.int16))


def _names(scans: list[Scan]) -> dict[str, list[str]]:
    return {scan.case_id: [path.name for path in scan.images] for scan in scans}


def test_one_channel_is_called_as_the_file(folder: Path) -> None:
    _write(folder, "liver_1.nii.gz", "liver_0.nii", "._liver_0.nii.gz", "mr_0001.nii.gz", "mr_0000.nii.gz")
    assert _names(find_scans(folder, ("CT",))) == {
        "liver_0": ["liver_0.nii"],
        "liver_1": ["liver_1.nii.gz"],
        "mr_0000": ["mr_0000.nii.gz"],
        "mr_0001": ["mr_0001.nii.gz"],
    }


def test_one_channel_in_nnunet_naming(folder: Path) -> None:
    _write(folder, "a_0000.nii.gz", "b_0000.nii.gz")
    assert _names(find_scans(folder, ("CT",))) == {"a": ["a_0000.nii.gz"], "b": ["b_0000.nii.gz"]}
    assert _names(find_scans(folder / "a_0000.nii.gz", ("CT",))) == {"a": ["a_0000.nii.gz"]}


def test_several_channels_are_joined(folder: Path) -> None:
    parts = [f"{case}_000{c}.nii.gz" for case in ("a", "b_0001") for c in (2, 0, 1)]
    _write(folder, *parts)
    _write(folder, "BRATS_001.nii.gz", "whole_0007.nii.gz", channels=3)
    scans = find_scans(folder, THREE)
    assert _names(scans) == {
        "BRATS_001": ["BRATS_001.nii.gz"],
        "a": [f"a_000{c}.nii.gz" for c in range(3)],
        "b_0001": [f"b_0001_000{c}.nii.gz" for c in range(3)],
        "whole_0007": ["whole_0007.nii.gz"],
    }
    assert all(scan.problem is None for scan in scans)
    assert _names(find_scans(folder / "a_0001.nii.gz", THREE)) == {"a": [f"a_000{c}.nii.gz" for c in range(3)]}


@pytest.mark.parametrize("present", [(0, 2), (0, 1, 2, 3), (1,)])
def test_missing_and_extra_channels_are_named(folder: Path, present: tuple[int, ...]) -> None:
    _write(folder, *[f"a_{c:04d}.nii.gz" for c in present])
    (scan,) = find_scans(folder, THREE)
    assert scan.problem is not None
    assert all(f"a_{c:04d}.nii.gz" in scan.problem for c in present)
    assert "a_0000 (T1), a_0001 (T2), a_0002 (FLAIR)" in scan.problem


def test_an_unreadable_channel_is_grouped_by_its_name(folder: Path) -> None:
    _write(folder, "a_0000.nii.gz", "a_0001.nii.gz")
    (folder / "a_0002.nii.gz").write_bytes(b"")
    assert _names(find_scans(folder, THREE)) == {"a": [f"a_000{c}.nii.gz" for c in range(3)]}


def test_two_scans_of_one_name(folder: Path) -> None:
    _write(folder, "a.nii", "a.nii.gz", "b.nii")
    problems = {scan.images[0].name: scan.problem for scan in find_scans(folder, ("CT",))}
    assert problems == {
        "a.nii": "several scans would be written to a.nii.gz",
        "a.nii.gz": "several scans would be written to a.nii.gz",
        "b.nii": None,
    }


def test_nothing_to_segment(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no NIfTI files \(\.nii\.gz or \.nii\)") as caught:
        find_scans(folder, ("CT",))
    assert caught.value.hint is None
    _write(folder, "a.nii.gz")
    with pytest.raises(UsageError, match="holds no NIfTI files") as caught:
        find_scans(folder.parent, ("CT",))
    assert caught.value.hint == f"did you mean {folder}?"
    with pytest.raises(UsageError, match="no such file or folder"):
        find_scans(folder / "missing", ("CT",))
    (folder / "note.txt").write_text("")
    with pytest.raises(UsageError, match="is neither a NIfTI file"):
        find_scans(folder / "note.txt", ("CT",))
