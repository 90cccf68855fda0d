"""What inspections write: tables, and pictures as bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medtrain.data.inspect_outliers import Suspect
from medtrain.run.atomic import atomic_write


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
