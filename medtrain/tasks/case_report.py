"""What is written of a final evaluation of segmented cases: intervals by patient, and subgroups of a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.data.cells import MISSING, read_cells
from medtrain.errors import DataError, Problem, UsageError
from medtrain.metrics.bootstrap import binned
from medtrain.metrics.cases import CaseTable
from medtrain.registry import closest
from medtrain.tasks.base import Record
from medtrain.tasks.report import Intervals, Rows, has_effect, interval_rows, read_number, subgroup_rows

log = logging.getLogger(__name__)

_CASE_COLUMNS = ("case_id", "case")


@dataclass(frozen=True, kw_only=True)
class CaseReport(Intervals):
    """What the final evaluation of cases says besides the metrics.

    Args:
        subgroups: Columns of `metadata` by whose values the metrics are given, too, with intervals.
        bins: Edges that divide a column of numbers of `subgroups`, e.g. `{age: [40, 60]}`; null takes back edges that
            were given before, e.g. `task.report.bins.age=null`.
        metadata: Table (CSV, TSV or Parquet) with a column `case_id` (or `case`) and others that `subgroups` names:
            site, scanner, age.
    """

    metadata: str | None = None


DEFAULT_CASE_REPORT = CaseReport()


class CaseColumns:
    """The columns of the table of cases that subgroups are made of.

    Args:
        report: Names table and columns.

    Raises:
        UsageError: There is no table, or a column does not exist; bins do not ascend.
        DataError: The table cannot be read, or lists a case twice.
    """

    def __init__(self, report: CaseReport) -> None:
        self.path = None if report.metadata is None else Path(report.metadata).expanduser()
        self.names = report.subgroups
        if self.names and self.path is None:
            raise UsageError(
                f"task.report.subgroups={list(self.names)} are columns of a table, and there is none",
                hint="name it: task.report.metadata=FILE, a table with the column case_id",
            )
        self.rows: dict[str, dict[str, str]] = {} if self.path is None else self._read(self.path)
        edges = {name: given for name, given in report.bins.items() if given is not None}
        self.bins = {name: given for name, given in edges.items() if has_effect(name, given, self.names)}
        for name, given in self.bins.items():  # a text among numbers is said now
            binned([read_number(name, row[name]) for row in self.rows.values()], given)

    def _read(self, path: Path) -> dict[str, dict[str, str]]:
        if not path.is_file():
            raise UsageError(
                f"task.report.metadata: there is no file {path}",
                hint="say where it is, task.report.metadata=FILE, or do without: task.report.metadata=null "
                "task.report.subgroups=[]; a run that has begun is told the same with `medtrain resume`",
            )
        cells = read_cells(path)
        key = next((name for name in _CASE_COLUMNS if name in cells.header), None)
        if key is None:
            raise UsageError(
                f"task.report.metadata={path} has no column case_id; it has {', '.join(cells.header)}",
                hint="call the column of the cases `case_id`",
            )
        known = [name for name in cells.header if name != key]
        for name in self.names:
            if name not in known:
                near = closest(name, known)
                raise UsageError(
                    f"task.report.subgroups: {name} is no column of {path}; available: {', '.join(known) or 'none'}",
                    hint=f"did you mean {near}?" if near else None,
                )
        rows: dict[str, dict[str, str]] = {}
        for line, values in zip(cells.lines, cells.rows, strict=True):
            row = {name: "" if text.lower() in MISSING else text for name, text in zip(cells.header, values)}
            if row[key] in rows:
                message = f"{cells.places([line])} lists the case {row[key]!r} a second time"
                raise DataError([Problem(where=str(path), message=message)])
            rows[row[key]] = row
        return rows

    def columns(self, records: Sequence[Record]) -> dict[str, list[Any]]:
        """The values that divide the records, by column; empty for cases that are not in the table."""
        if not self.names:
            return {}
        cases = [str(record["case_id"]) for record in records]
        if absent := [case for case in cases if case not in self.rows]:
            some = ", ".join(absent[:3])
            log.warning("%d of %d cases are not in %s: %s", len(absent), len(cases), self.path, some)
        found: dict[str, list[Any]] = {}
        for name in self.names:
            texts = [self.rows.get(case, {}).get(name, "") for case in cases]
            edges = self.bins.get(name)
            found[name] = binned([read_number(name, text) for text in texts], edges) if edges else texts
        return found


def case_tables(
    records: Sequence[Record], class_names: Sequence[str], columns: CaseColumns, report: CaseReport
) -> dict[str, Rows]:
    """The tables written beside `cases.csv`: `intervals`, `subgroups`, and `froc` where lesions have scores.

    Args:
        records: Of all cases.
        class_names: Names that are judged, after the background.
        columns: Of subgroups.
        report: How many draws.
    """
    table = CaseTable(records, class_names)
    tables: dict[str, Rows] = {}
    if report.resamples and records:
        tables["intervals"] = interval_rows(records, table.summary, report)
    if columns.names and records:
        tables["subgroups"] = subgroup_rows(records, table.summary, columns.columns(records), report)
    froc = [
        {"lesion": name, "false_positives_per_case": rate, "sensitivity": sensitivity}
        for name in table.lesions
        for rate, sensitivity in table.froc(name).items()
    ]
    if froc:
        tables["froc"] = froc
    return tables
