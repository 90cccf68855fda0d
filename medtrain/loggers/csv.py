"""Metrics as a table, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from medtrain.loggers.base import PERF_PREFIX, Logger
from medtrain.loggers.rows import RowFile
from medtrain.registry import register

_FIXED = ("step", "epoch")


@register("logger", "csv", runtime=("run_dir",))
class CsvLogger(Logger):
    """Write metrics.csv: one row per logged step, one column per metric.

    Numbers are exact (they read back to the same bits) and there are no times in it, so a resumed run's file is
    identical to that of a run that was never stopped.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, *, run_dir: Path) -> None:
        self._file = RowFile(run_dir / "metrics.csv")
        self._columns: list[str] = []
        self._last: dict[str, str] = {}
        self._load(self._read())

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add the numbers to the row of the step."""
        values = {key: repr(float(value)) for key, value in scalars.items() if not key.startswith(PERF_PREFIX)}
        if not values:
            return
        same = self._last.get("step") == str(step)
        row = {**(self._last if same else {}), "step": str(step), "epoch": str(epoch), **values}
        columns = _order({*self._columns, *row})
        if columns == self._columns:
            self._file.put(_format([row.get(column, "") for column in columns]), replace_last=same)
            self._last = row
        else:
            rows = self._read()
            self._save([*(rows[:-1] if same else rows), row])

    def resume(self, step: int) -> None:
        """Drop later rows, and columns that only they filled."""
        self._save([row for row in self._read() if _step(row) <= step])

    def flush(self) -> None:
        """Bring the rows to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Bring the rows to the disk and close the file."""
        self._file.sync()
        self._file.close()

    def _read(self) -> list[dict[str, str]]:
        """All rows without their empty cells."""
        lines = self._file.lines()
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(lines)]

    def _save(self, rows: list[dict[str, str]]) -> None:
        self._load(rows)
        table = [[row.get(column, "") for column in self._columns] for row in rows]
        self._file.rewrite([_format(cells) for cells in [self._columns, *table]] if rows else [])

    def _load(self, rows: list[dict[str, str]]) -> None:
        self._columns = _order({key for row in rows for key in row})
        self._last = rows[-1] if rows else {}


def _step(row: Mapping[str, str]) -> float:
    """The row's step; infinite for what a power cut has garbled, which is always later than a checkpoint."""
    try:
        return int(row["step"])
    except (KeyError, ValueError):
        return math.inf


def _order(names: set[str]) -> list[str]:
    """Step and epoch, then by name: the order must not depend on when a metric first appeared."""
    return [name for name in _FIXED if name in names] + sorted(names - set(_FIXED))


def _format(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
