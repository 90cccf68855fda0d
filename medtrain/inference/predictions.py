"""Where predictions go: whose they are, which are done, and the table of them."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtrain.data.io.dicom_series import is_dicom_file
from medtrain.data.io.nifti import read_header
from medtrain.errors import DataError, UsageError
from medtrain.inference.scans import Scan, read_grid
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors, remove_leftovers

MARKER = "predictions.json"
TABLE = "predictions.csv"

_WRITE_SHARE = 0.05
"""A table that is written now and then takes this share of the time."""

_LEAST_PAUSE_S = 2.0

Row = dict[str, Any]


@dataclass(frozen=True)
class CaseReport:
    """What became of one scan.

    Args:
        case_id: The scan.
        status: done now, skipped because it was done before, or failed.
        message: Why it failed, or why its segmentation is to be doubted; empty as a rule.
        seconds: Time of reading, predicting and writing it.
        voxels: Voxels of every foreground class on the scan's own grid.
        volume_ml: Their volume in mL.
    """

    case_id: str
    status: Literal["done", "skipped", "failed"]
    message: str = ""
    seconds: float = 0.0
    voxels: Mapping[str, int] = field(default_factory=dict)
    volume_ml: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is a segmentation of the scan."""
        return self.status != "failed"


class PredictionTable:
    """A table with one row per case, made by one model, which can be continued after any interruption.

    Beside it lies a file that says which model and settings made it, so that the predictions of two models never come
    to stand in one table. Both are replaced as a whole: nobody sees half of one.

    Args:
        path: The table; its folder must exist.
        marker: The file beside it.
        model: Plain data that identifies the model and the settings.
        columns: The first columns; others follow as rows bring them.
        redo: Cases whose rows of before do not count.
        overwrite: Replace what another model or another program has written.
        taken: Files in the way that this table does not know of.

    Raises:
        UsageError: The table is of another model, or not of medtrain.
    """

    def __init__(
        self,
        path: Path,
        marker: Path,
        model: Mapping[str, Any],
        *,
        columns: Sequence[str],
        redo: Sequence[str] = (),
        overwrite: bool,
        taken: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.marker = marker
        self._columns = list(columns)
        self._lock = threading.Lock()
        remove_leftovers(path.parent)
        model = json.loads(json.dumps(model))
        previous = self._read_marker()
        if previous != model and not overwrite:
            self._require_no_conflict(previous, model, taken)
        self.rows: dict[str, Row] = self._read_rows() if previous == model else {}
        for case_id in redo:
            self.rows.pop(case_id, None)
        self._unwritten_since: float | None = None
        self._pause = _LEAST_PAUSE_S
        # The table goes first: a marker of this model never stands beside rows of another.
        self.write()
        atomic_write_json(marker, model)

    def enter(self, case_id: str, row: Row, *, at_once: bool) -> bool:
        """Put a row in the place of that of before; safe to call from several threads.

        Args:
            case_id: The case.
            row: Values by column; `case_id` among them.
            at_once: Whether to write the table now, or only when the last time is long enough ago.

        Returns:
            Whether the table is due to be written, if not at once.
        """
        with self._lock:
            self.rows[case_id] = row
            if at_once:
                self.write()
                return False
            now = time.monotonic()
            if self._unwritten_since is None:
                self._unwritten_since = now
            return now - self._unwritten_since >= self._pause

    def write(self) -> None:
        """Write the table, in the order of the cases."""
        started = time.monotonic()
        rows = [self.rows[case_id] for case_id in sorted(self.rows)]
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        write_rows(self.path, columns, rows)
        self._unwritten_since = None
        self._pause = max(_LEAST_PAUSE_S, (time.monotonic() - started) / _WRITE_SHARE)

    def _require_no_conflict(self, previous: Any, model: Any, taken: Sequence[str]) -> None:
        if previous is not None:
            other = ", ".join(f"{key} {previous.get(key)}" for key in model if previous.get(key) != model[key])
            raise UsageError(
                f"{self.path.parent} holds predictions of another model or setting ({other})",
                hint="choose another folder, or --overwrite to replace them",
            )
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise UsageError(
                f"{self.path.parent} already holds {taken[0]}{more}, not written by medtrain predict",
                hint="choose another folder, or --overwrite to replace them",
            )

    def _read_marker(self) -> Any:
        try:
            return json.loads(self.marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.marker} is damaged", hint="choose another folder") from error

    def _read_rows(self) -> dict[str, Row]:
        return {row["case_id"]: row for row in read_rows(self.path)}


def read_rows(path: Path) -> list[Row]:
    """The rows of a table as text; none where there is no table. Cells of columns that a row never had are left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [
        {key: value for key, value in row.items() if value != "" or key in ("message", "file")}
        for row in csv.DictReader(io.StringIO(text))
    ]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; numbers are exact, undefined ones `nan`, and values that a row lacks are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        # repr() round-trips; numpy's own scalars would be written with their type
        writer.writerow({key: repr(float(value)) if isinstance(value, float) else value for key, value in row.items()})
    atomic_write(path, text.getvalue())


class PredictionFolder:
    """A folder with the segmentations of one model, which can be continued after any interruption.

    `predictions.csv` has one row per scan, written after its segmentation is complete; a scan with such a row is not
    predicted again. See `PredictionTable`.

    Args:
        path: The folder; made if it is not there.
        model: Plain data that identifies the model and the settings.
        scans: What is to be predicted.
        class_names: Name of every class index, background first.
        overwrite: Predict the scans again whatever is there.

    Raises:
        UsageError: The folder holds other predictions or other files of the same names.
    """

    def __init__(
        self,
        path: Path,
        model: Mapping[str, Any],
        scans: Sequence[Scan],
        class_names: Sequence[str],
        *,
        overwrite: bool,
    ) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; the segmentations need a folder")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        columns = ["case_id", "status", "seconds", "scan", "message"]
        columns += [f"{kind}/{name}" for name in class_names[1:] for kind in ("voxels", "volume_ml")]
        self._table = PredictionTable(
            path / TABLE,
            path / MARKER,
            model,
            columns=columns,
            redo=[scan.case_id for scan in scans] if overwrite else (),
            overwrite=overwrite,
            taken=[scan.output_name for scan in scans if (path / scan.output_name).exists()],
        )

    def is_done(self, scan: Scan) -> bool:
        """Whether the scan's segmentation is there, complete, and on the grid of the scan."""
        target = self.path / scan.output_name
        if self._table.rows.get(scan.case_id, {}).get("status") != "done" or not target.is_file():
            return False
        try:
            if scan.suffix == ".dcm":
                return is_dicom_file(target)
            return read_header(target).grid.matches(read_grid(scan.images)) is None
        except DataError:  # predicting it again says what is wrong with the scan, and replaces a damaged result
            return False

    def record(self, scan: Scan, report: CaseReport) -> None:
        """Enter a scan that was predicted or failed; safe to call from several threads."""
        row: Row = {
            "case_id": scan.case_id,
            "status": report.status,
            "seconds": f"{report.seconds:.3f}",
            "scan": scan.source,
            "message": report.message,
        }
        row |= {f"voxels/{name}": count for name, count in report.voxels.items()}
        row |= {f"volume_ml/{name}": repr(round(volume, 6)) for name, volume in report.volume_ml.items()}
        self._table.enter(scan.case_id, row, at_once=True)
