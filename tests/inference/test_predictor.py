"""The predictor on scans whose right segmentation is known."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medtrain.data.io.nifti import read_image
from medtrain.errors import DataError, MedtrainError, Problem, UsageError
from medtrain.inference.predictor import Predictor
from medtrain.inference.sliding_window import SlidingWindow
from tests.inference.runs import ORIENTED, read, run, voxels, write_scan


def _table(out: Path) -> dict[str, dict[str, str]]:
    return {row["case_id"]: row for row in csv.DictReader((out / "predictions.csv").read_text().splitlines())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "scans"
    scans.mkdir()
    return scans


def test_segmentation_has_the_geometry_of_its_scan_and_the_training_labels(folder: Path) -> None:
    expected = write_scan(folder / "a.nii.gz", voxels())
    (report,) = Predictor(run()).predict_folder(folder, folder.parent / "out")
    assert report.ok
    assert report.status == "done"
    out = nib.load(folder.parent / "out" / "a.nii.gz")
    assert out.get_data_dtype() == np.uint8
    assert (out.affine == nib.load(folder / "a.nii.gz").affine).all()
    assert out.header["qform_code"] == nib.load(folder / "a.nii.gz").header["qform_code"]
    assert (np.asanyarray(out.dataobj) == expected).all()
    assert report.voxels == {"liver": (expected == 2).sum(), "cancer": (expected == 7).sum()}
    assert report.volume_ml["liver"] == pytest.approx((expected == 2).sum() * 1.5 * 0.8 * 2.5 / 1000)


def test_table_and_marker(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    (folder / "b.nii.gz").write_bytes(b"no scan")
    reports = Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert [(r.case_id, r.status, r.ok) for r in reports] == [("a", "done", True), ("b", "failed", False)]
    rows = _table(tmp_path / "out")
    assert rows["a"]["status"] == "done"
    assert rows["a"]["scan"] == "a.nii.gz"
    assert int(rows["a"]["voxels/liver"]) == reports[0].voxels["liver"]
    assert float(rows["a"]["volume_ml/cancer"]) == pytest.approx(reports[0].volume_ml["cancer"], abs=1e-6)
    assert float(rows["a"]["seconds"]) > 0
    assert rows["b"]["status"] == "failed"
    assert "b.nii.gz" in rows["b"]["message"]
    marker = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (marker["run"], marker["step"], marker["weights"]) == ("20261120-11-abcd", 100, "ema")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.nii.gz", "predictions.csv", "predictions.json"]


def test_scans_of_every_kind_in_one_folder_stay_apart(folder: Path, tmp_path: Path) -> None:
    """Ten scans of different size and orientation, two broken ones between them, a hidden file and a stranger."""
    expected = {}
    for i in range(10):
        affine = ORIENTED if i % 2 else np.diag([-0.8, 1.5, 2.5, 1.0])
        expected[f"s{i}"] = write_scan(folder / f"s{i}.nii.gz", voxels(i, (8 + i, 9, 13 - i)), affine)
    whole = (folder / "s3.nii.gz").read_bytes()
    (folder / "s4x.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), np.nan, dtype=np.float32), np.eye(4)), folder / "s5x.nii")
    (folder / "._s1.nii.gz").write_bytes(b"macOS")
    (folder / "notes.txt").write_text("not a scan")
    reports = Predictor(run()).predict_folder(folder, tmp_path / "out")
    failed = {r.case_id: r.message for r in reports if not r.ok}
    assert set(failed) == {"s4x", "s5x"}
    assert "truncated" in failed["s4x"]
    assert "NaN" in failed["s5x"]
    assert [r.case_id for r in reports] == sorted(r.case_id for r in reports)
    for name, label in expected.items():
        assert (read(tmp_path / "out" / f"{name}.nii.gz") == label).all(), name


def test_single_file(folder: Path, tmp_path: Path) -> None:
    expected = write_scan(folder / "one.nii", voxels())
    write_scan(folder / "two.nii", voxels())
    reports = Predictor(run()).predict_folder(folder / "one.nii", tmp_path / "out")
    assert [r.case_id for r in reports] == ["one"]
    assert (read(tmp_path / "out" / "one.nii.gz") == expected).all()
    assert not (tmp_path / "out" / "two.nii.gz").exists()


def test_predict_case_equals_the_file(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    predictor = Predictor(run())
    predictor.predict_folder(folder, tmp_path / "out")
    label = predictor.predict_case([folder / "a.nii.gz"])
    assert (label == read_image([tmp_path / "out" / "a.nii.gz"]).array[0]).all()


def test_resampled_scan_comes_back_on_its_own_grid(folder: Path, tmp_path: Path) -> None:
    """A bright box in a scan of half the plan's voxel size; linear interpolation moves its faces by less than one."""
    values = np.zeros((20, 20, 20), dtype=np.int16)
    values[4:14, 6:16, 4:12] = 1
    values[0, 0, 0] = values[-1, -1, -1] = -1
    affine = np.diag([0.4, 0.75, 1.25, 1.0])
    expected = write_scan(folder / "a.nii.gz", values, affine)
    Predictor(run()).predict_folder(folder, tmp_path / "out")
    label = read(tmp_path / "out" / "a.nii.gz")
    assert label.shape == expected.shape
    assert (label[5:13, 7:15, 5:11] == 2).all()
    outside = np.ones(values.shape, dtype=bool)
    outside[3:15, 5:17, 3:13] = False
    assert not label[outside].any()


def test_channels_in_one_file_or_one_file_each(folder: Path, tmp_path: Path) -> None:
    """The last channel decides, so a wrong order would show."""
    channels = [voxels(seed) for seed in (1, 2)]
    expected = write_scan(folder / "whole.nii.gz", np.stack(channels, axis=-1))
    for number, channel in enumerate(channels):
        write_scan(folder / f"parts_{number:04d}.nii.gz", channel)
    reports = Predictor(run(2)).predict_folder(folder, tmp_path / "out")
    assert [(r.case_id, r.ok) for r in reports] == [("parts", True), ("whole", True)]
    for name in ("whole", "parts"):
        assert (read(tmp_path / "out" / f"{name}.nii.gz") == expected).all()


def test_wrong_number_of_channels_is_that_scans_problem(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "four.nii.gz", np.stack([voxels(s) for s in range(4)], axis=-1))
    write_scan(folder / "one.nii.gz", voxels())
    reports = Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert [r.ok for r in reports] == [False, True]
    assert "has 4 channels; the model was trained on 1 (CT)" in reports[0].message


def test_two_dimensional_model(folder: Path, tmp_path: Path) -> None:
    expected = write_scan(folder / "a.nii.gz", voxels())
    flat = {"spatial_dims": 2, "spacing": (1.5, 0.8), "patch_size": (8, 8)}
    Predictor(run(**flat)).predict_folder(folder, tmp_path / "out")
    assert (read(tmp_path / "out" / "a.nii.gz") == expected).all()


def test_mirror_overrides_the_setting(folder: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels(0, (8, 8, 8)))
    for mirror, calls in ((None, 1), (True, 8)):
        its_run = run()
        Predictor(its_run, mirror=mirror).predict_case([folder / "a.nii.gz"])
        assert its_run.model.calls == calls
        assert its_run.task.inference.mirror is False


def test_keep_largest_takes_effect(folder: Path, tmp_path: Path) -> None:
    values = np.zeros((12, 12, 12), dtype=np.int16)
    values[2:6, 2:6, 2:6] = 1
    values[9:11, 9:11, 9:11] = 1
    write_scan(folder / "a.nii.gz", values)
    settings = SlidingWindow(mirror=False, keep_largest=("liver",))
    (report,) = Predictor(run(inference=settings)).predict_folder(folder, tmp_path / "out")
    assert report.voxels["liver"] == 64
    with pytest.raises(MedtrainError, match="no foreground class is named `livre`"):
        Predictor(run(inference=SlidingWindow(keep_largest=("livre",))))


def test_started_again_it_continues(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in "abc":
        write_scan(folder / f"{name}.nii.gz", voxels(ord(name)))
    whole = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(whole[:-30])
    first = Predictor(run()).predict_folder(folder, out)
    assert [r.status for r in first] == ["done", "failed", "done"]
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.nii.gz")}
    (out / "c.nii.gz").unlink()
    (folder / "b.nii.gz").write_bytes(whole)
    again = Predictor(run()).predict_folder(folder, out)
    assert [r.status for r in again] == ["skipped", "done", "done"]
    assert all(r.ok for r in again)
    assert (out / "a.nii.gz").stat().st_mtime_ns == before["a.nii.gz"]
    assert {row["status"] for row in _table(out).values()} == {"done"}
    last = Predictor(run()).predict_folder(folder, out, overwrite=True)
    assert [r.status for r in last] == ["done"] * 3


def test_a_result_on_another_grid_is_predicted_again(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    Predictor(run()).predict_folder(folder, tmp_path / "out")
    expected = write_scan(folder / "a.nii.gz", voxels(5, (9, 9, 9)))
    (report,) = Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert report.status == "done"
    assert (read(tmp_path / "out" / "a.nii.gz") == expected).all()


def test_predictions_of_two_models_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    Predictor(run()).predict_folder(folder, tmp_path / "out")
    other = run()
    other.step = 200
    with pytest.raises(UsageError, match=r"another model or setting \(step 100\)"):
        Predictor(other).predict_folder(folder, tmp_path / "out")
    with pytest.raises(UsageError, match="another model or setting"):
        Predictor(run(), mirror=True).predict_folder(folder, tmp_path / "out")
    (report,) = Predictor(other).predict_folder(folder, tmp_path / "out", overwrite=True)
    assert report.status == "done"
    assert Predictor(other).predict_folder(folder, tmp_path / "out")[0].status == "skipped"


def test_foreign_files_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.nii.gz").write_bytes(b"the truth")
    with pytest.raises(UsageError, match=r"already holds a\.nii\.gz"):
        Predictor(run()).predict_folder(folder, tmp_path / "labels")
    assert (tmp_path / "labels" / "a.nii.gz").read_bytes() == b"the truth"
    assert [p.name for p in (tmp_path / "labels").iterdir()] == ["a.nii.gz"]


def test_the_scans_own_folder_is_refused(folder: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    before = (folder / "a.nii.gz").read_bytes()
    for source in (folder, folder / "a.nii.gz"):
        with pytest.raises(UsageError, match="among the scans"):
            Predictor(run()).predict_folder(source, folder / ".." / folder.name)
    assert (folder / "a.nii.gz").read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["a.nii.gz"]


def test_output_that_is_a_file(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        Predictor(run()).predict_folder(folder, tmp_path / "out")


def test_output_named_like_a_scan(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels())
    for name in ("out.nii.gz", "out.nii"):
        with pytest.raises(UsageError, match=f"OUT is a folder, and .*{name} is named like a file"):
            Predictor(run()).predict_folder(folder / "a.nii.gz", tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_scan_is_compared_with_the_files_of_the_training_cases_not_with_the_grid_of_the_network(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    low = run(resolution="low", spacing=(6.0, 6.0, 6.0), source_spacing=((1.0, 0.7, 0.7), (3.0, 1.6, 0.9)))
    for name, spacing in {"like": (0.8, 1.5, 2.5), "thick": (0.8, 1.5, 5.9), "grid": (6.0, 6.0, 6.0)}.items():
        write_scan(folder / f"{name}.nii.gz", voxels(), np.diag([*spacing, 1.0]))
    write_scan(folder / "flat.nii.gz", voxels(0, (9, 9, 1)), np.diag([0.8, 1.5, 2.5, 1.0]))
    with caplog.at_level(logging.WARNING):
        reports = Predictor(low).predict_folder(folder, tmp_path / "out")
    seen = "is far from the training cases': 1 x 0.7 x 0.7 to 3 x 1.6 x 0.9 mm"
    assert {report.case_id: report.message for report in reports} == {
        "flat": "a single slice, and the model was trained on volumes",
        "grid": f"spacing 6 x 6 x 6 mm {seen}",
        "like": "",
        "thick": "",
    }


def test_scans_unlike_the_training_data_are_segmented_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model's spacing is 2.5 x 1.5 x 0.8 mm (D, H, W); files are (x, y, z)."""
    write_scan(folder / "fine.nii.gz", voxels())
    write_scan(folder / "twice.nii.gz", voxels(), np.diag([1.6, 1.5, 1.25, 1.0]))
    write_scan(folder / "empty.nii.gz", np.zeros((9, 9, 9), np.int16))
    write_scan(folder / "thick.nii.gz", voxels(), np.diag([0.8, 1.5, 5.2, 1.0]))
    write_scan(folder / "thin.nii.gz", voxels(), np.diag([0.39, 1.5, 2.5, 1.0]))
    expected = {
        "empty": "no contrast: every voxel of CT is 0",
        "fine": "",
        "thick": "spacing 5.2 x 1.5 x 0.8 mm is far from the training cases': 2.5 x 1.5 x 0.8 mm",
        "thin": "spacing 2.5 x 1.5 x 0.39 mm is far from the training cases': 2.5 x 1.5 x 0.8 mm",
        "twice": "",
    }
    with caplog.at_level(logging.WARNING):
        reports = Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert all(report.ok for report in reports)
    assert {report.case_id: report.message for report in reports} == expected
    assert {name: row["message"] for name, row in _table(tmp_path / "out").items()} == expected
    assert [record.getMessage() for record in caplog.records] == [f"{k}: {v}" for k, v in expected.items() if v]
    Predictor(run()).predict_folder(folder, tmp_path / "out")  # all are there: the table keeps what it says
    assert {name: row["message"] for name, row in _table(tmp_path / "out").items()} == expected
    caplog.clear()
    flat = {"spatial_dims": 2, "spacing": (1.5, 0.8), "patch_size": (8, 8)}
    with caplog.at_level(logging.WARNING):
        Predictor(run(**flat)).predict_folder(folder / "thick.nii.gz", tmp_path / "flat")
    assert not caplog.records


def test_a_full_disk_stops_the_work_and_leaves_no_half_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        write_scan(folder / f"{name}.nii.gz", voxels())

    def full(*_: object, **__: object) -> None:
        raise MedtrainError("the disk is full")

    monkeypatch.setattr("medtrain.inference.scans.write_label", full)
    its_run = run(patch_size=(16, 16, 16))
    with pytest.raises(MedtrainError, match="the disk is full"):
        Predictor(its_run).predict_folder(folder, tmp_path / "out")
    assert its_run.model.calls < 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.json"]


def test_too_little_memory_is_that_scans_problem(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(folder / "a.nii.gz", voxels(0, (30, 30, 30)))
    write_scan(folder / "b.nii.gz", voxels(0, (8, 8, 8)))
    predictor = Predictor(run())
    whole = predictor._task.predict_label

    def limited(models: Any, images: Any, geometry: Any, **how: Any) -> np.ndarray:
        if images[0].numel() > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(models, images, geometry, **how)

    monkeypatch.setattr(predictor._task, "predict_label", limited)
    reports = predictor.predict_folder(folder, tmp_path / "out")
    assert [(r.case_id, r.ok) for r in reports] == [("a", False), ("b", True)]
    assert "does not fit the memory of cpu" in reports[0].message


def test_progress_and_failures_are_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("medtrain"), "propagate", True)
    write_scan(folder / "a.nii.gz", voxels())
    (folder / "b.nii.gz").write_bytes(b"")
    with caplog.at_level(logging.INFO, "medtrain"):
        Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert "1 of 2 scans segmented" in caplog.text
    assert "half of the free main memory (inference.max_memory)" in caplog.text
    assert "1 not segmented: b" in caplog.text
    assert "the file is empty" in caplog.text


def test_predict_case_raises_what_is_wrong(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Predictor(run()).predict_case([folder / "missing.nii.gz"])


def test_corrupt_and_odd_scans_are_reported_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "good.nii.gz", voxels())
    write_scan(folder / "one_voxel.nii.gz", np.ones((1, 1, 1), np.int16))
    write_scan(folder / "blank.nii.gz", np.zeros((6, 6, 6), np.int16))
    holes = voxels().astype(np.float32)
    holes[3, 3, 3] = np.nan
    write_scan(folder / "nan.nii.gz", holes)
    write_scan(folder / "infinite.nii.gz", np.where(np.isnan(holes), np.inf, holes).astype(np.float32))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2, 3), np.int16), np.eye(4)), folder / "five_axes.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 0, 4), np.int16), np.eye(4)), folder / "no_voxels.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), folder / "channels.nii.gz")
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_text("no scan")
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    reports = {report.case_id: report for report in Predictor(run()).predict_folder(folder, tmp_path / "out")}
    assert {case for case, report in reports.items() if report.ok} == {"good", "one_voxel", "blank"}
    assert "no contrast" in reports["blank"].message
    for case, words in {
        "nan": "NaN or infinite",
        "infinite": "NaN or infinite",
        "five_axes": "expected 2 or 3 axes",
        "no_voxels": "0",
        "channels": "has 3 channels",
        "empty": "the file is empty",
        "text": "NIfTI",
        "cut": "truncated",
    }.items():
        assert words in reports[case].message, case
    table = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["status"] for row in table].count("failed") == 8


def test_a_scan_beyond_max_memory_is_that_scans_problem(folder: Path, tmp_path: Path) -> None:
    write_scan(folder / "a.nii.gz", voxels(0, (30, 30, 30)))
    write_scan(folder / "b.nii.gz", voxels(0, (8, 8, 8)))
    its_run = run(inference=SlidingWindow(mirror=False, max_memory="1kB"))
    reports = Predictor(its_run).predict_folder(folder, tmp_path / "out")
    assert [(r.case_id, r.ok) for r in reports] == [("a", False), ("b", True)]  # b is one window
    assert "inference.max_memory" in reports[0].message


def test_a_scan_that_changes_meanwhile_is_that_scans_problem(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_scan(folder / f"{name}.nii.gz", voxels())

    def changed(path: Path, *_: object, **__: object) -> None:
        if path.name == "a.nii.gz":
            raise DataError([Problem(where="a", message="changed since it was read")])

    monkeypatch.setattr("medtrain.inference.scans.write_label", changed)
    reports = Predictor(run()).predict_folder(folder, tmp_path / "out")
    assert [(r.case_id, r.ok) for r in reports] == [("a", False), ("b", True)]
