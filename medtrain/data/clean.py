"""What a store holds, when it was last used, and how it gets rid of what nobody uses any more.

Whatever uses an entry notes it in the entry's modification time: preparing and planning do so before they look whether
it is there, training once an hour while it goes on (`Store.mark_used`). So an entry that was not used for a day is used
by nobody, and one that is marked while it is being removed is put back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medtrain.data.store import read_description
from medtrain.errors import UsageError
from medtrain.run.atomic import discard, remove_leftovers

DAY_S = 24 * 3600.0
"""An entry is kept at least so long after its last use."""

_KEY = re.compile(r"[0-9a-f]{32}")
_PARTS = ("cases", "scans", "images", "arrays")


@dataclass(frozen=True)
class Entry:
    """One prepared case, what planning knows of a case, the copies of a set of images, or an unpacked array of them.

    Args:
        path: Its folder or file.
        size: Bytes.
        last_used: Seconds since 1970.
        is_case: Whether it is a prepared case, copies of images, or an array of images.
        source: Folder of the data set it was made from; None where that is not known.
        spacing: Voxel size (D, H, W) in mm; None where that is not known.
        images: How many copies of images, or arrays of them, it holds; None for anything else.
    """

    path: Path
    size: int
    last_used: float
    is_case: bool
    source: str | None = None
    spacing: tuple[float, ...] | None = None
    images: int | None = None


def list_entries(store: Path) -> list[Entry]:
    """Everything a store holds that can be made again, prepared cases first.

    Args:
        store: Its folder.

    Raises:
        UsageError: The folder is no store.
    """
    there = {part for part in _PARTS if (store / part).is_dir()}
    if not ({"cases", "scans"} <= there or {"images", "arrays"} & there):  # any folder may hold one of the former
        raise UsageError(
            f"{store} is not a store of prepared cases", hint="name the folder that is data.store of the runs"
        )
    cases = [_read_case(path) for path in sorted((store / "cases").glob("*")) if _KEY.fullmatch(path.name)]
    copies = [_read_copies(path) for path in sorted((store / "images").glob("*")) if _KEY.fullmatch(path.name)]
    arrays = [_read_copies(path, "*.npy") for path in sorted((store / "arrays").glob("*")) if _KEY.fullmatch(path.name)]
    scans = [_read_scan(path) for path in sorted((store / "scans").glob("*.json")) if _KEY.fullmatch(path.stem)]
    return [entry for entry in (*cases, *copies, *arrays, *scans) if entry is not None]


def remove_entries(store: Path, entries: Iterable[Entry], *, before: float) -> list[Entry]:
    """Remove entries that were last used before a time, and what killed processes left behind.

    Args:
        store: Its folder.
        entries: What to remove, as listed; those used since then stay.
        before: Seconds since 1970; at least a day ago, or running trainings lose what they read.

    Returns:
        Those removed.
    """
    removed = [entry for entry in entries if discard(entry.path, unless=lambda path: _last_used(path) >= before)]
    for part in _PARTS:
        if (store / part).is_dir():
            remove_leftovers(store / part)
    return removed


def _last_used(path: Path) -> float:
    return path.stat().st_mtime


def _read_case(folder: Path) -> Entry | None:
    try:
        last_used = _last_used(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # being replaced at this moment, or no folder
        return None
    description = read_description(folder)
    if description is None:
        return Entry(folder, size, last_used, True)
    return Entry(folder, size, last_used, True, description.get("source"), tuple(description["geometry"]["spacing"]))


def _read_copies(folder: Path, pattern: str = "??/*") -> Entry | None:
    try:
        last_used = _last_used(folder)
        copies = [file.stat().st_size for file in folder.glob(pattern) if not file.name.startswith(".")]
        source = json.loads((folder / "set.json").read_bytes())["source"]
    except (FileNotFoundError, NotADirectoryError):  # being removed at this moment, or no folder
        return None
    except (ValueError, KeyError):
        source = None
    return Entry(folder, sum(copies), last_used, True, source, images=len(copies))


def _read_scan(path: Path) -> Entry | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Entry(path, status.st_size, status.st_mtime, False)
