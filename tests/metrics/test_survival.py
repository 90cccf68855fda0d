"""Concordance against all pairs one by one, Kaplan-Meier and the Brier score by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medtrain.errors import NonFiniteError
from medtrain.metrics.survival import (
    brier_scores,
    concordance,
    integrated_brier_score,
    kaplan_meier,
    survival_metrics,
    survival_specs,
)


def _pairs(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> tuple[int, int, int]:
    """The definition, pair by pair."""
    counts = [0, 0, 0]
    for i in range(times.size):
        for j in range(times.size):
            later = times[j] > times[i] or (times[j] == times[i] and not events[j])
            if i != j and events[i] and later:
                counts[0 if risks[i] > risks[j] else 1 if risks[i] < risks[j] else 2] += 1
    return counts[0], counts[1], counts[2]


def test_golden_c_index() -> None:
    found = concordance(np.arange(1, 6), np.array([1, 1, 0, 1, 0]), np.array([5, 3, 4, 2, 1]))
    assert (found.concordant, found.comparable) == (7, 8)
    assert found.index == 0.875


def test_ties_by_hand() -> None:
    times, events = np.array([2.0, 2.0, 2.0, 5.0]), np.array([1, 1, 0, 0])
    # comparable: each event with the censored one of its time and with the last; not the two events
    found = concordance(times, events, np.array([3.0, 1.0, 1.0, 2.0]))
    assert (found.concordant, found.discordant, found.tied) == (2, 1, 1)
    assert found.index == pytest.approx(2.5 / 4)


@pytest.mark.parametrize("seed", range(12))
def test_every_pair_is_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 70))
    times = rng.integers(1, 4 + 10 * seed, count).astype(np.float64)
    events = rng.random(count) < rng.random()
    risks = np.round(rng.normal(size=count), seed % 3)
    found = concordance(times, events, risks)
    assert (found.concordant, found.discordant, found.tied) == _pairs(times, events, risks)


def test_it_is_the_auroc_when_all_are_censored_at_the_same_time() -> None:
    from medtrain.metrics.ranking import auroc

    rng = np.random.default_rng(0)
    events = rng.random(80) < 0.4
    times, risks = np.where(events, 1.0, 2.0), np.round(rng.normal(size=80), 1)
    assert concordance(times, events, risks).index == pytest.approx(auroc(risks, events))


def test_no_comparable_pair_is_undefined_and_constant_risks_are_chance() -> None:
    times = np.arange(4.0)
    assert math.isnan(concordance(times, np.zeros(4), times).index)
    assert math.isnan(concordance(np.ones(4), np.ones(4), times).index)
    assert math.isnan(concordance(np.empty(0), np.empty(0), np.empty(0)).index)
    assert concordance(times, np.ones(4), np.zeros(4)).index == 0.5
    found = survival_metrics(times, np.zeros(4), times)
    assert math.isnan(found["c_index"])
    assert (found["n_undefined"], found["n_events"], found["n_pairs"]) == (1, 0, 0)


def test_a_diverged_model_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="2 of 3 risks"):
        concordance(np.arange(3), np.ones(3), np.array([0.1, np.nan, np.inf]))


def test_order_and_monotone_maps_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    times, events, risks = rng.exponential(size=200), rng.random(200) < 0.6, rng.normal(size=200)
    order = rng.permutation(200)
    expected = concordance(times, events, risks)
    assert concordance(times[order], events[order], risks[order]) == expected
    assert concordance(np.log(times), events, np.exp(risks)) == expected


def test_a_hundred_thousand_subjects() -> None:
    rng = np.random.default_rng(2)
    risks = rng.normal(size=100_000)
    times = rng.exponential(np.exp(-risks))
    found = concordance(times, np.ones_like(times), risks)
    assert found.comparable == 100_000 * 99_999 // 2
    # exponential times: P(i first) = logistic(r_i - r_j), whose mean over the larger risk is this integral
    gaps = np.abs(rng.permutation(risks) - risks)
    assert found.index == pytest.approx((1 / (1 + np.exp(-gaps))).mean(), abs=0.005)


def test_kaplan_meier_by_hand() -> None:
    times, survival = kaplan_meier(np.array([1, 2, 2, 3, 4]), np.array([1, 1, 0, 0, 1]))
    assert times.tolist() == [1, 2, 3, 4]
    assert survival == pytest.approx([4 / 5, 4 / 5 * 3 / 4, 3 / 5, 0])


def test_brier_score_by_hand() -> None:
    times, events = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 1])
    said = np.array([[0.2], [0.5], [0.6], [0.9]])
    # at 2.5 uncensored is 2/3; the first died with weight 1, the second is unknown, two live with weight 3/2
    expected = (0.2**2 + 1.5 * 0.4**2 + 1.5 * 0.1**2) / 4
    assert brier_scores(times, events, said, np.array([2.5])) == pytest.approx([expected])
    # without censoring it is the plain mean square
    found = brier_scores(times, np.ones(4), said, np.array([2.5]))
    assert found == pytest.approx([np.mean((said[:, 0] - (times > 2.5)) ** 2)])


def test_at_equal_times_events_come_before_censoring() -> None:
    times, events = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1, 1, 0, 1])
    # at 2 two are at risk of censoring, the dead one no longer: G is 1 before and 1/2 from then on
    assert kaplan_meier(times, events, reverse=True)[1] == pytest.approx([1, 1 / 2, 1 / 2])
    said = np.array([[0.3], [0.4], [0.5], [0.8]])
    # at 2 itself the second is dead, weight 1 / G(2-) = 1, and the last lives, weight 1 / G(2) = 2
    expected = (0.3**2 + 0.4**2 + 2 * 0.2**2) / 4
    assert brier_scores(times, events, said, np.array([2.0])) == pytest.approx([expected])


def test_beyond_the_last_observation_nothing_is_known() -> None:
    times, grid = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.5, 3.0, 9.0])
    said = np.full((3, 4), 0.5)
    assert np.isnan(brier_scores(times, np.ones(3), said, grid)).tolist() == [False, False, True, True]
    assert integrated_brier_score(times, np.ones(3), said, grid) == pytest.approx(0.25)
    assert math.isnan(integrated_brier_score(times, np.ones(3), said[:, :1], grid[:1]))
    assert math.isnan(integrated_brier_score(np.empty(0), np.empty(0), said[:0], grid))


def test_the_true_curves_have_the_least_brier_score_though_many_are_censored() -> None:
    rng = np.random.default_rng(3)
    rates = np.exp(rng.normal(size=4000))
    died, left = rng.exponential(1 / rates), rng.exponential(1.5, 4000)
    times, events, grid = np.minimum(died, left), died <= left, np.linspace(0.05, 2, 20)
    score = {
        power: integrated_brier_score(times, events, np.exp(-(power * rates)[:, None] * grid), grid)
        for power in (0.5, 1.0, 2.0)
    }
    assert score[1.0] < min(score[0.5], score[2.0])
    uncensored = integrated_brier_score(died, np.ones(4000), np.exp(-rates[:, None] * grid), grid)
    assert score[1.0] == pytest.approx(uncensored, abs=0.01)


def test_report() -> None:
    times, events = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1, 0, 1, 1])
    found = survival_metrics(times, events, np.array([3.0, 2.0, 1.0, 9.0]))
    assert found == {"c_index": 1.0, "n_events": 2.0, "n_pairs": 2.0, "n_undefined": 0.0}
    assert list(found) == list(survival_specs())
    grid = np.array([0.5, 1.5, 2.5])
    found = survival_metrics(times, events, np.ones(4), survival=np.full((4, 3), 0.5), grid=grid)
    assert list(found) == list(survival_specs(curves=True))
    assert next(iter(found)) == "c_index"
    assert found["ibs"] == pytest.approx(0.25, abs=0.1)
