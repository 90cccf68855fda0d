"""What is written of a final evaluation besides the metrics: every sample, intervals by patient, subgroups."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from medtrain.errors import UsageError
from medtrain.metrics.bootstrap import Statistic, binned, bootstrap_intervals, subgroup_table
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.tables import interval_facts, write_tables
from medtrain.registry import Range, closest
from medtrain.run.atomic import atomic_write_json
from medtrain.tasks.base import Record
from medtrain.tasks.outcome import Table as RecordTable

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

Summarize = Callable[[Sequence[Record]], Mapping[str, float]]
Rows = list[dict[str, Any]]

_BOOTSTRAP_SEED = 20260
_MOST_COLUMNS = 6
"""Classes that fit a console side by side."""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals and subgroups, of every family of data.

    Args:
        resamples: Draws of patients for confidence intervals; 0 for none.
        confidence: Share of the draws that an interval holds.
        subgroups: Columns of the table (numeric or categorical inputs, or `data.metadata`) by whose values the metrics
            are given, too, with intervals.
        bins: Edges that divide a column of numbers of `subgroups`, e.g. `{age: [40, 60]}`. Numeric inputs are divided
            at their quartiles where none are given, metadata not at all; null takes back edges that were given before,
            e.g. `task.report.bins.age=null`.
    """

    resamples: Annotated[int, Range(ge=0)] = 1000
    confidence: Annotated[float, Range(gt=0, lt=1)] = 0.95
    subgroups: tuple[str, ...] = ()
    bins: dict[str, tuple[float, ...] | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report(Intervals):
    """What the final evaluation of images says besides the metrics.

    Args:
        explain: How samples of the final evaluation are explained by pictures: `gradcam`, `gradcam++`, `cam` (of models
            that end in one linear layer on the averaged feature map), or `none`.
        explained: How many of the worst, of the most uncertain and of the best samples are explained.
    """

    explain: Literal["gradcam", "gradcam++", "cam", "none"] = "gradcam"
    explained: Annotated[int, Range(ge=1, le=24)] = 4


class Subgroups:
    """Brings the columns that subgroups are made of from batches into records, as they were written.

    Args:
        report: Names them.
        tabular: The fitted encoding of the columns (a `TabularEncoder`), or None.
        metadata: Columns that batches bring along as texts, `column/<name>`; all of them are kept in records.

    Raises:
        UsageError: A column does not exist; bins are for one that holds no numbers, or do not ascend.
    """

    def __init__(self, report: Report, tabular: Any | None, metadata: Sequence[str] = ()) -> None:
        self.metadata = tuple(metadata)
        self.numeric = {state.column: (i, state) for i, state in enumerate(tabular.numeric if tabular else ())}
        self.categorical = {state.column: (i, state) for i, state in enumerate(tabular.categorical if tabular else ())}
        self.names = report.subgroups
        self.bins: dict[str, tuple[float, ...]] = {}
        for name in self.names:
            self._check_column("subgroups", name)
        for name, edges in report.bins.items():
            if edges is not None:
                self._add_bins(name, edges)

    def _check_column(self, key: str, name: str) -> None:
        known = [*self.numeric, *self.categorical, *self.metadata]
        if name not in known:
            near = closest(name, known)
            raise UsageError(
                f"task.report.{key}: {name} is no column of the table; available: {', '.join(known) or 'none'}",
                hint=f"did you mean {near}?" if near else "name columns in data, e.g. data.metadata=[site]",
            )

    def _add_bins(self, name: str, edges: tuple[float, ...]) -> None:
        self._check_column("bins", name)
        drop = f"take them back by `task.report.bins.{name}=null`"
        if name in self.categorical:
            raise UsageError(f"task.report.bins: {name} is no column of numbers", hint=drop)
        if has_effect(name, edges, self.names):
            self.bins[name] = edges

    def values(self, batch: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The columns of one sample of a batch; empty text or NaN where the value is missing."""
        found: dict[str, Any] = {}
        for name in self.metadata:
            text = str(batch[f"column/{name}"][index])
            found[f"column/{name}"] = read_number(name, text) if name in self.bins else text
        for name in self.names:
            if name in self.metadata:
                continue
            if name in self.numeric:
                place, state = self.numeric[name]
                there = bool(batch["observed"][index, place])
                found[f"column/{name}"] = (
                    float(batch["numeric"][index, place]) * state.scale + state.mean if there else math.nan
                )
            else:
                place, state = self.categorical[name]
                code = int(batch["categorical"][index, place])
                texts = ("", "unseen", *state.categories)  # codes 0 and 1 of `medtrain.data.tabular`
                found[f"column/{name}"] = texts[code]
        return found

    def columns(self, records: Sequence[Record]) -> dict[str, list[Any]]:
        """The values that divide the records, by column."""
        found: dict[str, list[Any]] = {}
        for name in self.names:
            values = [record.get(f"column/{name}", "") for record in records]
            if name in self.numeric or name in self.bins:
                numbers = np.array([math.nan if value == "" else value for value in values], dtype=np.float64)
                values = binned(numbers, self.bins.get(name) or _quartiles(numbers))
            found[name] = values
        return found


def has_effect(name: str, edges: Sequence[float], subgroups: Sequence[str]) -> bool:
    """Whether the edges of a column divide a subgroup; warns where they do not.

    Raises:
        UsageError: They do not ascend.
    """
    if not edges or list(edges) != sorted(set(edges)):
        raise UsageError(
            f"task.report.bins.{name} must ascend, got {list(edges)}",
            hint=f"take them back by `task.report.bins.{name}=null`",
        )
    if name not in subgroups:  # subgroups can be replaced after training, and bins only be added to
        log.warning("task.report.bins.%s has no effect: %s is not among task.report.subgroups", name, name)
    return name in subgroups


def taken(records: Sequence[Record], summarize: Summarize) -> Statistic:
    """The metrics of the records at given indices; columns are looked up once."""
    table = RecordTable(records)
    return lambda chosen: summarize(table.take(chosen))


def patients_of(records: Sequence[Record]) -> list[str]:
    """The patient of every record; a case that names none is one."""
    return [str(record.get("group", record["case_id"])) for record in records]


def interval_rows(records: Sequence[Record], statistic: Statistic, report: Intervals) -> Rows:
    """Confidence intervals of every metric, by drawing patients again; the same draws in every call.

    Args:
        records: Of all samples.
        statistic: The metrics of the records at given indices.
        report: How many draws.
    """
    intervals = bootstrap_intervals(
        statistic,
        patients_of(records),
        generator=np.random.default_rng(_BOOTSTRAP_SEED),
        resamples=report.resamples,
        confidence=report.confidence,
    )
    return [
        {
            "metric": name,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "confidence": report.confidence,
            "resamples": found.resamples,
            "undefined": found.undefined,
        }
        for name, found in intervals.items()
    ]


def attention_rows(records: Sequence[Record], view_names: Sequence[str]) -> Rows:
    """The attention to every instance, or view by name, of every sample.

    Args:
        records: Of all samples.
        view_names: Names of the views; empty for instances.
    """
    rows: Rows = []
    for record in records:
        for place, weight in enumerate(str(record.get("attention", "")).split()):
            view = {"view": view_names[place]} if view_names else {}
            rows.append({"case_id": record["case_id"], "instance": place, **view, "attention": float(weight)})
    return rows


def subgroup_rows(
    records: Sequence[Record], statistic: Statistic, columns: Mapping[str, Sequence[Any]], report: Intervals
) -> Rows:
    """The metrics of everybody and of every subgroup, one row each, with intervals.

    Args:
        records: Of all samples.
        statistic: The metrics of the records at given indices.
        columns: The values that divide the records, by column.
        report: How many draws.
    """
    return subgroup_table(
        statistic,
        columns,
        groups=patients_of(records),
        seed=_BOOTSTRAP_SEED,
        resamples=report.resamples,
        confidence=report.confidence,
    )


def write_report(
    folder: Path,
    records: Sequence[Record],
    summary: Mapping[str, float],
    tables: Mapping[str, Rows],
    *,
    extra: Mapping[str, Any],
) -> None:
    """Write `cases.csv`, `summary.json` and a CSV file per further table.

    Args:
        folder: An existing folder.
        records: Of all samples.
        summary: Metrics by name.
        tables: Further tables by name.
        extra: What else `summary.json` says.
    """
    write_tables(folder, records, tables)
    facts: dict[str, Any] = {**extra, "num_cases": len(records), "metrics": dict(summary)}
    facts["num_patients"] = len(set(patients_of(records)))
    facts |= interval_facts(tables.get("intervals", ()))
    atomic_write_json(folder / "summary.json", facts)


def metrics_table(summary: Mapping[str, float], specs: Mapping[str, MetricSpec], *, title: str) -> Table:
    """A table for the console: the metrics of the whole split, and below them one row per class, zone or target.

    Args:
        summary: Metrics by name.
        specs: Their units, in the order to print.
        title: Printed above.
    """
    from rich.table import Table
    from rich.text import Text

    def shown(name: str) -> str:
        value = summary.get(name, math.nan)
        unit = specs[name].unit if name in specs else ""
        number = "-" if math.isnan(value) else f"{value:.0f}" if name.startswith("n_") else f"{value:.4f}"
        return f"{number} {unit}".rstrip()

    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", overflow="fold")
    table.add_column("all", justify="right")
    names = [name for name in specs if name in summary]
    parts = list(dict.fromkeys(name.rpartition("/")[2] for name in names if "/" in name))
    wide = len(parts) <= _MOST_COLUMNS
    for part in parts if wide else ():
        table.add_column(Text(part), justify="right", overflow="fold")
    rows = list(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
    for row in rows if wide else [name for name in names if "/" not in name]:
        cells = [shown(f"{row}/{part}") if f"{row}/{part}" in summary else "" for part in parts] if wide else []
        table.add_row(Text(row), shown(row) if row in summary else "", *cells)
    return table


def read_number(column: str, value: Any) -> float:
    """A value of a column that is divided into bins; NaN where it is missing.

    Raises:
        UsageError: It is a text.
    """
    try:
        return math.nan if value == "" else float(value)
    except ValueError:
        raise UsageError(
            f"task.report.bins.{column} divides numbers, but the column {column} holds {value!r}",
            hint=f"leave out its bins, or take them back by `task.report.bins.{column}=null`: each of its values is a "
            "subgroup then",
        ) from None


def _quartiles(values: np.ndarray) -> list[float]:
    defined = values[~np.isnan(values)]
    edges = np.unique(np.quantile(defined, [0.25, 0.5, 0.75])) if defined.size else np.zeros(1)
    return [float(edge) for edge in edges]
