"""Paired bootstrap and permutation against exact answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest

from medtrain.metrics.bootstrap import bootstrap_intervals, draw_patients
from medtrain.metrics.paired import Difference, paired_differences
from medtrain.metrics.spec import MetricSpec


def _paired(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, *, mode: str = "max", resamples: int = 2000
) -> Difference:
    def of(values: np.ndarray):  # type: ignore[no-untyped-def]
        return lambda index: {"mean": float(values[index].mean())}

    def swapped(mask: np.ndarray) -> tuple[Mapping[str, float], Mapping[str, float]]:
        return {"mean": float(np.where(mask, b, a).mean())}, {"mean": float(np.where(mask, a, b).mean())}

    specs = {"mean": MetricSpec("mean", mode)}  # type: ignore[arg-type]
    (found,) = paired_differences(of(a), of(b), groups, specs, swapped=swapped, resamples=resamples)
    return found


def test_p_value_is_that_of_all_exchanges() -> None:
    """Five patients, one of them with two cases: 32 exchanges."""
    gain = np.array([0.3, -0.1, 0.2, 0.25, 0.1, 0.05])
    groups = np.array([0, 1, 2, 3, 4, 4])
    sums = np.bincount(groups, weights=gain)
    exact = np.mean(
        [abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-9 for signs in itertools.product((-1, 1), repeat=5)]
    )
    found = _paired(np.zeros(6), gain, groups, resamples=32)
    assert found.difference == pytest.approx(gain.mean())
    assert found.p_value == exact
    # one sample fewer than exchanges: they are drawn
    drawn = _paired(np.zeros(6), gain, groups, resamples=31).p_value
    assert (drawn * 32) == pytest.approx(round(drawn * 32))
    assert drawn == pytest.approx(exact, abs=0.3)


@pytest.mark.parametrize(
    ("gain", "p_value"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # of +-1 +-2 +-3 only 6 and -6 are as far from 0 as 6
        ([3.0, 2.0, -1.0], 4 / 8),  # as far as 4: 6, 4, -4, -6; not 2, 0, 0, -2
        ([0.0, 2.0], 4 / 4),  # all are 2 or -2
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2 / 512),
    ],
)
def test_few_patients_are_exchanged_in_every_way(gain: list[float], p_value: float) -> None:
    found = _paired(np.zeros(len(gain)), np.array(gain), np.arange(len(gain)), resamples=1000)
    assert found.p_value == p_value


def test_interval_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(1)
    a, groups = rng.normal(size=30), np.arange(30) // 2
    b = a + rng.normal(0.3, 1.0, size=30)
    found = _paired(a, b, groups, resamples=300)
    alone = bootstrap_intervals(
        lambda index: {"gain": float((b - a)[index].mean())},
        groups,
        generator=np.random.default_rng(0),
        resamples=300,
    )["gain"]
    assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    draws = [
        float((b - a)[index].mean())
        for index in draw_patients(groups, generator=np.random.default_rng(0), resamples=300)
    ]
    assert found.second_better == pytest.approx(np.mean(np.array(draws) > 0))
    assert _paired(a, b, groups, mode="min", resamples=300).second_better == pytest.approx(1 - found.second_better)


def test_equal_models_and_single_patients() -> None:
    a = np.array([0.1, 0.5, 0.9])
    same = _paired(a, a, np.arange(3), resamples=20)
    assert (same.difference, same.low, same.high, same.second_better, same.p_value) == (0, 0, 0, 0.5, 1)
    one = _paired(a, a + 1, np.zeros(3, dtype=int), resamples=20)
    assert one.difference == pytest.approx(1)
    assert all(math.isnan(value) for value in (one.low, one.high, one.second_better, one.p_value))


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Of 200 comparisons of equal models about one in twenty has p <= 0.05."""
    rng = np.random.default_rng(5)
    alarms = sum(
        _paired(rng.normal(size=12), rng.normal(size=12), np.arange(12), resamples=99).p_value <= 0.05
        for _ in range(200)
    )
    assert 2 <= alarms <= 20
