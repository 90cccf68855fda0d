"""Intervals and subgroups of a written evaluation, as short tables for the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtrain.metrics.spec import MetricSpec
from medtrain.run.csvfile import read_table

if TYPE_CHECKING:
    from rich.table import Table

_MOST_METRICS = 3
_MOST_ROWS = 40
_OF_CASES = ("dice", "nsd", "hd95_mm")

Row = Mapping[str, str]


def report_tables(folder: Path, specs: Mapping[str, MetricSpec], *, monitor: str) -> list[Table]:
    """What `intervals.csv` and `subgroups.csv` of an evaluation say, as far as they are there.

    Args:
        folder: Of the evaluation.
        specs: The metrics, the most important first.
        monitor: The metric that is shown first.
    """
    tables = []
    if rows := _read(folder / "intervals.csv"):
        tables.append(interval_table(rows, specs))
    if rows := _read(folder / "subgroups.csv"):
        tables.append(subgroup_table(rows, specs, monitor=monitor))
    return tables


def interval_table(rows: Sequence[Row], specs: Mapping[str, MetricSpec]) -> Table:
    """Means with their intervals: one row per class where cases are judged by class, else one per metric.

    Args:
        rows: `metric`, `value`, `low`, `high`, `confidence`.
        specs: Units.
    """
    from rich.text import Text

    title = f"{_percent(rows)} intervals, patients drawn again"
    by_name = {row["metric"]: row for row in rows}
    heads = [name for name in _OF_CASES if name in by_name]
    if not heads:
        table = _table(title, ["metric", "all"])
        for name, row in by_name.items():
            if "/" not in name and not name.startswith("n_"):
                table.add_row(Text(name), _with_interval(row, specs))
        return table
    table = _table(title, ["class", *heads])
    parts = list(dict.fromkeys(name.partition("/")[2] for name in by_name if name.startswith(f"{heads[0]}/")))
    for part in parts:
        table.add_row(Text(part), *(_with_interval(by_name[f"{head}/{part}"], specs) for head in heads))
    table.add_row("mean", *(_with_interval(by_name[head], specs) for head in heads), style="bold")
    return table


def subgroup_table(rows: Sequence[Row], specs: Mapping[str, MetricSpec], *, monitor: str) -> Table:
    """The main metrics of every subgroup with their intervals; lists of many subgroups are cut.

    Args:
        rows: Of `medtrain.metrics.bootstrap.subgroup_table`, as text.
        specs: Units, the most important metric first.
        monitor: The metric that is shown first.
    """
    from rich.text import Text

    there = {row["metric"] for row in rows}
    names = dict.fromkeys([monitor, *_OF_CASES, *(name for name in specs if "/" not in name)])
    shown = [name for name in names if name in there and name != "loss"][:_MOST_METRICS]
    table = _table(f"subgroups, {_percent(rows)} intervals", ["subgroup", "n", *shown])
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["column"], row["subgroup"]), {})[row["metric"]] = row
    for (column, text), found in list(groups.items())[:_MOST_ROWS]:
        label = "all" if column == "all" else f"{column} {text}"
        number = next(iter(found.values()))["n_samples"]
        table.add_row(Text(label), number, *(_with_interval(found[name], specs) for name in shown))
    if len(groups) > _MOST_ROWS:
        table.caption = f"and {len(groups) - _MOST_ROWS} more in subgroups.csv"
        table.caption_justify = "left"
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _read(path: Path) -> list[dict[str, str]]:
    return read_table(path) if path.is_file() else []


def _percent(rows: Sequence[Row]) -> str:
    return f"{100 * float(rows[0]['confidence']):g} %"


def _with_interval(row: Row, specs: Mapping[str, MetricSpec]) -> str:
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    name = row["metric"]
    # metrics of the final evaluation alone are not among those of every evaluation
    has_unit = specs[name].unit if name in specs else name.partition("/")[0].endswith(("_mm", "_ml"))
    digits = 3 if not has_unit else 2 if abs(value) < 100 else 1
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")
