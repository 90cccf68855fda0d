"""Which files of a folder make up a scan, and what its segmentation is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medtrain.data.io.folders import list_scans
from medtrain.data.io.nifti import file_stem, is_nifti, read_header
from medtrain.errors import DataError, UsageError

_CHANNEL_FILE = re.compile(r"^(.+)_(\d{4})$")


@dataclass(frozen=True)
class Scan:
    """A scan to be segmented.

    Args:
        case_id: The segmentation is called `<case_id>.nii.gz`.
        images: One file per channel in channel order, or one file with all channels.
        problem: Why it cannot be segmented, seen from the names alone; None where nothing is wrong.
    """

    case_id: str
    images: tuple[Path, ...]
    problem: str | None = None

    @property
    def output_name(self) -> str:
        """Name of the segmentation."""
        return f"{self.case_id}.nii.gz"


def find_scans(source: Path, channel_names: Sequence[str]) -> list[Scan]:
    """Find the scans of a folder (not of folders below it), or the scan that a file belongs to.

    A model of one channel takes every NIfTI file for a scan, called as the file; only where all files end in `_0000`
    (nnU-Net's naming) the ending is dropped. A model of several channels joins `<case>_0000`, `<case>_0001`, ... to the
    scan `<case>`, and takes any other file, and any with several channels in itself, for a scan of its own. Hidden
    files (`._case.nii.gz` of macOS) are skipped.

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
            below = [child.name for child in sorted(source.iterdir()) if list_scans(child)]
            hint = f"did you mean {source / below[0]}?" if below else None
            raise UsageError(f"{source} holds no NIfTI files (.nii.gz or .nii)", hint=hint)
    elif source.is_file():
        if not is_nifti(source):
            raise UsageError(f"{source} is not a NIfTI file (.nii.gz or .nii)")
        files = _siblings(source) if len(channel_names) > 1 else [source]
    else:
        raise UsageError(f"no such file or folder: {source}")
    scans = _single_channel(files) if len(channel_names) == 1 else _several_channels(files, channel_names)
    times = Counter(scan.case_id for scan in scans)
    return [
        replace(scan, problem=f"several scans would be written to {scan.output_name}")
        if times[scan.case_id] > 1
        else scan
        for scan in sorted(scans, key=lambda scan: (scan.case_id, scan.images))
    ]


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
    wanted = list(range(len(channel_names)))
    for case_id, found in parts.items():
        found.sort()
        problem = None
        if [channel for channel, _ in found] != wanted:
            needed = ", ".join(f"{case_id}_{channel:04d} ({name})" for channel, name in enumerate(channel_names))
            problem = f"found {', '.join(path.name for _, path in found)}; needed is one file each of {needed}"
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
