"""Which files of a folder make up a scan, and what its segmentation is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtrain.data.io.dicom_seg import require_highdicom, write_dicom_seg
from medtrain.data.io.dicom_series import find_series, read_series, series_grid, unreadable_files
from medtrain.data.io.folders import list_scans
from medtrain.data.io.nifti import (
    SourceGrid,
    Volume,
    file_stem,
    is_nifti,
    label_dtype,
    read_header,
    read_image,
    write_image,
    write_label,
)
from medtrain.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from medtrain.data.plan import Plan

_CHANNEL_FILE = re.compile(r"^(.+)_(\d{4})$")


@dataclass(frozen=True)
class Scan:
    """A scan to be segmented.

    Args:
        case_id: The segmentation is called `<case_id>.nii.gz`.
        images: One file per channel in channel order, one file with all channels, or the files of a DICOM series; of
            several series, in a folder for each channel, one after the other.
        problem: Why it cannot be segmented, seen from the names alone; None where nothing is wrong.
        suffix: Of the segmentation: `.nii.gz`, or `.dcm` for a DICOM segmentation.
    """

    case_id: str
    images: tuple[Path, ...]
    problem: str | None = None
    suffix: str = ".nii.gz"

    @property
    def output_name(self) -> str:
        """Name of the segmentation."""
        return f"{self.case_id}{self.suffix}"

    @property
    def source(self) -> str:
        """Its files, in a table."""
        if is_nifti(self.images[0]):
            return ";".join(image.name for image in self.images)
        folders = ", ".join(files[0].parent.name for files in _by_series(self.images))
        return f"{folders}: {len(self.images)} DICOM file(s)"


def find_scans(source: Path, channel_names: Sequence[str]) -> list[Scan]:
    """Find the scans of a folder (not of folders below it), or the scan that a file belongs to.

    A model of one channel takes every NIfTI file for a scan, called as the file; only where all files end in `_0000`
    (nnU-Net's naming) the ending is dropped. A model of several channels joins `<case>_0000`, `<case>_0001`, ... to the
    scan `<case>`, and takes any other file, and any with several channels in itself, for a scan of its own. Hidden
    files (`._case.nii.gz` of macOS) are skipped.

    Where a folder has no NIfTI files, every DICOM series in it and in folders below is a scan, called as its folder,
    with the number of the series where there are several in it. Folders `<case>_0000`, `<case>_0001`, ... with a series
    each are the channels of the scan `<case>`, as files of these names are.

    Args:
        source: Folder or file.
        channel_names: The channels that the model was trained on.

    Returns:
        Scans sorted by name.

    Raises:
        UsageError: There is nothing to segment at `source`.
    """
    if source.is_dir():
        files = list_scans(source)
        if not files:
            scans = _join_series(_dicom_scans(source), channel_names)
            if scans:
                return _unambiguous(scans)
            below = [child.name for child in sorted(source.iterdir()) if list_scans(child)]
            hint = f"did you mean {source / below[0]}?" if below else None
            raise UsageError(f"{source} holds no NIfTI files (.nii.gz or .nii) and no DICOM series", hint=hint)
    elif source.is_file():
        if not is_nifti(source):
            scans = _dicom_scans(source)
            if scans:
                return scans
            raise UsageError(f"{source} is neither a NIfTI file (.nii.gz or .nii) nor a DICOM image")
        files = _siblings(source) if len(channel_names) > 1 else [source]
    else:
        raise UsageError(f"no such file or folder: {source}")
    return _unambiguous(_single_channel(files) if len(channel_names) == 1 else _several_channels(files, channel_names))


def _unambiguous(scans: Sequence[Scan]) -> list[Scan]:
    """Sorted; scans that would be written to one file have a problem."""
    times = Counter(scan.case_id for scan in scans)
    return [
        replace(scan, problem=f"several scans would be written to {scan.output_name}")
        if times[scan.case_id] > 1
        else scan
        for scan in sorted(scans, key=lambda scan: (scan.case_id, scan.images))
    ]


def as_dicom_seg(scan: Scan) -> Scan:
    """The scan, to be written as a DICOM segmentation; only a DICOM series can be."""
    require_highdicom()
    if is_nifti(scan.images[0]):
        message = "is NIfTI; a DICOM segmentation refers to the DICOM series that it belongs to (--format nifti)"
        return replace(scan, suffix=".dcm", problem=scan.problem or message)
    return replace(scan, suffix=".dcm")


def read_scan(images: Sequence[Path]) -> Volume:
    """Read a scan: NIfTI, one file per channel or one with all, or the files of a DICOM series for each channel.

    Raises:
        DataError: It cannot be read, or is no scan, or its channels differ in shape or position.
    """
    if is_nifti(images[0]):
        return read_image(images)
    channels = [read_series(files) for files in _by_series(images)]
    first = channels[0]
    for channel, files in zip(channels, _by_series(images)):
        if difference := channel.grid.matches(first.grid):
            message = f"{difference} of the first channel {images[0].parent.name}"
            raise DataError([Problem(where=str(files[0].parent), message=message)])
    if len(channels) == 1:
        return first
    return replace(first, array=np.concatenate([channel.array for channel in channels]))


def read_grid(images: Sequence[Path]) -> SourceGrid:
    """The grid of a scan, without its voxels.

    Raises:
        DataError: It cannot be read, or is no scan.
    """
    return read_header(images[0]).grid if is_nifti(images[0]) else series_grid(_by_series(images)[0])


def write_segmentation(path: Path, label: np.ndarray, plan: Plan, grid: SourceGrid, scan: Scan) -> None:
    """Write class indices [D, H, W] beside a scan: NIfTI with the label values of the training data, or DICOM.

    Raises:
        DataError: The scan is no longer what was read, or the series lacks what a DICOM segmentation must say.
        MedtrainError: The disk is full.
    """
    if scan.suffix == ".dcm":
        write_dicom_seg(path, label, _by_series(scan.images)[0], plan.class_names)
        return
    values = label_values(plan)[label]
    if is_nifti(scan.images[0]):
        write_label(path, values, grid, like=scan.images[0])
    else:
        write_image(path, values[None], grid)


def label_values(plan: Plan) -> np.ndarray:
    """The value in label files of every class index, of the smallest type: label maps of it take little memory."""
    return np.array(plan.label_values, dtype=label_dtype(min(plan.label_values), max(plan.label_values)))


def _dicom_scans(source: Path) -> list[Scan]:
    """The DICOM series at or below a folder or file, and files that are called DICOM and cannot be read."""
    found = find_series(source)
    several = Counter(series.folder for series in found)
    top = source if source.is_dir() else source.parent
    scans = []
    for series in found:
        parts = series.folder.relative_to(top).parts
        name = "_".join(parts) if parts else top.resolve().name
        if several[series.folder] > 1:
            same = [other for other in found if (other.folder, other.number) == (series.folder, series.number)]
            name += f"_series_{series.number}" if len(same) == 1 else f"_series_{series.number}_{series.uid[-8:]}"
        scans.append(Scan(name, series.files))
    taken = {path for scan in scans for path in scan.images}
    for path in unreadable_files(source) if source.is_dir() else ():
        if path not in taken:
            scans.append(Scan("_".join(path.relative_to(top).parts), (path,), "not a DICOM image, or damaged"))
    return scans


def _by_series(images: Sequence[Path]) -> list[list[Path]]:
    """The files of each series of a scan: all of a series lie in one folder, and series in different ones."""
    return [list(files) for _, files in groupby(images, key=lambda path: path.parent)]


def _join_series(scans: Sequence[Scan], channel_names: Sequence[str]) -> list[Scan]:
    """Series in folders that end in a channel's number, joined to scans."""
    alone: list[Scan] = []
    parts: dict[str, list[tuple[int, Scan]]] = {}
    for scan in scans:
        match = _CHANNEL_FILE.match(scan.case_id)
        if match is None or scan.problem is not None:
            alone.append(scan)
        else:
            parts.setdefault(match[1], []).append((int(match[2]), scan))
    numbers = {number for found in parts.values() for number, _ in found}
    if len(channel_names) == 1 and (alone or numbers != {0}):
        return list(scans)  # the endings tell series apart, not channels
    for case_id, found in parts.items():
        found.sort(key=lambda part: part[0])
        names = [scan.images[0].parent.name for _, scan in found]
        problem = _wrong_channels(case_id, [channel for channel, _ in found], names, channel_names)
        alone.append(Scan(case_id, tuple(path for _, scan in found for path in scan.images), problem))
    return alone


def _wrong_channels(
    case_id: str, channels: Sequence[int], names: Sequence[str], channel_names: Sequence[str]
) -> str | None:
    """What is wrong with the numbers of a scan's channels."""
    if list(channels) == list(range(len(channel_names))):
        return None
    needed = ", ".join(f"{case_id}_{channel:04d} ({name})" for channel, name in enumerate(channel_names))
    return f"found {', '.join(names)}; needed is one each of {needed}"


def _siblings(path: Path) -> list[Path]:
    """The files of all channels of the scan that a file belongs to."""
    match = _channel_of(path)
    if match is None:
        return [path]
    found = [(other, _channel_of(other)) for other in list_scans(path.parent)]
    return [other for other, its in found if its is not None and its[0] == match[0]]


def _single_channel(files: Sequence[Path]) -> list[Scan]:
    stems = [file_stem(path) for path in files]
    drop = len("_0000") if all(re.search(r"._0000$", stem) for stem in stems) else 0
    return [Scan(stem[: len(stem) - drop], (path,)) for stem, path in zip(stems, files)]


def _several_channels(files: Sequence[Path], channel_names: Sequence[str]) -> list[Scan]:
    scans: list[Scan] = []
    parts: dict[str, list[tuple[int, Path]]] = {}
    for path in files:
        match = _channel_of(path)
        if match is None:
            scans.append(Scan(file_stem(path), (path,)))
        else:
            parts.setdefault(match[0], []).append((match[1], path))
    for case_id, found in parts.items():
        found.sort()
        names = [path.name for _, path in found]
        problem = _wrong_channels(case_id, [channel for channel, _ in found], names, channel_names)
        scans.append(Scan(case_id, tuple(path for _, path in found), problem))
    return scans


def _channel_of(path: Path) -> tuple[str, int] | None:
    """Case and channel number of a file with one channel of several; None for a file that is a scan of its own."""
    match = _CHANNEL_FILE.match(file_stem(path))
    if match is None:
        return None
    try:
        channels = read_header(path).channels
    except DataError:  # its name is all there is to go by; reading it will say what is wrong
        channels = 1
    return None if channels > 1 else (match[1], int(match[2]))
