"""How sure a metric is, by drawing patients again, and how it differs between subgroups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], Mapping[str, float]]
"""Computes metrics from the samples at given indices [M], int64; an index may occur several times."""


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval.

    Args:
        value: Of the data as they are.
        low: Lower end; NaN where it cannot be said.
        high: Upper end; NaN where it cannot be said.
        resamples: Number of resamples in which the metric was defined.
        undefined: Number of resamples in which it was not; they are left out.
    """

    value: float
    low: float
    high: float
    resamples: int
    undefined: int


def bootstrap_intervals(
    statistic: Statistic,
    groups: Sequence[str] | np.ndarray,
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals from patients drawn with replacement (Efron, 1979).

    A patient is drawn with all samples: two eyes of one patient are not two independent eyes. For the difference of two
    models on the same data let the statistic compute both and subtract. The order of the samples does not matter.

    Args:
        statistic: The metrics of the samples at given indices.
        groups: Patient of every sample [N].
        generator: Source of randomness, seeded by the caller.
        resamples: Number of draws, >= 1.
        confidence: Share of the draws inside the interval, in (0, 1).

    Returns:
        An interval per metric. Its ends are NaN with fewer than two patients, or where the metric was undefined in
        every draw.
    """
    assert resamples >= 1, f"resamples is {resamples}"
    assert 0 < confidence < 1, f"confidence is {confidence}"
    owner = np.asarray(groups)
    values = dict(statistic(np.arange(owner.size)))
    if np.unique(owner).size < 2:
        return {key: Interval(float(value), math.nan, math.nan, 0, 0) for key, value in values.items()}
    draws = np.full((resamples, len(values)), np.nan)
    for row, drawn in zip(draws, draw_patients(owner, generator=generator, resamples=resamples), strict=True):
        found = statistic(drawn)
        row[:] = [found[key] for key in values]
    tail = (1 - confidence) / 2
    intervals: dict[str, Interval] = {}
    for (key, value), column in zip(values.items(), draws.T, strict=True):
        defined = column[~np.isnan(column)]
        low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (math.nan, math.nan)
        undefined = int(column.size - defined.size)
        intervals[key] = Interval(float(value), float(low), float(high), int(defined.size), undefined)
    return intervals


def draw_patients(
    groups: Sequence[str] | np.ndarray, *, generator: np.random.Generator, resamples: int
) -> Iterator[np.ndarray]:
    """Indices of the samples of as many patients as there are, drawn with replacement, `resamples` times.

    Args:
        groups: Patient of every sample [N].
        generator: Source of randomness, seeded by the caller.
        resamples: Number of draws.
    """
    names, owner = np.unique(np.asarray(groups), return_inverse=True)
    members = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    starts = np.cumsum(sizes) - sizes
    for _ in range(resamples):
        drawn = generator.integers(0, names.size, names.size)
        yield members[_runs(starts[drawn], sizes[drawn])]


def subgroup_table(
    statistic: Statistic,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    groups: Sequence[str] | np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Compute the metrics, with intervals by patient, for everybody and for every value of every column.

    Args:
        statistic: The metrics of the samples at given indices.
        columns: Values of every sample [N] by name: site, sex, age group. Empty, None and NaN are one group, `missing`.
        groups: Patient of every sample [N].
        seed: Of the draws; every subgroup begins with it.
        resamples: Number of draws; 0 for no intervals.
        confidence: Share of the draws inside an interval, in (0, 1).

    Returns:
        One row per subgroup and metric with `column`, `subgroup`, `n_samples`, `n_patients`, `metric`, `value`, `low`,
        `high` and `confidence`; the first subgroup is `all`. The ends are NaN where they cannot be said.
    """
    patients = np.asarray(groups)

    def rows_of(column: str, text: str, chosen: np.ndarray) -> list[dict[str, Any]]:
        head: dict[str, Any] = {"column": column, "subgroup": text}
        head |= {"n_samples": int(chosen.size), "n_patients": int(np.unique(patients[chosen]).size)}
        if resamples:
            found = bootstrap_intervals(
                lambda index: statistic(chosen[index]),
                patients[chosen],
                generator=np.random.default_rng(seed),
                resamples=resamples,
                confidence=confidence,
            )
        else:
            values = statistic(chosen)
            found = {key: Interval(float(value), math.nan, math.nan, 0, 0) for key, value in values.items()}
        return [
            {**head, "metric": key, "value": item.value, "low": item.low, "high": item.high, "confidence": confidence}
            for key, item in found.items()
        ]

    rows = rows_of("all", "all", np.arange(patients.size))
    for name, values in columns.items():
        texts = np.array([_text(value) for value in values], dtype=object)
        assert texts.size == patients.size, f"{texts.size} values of {name} for {patients.size} samples"
        for text in sorted(set(texts), key=lambda text: (text == "missing", text)):
            rows += rows_of(name, text, np.flatnonzero(texts == text))
    return rows


def binned(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[str]:
    """Put numbers into named bins for a subgroup table: `<40`, `40-60`, `>=60`, and `missing` for NaN.

    Args:
        values: [N], e.g. ages.
        edges: Ascending; each belongs to the bin above it.
    """
    shown = [f"{edge:g}" for edge in edges]
    names = [f"<{shown[0]}", *(f"{low}-{high}" for low, high in pairwise(shown)), f">={shown[-1]}"]
    numbers = np.asarray(values, dtype=np.float64)
    index = np.searchsorted(np.asarray(edges, dtype=np.float64), numbers, side="right")
    return ["missing" if math.isnan(number) else names[place] for number, place in zip(numbers, index, strict=True)]


def _text(value: Any) -> str:
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return "missing" if missing else str(value)


def _runs(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Concatenate the ranges starts[i], ..., starts[i] + sizes[i] - 1."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
