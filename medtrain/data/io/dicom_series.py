"""DICOM series: the slices of a scan, put together to a volume, or a sentence why not.

Slices are files of their own, or the frames of an enhanced object (`medtrain.data.io.dicom_frames`). Needs pydicom
(extra `dicom`). Positions decide the order of slices, never file names, frame or instance numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.data.io.dicom import is_dicom, read_dicom, read_frames
from medtrain.data.io.dicom_frames import FRAMES, SHARED, frame_headers, is_enhanced
from medtrain.data.io.nifti import SourceGrid, Volume
from medtrain.errors import DataError, MissingExtraError, Problem

_TAGS = [
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "SOPClassUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
]
_GROUPS = ["PhotometricInterpretation", FRAMES, SHARED]
_NO_SCANS = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG"})
_HEAD = 132
_SAME = 1e-3
"""Direction cosines that differ by less lie alike (0.06 degrees)."""

_UNEVEN = 0.1
"""Distances of neighbouring slices may differ from the median by this share of it."""


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Args:
        folder: That holds them.
        uid: SeriesInstanceUID.
        number: SeriesNumber, 0 where there is none.
        files: Sorted by name.
    """

    folder: Path
    uid: str
    number: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Slice:
    path: Path
    frame: int | None  # of an enhanced object
    where: str
    position: np.ndarray  # of the first voxel's centre, LPS mm
    along: float  # along the normal of the slices

    @property
    def name(self) -> str:
        return Path(self.where).name

    @property
    def scan(self) -> Path:
        """What holds all of it: a file of frames, or a folder of slices."""
        return self.path.parent if self.frame is None else self.path


def find_series(source: Path) -> list[Series]:
    """The series of images below a folder, or the one that a file belongs to.

    Files of one series in several folders are several series: copies of a patient, as a rule.

    Args:
        source: Folder or file.

    Raises:
        MissingExtraError: There are DICOM files, and pydicom is not installed.
    """
    folder = source if source.is_dir() else source.parent
    files = sorted(folder.rglob("*") if source.is_dir() else folder.iterdir())
    found: dict[tuple[Path, str], list[tuple[Path, int]]] = {}
    own: tuple[Path, str] | None = None
    for path in files:
        if (
            path.name.startswith(".")
            or path.name.upper() == "DICOMDIR"
            or not path.is_file()
            or not is_dicom_file(path)
        ):
            continue
        header = _header(path)
        if header is None or str(header.get("Modality", "")) in _NO_SCANS or "Rows" not in header:
            continue
        key = (path.parent, str(header.get("SeriesInstanceUID", "")))
        found.setdefault(key, []).append((path, int(header.get("SeriesNumber") or 0)))
        if path == source:
            own = key
    if source.is_file():
        found = {own: found[own]} if own is not None else {}
    return [
        Series(folder, uid, entries[0][1], tuple(path for path, _ in entries))
        for (folder, uid), entries in sorted(found.items(), key=lambda item: (item[0][0], item[1][0][1], item[0][1]))
    ]


def read_series(files: Sequence[Path]) -> Volume:
    """Read the slices of a series into a volume; see `read_scan`."""
    return read_scan(files)[0]


def read_scan(files: Sequence[Path]) -> tuple[Volume, float | None]:
    """Read the slices of a series into a volume.

    Slope and intercept are applied slice by slice. Numbers stay int16 or uint8 where they are whole and fit.

    Args:
        files: All files of the series, in any order.

    Returns:
        Volume whose array is [1, D, H, W] in the canonical frame, writable and contiguous; and the largest value of
        the stored bits, None where slices are signed or rescaled.

    Raises:
        DataError: Slices are missing, doubled, of different shape or direction, sheared by a tilted gantry, in colour,
            or cannot be decoded.
        MissingExtraError: pydicom is not installed.
    """
    ordered, grid = _arrange(files)
    frames = {path: read_frames(path) for path in dict.fromkeys(s.path for s in ordered if s.frame is not None)}
    slices: list[np.ndarray] = []
    largest: list[float] = []
    for part in ordered:
        if part.frame is not None:
            plane, most = frames[part.path][part.frame]
        else:
            array, most, _ = read_dicom(part.path)
            if array.ndim != 3 or len(array) != 1:
                raise _error(part.path, "is in colour or holds several frames; a scan's slices are grey")
            plane = array[0]
        slices.append(plane)
        if most is not None:
            largest.append(most)
    frames.clear()
    dtype = np.result_type(*{voxels.dtype for voxels in slices})
    if dtype not in (np.uint8, np.int16):
        dtype = _smallest(slices)
    stack = np.empty((len(slices), *slices[0].shape), dtype=dtype)
    for index in range(len(slices)):
        stack[index] = slices[index]
        slices[index] = slices[index][:0]  # both at once would be twice the scan
    canonical = grid.to_canonical(stack.transpose(2, 1, 0))
    volume = Volume(array=np.ascontiguousarray(canonical)[None], spacing=grid.spacing, grid=grid)
    return volume, max(largest) if len(largest) == len(slices) else None


def series_grid(files: Sequence[Path]) -> SourceGrid:
    """The grid of a series from its headers alone: axes are columns, rows and slices.

    Raises:
        DataError: See `read_series`.
    """
    return _arrange(files)[1]


def ordered_slices(files: Sequence[Path]) -> list[tuple[Path, int | None]]:
    """The slices of a series in their order: the file of each, and of an enhanced object its frame, from 0.

    Raises:
        DataError: See `read_series`.
    """
    return [(part.path, part.frame) for part in _arrange(files)[0]]


def _arrange(files: Sequence[Path]) -> tuple[list[_Slice], SourceGrid]:
    """Slices in order, and their grid."""
    headers = [(path, _geometry_of(path)) for path in files]
    parts = [part for path, header in headers for part in _parts(path, header)]
    where, first = parts[0][2:]
    direction = _numbers(where, first, "ImageOrientationPatient", 6)
    normal = np.cross(direction[:3], direction[3:])
    if abs(np.linalg.norm(normal) - 1) > _SAME:
        raise _error(where, "its ImageOrientationPatient is not two directions at a right angle")
    pixel = _numbers(where, first, "PixelSpacing", 2)
    size = (int(first.Columns), int(first.Rows))
    slices = []
    for path, frame, where, header in parts:
        _like_first(where, header, size, direction, pixel, len(parts))
        position = _numbers(where, header, "ImagePositionPatient", 3)
        slices.append(_Slice(path, frame, where, position, float(position @ normal)))
    slices.sort(key=lambda part: part.along)
    step = _step(slices, first, normal, pixel)
    columns = np.stack([direction[:3] * pixel[1], direction[3:] * pixel[0], normal * step], axis=1)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = columns, slices[0].position
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix  # DICOM's axes point to left and posterior
    affine = tuple(tuple(float(value) for value in row) for row in matrix)
    return slices, SourceGrid(affine=affine, shape=(*size, len(slices)))


def _parts(path: Path, header: Any) -> Iterator[tuple[Path, int | None, str, Any]]:
    """The slices of a file: path, frame, what to call it, and its header."""
    if not is_enhanced(header):
        yield path, None, str(path), header
        return
    for frame, flat in enumerate(frame_headers(header)):
        where = f"{path} frame {frame + 1}"
        if str(flat.get("PhotometricInterpretation", "MONOCHROME2"))[:10] != "MONOCHROME":
            raise _error(where, "is in colour; a scan's slices are grey")
        yield path, frame, where, flat


def _like_first(
    where: str, header: Any, size: tuple[int, int], direction: np.ndarray, pixel: np.ndarray, count: int
) -> None:
    """Refuse a slice that does not lie in one stack with the first."""
    if int(header.get("NumberOfFrames") or 1) > 1:
        hint = "convert it to NIfTI first, with dcm2niix for instance"
        raise _error(where, "holds several frames and does not say where they lie", hint)
    own = (int(header.Columns), int(header.Rows))
    if own != size:
        raise _error(where, f"has {own[0]} x {own[1]} pixels, and others of its series {size[0]} x {size[1]}")
    if np.abs(_numbers(where, header, "ImageOrientationPatient", 6) - direction).max() > _SAME:
        raise _error(where, f"lies in another direction than others of its series of {count} slices: a localizer?")
    if np.abs(_numbers(where, header, "PixelSpacing", 2) / pixel - 1).max() > _SAME:
        raise _error(where, "has another pixel spacing than others of its series")


def _step(slices: Sequence[_Slice], first: Any, normal: np.ndarray, pixel: np.ndarray) -> float:
    """Distance of neighbouring slices in mm."""
    if len(slices) == 1:
        thickness = first.get("SpacingBetweenSlices") or first.get("SliceThickness")
        if not thickness or float(thickness) <= 0:
            raise _error(slices[0].where, "is the only slice of its series, and does not say how thick it is")
        return float(thickness)
    along = np.array([part.along for part in slices])
    steps = np.diff(along)
    step = float(np.median(steps))
    close = int(np.argmin(steps))
    if steps[close] < _UNEVEN * max(step, _SAME):
        names = f"{slices[close].name} and {slices[close + 1].name}"
        count = int((steps < _UNEVEN * max(step, _SAME)).sum())
        message = f"{names} are at the same position"
        more = f", and {count - 1} more pairs" if count > 1 else ""
        hint = "one series may hold several phases, times or echoes: put those of one into a folder"
        if slices[close].frame is not None:
            hint = "it may hold several phases, times or echoes: write a NIfTI file of one, with dcm2niix for instance"
        raise _error(slices[0].scan, message + more, hint)
    uneven = np.abs(steps - step) > _UNEVEN * step
    if uneven.any():
        worst = int(np.argmax(np.abs(steps - step)))
        names = f"{slices[worst].name} and {slices[worst + 1].name}"
        missing = round(float(steps[worst]) / step) - 1
        what = f"{missing} slice(s) missing between" if missing >= 1 else "uneven distance of"
        message = f"{what} {names}: {steps[worst]:.3g} mm apart, others {step:.3g} mm"
        raise _error(slices[0].scan, message, "copy the whole series again, or leave out its odd slices")
    shift = slices[-1].position - slices[0].position
    sheared = float(np.linalg.norm(shift - (shift @ normal) * normal))
    if sheared > float(pixel.min()):
        angle = float(np.degrees(np.arctan2(sheared, along[-1] - along[0])))
        message = f"slices are shifted against each other by {sheared:.3g} mm in all: the gantry was tilted {angle:.1f}"
        hint = "resample it to a right angle first: dcm2niix does"
        raise _error(slices[0].scan, message + " degrees", hint)
    return float((along[-1] - along[0]) / (len(slices) - 1))


def _smallest(slices: Sequence[np.ndarray]) -> np.dtype:
    """int16 where all numbers are whole and fit, else float32."""
    if all(voxels.dtype.kind in "iu" for voxels in slices):
        low, high = min(int(voxels.min()) for voxels in slices), max(int(voxels.max()) for voxels in slices)
        if low >= -32768 and high <= 32767:
            return np.dtype(np.int16)
    return np.dtype(np.float32)


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins as DICOM does, or is called so."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_HEAD), path)
    except OSError:  # a folder, or not readable
        return False


def is_stack(path: Path, count: int) -> bool:
    """Whether a DICOM file says of so many grey frames, one by one, where they lie, and they lie in an even stack."""
    header = _header(path, _GROUPS)
    if header is None or not is_enhanced(header):
        return False
    try:
        return series_grid([path]).shape[2] == count
    except DataError:  # phases at the same places, no places: an image all the same
        return False


def _header(path: Path, tags: Sequence[str] = _TAGS) -> Any:
    """A file's header, None where it cannot be read: reading its series tells what is wrong."""
    pydicom = _pydicom(path)
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except Exception:  # what a damaged file raises has no common base
        return None


def _geometry_of(path: Path) -> Any:
    if not path.is_file():
        raise _error(path, "no such file")
    header = _header(path, [*_TAGS, *_GROUPS])
    if header is None or "Rows" not in header or "Columns" not in header:
        raise _error(path, "not a DICOM image, or damaged")
    return header


def _numbers(where: str, header: Any, tag: str, count: int) -> np.ndarray:
    try:
        values = np.array([float(value) for value in header[tag].value], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all() or (tag == "PixelSpacing" and values.min() <= 0):
        raise _error(where, f"says nothing usable of its {tag}, so its place in the scan is not known")
    return values


def _pydicom(path: Path) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError("pydicom", extra="dicom", purpose=f"reading the DICOM file {path.name}") from error
    return pydicom


def unreadable_files(source: Path) -> Iterator[Path]:
    """Files below a folder that are called DICOM and are none, or are damaged beyond their header."""
    for path in sorted(source.rglob("*")):
        called = path.is_file() and path.name.lower().endswith((".dcm", ".dicom")) and not path.name.startswith(".")
        if called and _header(path) is None:
            yield path


def _error(where: Path | str, message: str, hint: str | None = None) -> DataError:
    return DataError([Problem(where=str(where), message=message, hint=hint)])
