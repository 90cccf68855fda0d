"""A folder of DICOM slices where one image is expected: it is the volume of its series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medtrain.data.io.dicom_series import find_series, read_scan
from medtrain.errors import DataError, Problem


def series_files(folder: Path) -> Sequence[Path]:
    """The files of the only series in a folder, or below it.

    Raises:
        DataError: There is none, or there are several.
        MissingExtraError: pydicom is not installed.
    """
    found = find_series(folder)
    if len(found) == 1:
        return found[0].files
    if not found:
        raise DataError([Problem(str(folder), "a folder without DICOM slices; expected an image, or one series")])
    shown = ", ".join(f"{series.folder} (series {series.number})" for series in found[:3])
    message = f"holds {len(found)} DICOM series, and one was expected: {shown}"
    raise DataError([Problem(str(folder), message, "give every series a folder of its own, and name that")])


def read_image_series(source: Path) -> tuple[np.ndarray, float | None, tuple[float, ...]]:
    """The volume [1, D, H, W] of a folder or an enhanced file, its largest value if it has one, and the spacing in mm.

    Raises:
        DataError: See `series_files` and `read_series`.
        MissingExtraError: pydicom is not installed.
    """
    volume, largest = read_scan(series_files(source) if source.is_dir() else [source])
    return volume.array, largest, volume.spacing


def state_of(path: Path) -> tuple[int, int]:
    """Size and modification time of a file; of a folder the sum and the latest of the files in it.

    Raises:
        OSError: It is not there.
    """
    if not path.is_dir():
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    states = [part.stat() for part in path.rglob("*") if part.is_file()]
    newest = max((state.st_mtime_ns for state in states), default=0)
    return sum(state.st_size for state in states), newest
