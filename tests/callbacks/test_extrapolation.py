"""Curves whose end is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from medtrain.callbacks.extrapolation import extrapolate_quotient, extrapolate_saturating


def errors(
    forecast: Callable[[list[float], int], float], *, count: int, sigma: float = 0.01, total: int = 100
) -> np.ndarray:
    """Absolute errors of the last value of y = -(1.2 exp(-x/15) + 0.25), 200 draws of the noise."""
    x = np.arange(total)
    y = -(1.2 * np.exp(-x / 15) + 0.25)
    rng = np.random.default_rng(1)
    draws = y[:count] + rng.normal(0, sigma, (200, count))
    return np.array([abs(forecast(draw.tolist(), total) - y[-1]) for draw in draws])


def saturating(scores: list[float], total: int) -> float:
    found = extrapolate_saturating(scores, total)
    assert found is not None
    return found.value


def quotient(scores: list[float], total: int) -> float:
    found = extrapolate_quotient(scores, total)
    assert found is not None
    return found.limit


@pytest.mark.parametrize(("count", "median"), [(10, 0.19), (20, 0.027), (40, 0.008)])
def test_saturating_has_the_errors_that_were_measured(count: int, median: float) -> None:
    assert np.median(errors(saturating, count=count)) == pytest.approx(median, rel=0.6)


@pytest.mark.parametrize(("count", "median"), [(10, 0.82), (20, 0.72), (40, 0.64)])
def test_the_quotient_has_the_errors_that_were_measured(count: int, median: float) -> None:
    assert np.median(errors(quotient, count=count)) == pytest.approx(median, rel=0.15)


def test_few_noisy_scores_say_nothing_by_either_method() -> None:
    assert np.median(errors(saturating, count=10, sigma=0.03)) > 0.4
    assert np.median(errors(quotient, count=10, sigma=0.03)) > 0.4


def test_a_power_on_the_grid_is_found_exactly() -> None:
    scores = [0.9 - 0.5 * (x + 1) ** -0.5 for x in range(10)]
    found = extrapolate_saturating(scores, 30)
    assert found is not None
    assert found.value == pytest.approx(0.9 - 0.5 * 30**-0.5, abs=1e-9)
    assert found.spread < 1e-6


def test_an_exponential_on_the_grid_is_found_exactly() -> None:
    scores = [0.9 - 0.5 * math.exp(-x / 40) for x in range(12)]
    found = extrapolate_saturating(scores, 40)  # tau = total
    assert found is not None
    assert found.value == pytest.approx(0.9 - 0.5 * math.exp(-39 / 40), abs=1e-9)


def test_the_weights_are_the_likelihood() -> None:
    """Recomputed with one least-squares problem per curve."""
    rng = np.random.default_rng(3)
    y = 0.8 - 0.4 * np.exp(-np.arange(16) / 5) + rng.normal(0, 0.02, 16)
    total = 50
    x = np.arange(16)
    curves = [np.exp(-np.arange(total) / tau) for tau in np.geomspace(1, total, total)]
    curves += [(np.arange(total) + 1.0) ** -p for p in np.linspace(0.2, 2, 37)]
    mse, ends = [], []
    for curve in curves:
        columns = np.stack([np.ones(16), -curve[:16]], axis=1)
        (limit, a), *_ = np.linalg.lstsq(columns, y, rcond=None)
        mse.append(np.mean((columns @ [limit, a] - y[x]) ** 2))
        ends.append(limit - a * curve[-1])
    weights = np.exp(-16 / 2 * np.log(np.array(mse) / min(mse)))
    weights /= weights.sum()
    value = float(np.sum(weights * ends))
    found = extrapolate_saturating(y.tolist(), total)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.spread == pytest.approx(math.sqrt(np.sum(weights * (np.array(ends) - value) ** 2)), rel=1e-6)


def test_scores_that_are_missing_are_left_out() -> None:
    scores = [0.9 - 0.5 * (x + 1) ** -0.5 for x in range(20)]
    with_gap = [math.nan if x in (3, 11) else score for x, score in enumerate(scores)]
    assert saturating(with_gap, 60) == pytest.approx(saturating(scores, 60), abs=1e-9)
    assert extrapolate_saturating([math.nan] * 9 + [0.5, 0.6], 30) is None


def test_equal_scores_stay_equal() -> None:
    found = extrapolate_saturating([0.5] * 10, 40)
    assert found is not None
    assert (found.value, found.spread) == (pytest.approx(0.5), pytest.approx(0, abs=1e-6))
    found = extrapolate_saturating([0.0] * 10, 40)
    assert found is not None
    assert found.value == 0


def test_the_quotient_of_an_exact_curve() -> None:
    # f(x) = (x + 0.8 x^2) / (1 + 0.5 x + x^2) tends to 0.8; f(x) < 0.8 where 0.6 x < 0.8: last for x = 1
    scores = [(x + 0.8 * x * x) / (1 + 0.5 * x + x * x) for x in range(8)]
    found = extrapolate_quotient(scores, 40, degree=2)
    assert found is not None
    assert found.limit == pytest.approx(0.8, abs=1e-9)
    assert found.target == 2


def test_the_quotient_that_never_arrives_arrives_at_the_end() -> None:
    # f(x) = (0.1 + 0.9 x) / (1 + x) < 0.9 everywhere
    found = extrapolate_quotient([(0.1 + 0.9 * x) / (1 + x) for x in range(6)], 25, degree=1)
    assert found is not None
    assert found.limit == pytest.approx(0.9, abs=1e-9)
    assert found.target == 25


def test_the_quotient_that_comes_from_above() -> None:
    # f(x) = (2 + x) / (1 + x) > 1 everywhere
    found = extrapolate_quotient([(2 + x) / (1 + x) for x in range(6)], 25, degree=1)
    assert found is not None
    assert found.limit == pytest.approx(1.0, abs=1e-9)
    assert found.target is None


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, math.nan, 0.4, 0.5, 0.6], [0.0] * 9])
def test_the_quotient_needs_enough_scores(scores: list[float]) -> None:
    assert extrapolate_quotient(scores, 20) is None
