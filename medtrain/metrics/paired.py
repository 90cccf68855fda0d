"""Whether one model is better than another on the same cases: paired bootstrap and paired permutation, by patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medtrain.metrics.bootstrap import Statistic, draw_patients
from medtrain.metrics.spec import MetricSpec

_SAME = 1e-12
"""Differences this close count as equal: sums in another order are rounded in another way."""


@dataclass(frozen=True)
class Difference:
    """A metric of two models on the same cases.

    Args:
        metric: Its key.
        first: Of the first model.
        second: Of the second model.
        difference: Second minus first.
        low: Lower end of its interval; NaN where it cannot be said.
        high: Upper end.
        second_better: Share of the draws in which the second is better, equal ones counted half; NaN without any.
        p_value: Share of permutations with a difference at least as large; NaN where models cannot be exchanged.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    second_better: float
    p_value: float


def paired_differences(
    first: Statistic,
    second: Statistic,
    groups: Sequence[str] | np.ndarray,
    specs: Mapping[str, MetricSpec],
    *,
    swapped: Callable[[np.ndarray], tuple[Mapping[str, float], Mapping[str, float]]] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Difference]:
    """Compare two models on the same cases.

    Interval and share: patients are drawn with replacement, each with all cases and both models' results (Efron 1979).
    The p value is that of a permutation test: under the hypothesis that the models are equal, their results of a
    patient can be exchanged. Of n patients there are 2^n exchanges. Where these are no more than `resamples`, all are
    made, and the p value is exact: the share of those whose difference is at least as large in absolute value (Fisher
    1935), at least 2 / 2^n. Otherwise it is (1 + k) / (1 + resamples) with k such ones among exchanges at random
    (Phipson and Smyth 2010).

    Args:
        first: Metrics of the first model on the cases at given indices.
        second: The same of the second model.
        groups: Patient of every case [N].
        specs: The metrics to compare, with their direction.
        swapped: Metrics of both when they change places in the cases that a mask [N] marks; None if they cannot.
        seed: Of draws and exchanges.
        resamples: Number of draws, and the most exchanges.
        confidence: Share of the draws inside an interval, in (0, 1).
    """
    owner = np.unique(np.asarray(groups), return_inverse=True)[1]
    keys, everything = list(specs), np.arange(owner.size)
    one, two = _values(first(everything), keys), _values(second(everything), keys)
    patients = int(owner.max(initial=-1)) + 1
    exact = 2**patients <= resamples
    drawn, exchanged = np.full((0, len(keys)), np.nan), np.full((0, len(keys)), np.nan)
    if patients >= 2:
        draws = draw_patients(owner, generator=np.random.default_rng(seed), resamples=resamples)
        drawn = np.array([_values(second(index), keys) - _values(first(index), keys) for index in draws])
        if swapped is not None:
            pairs = (swapped(chosen[owner]) for chosen in _exchanges(patients, seed, resamples, exact=exact))
            exchanged = np.array([_values(after, keys) - _values(before, keys) for before, after in pairs])
    found = []
    for place, key in enumerate(keys):
        difference = two[place] - one[place]
        low, high, better = _interval(drawn[:, place], specs[key], confidence)
        p_value = _p_value(exchanged[:, place], difference, exact=exact)
        found.append(Difference(key, one[place], two[place], difference, low, high, better, p_value))
    return found


def _exchanges(patients: int, seed: int, resamples: int, *, exact: bool) -> Iterator[np.ndarray]:
    """Which patients change places, bool [patients]: in every way that there is, or at random."""
    if exact:
        places = np.arange(patients)
        yield from ((number >> places & 1).astype(bool) for number in range(2**patients))
        return
    generator = np.random.default_rng(seed)
    yield from (generator.integers(0, 2, patients).astype(bool) for _ in range(resamples))


def _values(metrics: Mapping[str, float], keys: Sequence[str]) -> np.ndarray:
    return np.array([metrics[key] for key in keys], dtype=np.float64)


def _interval(draws: np.ndarray, spec: MetricSpec, confidence: float) -> tuple[float, float, float]:
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return math.nan, math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    gains = defined if spec.mode == "max" else -defined
    better = (np.count_nonzero(gains > _SAME) + 0.5 * np.count_nonzero(np.abs(gains) <= _SAME)) / defined.size
    return float(low), float(high), float(better)


def _p_value(exchanged: np.ndarray, difference: float, *, exact: bool) -> float:
    defined = exchanged[~np.isnan(exchanged)]
    if not defined.size or math.isnan(difference):
        return math.nan
    own = 0 if exact else 1  # among all exchanges is the one that changes nothing
    return (own + np.count_nonzero(np.abs(defined) >= abs(difference) - _SAME)) / (own + defined.size)
