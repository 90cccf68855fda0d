"""Where a curve of validation scores is going: two ways to fit it and to read off its end.

Both take the scores of evaluations x = 0, 1, ... and higher ones for better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_RATES = 200  # values of tau; more of them change nothing that the spread does not cover
_POWERS = np.linspace(0.2, 2.0, 37)


@dataclass(frozen=True)
class Prediction:
    """The score at the last evaluation.

    Args:
        value: Expected.
        spread: Standard deviation over the curves that fit about as well. It is no confidence interval: on simulated
            curves the band of two spreads holds the truth less often than such an interval would.
    """

    value: float
    spread: float


@dataclass(frozen=True)
class Quotient:
    """What a quotient of polynomials says of a curve.

    Args:
        limit: The score that it tends to.
        target: The evaluation, counted from 1, at which it has come there; None if it never is below.
    """

    limit: float
    target: int | None


def extrapolate_saturating(scores: Sequence[float], total: int) -> Prediction | None:
    """Predict the last score from curves that level off.

    Two families, y_inf - a exp(-x / tau) with tau from 1 to `total` and y_inf - a (x + 1)^-p with p from 0.2 to 2, are
    fitted by linear least squares at every tau and p. The values that they have at x = total - 1 are averaged with
    the weights exp(-N/2 log(MSE / MSE_min)), the likelihood of each under Gaussian noise of unknown size.

    Args:
        scores: Of the evaluations so far [N]; NaN is left out.
        total: Evaluations of the whole run.

    Returns:
        None for fewer than three scores.
    """
    values = np.asarray(scores, np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 3:
        return None
    last = max(total, len(values)) - 1
    rates = np.unique(np.geomspace(1.0, max(last + 1.0, 2.0), min(last + 1, _MOST_RATES)))
    seen = np.concatenate([np.exp(-known / rates[:, None]), (known + 1.0) ** -_POWERS[:, None]])  # [G, N]
    end = np.concatenate([np.exp(-last / rates), (last + 1.0) ** -_POWERS])
    y = values[known]
    centred = seen - seen.mean(axis=1, keepdims=True)
    slope = centred @ (y - y.mean()) / np.maximum(np.square(centred).sum(axis=1), 1e-300)
    mse = np.square(y - y.mean() - slope[:, None] * centred).mean(axis=1)
    # rounding of equal scores is no difference between curves
    mse = np.maximum(mse, 1e-24 * float(np.square(y).mean()) + 1e-200)
    weights = (mse / mse.min()) ** (-len(known) / 2)
    weights /= weights.sum()
    ends = y.mean() + slope * (end - seen.mean(axis=1))
    value = float(weights @ ends)
    return Prediction(value, float(np.sqrt(weights @ np.square(ends - value))))


def extrapolate_quotient(scores: Sequence[float], total: int, *, degree: int = 5) -> Quotient | None:
    """Fit score(x) = P(x) / Q(x), both of a degree and Q(0) = 1, and read its end off.

    The unknowns solve, in the sense of least squares, the rows [1, x, .., x^m, -y x, .., -y x^n] = y. The limit is the
    ratio of the leading coefficients. The target is the evaluation after the last one with f(x) < limit (1 - c), where
    c, the leading coefficient of P'Q - PQ' over that of Q^2, is (m - n) times the limit: 0 for equal degrees.

    Unstable on noisy curves: a pole or a limit far from the scores is common.

    Args:
        scores: Of the evaluations so far [N].
        total: Evaluations of the whole run.
        degree: Of both polynomials.

    Returns:
        None for `degree` scores or fewer, for NaN among them, or without a leading coefficient.
    """
    y = np.asarray(scores, np.float64)
    if len(y) <= degree or not np.isfinite(y).all():
        return None
    x = np.arange(len(y), dtype=np.float64)
    powers = x[:, None] ** np.arange(degree + 1)
    rows = np.concatenate([powers, -y[:, None] * powers[:, 1:]], axis=1)
    found = np.linalg.lstsq(rows, y, rcond=None)[0]
    above, below = found[: degree + 1], np.concatenate([[1.0], found[degree + 1 :]])
    if below[-1] == 0 or not np.isfinite(found).all():
        return None
    limit = float(above[-1] / below[-1])
    at = np.arange(total, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        under = np.flatnonzero(np.polyval(above[::-1], at) / np.polyval(below[::-1], at) < limit)
    return Quotient(limit, int(under[-1]) + 1 if len(under) else None)
