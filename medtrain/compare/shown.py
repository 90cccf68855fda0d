"""Comparisons on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medtrain.compare.runs import Comparison
from medtrain.metrics.paired import Difference
from medtrain.metrics.spec import MetricSpec

if TYPE_CHECKING:
    from rich.table import Table

_MOST = 5


def comparison_table(
    found: Comparison, specs: Mapping[str, MetricSpec], *, main: str, part: str, confidence: float
) -> Table:
    """Metrics without their classes, and the main one by class.

    Args:
        found: Of two runs.
        specs: Units and directions.
        main: The main metric, first in the table.
        part: Of the data.
        confidence: Of the intervals.
    """
    from rich.table import Table
    from rich.text import Text

    title = f"A = {found.first}, B = {found.second}: {part}, {found.num_cases} cases of {found.num_patients} patients"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    for name in ("A", "B", f"B - A [{100 * confidence:g} %]", "better", "p"):
        table.add_column(Text(name), justify="right")
    head = main.partition("/")[0]
    named = [item for item in found.differences if not item.metric.startswith("n_")]
    shown = [item for item in named if "/" not in item.metric or item.metric.startswith(f"{head}/")]
    for item in sorted(shown, key=lambda item: not f"{item.metric}/".startswith(f"{head}/")):
        spec = specs[item.metric]
        digits = 3 if not spec.unit else 2 if abs(item.first) < 100 else 1
        table.add_row(
            Text(item.metric if spec.mode == "max" else f"{item.metric} (min)"),
            _number(item.first, digits),
            _number(item.second, digits),
            _difference(item, digits),
            "-" if math.isnan(item.second_better) else f"{100 * item.second_better:.0f} %",
            "-" if math.isnan(item.p_value) else f"{item.p_value:.3f}",
        )
    return table


def comparison_notes(found: Comparison, *, main: str) -> list[str]:
    """What there is to say below the table, a line each.

    Args:
        found: Of two runs.
        main: The main metric.
    """
    notes = ["better: share of draws of patients in which B is; p: of exchanging A and B patient by patient"]
    if found.by_fold:
        who = " and ".join(found.by_fold)
        notes.append(f"means over the folds of {who}, each judged under what it has decided itself")
    if found.ruled_out:
        kinds: dict[str, list[str]] = {}
        for key, rule in found.ruled_out.items():
            if "/" not in key:  # where one of a class is ruled out, so is their mean
                kinds.setdefault(rule, []).append(key)
        said = [f"{', '.join(keys)} ({rule})" for rule, keys in kinds.items()]
        notes.append(f"not compared, as judged by other rules: {'; '.join(said)}")
    if found.one_sided:
        some = [f"{key} A {one} B {two}" for key, (one, two) in list(found.one_sided.items())[:_MOST]]
        notes.append(f"left out, as only one of the two has a value: {', '.join(some)}")
    if found.missing:
        notes.append(f"only one of the two has {', '.join(found.missing[:_MOST])}")
    if found.apart:
        cases = [f"{case} {one:.4f} -> {two:.4f}" for case, one, two in found.apart]
        notes.append(f"furthest apart ({main}): {', '.join(cases)}")
    return notes


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _difference(item: Difference, digits: int) -> str:
    if math.isnan(item.difference):
        return "-"
    interval = "" if math.isnan(item.low) else f" [{item.low:+.{digits}f}, {item.high:+.{digits}f}]"
    return f"{item.difference:+.{digits}f}{interval}"
