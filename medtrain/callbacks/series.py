"""A curve of bounded size, however long the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_POINTS = 2000


class Series:
    """Values over steps; when there are too many, neighbours are averaged in pairs.

    Args:
        max_points: Most points kept; even.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        assert max_points % 2 == 0, max_points
        self._max_points = max_points
        self._width = 1  # values per point
        self._filled = 0  # values in the last point
        self.steps: list[float] = []
        self.values: list[float] = []

    def add(self, step: float, value: float) -> None:
        """Add a value; what is not finite is left out."""
        if not math.isfinite(value):
            return
        if self.steps and self._filled < self._width:
            self._filled += 1
            self.steps[-1] += (step - self.steps[-1]) / self._filled
            self.values[-1] += (value - self.values[-1]) / self._filled
            return
        if len(self.steps) == self._max_points:
            self.steps = _halve(self.steps)
            self.values = _halve(self.values)
            self._width *= 2
        self.steps.append(float(step))
        self.values.append(float(value))
        self._filled = 1

    def state_dict(self) -> dict[str, Any]:
        """Everything, as primitives."""
        return {"width": self._width, "filled": self._filled, "steps": list(self.steps), "values": list(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._width, self._filled = state["width"], state["filled"]
        self.steps, self.values = list(state["steps"]), list(state["values"])


def _halve(values: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(values[::2], values[1::2], strict=True)]
