"""The files and the console tables of judged cases."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.metrics.cases import CASE_METRICS, EMPTY_RULE, VOLUMES
from medtrain.metrics.lesions import LESION_METRICS
from medtrain.metrics.spec import MetricSpec
from medtrain.run.atomic import atomic_write, atomic_write_json
from medtrain.run.csvfile import read_table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

_SPECS = (*CASE_METRICS, *LESION_METRICS)
_POOLED = {spec.name for spec in LESION_METRICS}

_MEAN_SCORES = "lesion_candidates/"
"""Columns of earlier versions, in the place of those of `CANDIDATES`."""

Rows = Sequence[Mapping[str, Any]]


def cases_csv(records: Rows) -> str:
    """A table with one row per case; undefined values are `nan`, numbers are exact.

    Args:
        records: `case_id` and metrics of every case.
    """
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        # repr() round-trips; numpy's own scalars would be written with their type
        values = [record.get(column, "") for column in columns]
        writer.writerow([repr(float(value)) if isinstance(value, float) else value for value in values])
    return text.getvalue()


def read_cases(path: Path) -> list[dict[str, str]]:
    """The rows of a `cases.csv` as text; says so where lesions are scored as earlier versions did.

    Args:
        path: Of the file, in the folder of an evaluation or of a cross-validation.
    """
    rows = read_table(path)
    if rows and any(key.startswith(_MEAN_SCORES) for key in rows[0]):
        log.warning(
            "%s scores lesions by their mean probability, as earlier versions did, so it has no FROC: judge the run "
            "again with `medtrain evaluate RUN`",
            path,
        )
    return rows


def summary_json(records: Rows, summary: Mapping[str, float]) -> dict[str, Any]:
    """Statistics of an evaluation as plain data.

    Under `classes`, every metric of every class has mean, std (of the sample), median, min and max over the cases in
    which it is defined, their number n and the number n_undefined of the others; lesions, which are counted over all
    cases, have their value as mean. Under `mean` are the means over the foreground classes, under `empty` the rule for
    empty structures.

    Args:
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
    """
    classes: dict[str, dict[str, Any]] = {}
    for key, value in summary.items():
        metric, separator, name = key.partition("/")
        if metric in _POOLED and separator:
            classes.setdefault(name, {})[metric] = {"mean": value}
        elif separator:
            classes.setdefault(name, {})[metric] = _statistics(_column(records, key))
    for name, metrics in classes.items():
        for key in VOLUMES:
            if any(f"{key}/{name}" in record for record in records):
                metrics[key] = _statistics(_column(records, f"{key}/{name}"))
    means = {key: value for key, value in summary.items() if "/" not in key}
    return {"num_cases": len(records), "mean": means, "classes": classes, "empty": EMPTY_RULE}


def write_evaluation(
    folder: Path,
    records: Rows,
    summary: Mapping[str, float],
    *,
    tables: Mapping[str, Rows] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `cases.csv`, `summary.json` and a CSV file per further table into an existing folder, each in one step.

    Args:
        folder: Where to write.
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
        tables: Further tables by name; those of `intervals` are in the summary, too.
        extra: What else to keep in the summary: the checkpoint, the part of the data.
    """
    write_tables(folder, records, tables or {})
    facts = {**(extra or {}), **summary_json(records, summary), **interval_facts((tables or {}).get("intervals", ()))}
    atomic_write_json(folder / "summary.json", facts)


def write_tables(folder: Path, records: Rows, tables: Mapping[str, Rows]) -> None:
    """Write `cases.csv` and a CSV file per further table; what an earlier evaluation said of intervals is removed.

    Args:
        folder: Where to write.
        records: Of every case or sample.
        tables: Further tables by name.
    """
    atomic_write(folder / "cases.csv", cases_csv(records))
    for name in ("intervals", "subgroups", "froc"):
        if name not in tables:
            (folder / f"{name}.csv").unlink(missing_ok=True)
    for name, rows in tables.items():
        atomic_write(folder / f"{name}.csv", cases_csv(rows))


def interval_facts(rows: Rows) -> dict[str, Any]:
    """Intervals by metric and their confidence, for a summary; nothing where there are none.

    Args:
        rows: Of a table of intervals.
    """
    if not rows:
        return {}
    found = {row["metric"]: [row["low"], row["high"]] for row in rows}
    return {"intervals": found, "confidence": rows[0]["confidence"]}


def summary_table(records: Rows, summary: Mapping[str, float], *, title: str) -> Table:
    """A table for the console: one row per class and one for their mean, one column per metric.

    Args:
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
        title: Printed above.
    """
    from rich.table import Table
    from rich.text import Text

    specs = [spec for spec in _SPECS if spec.name in summary and spec.name not in _POOLED]
    names = list(dict.fromkeys(key.partition("/")[2] for key in summary if "/" in key))
    # Eight metrics fit 80 columns: no lines between them, units below the names, long class names folded.
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for spec in specs:
        words = spec.name.removesuffix(f"_{spec.unit.lower()}").split("_")
        table.add_column("\n".join([*words, spec.unit]).strip(), justify="right", no_wrap=True)
    for name in names:
        table.add_row(Text(name), *(_shown(summary[f"{spec.name}/{name}"], spec) for spec in specs))
    table.add_row(Text("mean"), *(_shown(summary[spec.name], spec) for spec in specs), style="bold")
    notes = []
    undefined = [
        f"{key}: {count}"
        for key in summary
        if "/" in key and key.partition("/")[0] not in _POOLED and (count := int(np.isnan(_column(records, key)).sum()))
    ]
    if undefined:
        notes.append(f"cases without a value: {', '.join(undefined)}")
    for name in names:
        if said := _lesions_said(summary, name):
            notes.append(f"lesions of {name}: {said}")
    if notes:
        table.caption = Text("\n".join(notes))
        table.caption_justify = "left"
    return table


def _lesions_said(summary: Mapping[str, float], name: str) -> str:
    found = [(spec, summary[f"{spec.name}/{name}"]) for spec in LESION_METRICS if f"{spec.name}/{name}" in summary]
    words = {"lesion_fp": "false positives"}
    return ", ".join(
        f"{words.get(spec.name, spec.name.removeprefix('lesion_'))} {_shown(value, spec)} {spec.unit}".strip()
        for spec, value in found
    )


def _column(records: Rows, key: str) -> np.ndarray:
    return np.array([record.get(key, math.nan) for record in records], dtype=np.float64)


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Mean, std, median, min, max of the defined values; NaN where there are too few of them."""
    defined = values[~np.isnan(values)]
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "median": np.median,
        "min": np.min,
        "max": np.max,
    }
    found = {name: float(function(defined)) if defined.size else math.nan for name, function in functions.items()}
    found["std"] = float(np.std(defined, ddof=1)) if defined.size > 1 else math.nan
    return {**found, "n": int(defined.size), "n_undefined": int(values.size - defined.size)}


def _shown(value: float, spec: MetricSpec) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if spec.unit else f"{value:.4f}"
