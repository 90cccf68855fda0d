"""What a metric is called and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricSpec:
    """A metric's key, direction and unit.

    Args:
        name: The key under which it is logged, e.g. `val/dice`.
        mode: Whether larger (`max`) or smaller (`min`) values are better.
        unit: e.g. `mm`; empty for ratios.
    """

    name: str
    mode: Literal["min", "max"]
    unit: str = ""

    def improves(self, value: float, best: float | None, *, min_delta: float = 0.0) -> bool:
        """Whether `value` is better than `best` by more than `min_delta`.

        Args:
            value: NaN is never better.
            best: The best so far; None when there is none, then any number is better.
            min_delta: Smallest difference that counts, >= 0.
        """
        if math.isnan(value):
            return False
        if best is None or math.isnan(best):
            return True
        return value > best + min_delta if self.mode == "max" else value < best - min_delta
