"""DICOM series through the predictor, to NIfTI and to DICOM segmentations."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medtrain.errors import DataError, MissingExtraError, UsageError
from medtrain.inference.predictor import Predictor
from medtrain.inference.scans import find_scans, read_grid, read_scan
from tests.data.dicom_files import write_enhanced, write_series
from tests.inference.runs import run, voxels, write_scan

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (extra dicom)")

SPACING = (2.5, 1.5, 0.8)


def slices(seed: int = 0) -> np.ndarray:
    """Whole numbers 0, 1 and 2; int16 [slice, row, column]."""
    return np.ascontiguousarray(voxels(seed, (8, 11, 9)))


def expected(stored: np.ndarray) -> np.ndarray:
    """Class indices of `Thresholds`."""
    return (stored > 0.5).astype(int) + (stored > 1.5)


def test_a_series_becomes_nifti_at_its_place(tmp_path: Path) -> None:
    stored = slices()
    write_series(tmp_path / "in" / "patient_7", stored, spacing=SPACING)
    (report,) = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out")
    assert (report.case_id, report.status) == ("patient_7", "done")
    file = nib.load(tmp_path / "out" / "patient_7.nii.gz")
    found = np.asanyarray(file.dataobj)
    np.testing.assert_array_equal(found, np.array([0, 2, 7])[expected(stored)].transpose(2, 1, 0))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(file.affine @ [0, 0, 0, 1], [10, 20, 30, 1])
    assert nib.aff2axcodes(file.affine) == ("L", "P", "S")
    (again,) = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out")
    assert again.status == "skipped"


def test_good_series_go_on_beside_bad_ones(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_series(folder / "a", slices(), spacing=SPACING)
    paths = write_series(folder / "b", slices(), spacing=SPACING)
    paths[3].unlink()
    write_series(folder / "c", slices(1), spacing=SPACING, uid="1.2.3", number=1)
    write_series(folder / "c", slices(2), spacing=SPACING, uid="1.2.4", number=2, names=[f"x{k}" for k in range(8)])
    (folder / "d").mkdir()
    (folder / "d" / "broken.dcm").write_bytes(b"no header")
    reports = {report.case_id: report for report in Predictor(run()).predict_folder(folder, tmp_path / "out")}
    assert {case: report.ok for case, report in reports.items()} == {
        "a": True,
        "b": False,
        "c_series_1": True,
        "c_series_2": True,
        "d_broken.dcm": False,
    }
    assert "1 slice(s) missing" in reports["b"].message
    assert "not a DICOM image, or damaged" in reports["d_broken.dcm"].message


def test_a_folder_that_is_a_series_and_one_of_its_files(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", slices(), spacing=SPACING)
    for source in (tmp_path / "scan", paths[2]):
        (scan,) = find_scans(source, ("CT",))
        assert scan.case_id == "scan"
        assert len(scan.images) == 8


def test_a_model_of_two_channels_says_what_it_needs(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", slices(), spacing=SPACING)
    (report,) = Predictor(run(2)).predict_folder(tmp_path / "in", tmp_path / "out")
    assert "has 1 channels; the model was trained on 2 (CT, T1)" in report.message


def test_a_folder_per_channel_is_a_scan(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    first, second = slices(1), slices(2)
    # the second channel was stored from the other end, and as one object
    write_series(folder / "a_0000", first, spacing=SPACING)
    write_enhanced(folder / "a_0001" / "mf.dcm", second, spacing=SPACING, order=range(7, -1, -1))
    write_series(folder / "b_0000", first, spacing=SPACING)
    write_series(folder / "c_0000", first, spacing=SPACING)
    write_series(folder / "c_0001", second, spacing=SPACING, origin=(0, 0, 0))
    scans = {scan.case_id: scan for scan in find_scans(folder, ("CT", "T1"))}
    assert list(scans) == ["a", "b", "c"]
    assert scans["b"].problem == "found b_0000; needed is one each of b_0000 (CT), b_0001 (T1)"
    assert scans["a"].source == "a_0000, a_0001: 9 DICOM file(s)"
    volume = read_scan(scans["a"].images)
    np.testing.assert_array_equal(volume.array, np.stack([first, second])[:, :, ::-1, ::-1])
    assert read_grid(scans["a"].images) == volume.grid
    with pytest.raises(DataError, match="of the first channel c_0000"):
        read_scan(scans["c"].images)
    reports = {report.case_id: report for report in Predictor(run(2)).predict_folder(folder, tmp_path / "out")}
    assert {case: report.ok for case, report in reports.items()} == {"a": True, "b": False, "c": False}
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_model_of_one_channel_drops_its_number(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_series(tmp_path / f"{case}_0000", slices(), spacing=SPACING)
    assert [scan.case_id for scan in find_scans(tmp_path, ("CT",))] == ["a", "b"]
    patient = tmp_path / "other" / "patient_0001"  # the number of a patient, not of a channel
    write_series(patient, slices(), spacing=SPACING)
    assert [(scan.case_id, scan.problem) for scan in find_scans(patient.parent, ("CT",))] == [("patient_0001", None)]
    shutil.rmtree(patient.parent)
    write_series(tmp_path / "a_0001", slices(), spacing=SPACING)
    assert [scan.case_id for scan in find_scans(tmp_path, ("CT",))] == ["a_0000", "a_0001", "b_0000"]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_object_is_segmented_where_it_lies(tmp_path: Path, modality: str) -> None:
    stored, oblique = slices(), (0.8, 0.6, 0, -0.36, 0.48, 0.8)
    given = {"spacing": SPACING, "orientation": oblique}
    write_enhanced(tmp_path / "in" / "a" / "x.dcm", stored, order=range(7, -1, -1), modality=modality, **given)
    write_series(tmp_path / "in" / "b", stored, **given)
    reports = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out")
    assert all(report.ok for report in reports), [report.message for report in reports]
    one, other = (nib.load(tmp_path / "out" / f"{case}.nii.gz") for case in "ab")
    np.testing.assert_array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)


def test_a_dicom_segmentation_of_an_enhanced_object(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom (extra dicom)")
    stored, order = slices(), [3, 0, 7, 1, 6, 2, 5, 4]
    write_enhanced(tmp_path / "in" / "a" / "x.dcm", stored, order=order, spacing=SPACING)
    (report,) = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    assert report.ok, report.message
    made = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    seen = 0
    for frame, functional in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence):
        segment = int(functional.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        place = functional.PlanePositionSequence[0].ImagePositionPatient
        k = round((float(place[2]) - 30) / 2.5)  # the slice that lies there
        np.testing.assert_array_equal(frame, expected(stored)[k] == segment)
        seen += int(frame.sum())
    assert seen == np.count_nonzero(expected(stored))


def test_dicom_segmentations_refer_to_their_series(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom (extra dicom)")
    stored = slices()
    stored[0] = 0  # a slice without any class
    stored[0, 0, 0] = 0
    write_series(tmp_path / "in" / "a", stored, spacing=SPACING, orientation=(0, 1, 0, 0, 0, -1))
    predictor = Predictor(run(spacing=(1.5, 0.8, 2.5)))  # sagittal slices
    (report,) = predictor.predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    assert report.ok, report.message
    made = pydicom.dcmread(tmp_path / "out" / "a.dcm")
    assert made.Modality == "SEG"
    assert [str(segment.SegmentLabel) for segment in made.SegmentSequence] == ["liver", "cancer"]
    assert made.FrameOfReferenceUID == "1.2.826.0.1.3680043.8.498.8"
    (referenced,) = made.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "1.2.826.0.1.3680043.8.498.1"
    frames = made.pixel_array
    for frame, functional in zip(frames, made.PerFrameFunctionalGroupsSequence):
        segment = int(functional.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        source = functional.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        k = int(source.rsplit(".", 1)[1]) - 1
        np.testing.assert_array_equal(frame, expected(stored)[k] == segment)
        assert frame.any()
    assert int(made.NumberOfFrames) == sum((expected(stored)[k] == c).any() for k in range(8) for c in (1, 2))
    (again,) = predictor.predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    assert again.status == "skipped"


def test_an_empty_dicom_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom (extra dicom)")
    blank = np.zeros((4, 8, 8), np.int16)
    write_series(tmp_path / "in" / "a", blank, spacing=SPACING)
    (report,) = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    assert report.ok, report.message
    assert not pydicom.dcmread(tmp_path / "out" / "a.dcm").pixel_array.any()


def test_nifti_scans_have_no_dicom_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom (extra dicom)")
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "a.nii.gz", voxels())
    (report,) = Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    assert not report.ok
    assert "is NIfTI; a DICOM segmentation refers to the DICOM series" in report.message


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no NIfTI files .* and no DICOM series"):
        find_scans(tmp_path, ("CT",))


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "in" / "a", slices(), spacing=SPACING)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match="highdicom"):
        Predictor(run()).predict_folder(tmp_path / "in", tmp_path / "out", output_format="dicom_seg")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match="pydicom"):
        find_scans(tmp_path / "in", ("CT",))
