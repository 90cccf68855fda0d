"""Where predictions go: whose they are, which are done, and the table of them."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtrain.data.io.dicom_series import is_dicom_file
from medtrain.data.io.nifti import read_header
from medtrain.errors import DataError, MedtrainError, UsageError
from medtrain.inference.scans import Scan, read_grid
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors, remove_leftovers
from medtrain.run.csvfile import read_table
from medtrain.run.lock import RunLock

MARKER = "predictions.json"
TABLE = "predictions.csv"

_WRITE_SHARE = 0.05
"""A table that is written now and then takes this share of the time."""

_LEAST_PAUSE_S = 2.0

_LONGEST_WAIT_S = 60.0
"""For a table that another process writes, which takes seconds at most."""

_ASK_AGAIN_S = 0.02

_MOST_SCORES = 1000
"""Lesions of a scan whose scores are written, the highest; `lesions/` counts all of them."""

Row = dict[str, Any]


@dataclass(frozen=True)
class CaseReport:
    """What became of one scan.

    Args:
        case_id: The scan.
        status: done now, skipped because it was done before, or failed.
        message: Why it failed, or why its segmentation is to be doubted; empty as a rule.
        seconds: Time of reading, predicting and writing it.
        voxels: Voxels of every class, or region, on the scan's own grid.
        volume_ml: Their volume in mL.
        lesions: How sure the networks are of each lesion, by structure, the surest first.
    """

    case_id: str
    status: Literal["done", "skipped", "failed"]
    message: str = ""
    seconds: float = 0.0
    voxels: Mapping[str, int] = field(default_factory=dict)
    volume_ml: Mapping[str, float] = field(default_factory=dict)
    lesions: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is a segmentation of the scan."""
        return self.status != "failed"


class PredictionTable:
    """A table with one row per case, made by one model, which can be continued after any interruption.

    Several processes may write it, such as one per GPU: each puts its own rows among those that are there.

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

    Attributes:
        rows: By case, with those of others as they were when the table was last read.
        entered: The cases whose rows are this process's.
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
        self.entered: set[str] = set()
        self._columns = list(columns)
        self._model = json.loads(json.dumps(model))
        self._threads = threading.RLock()
        self._processes = RunLock(path.with_name(f".{path.name}.lock"), silent=lambda: True)
        self._depth = 0
        self._unwritten_since: float | None = None
        self._pause = _LEAST_PAUSE_S
        remove_leftovers(path.parent)
        with self.alone():
            previous = self._read_marker()
            if previous != self._model and not overwrite:
                self._require_no_conflict(previous, self._model, taken)
            self.rows: dict[str, Row] = self._read_rows() if previous == self._model else {}
            for case_id in redo:
                self.rows.pop(case_id, None)
            # The table goes first: a marker of this model never stands beside rows of another.
            self._write_rows()
            atomic_write_json(marker, self._model)

    def enter(self, case_id: str, row: Row, *, at_once: bool) -> bool:
        """Put a row in the place of that of before; safe to call from several threads.

        Args:
            case_id: The case.
            row: Values by column; `case_id` among them.
            at_once: Whether to write the table now, or only when the last time is long enough ago.

        Returns:
            Whether the table is due to be written, if not at once.
        """
        with self._threads:
            self.rows[case_id] = row
            self.entered.add(case_id)
            if at_once:
                self.write()
                return False
            now = time.monotonic()
            if self._unwritten_since is None:
                self._unwritten_since = now
            return now - self._unwritten_since >= self._pause

    def write(self) -> None:
        """Write the table, in the order of the cases, with the rows that other processes have written.

        Raises:
            MedtrainError: Another process has begun a table of another model in its place, or does not let go of it.
        """
        started = time.monotonic()
        with self.alone():
            self.merge()
            self._write_rows()
        self._unwritten_since = None
        self._pause = max(_LEAST_PAUSE_S, (time.monotonic() - started) / _WRITE_SHARE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads and processes from writing the table; may be entered again within."""
        with self._threads:
            if not self._depth:
                self._wait_for_lock()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._processes.release()

    def merge(self) -> bool:
        """Take the rows that other processes have written, and say whether they have; to be called while alone."""
        if self._stamp() in (self._written, None):  # nobody has, or it was deleted: all that is known is written again
            return False
        if self._read_marker() not in (self._model, None):
            raise MedtrainError(
                f"another process has put predictions of another model or setting into {self.path.parent}",
                hint="choose a folder of its own for every model",
            )
        self.rows = self._read_rows() | {case_id: self.rows[case_id] for case_id in self.entered}
        return True

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while (holder := self._processes.acquire()) is not None:
            if time.monotonic() >= deadline:
                raise MedtrainError(
                    f"{self.path} cannot be written: process {holder.pid} on {holder.host} is writing it all the time",
                    hint=f"if there is no such process, remove {self._processes.path} and start the command again",
                )
            time.sleep(_ASK_AGAIN_S)

    def _stamp(self) -> tuple[int, ...] | None:
        """Tells the table that this process has written from one that another has put in its place."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _write_rows(self) -> None:
        rows = [self.rows[case_id] for case_id in sorted(self.rows)]
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        write_rows(self.path, columns, rows)
        self._written = self._stamp()

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
        rows = read_table(path)
    except FileNotFoundError:
        return []
    return [{key: value for key, value in row.items() if value != "" or key in ("message", "file")} for row in rows]


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
        structures: Names of what volumes are told of: classes, or regions.
        overwrite: Predict the scans again whatever is there.

    Raises:
        UsageError: The folder holds other predictions or other files of the same names.
    """

    def __init__(
        self,
        path: Path,
        model: Mapping[str, Any],
        scans: Sequence[Scan],
        structures: Sequence[str],
        *,
        overwrite: bool,
    ) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; the segmentations need a folder")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        columns = ["case_id", "status", "seconds", "scan", "message"]
        columns += [f"{kind}/{name}" for name in structures for kind in ("voxels", "volume_ml")]
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
        for name, scores in report.lesions.items():
            highest = " ".join(f"{score:.4g}" for score in scores[:_MOST_SCORES])
            row |= {f"lesions/{name}": len(scores), f"lesion_scores/{name}": highest}
        self._table.enter(scan.case_id, row, at_once=True)
