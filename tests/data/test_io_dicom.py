from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtrain.data.io.images import check_image_bytes, read_image_file, to_float
from medtrain.errors import DataError, MissingExtraError


def write_dicom(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    """A file of 12 stored bits, or 8 for uint8; colours are [H, W, 3], frames [D, H, W]."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom (extra `dicom`) is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = pydicom.Dataset()
    file.file_meta = meta
    colour = stored.ndim == 3 and stored.shape[-1] == 3
    bits = 8 if stored.dtype == np.uint8 else 12
    file.Rows, file.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    file.SamplesPerPixel = 3 if colour else 1
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * stored.itemsize, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    if colour:
        file.PlanarConfiguration = 0
    elif stored.ndim == 3:
        file.NumberOfFrames = len(stored)
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.PixelData = stored.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def stored(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4096, (4, 6), dtype=np.uint16)


def test_hounsfield_units(tmp_path: Path, stored: np.ndarray) -> None:
    path = write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024, PixelSpacing=[0.5, 0.25])
    image = read_image_file(path)
    np.testing.assert_array_equal(image.array, stored.astype(np.int16)[None] - 1024)
    assert image.array.dtype == np.int16
    assert image.max_value is None
    assert image.spacing == (0.5, 0.25)
    lung = to_float(image, "none", window="lung")
    np.testing.assert_allclose(lung, np.clip((stored[None] - 1024.0 + 1350) / 1500, 0, 1), atol=1e-6)


def test_a_slope_that_is_not_whole(tmp_path: Path, stored: np.ndarray) -> None:
    image = read_image_file(write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=0.5, RescaleIntercept=-3))
    np.testing.assert_array_equal(image.array, (stored[None] * 0.5 - 3).astype(np.float32))


def test_large_means_bright(tmp_path: Path, stored: np.ndarray) -> None:
    plain = read_image_file(write_dicom(tmp_path / "a.dcm", stored))
    np.testing.assert_array_equal(plain.array, stored[None])
    assert plain.max_value == 4095
    inverted = read_image_file(write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted.array, 4095 - stored[None])
    assert inverted.array.dtype == np.uint16
    assert inverted.max_value == 4095
    signed = stored.astype(np.int16) - 2048
    image = read_image_file(write_dicom(tmp_path / "c.dcm", signed, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(image.array, -1 - signed[None])  # -2048 <-> 2047
    assert image.max_value is None


def test_colours_and_frames(tmp_path: Path, rng: np.random.Generator) -> None:
    colours = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = read_image_file(write_dicom(tmp_path / "a.dcm", colours))
    np.testing.assert_array_equal(image.array, colours.transpose(2, 0, 1))
    assert image.max_value == 255
    frames = rng.integers(0, 4096, (5, 4, 6), dtype=np.uint16)
    tags = {"PixelSpacing": [1, 2], "SliceThickness": 3}
    image = read_image_file(write_dicom(tmp_path / "b.dcm", frames, **tags))
    np.testing.assert_array_equal(image.array, frames[None])  # C D H W
    assert image.spacing == (3, 1, 2)


def test_the_mark_is_enough(tmp_path: Path, stored: np.ndarray) -> None:
    path = write_dicom(tmp_path / "no_suffix", stored)
    np.testing.assert_array_equal(read_image_file(path).array, stored[None])
    check_image_bytes(path, path.read_bytes())


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_file_that_was_cut_off(tmp_path: Path, stored: np.ndarray, kept: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", stored)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"a\.dcm: (truncated|damaged|holds no image)") as error:
        read_image_file(path)
    assert len(error.value.problems) == 1


def test_text_with_the_suffix(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom (extra `dicom`) is not installed")
    (tmp_path / "a.dcm").write_text("no image")
    with pytest.raises(DataError, match="not a DICOM file"):
        read_image_file(tmp_path / "a.dcm")


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"reading the DICOM file a\.dcm needs the package pydicom") as error:
        read_image_file(tmp_path / "a.dcm")
    assert error.value.hint == "pip install 'medtrain[dicom]'"
