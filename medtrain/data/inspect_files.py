"""What inspections write, and where: tables, pictures as bytes, and a folder that belongs to one data set."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medtrain.data.inspect_outliers import Suspect
from medtrain.errors import UsageError
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors

log = logging.getLogger(__name__)

INSPECTED = "inspected.json"
"""Says which data set the files beside it are of."""

_PARENT = Path("outputs/inspect")
_WRITTEN = ("cases.csv", "outliers.csv", "fingerprint.json")


def claim_folder(out: Path | None, name: str, root: Path, table: Path | None = None) -> Path:
    """The folder that an inspection writes to, marked as its own: two data sets never share one.

    Args:
        out: The folder that the user wants; None for one below outputs/inspect, of the data set's name, or of the name
            and a few signs where another data set of this name has it.
        name: Of the data set.
        root: Its folder.
        table: Its table, where it has one.

    Raises:
        UsageError: The folder holds the inspection of another data set, or files that would be written over and that
            no inspection made.
        MedtrainError: The folder cannot be written to.
    """
    mark = {"dataset": name, "root": str(root.resolve())}
    if table is not None:
        mark["table"] = str(table.expanduser().resolve())
    folder = out
    if folder is None:
        plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "data"
        digest = hashlib.blake2b(json.dumps(mark, sort_keys=True).encode(), digest_size=4).hexdigest()
        folder = _PARENT / plain
        if _owner(folder) not in (None, mark):
            log.warning("%s is of another data set of this name: %s", folder, _told(_owner(folder)))
            folder = _PARENT / f"{plain}-{digest}"
    if _owner(folder) not in (None, mark):
        raise UsageError(
            f"{folder} holds the inspection of another data set: {_told(_owner(folder))}",
            hint="choose another folder with --out, or remove this one",
        )
    _refuse_files_of_others(folder, table)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(folder / INSPECTED, mark, sync=False)
    return folder


def _owner(folder: Path) -> dict[str, str] | None:
    """The data set that a folder has the inspection of."""
    try:
        found = json.loads((folder / INSPECTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_files_of_others(folder: Path, table: Path | None) -> None:
    """Say which file would be written over that no inspection made."""
    hint = "choose another folder with --out"
    for file in _written(folder):
        if table is not None and file.resolve() == table.expanduser().resolve():
            raise UsageError(f"{file} is the table of the data set, and the inspection would replace it", hint=hint)
        if _owner(folder) is None:
            raise UsageError(f"{folder} holds {file.name}, which no inspection has marked as its own", hint=hint)


def _written(folder: Path) -> Iterator[Path]:
    """The files of a folder that have a name which inspections write."""
    yield from sorted(folder.glob("sheet_*.png"))
    yield from (folder / name for name in _WRITTEN if (folder / name).exists())


def _told(owner: dict[str, str] | None) -> str:
    return "" if owner is None else ", ".join(f"{key} {value}" for key, value in owner.items())


def clear_folder(out: Path) -> None:
    """Make the folder, or remove what an earlier inspection wrote to it, where it is marked as an inspection's."""
    out.mkdir(parents=True, exist_ok=True)
    if _owner(out) is not None:
        for old in list(_written(out)):
            old.unlink()


def write_outliers(path: Path, cases: Sequence[Suspect]) -> Path:
    """Write what is suspicious, one finding per row."""
    rows: list[list[object]] = [["case_id", "suspicion", "severity", "kind", "value", "typical", "message"]]
    for case in cases:
        for flag in case.flags:
            severity = f"{flag.severity:.2f}"
            values = (cell(flag.value), cell(flag.typical))
            rows.append([case.case_id, f"{case.suspicion:.2f}", severity, flag.kind, *values, flag.message])
    return write_csv(path, rows)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a table, complete or not at all."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    atomic_write(path, buffer.getvalue(), sync=False)
    return path


def cell(value: float) -> str:
    """Six digits; nothing for what is not a number."""
    return f"{value:.6g}" if math.isfinite(value) else ""


def png_bytes(pixels: np.ndarray) -> bytes:
    """A picture as a PNG file: a thousand of them fit into memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def png_pixels(png: bytes) -> np.ndarray:
    """The picture again; uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))
