import gzip
import itertools
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medtrain.data.io.nifti import (
    SourceGrid,
    file_stem,
    is_nifti,
    read_header,
    read_image,
    read_label,
    write_image,
    write_label,
)
from medtrain.errors import DataError

ALL_ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*axes)
]  # 6 permutations x 8 flips


def affine_of(codes: str, spacing: tuple[float, float, float] = (0.7, 0.9, 2.5), tilt: float = 0.0) -> np.ndarray:
    """Affine of a file whose axes point to `codes`, rotated by `tilt` radians about an oblique axis."""
    matrix = np.zeros((4, 4))
    for axis, (code, size) in enumerate(zip(codes, spacing)):
        matrix["RASLPI".index(code) % 3, axis] = size if code in "RAS" else -size
    if tilt:
        c, s = np.cos(tilt), np.sin(tilt)
        about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        matrix[:3, :3] = about_z @ about_x @ matrix[:3, :3]
    matrix[:3, 3] = (-11.5, 20.25, 7.0)
    matrix[3, 3] = 1
    return matrix


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nib.Nifti1Image(voxels, affine_of("RAS") if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def message_of(error: pytest.ExceptionInfo[DataError]) -> str:
    assert len(error.value.problems) == 1
    return str(error.value)


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 0.35])
def test_canonical_frame_equals_nibabels_and_is_undone_exactly(tmp_path: Path, codes: str, tilt: float) -> None:
    voxels = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    path = save(tmp_path / "a.nii.gz", voxels, affine_of(codes, tilt=tilt))
    volume = read_image([path])
    canonical = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.array[0], np.asanyarray(canonical.dataobj).transpose(2, 1, 0))
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing, canonical.header.get_zooms()[::-1], rtol=1e-6)
    assert volume.grid.canonical_shape == volume.array.shape[1:]
    if not tilt:
        assert volume.grid.axis_codes == codes
    np.testing.assert_array_equal(volume.grid.from_canonical(volume.array[0]), voxels)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR", "IRP"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_writing_a_label_that_was_read_gives_the_same_file(tmp_path: Path, codes: str, ending: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 5, size=(6, 7, 8)).astype(np.uint8)
    source = nib.Nifti1Image(voxels, None)
    source.set_sform(affine_of(codes, tilt=0.2), code=2)
    source.set_qform(affine_of(codes, tilt=0.2), code=1)
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"a patient's name"
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"secret"))
    like = tmp_path / f"like{ending}"
    nib.save(source, like)

    label = read_label(like)
    target = tmp_path / f"out{ending}"
    write_label(target, label.array, label.grid, like=like)

    before, after = nib.load(like), nib.load(target)
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), voxels)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    assert int(after.header["sform_code"]) == 2
    assert int(after.header["qform_code"]) == 1
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert after.get_data_dtype() == np.uint8
    assert bytes(after.header["descrip"]).strip(b"\0") == b""
    assert len(after.header.extensions) == 0
    assert sorted(os.listdir(tmp_path)) == sorted([like.name, target.name])


@pytest.mark.parametrize("qform_only", [True, False])
def test_label_keeps_the_form_the_source_has(tmp_path: Path, qform_only: bool) -> None:
    source = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), None)
    (source.set_qform if qform_only else source.set_sform)(affine_of("LAS", tilt=0.1), code=1)
    like = tmp_path / "scan.nii.gz"
    nib.save(source, like)
    volume = read_image([like])
    write_label(tmp_path / "seg.nii.gz", np.ones(volume.array.shape[1:], np.int64), volume.grid, like=like)
    written = nib.load(tmp_path / "seg.nii.gz")
    assert int(written.header["qform_code"]) == int(qform_only)
    assert int(written.header["sform_code"]) == int(not qform_only)
    np.testing.assert_array_equal(written.affine, nib.load(like).affine)
    assert read_label(tmp_path / "seg.nii.gz").grid == volume.grid


def test_label_of_a_scaled_float_multichannel_scan_is_plain_integers(tmp_path: Path) -> None:
    like = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5, 2), np.int16), scl_slope=0.5, scl_inter=3.0)
    grid = read_image([like]).grid
    label = np.arange(60).reshape(5, 4, 3) * 10
    write_label(tmp_path / "seg.nii.gz", label, grid, like=like)
    written = nib.load(tmp_path / "seg.nii.gz")
    assert written.shape == (3, 4, 5)
    assert written.get_data_dtype() == np.int16
    assert written.dataobj.slope == 1
    np.testing.assert_array_equal(read_label(tmp_path / "seg.nii.gz").array, label)


def test_label_is_not_written_beside_a_scan_that_changed(tmp_path: Path) -> None:
    like = save(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.int16))
    grid = read_image([like]).grid
    save(like, np.ones((3, 4, 6), np.int16))
    with pytest.raises(DataError) as error:
        write_label(tmp_path / "seg.nii.gz", np.zeros((5, 4, 3), np.uint8), grid, like=like)
    assert "changed since it was read: shape 3 x 4 x 6 differs from 3 x 4 x 5" in message_of(error)
    assert os.listdir(tmp_path) == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "dtype", "expected"),
    [
        (np.array([0, 7, 255], np.uint8), 1, 0, np.uint8, [0, 7, 255]),
        (np.array([-5, 0, 9], np.int16), 1, 0, np.int16, [-5, 0, 9]),
        (np.array([-5, 0, 3000], np.int32), 1, 0, np.int16, [-5, 0, 3000]),
        (np.array([0, 1, 60000], np.uint16), 1, 0, np.float32, [0, 1, 60000]),
        (np.array([0, 24, 4095], np.int16), 1, -1024, np.int16, [-1024, -1000, 3071]),
        (np.array([0, 1, 2], np.int16), 0.5, 1, np.float32, [1, 1.5, 2]),
        (np.array([0.25, 1, 2], np.float64), 1, 0, np.float32, [0.25, 1, 2]),
        (np.array([-5, 0, 9], ">i2"), 1, 0, np.int16, [-5, 0, 9]),
    ],
)
def test_intensities_are_scaled_and_whole_numbers_stay_whole(
    tmp_path: Path, stored: np.ndarray, slope: float, inter: float, dtype: type, expected: list[float]
) -> None:
    header = nib.Nifti1Header(endianness=">" if stored.dtype.byteorder == ">" else "<")
    header.set_data_dtype(stored.dtype)
    header.set_slope_inter(slope, inter)
    header.set_data_shape((3, 1, 1))
    header.set_sform(np.eye(4), code=1)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes())
    array = read_image([path]).array
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    np.testing.assert_array_equal(array[0, 0, 0], expected)
    assert array.flags.writeable
    assert array.flags.c_contiguous


def test_channels_come_from_the_last_axis_or_from_files(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    joined = save(tmp_path / "joined.nii.gz", voxels, affine_of("LPS"))
    parts = [save(tmp_path / f"part{i}.nii.gz", voxels[..., i], affine_of("LPS")) for i in range(2)]
    one, two = read_image([joined]), read_image(parts)
    assert one.array.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(one.array, two.array)
    # LPS: both in-plane axes run the other way
    np.testing.assert_array_equal(one.array[1], voxels[::-1, ::-1, :, 1].transpose(2, 1, 0))
    assert read_header(joined).channels == 2


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a_0000.nii.gz", np.zeros((3, 4, 5), np.int16))
    second = save(tmp_path / "a_0001.nii.gz", np.zeros((3, 4, 6), np.int16))
    with pytest.raises(DataError) as error:
        read_image([first, second])
    assert message_of(error) == f"{second}: shape 3 x 4 x 6 differs from 3 x 4 x 5 of the first channel a_0000.nii.gz"


def test_two_dimensional_files_have_one_slice(tmp_path: Path) -> None:
    path = save(tmp_path / "flat.nii.gz", np.arange(12, dtype=np.uint8).reshape(3, 4))
    volume = read_label(path)
    assert volume.array.shape == (1, 4, 3)
    write_label(tmp_path / "out.nii.gz", volume.array, volume.grid, like=path)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj), np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 1, 2], np.uint8), ([0, -1, 2], np.int16), ([0, 300, 1], np.int16), ([0, 40000, 1], np.int32)],
)
def test_label_type_is_the_smallest_that_holds_the_values(tmp_path: Path, values: list[int], dtype: type) -> None:
    path = save(tmp_path / "a.nii.gz", np.array(values, np.float32).reshape(3, 1, 1))
    label = read_label(path).array
    assert label.dtype == dtype
    np.testing.assert_array_equal(label[0, 0], values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 0.5, 1], "1 voxel is not a whole number, such as 0.5"),
        ([0, 1.5, 2.5], "2 voxels are not a whole number, such as 1.5"),
        ([0, np.nan, 1], "1 voxel is NaN or infinite in a label"),
    ],
)
def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path, values: list[float], said: str) -> None:
    path = save(tmp_path / "a.nii.gz", np.array(values, np.float32).reshape(3, 1, 1))
    with pytest.raises(DataError) as error:
        read_label(path)
    assert message_of(error) == f"{path}: {said}"


def test_label_with_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a label must be 3-D, this file holds 2 volumes"):
        read_label(save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5, 2), np.uint8)))


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.02])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_truncated_files_are_named_in_one_sentence(tmp_path: Path, keep: float, ending: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, size=(20, 20, 20)).astype(np.uint8)
    path = save(tmp_path / f"a{ending}", voxels)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError) as error:
        read_image([path])
    assert str(path) in message_of(error)
    if keep > 0.1 or ending == ".nii.gz":
        assert message_of(error) == f"{path}: truncated: the file ends before its voxels do; copy or download it again"


def test_a_gzip_that_lacks_only_its_checksum_is_truncated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros((5, 5, 5), np.uint8))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated"):
        read_label(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 255, size=(20, 20, 20)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the stored checksum
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged: the compressed data fail their checksum"):
        read_image([path])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"hello", "not a NIfTI file"), (b"x" * 4000, "not a NIfTI file")],
)
def test_files_that_are_no_nifti(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_image([tmp_path / "a.nii.gz"])


def test_misnamed_compression_is_read_all_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    joined = gzip.decompress(path.read_bytes())
    # a file of several gzip members, as parallel compressors write
    path.write_bytes(gzip.compress(joined[:100]) + gzip.compress(joined[100:]))
    np.testing.assert_array_equal(read_label(path).array.ravel(), np.arange(8).reshape(2, 2, 2).T.ravel())


def test_unusable_geometry_and_types_are_refused(tmp_path: Path) -> None:
    singular = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), None)
    singular.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), code=1)
    nib.save(singular, tmp_path / "a.nii")
    with pytest.raises(DataError, match="its affine is not usable"):
        read_header(tmp_path / "a.nii")
    with pytest.raises(DataError, match="voxel type complex64 is not a plain number"):
        read_header(save(tmp_path / "b.nii", np.zeros((2, 2, 2), np.complex64)))
    with pytest.raises(DataError, match="expected 2 or 3 axes"):
        read_header(save(tmp_path / "c.nii", np.zeros((2, 2, 2, 2, 2), np.uint8)))


def test_grids_are_compared_by_where_their_voxels_lie() -> None:
    def grid(affine: np.ndarray, shape: tuple[int, int, int] = (10, 10, 10)) -> SourceGrid:
        return SourceGrid(tuple(tuple(row) for row in affine.tolist()), shape)

    base = affine_of("RAS", (1.0, 1.0, 2.0))
    assert grid(base).matches(grid(base)) is None
    moved = base.copy()
    moved[0, 3] += 0.01
    assert grid(base).matches(grid(moved)) is None  # rounding of a header
    moved[0, 3] += 1.0
    assert grid(base).matches(grid(moved)) == "position (affine) differs by up to 1.01 mm from that"
    assert (
        grid(base).matches(grid(affine_of("RAS", (1.0, 1.0, 2.5))))
        == "spacing 2 x 1 x 1 mm differs from 2.5 x 1 x 1 mm"
    )
    assert grid(base).matches(grid(affine_of("LAS", (1.0, 1.0, 2.0)))) == "orientation RAS differs from LAS"
    assert grid(base).matches(grid(base, (10, 10, 9))) == "shape 10 x 10 x 10 differs from 10 x 10 x 9"


def test_grid_survives_json_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint8), affine_of("PSL", tilt=0.3))
    grid = read_header(path).grid
    assert SourceGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL"])
def test_written_images_read_back(tmp_path: Path, codes: str) -> None:
    image = np.random.default_rng(0).integers(-1000, 1000, size=(2, 4, 5, 6)).astype(np.int16)
    affine = affine_of(codes).astype(np.float32)
    ras_shape = (6, 5, 4)
    axes = nib.io_orientation(affine)[:, 0].astype(int)
    grid = SourceGrid(tuple(tuple(row) for row in affine.tolist()), tuple(ras_shape[axis] for axis in axes))
    write_image(tmp_path / "a.nii.gz", image, grid)
    back = read_image([tmp_path / "a.nii.gz"])
    np.testing.assert_array_equal(back.array, image)
    assert back.grid.shape == grid.shape
    np.testing.assert_allclose(back.grid.matrix, grid.matrix, atol=1e-6)


def test_names() -> None:
    assert file_stem(Path("a/liver_0.nii.gz")) == "liver_0"
    assert file_stem(Path("a/liver.v2.nii")) == "liver.v2"
    assert is_nifti(Path("liver_0.NII.GZ"))
    assert not is_nifti(Path("._liver_0.nii.gz"))
    assert not is_nifti(Path("liver_0.mha"))
