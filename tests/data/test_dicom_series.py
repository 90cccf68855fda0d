"""Series of slices against volumes put together by hand, and what is wrong with others."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtrain.data.io.dicom_series import find_series, ordered_slices, read_series, series_grid
from medtrain.data.io.images import read_image_file, to_float
from medtrain.errors import DataError
from tests.data.dicom_files import write_enhanced, write_series

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (extra dicom)")

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)  # [slice, row, column]


def test_slices_are_sorted_by_position_and_lie_where_they_say(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS, intercept=-24)
    volume = read_series(sorted(paths))
    assert volume.array.dtype == np.int16
    assert volume.array.flags.writeable
    assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))
    # rows run from right to left in RAS terms (LPS +x), columns to posterior: both turn over in the canonical frame
    np.testing.assert_array_equal(volume.array[0], VOXELS[:, ::-1, ::-1] - 24)
    world = volume.grid.matrix @ [6, 5, 4, 1]  # last column, last row, last slice
    np.testing.assert_allclose(world[:3], [10 - 6 * 0.7, 20 - 5 * 0.8, 30 + 4 * 2.5])
    assert ordered_slices(sorted(paths)) == [(path, None) for path in paths]
    assert series_grid(paths) == volume.grid


@pytest.mark.parametrize("orientation", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_sagittal_coronal_and_oblique_slices(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    volume = read_series(write_series(tmp_path, VOXELS, orientation=orientation))
    along = np.cross(orientation[:3], orientation[3:])
    canonical = volume.grid.to_canonical(VOXELS.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.array[0], canonical)
    for k, j, i in itertools.product((0, 4), (0, 5), (0, 6)):
        place = np.array([-10, -20, 30]) + np.multiply(orientation[:3], 0.7 * i)
        place = place + np.multiply(orientation[3:], 0.8 * j) + along * 2.5 * k
        world = volume.grid.matrix @ [i, j, k, 1]
        np.testing.assert_allclose(world[:3], place * [-1, -1, 1], atol=1e-4)


def test_every_slice_has_its_own_slope(tmp_path: Path) -> None:
    slopes = [1.0, 0.5, 2.0, 0.25, 1.0]
    volume = read_series(write_series(tmp_path, VOXELS, slope=slopes, intercept=3))
    assert volume.array.dtype == np.float32
    expected = VOXELS * np.array(slopes)[:, None, None] + 3
    np.testing.assert_allclose(volume.array[0], expected[:, ::-1, ::-1], atol=1e-4)


def test_large_means_bright(tmp_path: Path) -> None:
    plain = np.full((3, 4, 4), 10, np.uint16)
    volume = read_series(write_series(tmp_path, plain, PhotometricInterpretation="MONOCHROME1", BitsStored=12))
    assert (volume.array == 4095 - 10).all()
    assert volume.array.dtype == np.int16


def test_a_single_slice_needs_a_thickness(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "a", VOXELS[:1]))
    assert volume.spacing[0] == 2.5
    with pytest.raises(DataError, match="only slice of its series, and does not say how thick"):
        read_series(write_series(tmp_path / "b", VOXELS[:1], SliceThickness=None))


def _without(paths: list[Path], index: int) -> list[Path]:
    return paths[:index] + paths[index + 1 :]


def test_missing_doubled_and_uneven_slices(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    with pytest.raises(DataError, match=r"1 slice\(s\) missing between IM0004 and IM0002: 5 mm apart, others 2.5"):
        read_series(_without(paths, 2))
    copied = tmp_path / "copy"
    shutil.copy(paths[1], copied)
    with pytest.raises(DataError, match=r"copy and IM0004 are at the same position|IM0004 and copy are at the same"):
        read_series([*paths, copied])
    header = pydicom.dcmread(paths[-1])
    header.ImagePositionPatient[2] = 30 + 3 * 2.5 + 3.2
    header.save_as(paths[-1])
    with pytest.raises(DataError, match=r"uneven distance of IM0002 and IM0001: 3.2 mm apart, others 2.5"):
        read_series(paths)


def _changed(path: Path, **changes: Any) -> None:
    file = pydicom.dcmread(path)
    for key, value in changes.items():
        if value is None:
            delattr(file, key)
        else:
            setattr(file, key, value)
    file.save_as(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "lies in another direction.*localizer"),
        ({"PixelSpacing": [0.9, 0.9]}, "another pixel spacing"),
        ({"Rows": 3}, "has 7 x 3 pixels, and others of its series 7 x 6"),
        ({"ImagePositionPatient": None}, "nothing usable of its ImagePositionPatient"),
        ({"NumberOfFrames": 4}, "several frames"),
        ({"PixelData": None}, "holds no image"),
    ],
)
def test_slices_that_do_not_belong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    paths = write_series(tmp_path, VOXELS)
    _changed(paths[2], **changes)
    with pytest.raises(DataError, match=message):
        read_series(paths)


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shifted against each other by 2.4 mm in all: the gantry was tilted 13.5"):
        read_series(write_series(tmp_path, VOXELS, shear=0.6))
    read_series(write_series(tmp_path / "rounding", VOXELS, shear=0.01))


def test_a_slice_that_is_cut_off(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    with pytest.raises(DataError, match=paths[1].name):
        read_series(paths)


def test_compressed_slices_are_decoded(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOXELS)
    for path in paths:
        file = pydicom.dcmread(path)
        file.compress(pydicom.uid.RLELossless)
        file.save_as(path)
    np.testing.assert_array_equal(read_series(paths).array[0], VOXELS[:, ::-1, ::-1])


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_series(tmp_path, VOXELS)
    _changed(paths[0])
    file = pydicom.dcmread(paths[0])
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(30) + b"\xff\xd9"])
    file["PixelData"].VR = "OB"
    file.save_as(paths[0])
    with pytest.raises(DataError) as caught:
        read_series(paths)
    assert paths[0].name in str(caught.value)


def test_series_of_a_tree(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", VOXELS, uid="1.2.1", number=2)
    write_series(tmp_path / "p1", VOXELS, uid="1.2.2", number=1, names=[f"b{k}" for k in range(5)])
    write_series(tmp_path / "p2" / "ct", VOXELS, uid="1.2.1")
    write_series(tmp_path / "p2" / "seg", VOXELS, uid="1.2.3", Modality="RTSTRUCT")
    (tmp_path / "DICOMDIR").write_bytes(b"x" * 128 + b"DICM")
    (tmp_path / "p1" / "notes.txt").write_text("no scan")
    found = find_series(tmp_path)
    assert [(s.folder.name, s.uid, s.number, len(s.files)) for s in found] == [
        ("p1", "1.2.2", 1, 5),
        ("p1", "1.2.1", 2, 5),
        ("ct", "1.2.1", 3, 5),
    ]
    (one,) = find_series(tmp_path / "p1" / "b3")
    assert one.files == tuple(tmp_path / "p1" / f"b{k}" for k in range(5))
    assert find_series(tmp_path / "p1" / "notes.txt") == []


ENHANCED_ORIENTATIONS = [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.36, 0.48, 0.8)]


@pytest.mark.parametrize("orientation", ENHANCED_ORIENTATIONS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_object_is_the_series_of_its_frames(
    tmp_path: Path, orientation: tuple[float, ...], order: tuple[int, ...], shared: bool
) -> None:
    file = write_enhanced(
        tmp_path / "a" / "mf.dcm", VOXELS, order=order, orientation=orientation, shared=shared, intercept=-24
    )
    (found,) = find_series(tmp_path / "a")
    assert found.files == (file,)
    volume = read_series(found.files)
    expected = read_series(write_series(tmp_path / "b", VOXELS, orientation=orientation, intercept=-24))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.spacing == pytest.approx(expected.spacing)
    np.testing.assert_allclose(volume.grid.matrix, expected.grid.matrix, atol=1e-4)
    # by hand: where the first and the last voxel of every slice lie, whatever frame holds it
    along = np.cross(orientation[:3], orientation[3:])
    for k, j, i in itertools.product((0, 4), (0, 5), (0, 6)):
        place = np.array([-10, -20, 30]) + np.multiply(orientation[:3], 0.7 * i)
        place = place + np.multiply(orientation[3:], 0.8 * j) + along * 2.5 * k
        np.testing.assert_allclose((volume.grid.matrix @ [i, j, k, 1])[:3], place * [-1, -1, 1], atol=1e-4)
    np.testing.assert_array_equal(volume.array[0], volume.grid.to_canonical(VOXELS.transpose(2, 1, 0) - 24))
    assert ordered_slices(found.files) == [(file, order.index(k)) for k in range(5)]


def test_every_frame_has_its_own_slope(tmp_path: Path) -> None:
    slopes = [1.0, 0.5, 2.0, 0.25, 1.0]
    file = write_enhanced(tmp_path / "mr", VOXELS, slope=slopes, intercept=3, order=(4, 3, 2, 1, 0), modality="MR")
    expected = VOXELS * np.array(slopes)[:, None, None] + 3
    np.testing.assert_allclose(read_series([file]).array[0], expected[:, ::-1, ::-1], atol=1e-4)


def test_one_frame_and_several_objects_of_a_series(tmp_path: Path) -> None:
    one = write_enhanced(tmp_path / "one.dcm", VOXELS[:1])
    assert read_series([one]).array.shape == (1, 1, 6, 7)
    assert read_series([one]).spacing == pytest.approx((2.5, 0.8, 0.7))  # the slice's thickness
    halves = [
        write_enhanced(tmp_path / "two" / "b.dcm", VOXELS[:2]),
        write_enhanced(tmp_path / "two" / "a.dcm", VOXELS[2:], origin=(-10, -20, 35)),
    ]
    np.testing.assert_array_equal(read_series(halves).array[0], VOXELS[:, ::-1, ::-1])


def test_frames_that_are_no_volume(tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "mf.dcm", np.concatenate([VOXELS, VOXELS]))
    changed = pydicom.dcmread(file)
    for k, groups in enumerate(changed.PerFrameFunctionalGroupsSequence):
        groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.5 * (k % 5)]
    changed.save_as(file)
    with pytest.raises(DataError, match=r"mf.dcm frame 1 and mf.dcm frame 6 are at the same position") as error:
        read_series([file])
    assert "dcm2niix" in str(error.value.problems[0].hint)
    del changed.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    changed.save_as(file)
    with pytest.raises(DataError, match=r"frame 4: says nothing usable of its ImagePositionPatient"):
        read_series([file])
    del changed.PerFrameFunctionalGroupsSequence
    changed.save_as(file)
    with pytest.raises(DataError, match=r"several frames and does not say where they lie|nothing usable"):
        read_series([file])


def test_an_enhanced_file_is_a_volume_where_an_image_is_expected(tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "mf.dcm", VOXELS, order=(4, 3, 2, 1, 0), intercept=-24)
    image = read_image_file(file, channels=1)
    np.testing.assert_array_equal(image.array[0], VOXELS[:, ::-1, ::-1] - 24)
    assert image.spacing == pytest.approx((2.5, 0.8, 0.7))


@pytest.mark.parametrize("why", ["colour", "no direction", "no place", "two phases", "uneven", "frames too many"])
def test_frames_that_are_no_volume_are_an_image_in_their_order(tmp_path: Path, why: str) -> None:
    voxels = np.abs(VOXELS[[3, 1, 0, 2]]).astype(np.uint16)
    file = write_enhanced(tmp_path / "mf.dcm", voxels)
    changed = pydicom.dcmread(file)
    shared, frames = changed.SharedFunctionalGroupsSequence[0], changed.PerFrameFunctionalGroupsSequence
    expected = voxels[None]
    if why == "colour":
        expected = np.random.default_rng(0).integers(0, 256, (3, *voxels.shape)).astype(np.uint8)
        changed.SamplesPerPixel, changed.PhotometricInterpretation, changed.PlanarConfiguration = 3, "RGB", 0
        changed.BitsAllocated, changed.BitsStored, changed.HighBit = 8, 8, 7
        changed.PixelData = np.ascontiguousarray(np.moveaxis(expected, 0, -1)).tobytes()
    elif why == "no direction":
        del shared.PlaneOrientationSequence
    elif why == "no place":
        del frames[2].PlanePositionSequence
    elif why == "frames too many":
        del frames[3]
    else:
        places = [0, 0, 2, 2] if why == "two phases" else [0, 1, 2, 5]
        for place, groups in zip(places, frames):
            groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, place]
    changed.save_as(file)
    image = read_image_file(file)
    np.testing.assert_array_equal(image.array, expected)
    assert image.max_value == (255 if why == "colour" else 65535)


def test_values_as_they_are_stored_have_the_largest_of_their_bits(tmp_path: Path) -> None:
    voxels = np.abs(VOXELS).astype(np.uint16)
    bits = {"BitsStored": 12, "HighBit": 11}
    for place in (write_enhanced(tmp_path / "mf.dcm", voxels, **bits), tmp_path / "slices"):
        if place.name == "slices":
            write_series(place, voxels, **bits)
        image = read_image_file(place)
        assert image.max_value == 4095
        assert to_float(image, "full_range").max() == np.float32(voxels.max()) / np.float32(4095)
    slopes = (1, 1, 2, 1, 1)  # one of them has been rescaled
    assert read_image_file(write_enhanced(tmp_path / "r.dcm", voxels, slope=slopes, **bits)).max_value is None
    assert read_image_file(write_enhanced(tmp_path / "s.dcm", VOXELS)).max_value is None  # signed
