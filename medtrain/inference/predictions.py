"""The folder that predictions go to: whose they are, which are done, and the table of them."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtrain.data.io.nifti import read_header
from medtrain.errors import DataError, UsageError
from medtrain.inference.scans import Scan
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors, remove_leftovers

MARKER = "predictions.json"
TABLE = "predictions.csv"


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


class PredictionFolder:
    """A folder with the predictions of one model, which can be continued after any interruption.

    `predictions.json` says which model and settings made them, so that those of two models never come to lie side by
    side. `predictions.csv` has one row per scan, written after its segmentation is complete; a scan with such a row is
    not predicted again.

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
        self._classes = tuple(class_names[1:])
        self._lock = threading.Lock()
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; the segmentations need a folder")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        model = json.loads(json.dumps(model))
        previous = self._read_marker()
        if previous != model and not overwrite:
            self._require_no_conflict(previous, model, scans)
        self._rows = self._read_rows() if previous == model else {}
        if overwrite:
            for scan in scans:
                self._rows.pop(scan.case_id, None)
        # The table goes first: a marker of this model never stands beside rows of another.
        self._write_rows()
        atomic_write_json(path / MARKER, model)

    def is_done(self, scan: Scan) -> bool:
        """Whether the scan's segmentation is there, complete, and on the grid of the scan."""
        target = self.path / scan.output_name
        if self._rows.get(scan.case_id, {}).get("status") != "done" or not target.is_file():
            return False
        try:
            return read_header(target).grid.matches(read_header(scan.images[0]).grid) is None
        except DataError:  # predicting it again says what is wrong with the scan, and replaces a damaged result
            return False

    def record(self, scan: Scan, report: CaseReport) -> None:
        """Enter a scan that was predicted or failed; safe to call from several threads."""
        row: dict[str, Any] = {
            "case_id": scan.case_id,
            "status": report.status,
            "seconds": f"{report.seconds:.3f}",
            "scan": ";".join(image.name for image in scan.images),
            "message": report.message,
        }
        row |= {f"voxels/{name}": count for name, count in report.voxels.items()}
        row |= {f"volume_ml/{name}": repr(round(volume, 6)) for name, volume in report.volume_ml.items()}
        with self._lock:
            self._rows[scan.case_id] = row
            self._write_rows()

    def _require_no_conflict(self, previous: Any, model: Any, scans: Iterable[Scan]) -> None:
        if previous is not None:
            other = ", ".join(f"{key} {previous.get(key)}" for key in model if previous.get(key) != model[key])
            raise UsageError(
                f"{self.path} holds predictions of another model or setting ({other})",
                hint="choose another folder, or --overwrite to replace them",
            )
        taken = [scan.output_name for scan in scans if (self.path / scan.output_name).exists()]
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise UsageError(
                f"{self.path} already holds {taken[0]}{more}, not written by medtrain predict",
                hint="choose another folder, or --overwrite to replace them",
            )

    def _read_marker(self) -> Any:
        try:
            return json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.path / MARKER} is damaged", hint="choose another folder") from error

    def _read_rows(self) -> dict[str, dict[str, Any]]:
        try:
            text = (self.path / TABLE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return {row["case_id"]: dict(row) for row in csv.DictReader(io.StringIO(text))}

    def _write_rows(self) -> None:
        columns = ["case_id", "status", "seconds", "scan", "message"]
        columns += [f"{kind}/{name}" for name in self._classes for kind in ("voxels", "volume_ml")]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self._rows[case_id] for case_id in sorted(self._rows))
        atomic_write(self.path / TABLE, text.getvalue())
