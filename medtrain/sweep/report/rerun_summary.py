"""What training the best configurations again came to: the mean and spread of each, and which one wins."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.run.atomic import atomic_write
from medtrain.sweep.report.records import Record, SweepState
from medtrain.sweep.result import Objective

FOLDER = "rerun"
TABLE = "rerun.csv"
LEAST_PAIRS = 3
"""Pairs of runs below which nothing is said about luck: the spread of two is hardly known."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rerun:
    """One run of a configuration.

    Args:
        seed: Its seed.
        fold: Its fold; None is the one of the configuration.
        values: One per objective; finite.
    """

    seed: int
    fold: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class RerunRow:
    """What the runs of one configuration came to.

    Args:
        trial: The trial it is from.
        runs: Those that came to an end, by seed and fold.
        failed: How many did not.
    """

    trial: int
    runs: tuple[Rerun, ...]
    failed: int = 0

    def values(self, objective: int = 0) -> list[float]:
        """The results of an objective, by its index."""
        return [run.values[objective] for run in self.runs]

    def mean(self, objective: int = 0) -> float:
        """Mean of an objective; NaN without a run."""
        return statistics.fmean(self.values(objective)) if self.runs else math.nan

    def std(self, objective: int = 0) -> float:
        """Standard deviation between the runs (that of a sample); NaN with fewer than two."""
        return statistics.stdev(self.values(objective)) if len(self.runs) > 1 else math.nan

    def is_far(self, searched: float) -> bool:
        """Whether the search's own value is more than two standard deviations away from the mean of the runs.

        Args:
            searched: That value of the first objective; NaN is not far.
        """
        return abs(searched - self.mean()) > 2 * self.std()


@dataclass(frozen=True)
class Lead:
    """How far ahead the winner is.

    Args:
        other: The next best.
        difference: Of the means, in the good direction; not negative.
        error: Standard error of the difference over the runs with the same seed and fold; NaN with fewer than two.
        pairs: How many such runs there are.
    """

    other: RerunRow
    difference: float
    error: float
    pairs: int

    @property
    def is_enough(self) -> bool:
        """Whether there are enough pairs to know their spread."""
        return self.pairs >= LEAST_PAIRS

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than two standard errors, so that luck is an unlikely explanation."""
        return self.is_enough and self.difference > 2 * self.error


def summarize_reruns(folder: Path, objectives: Sequence[Objective]) -> list[RerunRow]:
    """Read rerun/*/result.json and write rerun.csv, the best mean of the first objective first.

    A configuration with fewer runs than others stands behind those: its mean is not comparable yet.

    Args:
        folder: The sweep's folder.
        objectives: Those of the sweep.

    Returns:
        One row per configuration; empty when none was trained again.
    """
    runs: dict[int, list[Rerun]] = {}
    failed: dict[int, int] = {}
    for path in sorted((folder / FOLDER).glob("*/result.json")):
        result = _read(path)
        if result is None:
            continue
        trial, metrics = int(result["trial"]), result.get("metrics") or {}
        values = tuple(_number(metrics.get(objective.metric)) for objective in objectives)
        runs.setdefault(trial, [])
        if result.get("state") == "complete" and all(map(math.isfinite, values)):
            runs[trial].append(Rerun(int(result["seed"]), result.get("fold"), values))
        elif result.get("state") != "stopped":  # that one goes on
            failed[trial] = failed.get(trial, 0) + 1
    sign = -1.0 if objectives[0].mode == "max" else 1.0
    rows = [
        RerunRow(trial, tuple(sorted(found, key=lambda run: (run.seed, run.fold or 0))), failed.get(trial, 0))
        for trial, found in runs.items()
    ]
    rows.sort(key=lambda row: (-len(row.runs), sign * row.mean() if row.runs else 0.0, row.trial))
    if rows:
        _write(folder / TABLE, rows, objectives)
    return rows


def winner(rows: Sequence[RerunRow], objectives: Sequence[Objective]) -> RerunRow | None:
    """The configuration with the best mean; None with several objectives, or when every run failed."""
    return rows[0] if len(objectives) == 1 and rows and rows[0].runs else None


def choose(sweep: SweepState, rows: Sequence[RerunRow]) -> tuple[Record, RerunRow | None] | None:
    """The configuration to use: the one with the best mean if it was trained again, else the best of the search.

    With several objectives it is the trial of the front that is best in the first one.

    Args:
        sweep: The sweep.
        rows: What `summarize_reruns` returned.

    Returns:
        The trial, and its runs if they decided; None while nothing may win.
    """
    first = winner(rows, sweep.definition.objectives)
    again = next((record for record in sweep.records if first is not None and record.number == first.trial), None)
    if again is not None:
        return again, first
    return (sweep.best[0], None) if sweep.best else None


def lead(rows: Sequence[RerunRow], objectives: Sequence[Objective]) -> Lead | None:
    """How far the winner is ahead of the next; None without two configurations of equally many runs."""
    first = winner(rows, objectives)
    if first is None or len(rows) < 2 or len(rows[1].runs) != len(first.runs):
        return None
    other = rows[1]
    sign = 1.0 if objectives[0].mode == "max" else -1.0
    theirs = {(run.seed, run.fold): run.values[0] for run in other.runs}
    pairs = [
        sign * (run.values[0] - theirs[run.seed, run.fold]) for run in first.runs if (run.seed, run.fold) in theirs
    ]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return Lead(other, sign * (first.mean() - other.mean()), error, len(pairs))


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not {"trial", "seed"} <= result.keys():
            raise ValueError("it names no trial and seed")
    except (OSError, ValueError) as error:
        log.warning("%s is left out: %s", path, error)
        return None
    return result


def _write(path: Path, rows: Sequence[RerunRow], objectives: Sequence[Objective]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    statistic_names = ("mean", "std", "min", "max")
    names = [f"{objective.metric} {name}" for objective in objectives for name in statistic_names]
    writer.writerow(["rank", "trial", "runs", "failed", *names])
    for rank, row in enumerate(rows, start=1):
        cells: list[float | str] = []
        for index in range(len(objectives)):
            values = row.values(index)
            cells += [row.mean(index), row.std(index), min(values), max(values)] if values else [math.nan] * 4
        shown = ["" if isinstance(cell, float) and math.isnan(cell) else repr(cell) for cell in cells]
        writer.writerow([rank, row.trial, len(row.runs), row.failed, *shown])
    atomic_write(path, buffer.getvalue())
