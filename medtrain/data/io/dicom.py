"""DICOM files: the stored numbers turned into what they mean.

Needs pydicom (extra `dicom`), and for compressed files one of the decoders that pydicom names.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medtrain.data.io.dicom_frames import frame_headers
from medtrain.errors import DataError, MissingExtraError, Problem

SUFFIXES = (".dcm", ".dicom")
_MAGIC_AT = 128
_MAGIC = b"DICM"
_T = TypeVar("_T")


def is_dicom(data: bytes, path: Path) -> bool:
    """Whether a file's content has the mark of DICOM; files without it are accepted by their name."""
    return data[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC or path.name.lower().endswith(SUFFIXES)


def read_dicom(path: Path, data: bytes | None = None) -> tuple[np.ndarray, float | None, tuple[float, ...] | None]:
    """Read one DICOM file.

    Grey images: rescale slope and intercept are applied (CT: Hounsfield units); whole numbers that fit stay integers
    (int16, uint16 or uint8), everything else becomes float32. MONOCHROME1, where large means dark, is inverted within
    the range of the stored bits, so that large means bright in every image. Colours become RGB.

    Args:
        path: The file.
        data: Its content, if it has been read already.

    Returns:
        The array [C, H, W] or, of several frames, [C, D, H, W]; its largest value, 2^bits - 1, or None for signed and
        rescaled images; the pixel spacing (H, W) or (D, H, W) in mm, or None.

    Raises:
        DataError: The file is no DICOM file, is damaged, holds no image, or no decoder for it is installed.
        MissingExtraError: pydicom is not installed.
    """
    return _decode(path, data, _interpret)


def read_frames(path: Path) -> list[tuple[np.ndarray, float | None]]:
    """The frames [H, W] of an enhanced grey image in the file's order, each with its own slope and intercept.

    With each comes the largest value of its stored bits, None for signed and rescaled frames.

    Args:
        path: The file; see `medtrain.data.io.dicom_frames`.

    Raises:
        DataError: See `read_dicom`.
        MissingExtraError: pydicom is not installed.
    """
    return _decode(path, None, _interpret_frames)


def _decode(path: Path, data: bytes | None, interpret: Callable[[Any], _T]) -> _T:
    """Read a file and say in a sentence why it cannot be."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError("pydicom", extra="dicom", purpose=f"reading the DICOM file {path.name}") from error
    try:
        file = pydicom.dcmread(BytesIO(path.read_bytes() if data is None else data))
        if "PixelData" not in file:
            raise _error(path, "holds no image, or is cut off before it")
        return interpret(file)
    except DataError:
        raise
    except FileNotFoundError:
        raise _error(path, "no such file") from None
    except pydicom.errors.InvalidDicomError:
        raise _error(path, "not a DICOM file") from None
    except RuntimeError as error:  # pydicom's word for a decoder that is missing or failed
        hint = "if a decoder is missing: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        raise _error(path, " ".join(str(error).split()), hint) from None
    except Exception:  # values are parsed when they are used, and what a damaged one raises has no common base
        message = "truncated or damaged: its header or pixels cannot be decoded; copy or download it again"
        raise _error(path, message) from None


def _interpret(file: Any) -> tuple[np.ndarray, float | None, tuple[float, ...] | None]:
    from pydicom.pixels import apply_color_lut, pixel_array

    stored = pixel_array(file)  # YBR becomes RGB here
    photometric = str(file.PhotometricInterpretation)
    if photometric.startswith("MONOCHROME"):
        array, max_value = _grey(file, stored, file, inverted=photometric == "MONOCHROME1")
        array = array[None]
    else:
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, file)
        array, max_value = np.moveaxis(stored, -1, 0), float(np.iinfo(stored.dtype).max)
    return np.ascontiguousarray(array), max_value, _spacing(file, int(file.get("NumberOfFrames", 1) or 1))


def _interpret_frames(file: Any) -> list[tuple[np.ndarray, float | None]]:
    from pydicom.pixels import pixel_array

    stored = pixel_array(file)
    stored = stored[None] if stored.ndim == 2 else stored
    inverted = str(file.PhotometricInterpretation) == "MONOCHROME1"
    return [
        _grey(file, plane, header, inverted=inverted) for plane, header in zip(stored, frame_headers(file), strict=True)
    ]


def _grey(file: Any, stored: np.ndarray, scaling: Any, *, inverted: bool) -> tuple[np.ndarray, float | None]:
    """What stored numbers mean, and the largest; `scaling` has their slope and intercept, `file` their bits."""
    bits, signed = int(file.BitsStored), bool(file.PixelRepresentation)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = low + high - stored.astype(np.int64) if inverted else stored
    slope, intercept = (
        _number(scaling, tag, default) for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 1 and intercept == 0:
        return values.astype(stored.dtype, copy=False), None if signed else float(high)
    if slope.is_integer() and intercept.is_integer():
        whole = values.astype(np.int64) * int(slope) + int(intercept)
        if whole.min() >= -32768 and whole.max() <= 32767:
            return whole.astype(np.int16), None
    return (values.astype(np.float64) * slope + intercept).astype(np.float32), None


def _number(file: Any, tag: str, default: float) -> float:
    value = file.get(tag)
    return default if value in (None, "") else float(value)


def _spacing(file: Any, frames: int) -> tuple[float, ...] | None:
    plane = file.get("PixelSpacing") or file.get("ImagerPixelSpacing")
    if not plane or len(plane) != 2:
        return None
    height, width = (float(value) for value in plane)
    if frames == 1:
        return (height, width)
    depth = file.get("SpacingBetweenSlices") or file.get("SliceThickness")
    return (float(depth), height, width) if depth else None


def _error(path: Path, message: str, hint: str | None = None) -> DataError:
    return DataError([Problem(where=str(path), message=message, hint=hint)])
