"""Image files of any kind read here, as arrays of their own type: PNG, JPEG, TIFF, NIfTI and DICOM.

PNG and JPEG are decoded by OpenCV, which albumentations brings along anyway. On one core it decodes grey and RGB PNG
and JPEG 1.4 times as fast as Pillow, and it keeps 16 bits per channel of RGB files, which Pillow reduces to 8. TIFF
files go through Pillow unless they hold 16-bit colours: OpenCV multiplies the colours of RGBA files by their alpha.
The kind of a file is told by its first bytes, not by its name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps, ImageSequence

from medtrain.data.io.dicom import is_dicom, read_dicom
from medtrain.data.io.dicom_series import is_stack
from medtrain.data.io.image_series import read_image_series
from medtrain.data.io.nifti import is_nifti
from medtrain.data.io.nifti import read_image as read_nifti
from medtrain.errors import DataError, Problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm", ".dicom")
"""Endings of image files, for folders that are searched for them."""

WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "bone": (400.0, 1800.0),
    "soft_tissue": (40.0, 400.0),
    "brain": (40.0, 80.0),
    "liver": (30.0, 150.0),
    "abdomen": (60.0, 400.0),
}
"""CT windows in Hounsfield units: name -> (centre, width)."""

Scaling = Literal["full_range", "min_max", "percentile", "none"]

KINDS = "PNG, JPEG, TIFF, NIfTI or DICOM"
TRUNCATED = "truncated: the file ends before its image does; copy or download it again"
_DAMAGED = "damaged: its image cannot be decoded; copy or download it again"
_PERCENTILES = (0.5, 99.5)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame's size
# the bits that the reduced modes of grey and of colours share
_JPEG_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)
_GREY_PNG = (0, 4)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as OpenCV and Pillow
_TIFF_BITS = 258
_ORIENTATION = 274
_ON_THEIR_SIDE = frozenset((5, 6, 7, 8))  # orientations whose rows are the columns of the file

# what is wrong with a file is said by a DataError; OpenCV would print its own lines to stderr as well
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class Image:
    """One image as its file holds it.

    Args:
        array: [C, H, W] or [C, D, H, W] in the type of the file; C is 1 (grey) or 3 (red, green, blue), or what a
            NIfTI file holds. It need not be contiguous: colour files are views of [H, W, C].
        max_value: The largest value that the file's kind can hold (255, 65535, 4095 of a 12-bit DICOM file), or None
            where values have a meaning of their own (Hounsfield units, NIfTI other than uint8, floating point).
        spacing: Pixel size (H, W) or (D, H, W) in mm, or None where the file does not say.
    """

    array: np.ndarray
    max_value: float | None
    spacing: tuple[float, ...] | None = None


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file and not of a hidden one."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def image_stem(name: str) -> str:
    """A file's name without its image suffix; other dots stay (`1.2.840.png` -> `1.2.840`)."""
    lower = name.lower()
    return next((name[: -len(suffix)] for suffix in SUFFIXES if lower.endswith(suffix)), name)


def read_image_file(path: Path, *, channels: Literal[1, 3] | None = None, min_side: int | None = None) -> Image:
    """Read an image.

    The rotation that EXIF tags of PNG, JPEG and TIFF files ask for is applied, alpha is left out, palettes become RGB,
    CMYK too. Pages of a TIFF file and frames of a DICOM file are slices D. A NIfTI volume comes in the canonical frame
    (see `medtrain.data.io.nifti`); a flat one is a picture whose rows are the file's second axis, as it is stored:
    the affine of a flat image seldom tells which way is up. DICOM: see `read_dicom`. A folder of DICOM slices is the
    volume of its series, in the canonical frame; so are the frames of an enhanced file if they form a proper stack.

    Args:
        path: The file, or folder of slices.
        channels: 1 or 3 to have grey or RGB whatever the file holds: grey is repeated, colours become ITU-R BT.601
            luma. None for what the file holds.
        min_side: A JPEG may be decoded at a half, a quarter or an eighth of its size, which takes a fraction of the
            time, as long as its shorter side keeps this many pixels.

    Raises:
        DataError: Missing, empty, truncated, damaged or no image; or it cannot have that many channels.
        MissingExtraError: A DICOM file, and pydicom is not installed.
    """
    if is_nifti(path):
        return convert_channels(_read_nifti(path), channels, path)
    if path.is_dir():
        return convert_channels(Image(*read_image_series(path)), channels, path)
    data = _read_bytes(path)
    if data.startswith(_PNG):
        return _decode_png(path, data, channels)
    if data.startswith(_JPEG):
        return _decode_jpeg(path, data, channels, min_side)
    if data.startswith(_TIFF):
        return convert_channels(_decode_tiff(path, data), channels, path)
    if is_dicom(data, path):
        array, max_value, spacing = read_dicom(path, data)
        if array.ndim == 4 and is_stack(path, array.shape[1]):
            return convert_channels(Image(*read_image_series(path)), channels, path)
        return convert_channels(Image(array, max_value, spacing), channels, path)
    raise _wrong_kind(path, data)


def window_of(text: str) -> tuple[float, float]:
    """Centre and width of a CT window: the name of one, or `centre/width`.

    Raises:
        ValueError: Neither.
    """
    if text in WINDOWS:
        return WINDOWS[text]
    centre, _, width = text.partition("/")
    try:
        found = float(centre), float(width)
    except ValueError:
        raise ValueError(f"neither one of {', '.join(WINDOWS)} nor centre/width") from None
    if found[1] <= 0:
        raise ValueError("the width of a window must be above 0")
    return found


def check_image_bytes(path: Path, data: bytes) -> None:
    """Tell without decoding whether a file is of a kind read here and complete.

    Args:
        path: The file; NIfTI files are told by their name.
        data: Its content.

    Raises:
        DataError: Empty, of another kind, or without the mark that ends every PNG and JPEG file.
    """
    if not data:
        raise image_error(path, "the file is empty")
    if data.startswith(_PNG):
        _require_end(path, data, _PNG_END)
    elif data.startswith(_JPEG):
        _require_end(path, data, _JPEG_END)
    elif not (data.startswith(_TIFF) or is_nifti(path) or is_dicom(data, path)):
        raise _wrong_kind(path, data)


def convert_channels(image: Image, channels: int | None, path: Path) -> Image:
    """Grey to RGB or RGB to grey, keeping the type; see `read_image_file`.

    Raises:
        DataError: Neither 1 nor 3 channels, and another number is wanted.
    """
    have = len(image.array)
    if channels is None or have == channels:
        return image
    if have == 1 and channels == 3:
        return replace(image, array=np.broadcast_to(image.array, (3, *image.array.shape[1:])))
    if have == 3 and channels == 1:
        grey = np.tensordot(_LUMA, image.array.astype(np.float32), axes=1)[None]
        whole = image.array.dtype.kind in "iu"
        return replace(image, array=(np.rint(grey) if whole else grey).astype(image.array.dtype))
    raise image_error(path, f"holds {have} channels, which cannot be made {channels}")


def to_float(
    image: Image, scaling: Scaling, *, window: str | tuple[float, float] | None = None, path: Path | None = None
) -> np.ndarray:
    """An image as float32.

    - `full_range`: x / max_value, from 0 to 1 whatever the image shows; 8 and 16 bits agree.
    - `min_max`: (x - min) / (max - min) of this image over all channels; 0 where every value is the same.
    - `percentile`: the same between its 0.5th and 99.5th percentile, values beyond them clipped.
    - `none`: the numbers as they are.

    Args:
        image: What was read.
        scaling: One of the above. Not used with a window.
        window: Name of one of `WINDOWS`, or (centre, width): values are clipped to centre -+ width / 2 and brought
            to 0 to 1. For images in Hounsfield units.
        path: Named by the error.

    Raises:
        DataError: `full_range` of an image without a largest value, or NaN or infinite values.
    """
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        raise image_error(path or Path("image"), "holds NaN or infinite values", "mend or leave out this image")
    if window is not None:
        centre, width = WINDOWS[window] if isinstance(window, str) else window
        return np.clip((image.array.astype(np.float32) - np.float32(centre - width / 2)) / np.float32(width), 0, 1)
    if scaling == "none":
        return image.array.astype(np.float32)
    if scaling == "full_range":
        if image.max_value is None:
            message = f"{image.array.dtype} values without a largest value cannot be scaled to their full range"
            hint = "use a window, or the scaling min_max or percentile"
            raise image_error(path or Path("image"), message, hint)
        return np.divide(image.array, np.float32(image.max_value), dtype=np.float32)
    if scaling == "min_max":
        low, high = float(image.array.min()), float(image.array.max())
    else:
        low, high = (float(value) for value in np.percentile(image.array, _PERCENTILES))
    if high <= low:
        return np.zeros(image.array.shape, dtype=np.float32)
    # float64 before the difference: neighbouring large numbers would fall together in float32
    return np.clip((image.array - np.float64(low)) / (high - low), 0, 1).astype(np.float32)


def image_error(path: Path, message: str, hint: str | None = None) -> DataError:
    """One sentence about one file."""
    return DataError([Problem(where=str(path), message=message, hint=hint)])


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise image_error(path, "no such file") from None
    except IsADirectoryError:
        raise image_error(path, "a folder, not an image file") from None
    except OSError as error:
        raise image_error(path, f"cannot be read: {error.strerror}") from None
    if not data:
        raise image_error(path, "the file is empty")
    return data


def _wrong_kind(path: Path, data: bytes) -> DataError:
    if data.startswith(b"version https://git-lfs"):
        return image_error(path, "a Git LFS pointer, not the image itself", "git lfs pull")
    return image_error(path, f"not a {KINDS} file")


def _require_end(path: Path, data: bytes, end: bytes) -> None:
    # old decoders fill the missing part of a picture with grey and say nothing
    if data.rfind(end) < 0:
        raise image_error(path, TRUNCATED)


def _decode_png(path: Path, data: bytes, channels: int | None) -> Image:
    _require_end(path, data, _PNG_END)
    grey = data[25] in _GREY_PNG if channels is None else channels == 1  # the colour type in the header
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    return _decode(path, data, flags | cv2.IMREAD_ANYDEPTH)


def _decode_jpeg(path: Path, data: bytes, channels: int | None, min_side: int | None = None) -> Image:
    _require_end(path, data, _JPEG_END)
    if channels is None:
        return _decode(path, data, cv2.IMREAD_ANYCOLOR, swap=True)
    flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    size = jpeg_size(data) if min_side else None
    fitting = (mode for factor, mode in _JPEG_REDUCED if size and min_side and min(size) >= factor * min_side)
    return _decode(path, data, flags | next(fitting, 0))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as a JPEG file's header says, before any rotation; None where it does not say."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _JPEG_FRAMES:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture as it is read, from its header; None where only decoding tells.

    Raises:
        DataError: There is no such file, or it is empty.
    """
    if path.is_dir():
        return None
    data = _read_bytes(path)
    if data.startswith(_PNG):
        plain = b"eXIf" not in data  # which may stand anywhere, and ask for a rotation
        return (int.from_bytes(data[20:24]), int.from_bytes(data[16:20])) if plain else None
    size = jpeg_size(data) if data.startswith(_JPEG) else None
    if size is None or b"Exif\0" not in data:
        return size
    try:
        with PillowImage.open(BytesIO(data), formats=["JPEG"]) as file:
            turned = file.getexif().get(_ORIENTATION, 1) in _ON_THEIR_SIDE
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error, Warning):
        return None
    return size[::-1] if turned else size


def _decode(path: Path, data: bytes, flags: int, *, swap: bool = False) -> Image:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # such as more pixels than it accepts
        decoded = None
    if decoded is None:
        raise image_error(path, _DAMAGED)
    if decoded.ndim == 3 and swap:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    array = decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)
    return Image(array, _max_of(array.dtype))


def _decode_tiff(path: Path, data: bytes) -> Image:
    try:
        with PillowImage.open(BytesIO(data), formats=["TIFF"]) as file:
            bits = file.tag_v2.get(_TIFF_BITS, (1,))  # type: ignore[attr-defined]
            if len(bits) >= 3 and max(bits) > 8:
                return _decode_deep_tiff(path, data)
            pages = [_page(ImageOps.exif_transpose(page)) for page in ImageSequence.Iterator(file)]
    # Pillow has no common error for damaged files, and warns about some of them
    except DataError:
        raise
    except PillowImage.DecompressionBombError:
        raise image_error(path, "more pixels than Pillow reads, or its header is damaged") from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, Warning):
        raise image_error(path, _DAMAGED) from None
    return _stack(path, pages)


def _page(page: PillowImage.Image) -> np.ndarray:
    """One page as [C, H, W]; Pillow widens 1 bit to 8, and keeps 16-bit grey and floating point."""
    if page.mode in ("P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"):
        page = page.convert("RGB")
    elif page.mode in ("1", "LA", "La"):
        page = page.convert("L")
    array = np.array(page)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _decode_deep_tiff(path: Path, data: bytes) -> Image:
    """Colours of 16 bits, without alpha."""
    done, pages = cv2.imdecodemulti(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if not done or not pages:
        raise image_error(path, _DAMAGED)
    return _stack(path, [cv2.cvtColor(page, cv2.COLOR_BGR2RGB).transpose(2, 0, 1) for page in pages])


def _stack(path: Path, pages: list[np.ndarray]) -> Image:
    shapes = {page.shape for page in pages}
    if len(shapes) != 1:
        raise image_error(path, f"its {len(pages)} pages differ in size; expected one image, or slices of one size")
    array = np.stack(pages, axis=1) if len(pages) > 1 else pages[0]
    return Image(array, _max_of(array.dtype))


def _max_of(dtype: np.dtype[Any]) -> float | None:
    return float(np.iinfo(dtype).max) if dtype in (np.uint8, np.uint16) else None


def _read_nifti(path: Path) -> Image:
    volume = read_nifti([path])
    max_value = 255.0 if volume.array.dtype == np.uint8 else None
    if volume.grid.shape[2] != 1:
        return Image(volume.array, max_value, volume.spacing)
    flat = np.stack([volume.grid.from_canonical(channel)[..., 0].T for channel in volume.array])
    height, width = (float(np.linalg.norm(volume.grid.matrix[:3, axis])) for axis in (1, 0))
    return Image(flat, max_value, (height, width))
