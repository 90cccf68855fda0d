"""Objective values as people look at them: limits that a few bad trials do not spoil, and how good each one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Mode = Literal["min", "max"]


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values span more than two decades, so that they need a logarithmic axis."""
    return len(values) > 0 and min(values) > 0 and max(values) > 100 * min(values)


def robust_limits(values: Sequence[float], mode: Mode) -> tuple[float, float]:
    """Limits that show the good values well: far outliers on the bad side lie outside.

    Args:
        values: Finite, at least one.
        mode: Which way is better.
    """
    array = np.asarray(values, dtype=np.float64)
    if mode == "min":
        low, high = robust_limits((-array).tolist(), "max")
        return -high, -low
    best = float(array.max())
    lower, middle = np.quantile(array, [0.1, 0.5])
    # like Tukey's fence, with the better half as the measure of spread
    low = max(float(array.min()), min(float(lower), float(middle) - 3.0 * (best - float(middle))))
    margin = 0.06 * (best - low) or 0.05 * abs(best) or 0.05
    # a count or a time has no negative values to make room for
    bottom = max(low - margin, 0.0) if low >= 0 < best else low - margin
    return bottom, min(best + margin, 0.0) if best <= 0 and low < 0 else best + margin


def goodness(values: Sequence[float], mode: Mode) -> np.ndarray:
    """How good each value is, from 0 (at the edge of the robust limits or beyond) to 1 (the best).

    Args:
        values: Finite, at least one.
        mode: Which way is better.
    """
    array = np.asarray(values, dtype=np.float64)
    array = (np.log(array) if is_wide(values) else array) * (1.0 if mode == "max" else -1.0)
    low, _ = robust_limits(array.tolist(), "max")
    return np.clip((array - low) / (float(array.max()) - low), 0.0, 1.0)


def best_so_far(values: Sequence[float], mode: Mode) -> np.ndarray:
    """The best value up to each trial; NaN before the first one.

    Args:
        values: In the order of the trials; NaN for those that cannot win.
        mode: Which way is better.
    """
    array = np.asarray(values, dtype=np.float64)
    return np.fmax.accumulate(array) if mode == "max" else np.fmin.accumulate(array)
