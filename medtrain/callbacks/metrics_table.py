"""A table of the metrics after every evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from medtrain.callbacks.base import Callback, EngineView
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.run.log import console

_LOG = logging.getLogger(__name__)
_COLUMNS = ("Metric", "Mean", "Span", "Change")


@register("callbacks", "metrics_table")
class MetricsTable(Callback):
    """Print each metric's mean, its span over the evaluations so far and its change since the last one.

    Coloured on a terminal, aligned plain text in a pipe and in log.txt.

    Args:
        metrics: Which metrics to show, named without `val/`; None shows all, and the monitored one is always shown.
            Names that an evaluation does not have are passed over; metrics.csv has every metric.
        classes: Which of the shown metrics to show for every class as well as their mean.
    """

    def __init__(
        self,
        *,
        metrics: tuple[str, ...] | None = (
            *("dice", "nsd", "hd95_mm"),
            *("auroc", "f1_macro", "balanced_accuracy", "qwk", "mae", "c_index", "loss"),
        ),
        classes: Literal["monitor", "all", "none"] = "monitor",
    ) -> None:
        self._metrics = metrics
        self._classes = classes

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Print the table and write it to the log."""
        keys = [key for key in metrics if self._is_shown(key, view)]
        rows = make_rows(keys, metrics, view.history, view.monitor)
        title = f"evaluation at step {view.step}, epoch {view.epoch}"
        if improved:
            title += f": new best {view.monitor.name} {metrics[view.monitor.name]:.4f}"
        terminal = console().is_terminal
        if terminal:
            console().print(_rich_table(title, rows, view.monitor))
        _LOG.info("%s\n%s", title, plain_table(rows), extra={"screen": not terminal})

    def _is_shown(self, key: str, view: EngineView) -> bool:
        monitor = view.monitor.name
        if key == monitor:
            return True
        owner = next((key.removesuffix(f"/{name}") for name in view.class_names if key.endswith(f"/{name}")), None)
        mean = key if owner is None else owner
        if mean != monitor and self._metrics is not None and mean.removeprefix("val/") not in self._metrics:
            return False
        return owner is None or self._classes == "all" or (self._classes == "monitor" and owner == monitor)


def make_rows(
    keys: Sequence[str], metrics: Mapping[str, float], history: Sequence[Mapping[str, float]], monitor: MetricSpec
) -> list[tuple[str, str, str, str]]:
    """Cells of the table, the monitored metric and its classes first.

    Args:
        keys: Metrics to show.
        metrics: The newest evaluation.
        history: All evaluations; the newest last.
        monitor: The metric that decides what is best.
    """
    rows = []
    for key in sorted(keys, key=lambda key: not f"{key}/".startswith(f"{monitor.name}/")):
        values = [entry[key] for entry in history if key in entry and not math.isnan(entry[key])]
        span = f"{_number(min(values))} .. {_number(max(values))}" if values else "-"
        previous = history[-2].get(key, math.nan) if len(history) > 1 else math.nan
        change = metrics[key] - previous
        rows.append((key, _number(metrics[key]), span, "-" if math.isnan(change) else f"{change:+.4f}"))
    return rows


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells in columns: names to the left, numbers to the right."""
    table = [_COLUMNS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  " + "  ".join(cells))
    return "\n".join(lines)


def _rich_table(title: str, rows: Sequence[Sequence[str]], monitor: MetricSpec) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", show_edge=False, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "Metric" else "right", no_wrap=True)
    for row in rows:
        if row[0] == monitor.name:
            better = row[3].startswith("+" if monitor.mode == "max" else "-") and row[3] != "-"
            colour = "" if row[3] == "-" else ("green" if better else "red")
            table.add_row(*(Text(cell, style="bold") for cell in row[:3]), Text(row[3], style=f"bold {colour}".strip()))
        else:
            table.add_row(*map(Text, row))
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
