from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medtrain.callbacks.series import Series


def test_few_values_are_kept_as_they_are() -> None:
    series = Series(max_points=4)
    for step in range(4):
        series.add(step, step / 2)
    assert (series.steps, series.values) == ([0, 1, 2, 3], [0, 0.5, 1, 1.5])


def test_many_values_are_averaged_in_pairs() -> None:
    series = Series(max_points=4)
    for step in range(7):
        series.add(step, float(step))
    # at the fifth value (0,1) (2,3) become points; then (4,5) and the unfinished (6)
    assert (series.steps, series.values) == ([0.5, 2.5, 4.5, 6.0], [0.5, 2.5, 4.5, 6.0])


def test_size_is_bounded_and_the_mean_is_kept(rng: np.random.Generator) -> None:
    values = rng.random(4096)
    series = Series(max_points=16)
    for step, value in enumerate(values):
        series.add(step, float(value))
    assert len(series.steps) == 16
    np.testing.assert_allclose(series.values, values.reshape(16, 256).mean(axis=1), rtol=1e-12)
    assert series.steps == sorted(series.steps)


def test_what_is_not_finite_is_left_out() -> None:
    series = Series()
    for value in (1.0, math.nan, math.inf, 2.0):
        series.add(0, value)
    assert series.values == [1.0, 2.0]


@pytest.mark.parametrize("stop", [0, 3, 4, 5, 9, 17])
def test_state_goes_through_json_and_continues_exactly(stop: int) -> None:
    whole, first = Series(max_points=4), Series(max_points=4)
    for step in range(30):
        whole.add(step, step**0.5)
    for step in range(stop):
        first.add(step, step**0.5)
    second = Series(max_points=4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(stop, 30):
        second.add(step, step**0.5)
    assert second.state_dict() == whole.state_dict()
