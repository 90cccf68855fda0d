from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.data.io.images import (
    WINDOWS,
    Image,
    check_image_bytes,
    image_stem,
    is_image,
    jpeg_size,
    picture_size,
    read_image_file,
    to_float,
    window_of,
)
from medtrain.errors import DataError

ROTATE_CLOCKWISE = 6  # EXIF: the picture must be turned by 90 degrees clockwise to be seen


@pytest.fixture
def rgb(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # [H, W, C], odd and unequal


def said(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image_file(path)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].where == str(path)
    return error.value.problems[0].message


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_colours_are_red_green_blue(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    Pillow.fromarray(flat).save(tmp_path / f"a{suffix}", **({"quality": 100} if suffix == ".jpg" else {}))
    image = read_image_file(tmp_path / f"a{suffix}")
    assert image.array.shape == (3, 16, 16)
    assert image.array.dtype == np.uint8
    assert image.max_value == 255
    assert np.abs(image.array.astype(int) - flat.transpose(2, 0, 1)).max() <= (2 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_mode_comes_as_grey_or_rgb(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    alpha = np.full(rgb.shape[:2], 7, np.uint8)  # almost transparent: the colours must not fade
    palette = Pillow.fromarray(rgb // 64 * 64).quantize(64)
    deep = rgb[..., :1].astype(np.uint16) * 256 + 3
    pictures = {
        "rgb": (Pillow.fromarray(rgb), rgb),
        "rgba": (Pillow.fromarray(np.dstack([rgb, alpha])), rgb),
        "grey": (Pillow.fromarray(rgb[..., 0]), rgb[..., :1]),
        "grey_alpha": (Pillow.fromarray(np.dstack([rgb[..., 0], alpha]), "LA"), rgb[..., :1]),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bits": (Pillow.fromarray(rgb[..., 0] > 100), (rgb[..., :1] > 100) * np.uint8(255)),
        "deep_grey": (Pillow.fromarray(deep[..., 0]), deep),
    }
    for name, (picture, expected) in pictures.items():
        path = tmp_path / f"{name}{suffix}"
        picture.save(path)
        image = read_image_file(path)
        np.testing.assert_array_equal(image.array, expected.transpose(2, 0, 1), err_msg=name)
        assert image.array.dtype == expected.dtype, name
        assert image.max_value == np.iinfo(expected.dtype).max, name


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_a_colour_are_kept(tmp_path: Path, rng: np.random.Generator, suffix: str, channels: int) -> None:
    deep = rng.integers(0, 65536, (5, 7, channels), dtype=np.uint16)  # OpenCV's order: blue, green, red, alpha
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep)
    image = read_image_file(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.array, deep[..., 2::-1].transpose(2, 0, 1))
    assert image.max_value == 65535


@pytest.mark.parametrize(("suffix", "limit"), [(".png", 0), (".tif", 0), (".jpg", 12)])
def test_the_rotation_of_exif_is_applied(tmp_path: Path, suffix: str, limit: int) -> None:
    ramp = np.add.outer(np.arange(16) * 8, np.arange(24) * 4).astype(np.uint8)
    tags = Pillow.Exif()
    tags[0x0112] = ROTATE_CLOCKWISE
    Pillow.fromarray(np.dstack([ramp] * 3)).save(tmp_path / f"a{suffix}", exif=tags)
    for channels in (None, 1, 3):
        array = read_image_file(tmp_path / f"a{suffix}", channels=channels).array
        assert array.shape[1:] == (24, 16)
        assert np.abs(array[0].astype(int) - np.rot90(ramp, -1)).max() <= limit


def test_the_channels_asked_for(tmp_path: Path, rgb: np.ndarray) -> None:
    Pillow.fromarray(rgb).save(tmp_path / "c.png")
    Pillow.fromarray(rgb).save(tmp_path / "c.tif")
    Pillow.fromarray(rgb[..., 0]).save(tmp_path / "g.png")
    Pillow.fromarray(rgb[..., 0]).save(tmp_path / "g.tif")
    luma = (rgb.astype(float) @ [0.299, 0.587, 0.114])[None]
    for suffix in ("png", "tif"):
        grey = read_image_file(tmp_path / f"c.{suffix}", channels=1).array
        assert grey.shape == (1, 5, 7)
        assert np.abs(grey - luma).max() <= 1
        repeated = read_image_file(tmp_path / f"g.{suffix}", channels=3).array
        np.testing.assert_array_equal(repeated, np.stack([rgb[..., 0]] * 3))


def test_tiff_of_numbers_and_of_several_pages(tmp_path: Path, rgb: np.ndarray) -> None:
    real = (rgb[..., 0] / 3).astype(np.float32)
    Pillow.fromarray(real).save(tmp_path / "f.tif")
    image = read_image_file(tmp_path / "f.tif")
    np.testing.assert_array_equal(image.array, real[None])
    assert image.max_value is None

    pages = [Pillow.fromarray(rgb[..., channel]) for channel in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(
        read_image_file(tmp_path / "stack.tif").array, rgb.transpose(2, 0, 1)[None]
    )  # C D H W

    pages[0].save(tmp_path / "pyramid.tif", save_all=True, append_images=[pages[0].resize((3, 3))])
    assert "its 2 pages differ in size" in said(tmp_path / "pyramid.tif")


def test_nifti_volumes_are_canonical_and_flat_ones_as_stored(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # x y z
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 2.0, 3.0, 1.0])), tmp_path / "v.nii.gz")
    image = read_image_file(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(image.array, voxels[::-1].transpose(2, 1, 0)[None])
    assert image.spacing == (3.0, 2.0, 1.0)
    assert image.max_value is None

    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)  # rows, columns
    for affine in (np.eye(4), np.diag([-0.5, -0.25, 1.0, 1.0])):  # however it is said to lie
        for stored in (picture.T, picture.T[..., None]):
            nib.save(nib.Nifti1Image(stored, affine), tmp_path / "p.nii")
            image = read_image_file(tmp_path / "p.nii")
            np.testing.assert_array_equal(image.array, picture[None])
            assert image.max_value == 255
    assert image.spacing == (0.25, 0.5)
    assert read_image_file(tmp_path / "p.nii", channels=3).array.shape == (3, 3, 4)


def test_the_content_decides_not_the_name(tmp_path: Path, rgb: np.ndarray) -> None:
    Pillow.fromarray(rgb).save(tmp_path / "really.jpg", "PNG")
    np.testing.assert_array_equal(read_image_file(tmp_path / "really.jpg").array, rgb.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off(tmp_path: Path, rng: np.random.Generator, kind: str, kept: float) -> None:
    path = tmp_path / "a.img"
    Pillow.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path, kind)
    whole = path.read_bytes()
    check_image_bytes(path, whole)
    path.write_bytes(whole[: int(len(whole) * kept)])
    message = said(path)
    assert message.startswith("truncated" if kind != "TIFF" else "damaged")
    if kind != "TIFF":
        with pytest.raises(DataError, match="truncated"):
            check_image_bytes(path, path.read_bytes())


def test_a_png_with_a_changed_byte(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert said(path) == "damaged: its image cannot be decoded; copy or download it again"


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (tmp_path / "folder.png").mkdir()
    assert said(tmp_path / "nothing.png") == "no such file"
    assert said(tmp_path / "empty.png") == "the file is empty"
    assert said(tmp_path / "page.png") == "not a PNG, JPEG, TIFF, NIfTI or DICOM file"
    assert said(tmp_path / "lfs.png") == "a Git LFS pointer, not the image itself"
    assert said(tmp_path / "folder.png") == "a folder without DICOM slices; expected an image, or one series"
    for name in ("empty.png", "page.png"):
        with pytest.raises(DataError):
            check_image_bytes(tmp_path / name, (tmp_path / name).read_bytes())


def test_scaling_by_hand() -> None:
    eight = Image(np.array([[[0, 51, 255]]], np.uint8), 255.0)
    np.testing.assert_array_equal(to_float(eight, "full_range"), np.float32([[[0, 0.2, 1]]]))
    np.testing.assert_array_equal(to_float(eight, "none"), np.float32([[[0, 51, 255]]]))
    sixteen = Image(np.array([[[0, 13107, 65535]]], np.uint16), 65535.0)
    np.testing.assert_array_equal(to_float(sixteen, "full_range"), np.float32([[[0, 0.2, 1]]]))
    shifted = Image(np.array([[[-10, 0, 30]]], np.int16), None)
    np.testing.assert_array_equal(to_float(shifted, "min_max"), np.float32([[[0, 0.25, 1]]]))
    np.testing.assert_array_equal(to_float(Image(np.full((1, 2, 2), 7, np.uint8), 255.0), "min_max"), 0)
    ramp = Image(np.arange(201, dtype=np.int16).reshape(1, 3, 67), None)  # percentiles 1 and 199
    clipped = to_float(ramp, "percentile").ravel()
    assert clipped[1] == 0
    assert clipped[100] == pytest.approx(0.5)
    assert clipped[199] == clipped[200] == 1


def test_windows_by_hand() -> None:
    assert WINDOWS == {
        "lung": (-600, 1500),
        "mediastinum": (50, 350),
        "bone": (400, 1800),
        "soft_tissue": (40, 400),
        "brain": (40, 80),
        "liver": (30, 150),
        "abdomen": (60, 400),
    }
    ct = Image(np.array([[[-1000, -160, 40, 140, 240, 3000]]], np.int16), None)
    np.testing.assert_allclose(to_float(ct, "none", window="soft_tissue")[0, 0], [0, 0, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(to_float(ct, "none", window=(-1000, 4000))[0, 0, :3], [0.5, 0.71, 0.76])


def test_values_that_cannot_be_scaled() -> None:
    with pytest.raises(DataError, match=r"scan\.nii: int16 values without a largest value") as error:
        to_float(Image(np.zeros((1, 2, 2), np.int16), None), "full_range", path=Path("scan.nii"))
    assert error.value.problems[0].hint == "use a window, or the scaling min_max or percentile"
    for scaling in ("min_max", "percentile", "none"):
        with pytest.raises(DataError, match="NaN or infinite"):
            to_float(Image(np.array([[[0, np.nan]]], np.float32), None), scaling)  # type: ignore[arg-type]


def test_names() -> None:
    assert [image_stem(name) for name in ("a.nii.gz", "1.2.840.PNG", "x.jpeg", "plain")] == [
        "a",
        "1.2.840",
        "x",
        "plain",
    ]
    assert is_image(Path("a.JPG"))
    assert not is_image(Path("._a.jpg"))
    assert not is_image(Path("Thumbs.db"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("min_side", "shape"), [(25, (25, 40)), (26, (50, 80)), (50, (50, 80)), (100, (100, 160))])
def test_a_jpeg_is_decoded_no_larger_than_needed(
    tmp_path: Path, channels: Literal[1, 3], min_side: int, shape: tuple[int, int]
) -> None:
    grid = np.linspace(0, 255, 200)[:, None, None] * np.ones((1, 320, 3)) * [0.2, 0.5, 1.0]
    path = tmp_path / "a.jpg"
    assert cv2.imwrite(str(path), grid.astype(np.uint8)[..., ::-1])
    assert jpeg_size(path.read_bytes()) == (200, 320)
    found = read_image_file(path, channels=channels, min_side=min_side).array
    assert found.shape == (channels, *shape)
    whole = read_image_file(path, channels=channels).array
    assert whole.shape == (channels, 200, 320)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), whole.mean(axis=(1, 2)), atol=1.5)
    assert read_image_file(path, channels=channels, min_side=101).array.shape == whole.shape


def test_the_size_of_a_jpeg_that_does_not_tell_it() -> None:
    assert jpeg_size(b"\xff\xd8\xff\xd9") is None
    assert jpeg_size(b"\xff\xd8" + bytes(20)) is None


@pytest.mark.parametrize(
    ("text", "window"), [("lung", (-600.0, 1500.0)), ("40/400", (40.0, 400.0)), ("-5/1", (-5.0, 1.0))]
)
def test_windows_by_name_and_number(text: str, window: tuple[float, float]) -> None:
    assert window_of(text) == window


@pytest.mark.parametrize("text", ["lungs", "40", "40/0", "a/b", ""])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"lung|above 0"):
        window_of(text)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_is_told_without_decoding_as_reading_gives_it(
    tmp_path: Path, rgb: np.ndarray, suffix: str, orientation: int | None
) -> None:
    path = tmp_path / f"a{suffix}"
    tags = Pillow.Exif()
    if orientation is not None:
        tags[274] = orientation
    Pillow.fromarray(rgb).save(path, exif=tags)
    told = picture_size(path)
    assert told in (None, read_image_file(path).array.shape[1:])
    assert (told is None) == (suffix == ".png" and orientation is not None)


def test_the_size_of_other_kinds_is_not_told(tmp_path: Path, rgb: np.ndarray) -> None:
    Pillow.fromarray(rgb).save(tmp_path / "a.tif")
    assert picture_size(tmp_path / "a.tif") is None
    with pytest.raises(DataError, match="no such file"):
        picture_size(tmp_path / "b.png")
