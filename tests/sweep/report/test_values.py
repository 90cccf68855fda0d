from __future__ import annotations

import numpy as np
import pytest

from medtrain.sweep.report.values import best_so_far, goodness, is_wide, robust_limits


def test_far_outliers_on_the_bad_side_do_not_squeeze_the_good_values() -> None:
    good = np.linspace(0.88, 0.92, 20).tolist()
    low, high = robust_limits([*good, 0.01], "max")
    assert 0.7 < low < 0.88
    assert 0.92 < high < 0.93
    # mirrored: losses
    mirrored = robust_limits([-value for value in [*good, 0.01]], "min")
    assert mirrored == (-high, -low)


def test_values_close_together_are_all_inside() -> None:
    values = [0.5, 0.51, 0.52]
    low, high = robust_limits(values, "max")
    assert low < 0.5
    assert high > 0.52
    assert robust_limits([0.7], "max") == (pytest.approx(0.665), pytest.approx(0.735))
    assert robust_limits([0.0, 0.0], "max")[0] < 0 < robust_limits([0.0, 0.0], "max")[1]


def test_counts_have_no_room_below_zero() -> None:
    low, high = robust_limits([1e5, 5e6, 7e6, 2e7], "min")
    assert low == 0.0
    assert high > 7e6
    assert robust_limits([0.01, 0.9], "max")[0] == 0.0
    assert robust_limits([-1.0, 0.9], "max")[0] < -1.0


def test_goodness_is_one_at_the_best_and_falls_with_the_value() -> None:
    values = [0.9, 0.91, 0.92, 0.915, 0.1]
    good = goodness(values, "max")
    assert good[2] == 1.0
    assert good[4] == 0.0  # beyond the limits
    assert (np.argsort(good) == np.argsort(values)).all()
    assert np.array_equal(goodness([-value for value in values], "min"), good)
    # [1, 10, 1000]: three decades are told apart on a logarithmic scale
    wide = goodness([1.0, 10.0, 1000.0], "min")
    assert wide[0] == 1.0
    assert wide[1] > 0.5
    assert goodness([0.0, 0.0], "min").tolist() == [1.0, 1.0]


def test_wide_values_are_positive_and_span_two_decades() -> None:
    assert is_wide([0.001, 0.5])
    assert not is_wide([0.01, 0.5])
    assert not is_wide([0.0, 0.5])
    assert not is_wide([])


def test_best_so_far_passes_over_what_cannot_win() -> None:
    values = [np.nan, 0.3, 0.2, np.nan, 0.5, 0.4]
    assert np.array_equal(best_so_far(values, "max"), [np.nan, 0.3, 0.3, 0.3, 0.5, 0.5], equal_nan=True)
    assert np.array_equal(best_so_far(values, "min"), [np.nan, 0.3, 0.2, 0.2, 0.2, 0.2], equal_nan=True)
