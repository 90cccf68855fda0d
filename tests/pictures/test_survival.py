from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.pictures.figure import MAIN, SECOND, TOP, draw_sentence
from medtrain.pictures.survival import draw_survival, risk_groups, survival_band

_WIDTH, _HEIGHT = 560, 330


def test_the_band_is_greenwoods_on_the_log_log_scale() -> None:
    # four subjects die at 1, 2, 3, 4: S = 3/4, 1/2, 1/4, 0. At 1 the sum is 1 / (4 * 3), its root 0.28868, divided by
    # |log 0.75| = 0.28768 it is 1.00345; 0.75^exp(+-1.959964 * 1.00345) = 0.1279 and 0.9605 (R: survfit, "log-log")
    times, share, low, high = survival_band(np.arange(1.0, 5.0), np.ones(4))
    np.testing.assert_array_equal(times, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(share, [1, 0.75, 0.5, 0.25, 0])
    assert low[1] == pytest.approx(0.1279, abs=1e-4)
    assert high[1] == pytest.approx(0.9605, abs=1e-4)
    assert (low[0], high[0], low[4], high[4]) == (1, 1, 0, 0)
    assert (low <= share).all()
    assert (share <= high).all()


def test_censored_subjects_leave_the_risk_set_without_a_step() -> None:
    # one of three is censored at 1: S falls by a half at 2, to 0 at 3
    _, share, _, _ = survival_band(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(share, [1, 1, 0.5, 0])


def test_a_cut_belongs_to_the_lower_risk() -> None:
    assert risk_groups(np.array([0.0, 1.0, 1.5, 2.0, 3.0]), [1.0, 2.0]).tolist() == [0, 0, 1, 1, 2]


def _place(left: int, x: float, y: float, end: float) -> tuple[int, int]:
    return round(TOP + (1.02 - y) / 1.04 * _HEIGHT), round(left + x / (1.02 * end) * _WIDTH)


def test_every_group_has_its_curve(find: Any) -> None:
    # low risk: 8 and 10 months, both seen; high risk: 2 and 4
    pixels = draw_survival(np.array([2.0, 4.0, 8.0, 10.0]), np.ones(4), np.array([2.0, 2.0, 1.0, 1.0]), cuts=[1.5])
    left = pixels.shape[1] - 28 - _WIDTH
    for color, steps in ((MAIN, [(4, 1.0), (9, 0.5), (8, 0.75)]), (SECOND, [(1, 1.0), (3, 0.5), (4, 0.25)])):
        mask = find(pixels, color)
        for x, y in steps:
            row, column = _place(left, x, y, 10)
            assert mask[row - 2 : row + 3, column - 2 : column + 3].any(), (color, x, y)
    row, column = _place(left, 6, 0.5, 10)  # nobody with a high risk is left
    assert not find(pixels, SECOND)[row - 8 : row + 9, column - 20 : column + 21].any()


def test_the_picture_depends_on_the_groups_alone_not_on_the_order_of_subjects(rng: Any) -> None:
    times, events, risks = rng.exponential(10, 40), rng.random(40) < 0.7, rng.normal(size=40)
    order = rng.permutation(40)
    first, second = draw_survival(times, events, risks), draw_survival(times[order], events[order], risks[order])
    np.testing.assert_array_equal(first, second)


def test_more_groups_have_more_rows_and_empty_ones_no_curve(find: Any) -> None:
    times, events, risks = np.array([1.0, 2.0]), np.ones(2), np.array([0.0, 1.0])
    two = draw_survival(times, events, risks, cuts=[0.5], group_names=["a", "b"])
    four = draw_survival(times, events, risks, cuts=[0.5, 5.0, 6.0], group_names=["a", "b", "c", "d"])
    assert four.shape[0] - two.shape[0] == 2 * 20
    np.testing.assert_array_equal(four[TOP : TOP + _HEIGHT], two[TOP : TOP + _HEIGHT])


def test_unlabelled_subjects_are_left_out_and_without_others_there_is_a_sentence() -> None:
    times, events, risks = np.array([1.0, 2.0, np.nan]), np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.5])
    np.testing.assert_array_equal(draw_survival(times, events, risks), draw_survival(times[:2], events[:2], risks[:2]))
    expected = "There is no subject with a known time: no survival can be estimated."
    nobody = draw_survival(times[2:], events[2:], risks[2:])
    np.testing.assert_array_equal(nobody, draw_sentence("survival by predicted risk", expected))
    # all censored at once: nothing can be ordered, everybody survives
    assert draw_survival(np.array([5.0, 5.0]), np.zeros(2), np.array([1.0, 2.0])).shape[0] == TOP + _HEIGHT + 138
