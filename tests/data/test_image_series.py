"""Folders of DICOM slices as images of a table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.image_check import inspect_images
from medtrain.data.images.copies import prepare_images
from medtrain.data.images.incoming import read_new
from medtrain.data.images.plan import ImageFormat
from medtrain.data.images.reading import read_for
from medtrain.data.io.image_series import state_of
from medtrain.data.io.images import read_image_file
from medtrain.data.table import read_table
from medtrain.errors import DataError
from tests.data.dicom_files import write_enhanced, write_series
from tests.tasks.stubs import plan, target


def study(root: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    rows = ["scan,y"]
    for index in range(count):
        voxels = rng.integers(0, 2000, (5, 6, 7)).astype(np.int16)
        write_series(root / f"p{index}" / "ct", voxels, intercept=-1024, uid=f"1.2.3.{index}")
        rows.append(f"p{index}/ct,{index % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def test_a_folder_of_slices_is_a_volume_of_a_table(tmp_path: Path) -> None:
    table = study(tmp_path)
    found = read_table(table, TableColumns(images=("scan",), targets=(TargetColumn(column="y"),)))
    assert [sample.sample_id for sample in found.samples] == ["p0/ct", "p1/ct", "p2/ct"]
    image = read_image_file(tmp_path / "p1" / "ct")
    assert image.array.shape == (1, 5, 6, 7)
    assert image.array.dtype == np.int16
    assert image.array.min() < -500  # Hounsfield units
    assert image.max_value is None
    assert image.spacing == pytest.approx((2.5, 0.8, 0.7))
    for decode in (False, True):
        report = inspect_images(found, decode=decode)
        assert report.problems == ()
        assert len(set(report.digests.values())) == 3
    refs = [sample.images[0] for sample in found.samples]
    form = ImageFormat(3, (4, 6, 6), 1)
    copies = prepare_images(refs, form, store=tmp_path / "store", root=tmp_path, copy=True)  # type: ignore[arg-type]
    assert copies.read(refs[0]).shape == (4, 6, 7, 1)  # type: ignore[arg-type]  # made smaller along D alone


def test_a_changed_slice_changes_the_folder(tmp_path: Path) -> None:
    study(tmp_path, 1)
    folder = tmp_path / "p0" / "ct"
    before = state_of(folder)
    os.utime(next(folder.iterdir()), (4e9, 4e9))
    assert state_of(folder) != before


def test_folders_that_are_no_single_series(tmp_path: Path) -> None:
    study(tmp_path, 2)
    with pytest.raises(DataError, match="holds 2 DICOM series, and one was expected"):
        read_image_file(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without DICOM slices"):
        read_image_file(tmp_path / "empty")


def test_new_series_are_found_for_models_of_volumes(tmp_path: Path) -> None:
    study(tmp_path)
    volumes = plan(target("a", "b"), spatial_dims=3, image_size=(4, 6, 6))
    found = read_new(tmp_path, volumes, columns=None)
    assert [sample.sample_id for sample in found.samples] == ["p0/ct", "p1/ct", "p2/ct"]
    (one,) = read_new(tmp_path / "p1" / "ct", volumes, columns=None).samples
    assert (one.sample_id, one.images) == ("ct", (tmp_path / "p1" / "ct",))
    assert len(read_new(tmp_path, plan(target("a", "b")), columns=None).samples) == 15  # a model of pictures


def test_copies_of_frames_in_the_order_of_the_file_are_not_read_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_enhanced(tmp_path / "mf.dcm", np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7))
    form, place = ImageFormat(3, (5, 6, 7), 1), {"store": tmp_path / "store", "root": tmp_path, "copy": True}
    now = read_for(form, file)
    with monkeypatch.context() as before:  # the copies had this format as long as rows and columns stayed as stored
        before.setattr("medtrain.data.images.copies.FORMAT", 1)
        before.setattr("medtrain.data.images.copies.read_for", lambda *_: np.ascontiguousarray(now[:, ::-1, ::-1]))
        prepare_images([file], form, **place)  # type: ignore[arg-type]
    np.testing.assert_array_equal(prepare_images([file], form, **place).read(file), now)  # type: ignore[arg-type]
