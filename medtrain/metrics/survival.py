"""Metrics of predicted times to an event, some of which nobody lived to see (right-censored)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medtrain.metrics.arrays import Values, count_undefined, finite_values, label_values, ratio
from medtrain.metrics.spec import MetricSpec


@dataclass(frozen=True)
class Concordance:
    """How the risks of comparable pairs are ordered.

    Args:
        concordant: Pairs in which the one with the earlier event has the higher risk.
        discordant: Pairs in which it has the lower risk.
        tied: Pairs of equal risk.
    """

    concordant: int
    discordant: int
    tied: int

    @property
    def comparable(self) -> int:
        """All pairs whose order in time is known."""
        return self.concordant + self.discordant + self.tied

    @property
    def index(self) -> float:
        """Harrell's c-index, pairs of equal risk counted half; NaN without a comparable pair."""
        return float(ratio(self.concordant + self.tied / 2, self.comparable))


def concordance(times: Values, events: Values, risks: Values) -> Concordance:
    """Count the comparable pairs by the order of their risks, in O(N log N).

    A pair is comparable when the earlier time is that of an event (Harrell et al., JAMA 247, 1982). At equal times a
    subject with the event comes before a censored one; two events at the same time are not comparable.

    Args:
        times: Time of the event or of censoring [N].
        events: Whether the event was seen [N].
        risks: Higher means earlier [N].
    """
    last, seen, values = _checked(times, events, risks)
    rank = np.unique(values, return_inverse=True)[1].astype(np.int64)
    # Latest first, at equal times censored before events: whom a subject outruns is then a prefix.
    order = np.lexsort((seen, -last))
    rank, last, seen = rank[order], last[order], seen[order]
    starts = np.flatnonzero(np.diff(last, prepend=np.inf) != 0)
    run = np.cumsum(np.diff(last, prepend=np.inf) != 0) - 1
    censored = np.add.reduceat(~seen, starts, dtype=np.int64) if starts.size else starts
    prefix = (starts + censored)[run][seen]
    below = _count_below(rank, prefix, rank[seen])
    up_to = _count_below(rank, prefix, rank[seen] + 1)
    return Concordance(int(below.sum()), int((prefix - up_to).sum()), int((up_to - below).sum()))


def survival_metrics(
    times: Values,
    events: Values,
    risks: Values,
    *,
    survival: Values | None = None,
    grid: Values | None = None,
) -> dict[str, float]:
    """Judge predicted risks, and survival curves where there are any; keys are those of `survival_specs`.

    Args:
        times: Time of the event or of censoring [N]; NaN is unlabelled.
        events: Whether the event was seen [N]; NaN is unlabelled.
        risks: Higher means earlier [N].
        survival: Probabilities of surviving beyond each time of the grid [N, T].
        grid: Ascending times [T].
    """
    last, seen = label_values(times).astype(np.float64), label_values(events)
    known = np.isfinite(last) & np.isfinite(seen)
    kept = last[known], seen[known].astype(bool)
    pairs = concordance(*kept, label_values(risks)[known])
    metrics = {"c_index": pairs.index}
    if survival is not None:
        assert grid is not None, "survival curves need the times of their points"
        metrics["ibs"] = integrated_brier_score(*kept, label_values(survival)[known], grid)
    metrics |= {"n_events": float(kept[1].sum()), "n_pairs": float(pairs.comparable)}
    metrics = count_undefined(metrics)
    return {name: metrics[name] for name in survival_specs(curves=survival is not None)}


def survival_specs(*, curves: bool = False) -> dict[str, MetricSpec]:
    """The metrics of `survival_metrics`; the default monitor, `c_index`, first.

    Args:
        curves: Whether the model predicts survival curves.
    """
    specs = [MetricSpec("c_index", "max"), *([MetricSpec("ibs", "min")] if curves else [])]
    specs += [MetricSpec("n_events", "max"), MetricSpec("n_pairs", "max"), MetricSpec("n_undefined", "min")]
    return {spec.name: spec for spec in specs}


def kaplan_meier(times: Values, events: Values, *, reverse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the share that survives beyond each time (Kaplan & Meier, JASA 53, 1958).

    Args:
        times: Time of the event or of censoring [N].
        events: Whether the event was seen [N].
        reverse: Estimate the share that stays uncensored instead. At equal times events come first: who had the event
            is no longer at risk of being censored.

    Returns:
        The distinct times [T], ascending, and the share beyond each of them [T].
    """
    last, seen, _ = _checked(times, events, times)
    distinct, position = np.unique(last, return_inverse=True)
    died, left = np.bincount(position, seen, distinct.size), np.bincount(position, minlength=distinct.size)
    at_risk = last.size - (np.cumsum(left) - left)
    lost, at_risk = (left - died, at_risk - died) if reverse else (died, at_risk)
    return distinct, np.cumprod(1.0 - lost / np.maximum(at_risk, 1))


def brier_scores(times: Values, events: Values, survival: Values, grid: Values) -> np.ndarray:
    """Squared error of predicted survival at every time of a grid, weighted for censoring.

    Those who had the event by then count with 1 / G(their time, just before), those who are still observed with
    1 / G(t), those censored before with 0; G is the Kaplan-Meier estimate of staying uncensored in these data (Graf et
    al., Stat. Med. 18, 1999).

    Args:
        times: Time of the event or of censoring [N].
        events: Whether the event was seen [N].
        survival: Predicted probabilities of surviving beyond each time of the grid [N, T].
        grid: Ascending times [T].

    Returns:
        float64 [T]; NaN where nobody is observed any longer.
    """
    said, points = finite_values(survival, "survival probabilities"), finite_values(grid, "times")
    last, seen, _ = _checked(times, events, times)
    assert said.shape == (last.size, points.size), f"survival {said.shape}, {last.size} subjects, {points.size} times"
    distinct, uncensored = kaplan_meier(last, seen, reverse=True)
    steps = np.concatenate([[1.0], uncensored])
    before = steps[np.searchsorted(distinct, last, side="left")]
    at = steps[np.searchsorted(distinct, points, side="right")]
    dead = (last[:, None] <= points) & seen[:, None]
    alive = last[:, None] > points
    errors = np.where(dead, ratio(said**2, before[:, None]), 0.0) + np.where(alive, ratio((1 - said) ** 2, at), 0.0)
    # Beyond the last observation the weights no longer sum to the number of subjects.
    observed = points < last.max(initial=-np.inf)
    return np.where(observed, ratio(errors.sum(axis=0), last.size), np.nan)


def integrated_brier_score(times: Values, events: Values, survival: Values, grid: Values) -> float:
    """Average the Brier score over time with the trapezoidal rule; NaN with fewer than two observed times.

    Args:
        times: Time of the event or of censoring [N].
        events: Whether the event was seen [N].
        survival: [N, T].
        grid: Ascending times [T]; those beyond the last observation are left out.
    """
    scores, points = brier_scores(times, events, survival, grid), finite_values(grid, "times")
    observed = ~np.isnan(scores)
    scores, points = scores[observed], points[observed]
    if points.size < 2:
        return float("nan")
    return float(np.trapezoid(scores, points) / (points[-1] - points[0]))


def _checked(times: Values, events: Values, risks: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    last, values = finite_values(times, "times"), finite_values(risks, "risks")
    seen = label_values(events)
    assert last.ndim == 1, f"times {last.shape}, expected [N]"
    assert last.shape == seen.shape == values.shape, f"times {last.shape}, events {seen.shape}, risks {values.shape}"
    assert ((seen == 0) | (seen == 1)).all(), "events must be 0 or 1"
    return last, seen.astype(bool), values


def _count_below(values: np.ndarray, prefix: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """For every query, how many of `values[:prefix]` are below `bounds`: a wavelet matrix, one pass per bit.

    Args:
        values: Integers >= 0 [N].
        prefix: Lengths [Q], 0..N.
        bounds: Integers >= 0 [Q].
    """
    count = np.zeros(prefix.size, dtype=np.int64)
    left, right = np.zeros_like(count), prefix.astype(np.int64)
    highest = int(max(values.max(initial=0), bounds.max(initial=0)))
    for bit in reversed(range(highest.bit_length())):
        ones = (values >> bit) & 1
        zeros_before = np.concatenate([[0], np.cumsum(1 - ones)])
        zeros_left, zeros_right = zeros_before[left], zeros_before[right]
        upper = ((bounds >> bit) & 1).astype(bool)
        # A bound with this bit set is above all that lack it and agree with it in the higher bits.
        count += np.where(upper, zeros_right - zeros_left, 0)
        zeros = zeros_before[-1]
        left = np.where(upper, zeros + left - zeros_left, zeros_left)
        right = np.where(upper, zeros + right - zeros_right, zeros_right)
        values = np.concatenate([values[ones == 0], values[ones == 1]])
    return count
