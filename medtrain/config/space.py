"""The search space of a sweep: which keys vary, between which values, and when. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Params = Mapping[str, Any]
"""One point of a space: a float or an int for a number, the text of an override for a choice."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key that varies.

    Args:
        key: Dotted config key, or a group (`loss`).
        kind: A number in a range, or one of some choices.
        low: Smallest number.
        high: Largest number, included.
        step: Distance of the allowed numbers from `low` on; None is every number (every whole number for `int`).
        log: Whether to search on a logarithmic scale.
        choices: Texts as they would be typed after `KEY=`.
        when: Keys of earlier dimensions with the choices under which this one exists; empty when it always does.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def is_active(self, params: Params) -> bool:
        """Whether the dimension exists beside these values of the earlier ones."""
        return all(params.get(key) in allowed for key, allowed in self.when.items())

    def values(self) -> list[Any] | None:
        """Every value; None when there are infinitely many."""
        if self.kind == "choice":
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.low == self.high:
            return [self.low]
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [float(f"{self.low + index * self.step:.12g}") for index in range(count)]  # 0.3, not 0.30000000000000004

    def nearest(self, value: Any) -> Any:
        """The value of this dimension that is nearest to a number, or the choice with this text; None if there is none.

        Args:
            value: A number for a range, a text for a choice.
        """
        if self.kind == "choice":
            return value if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        known = self.values()
        if known is not None:
            return min(known, key=lambda other: abs(other - value))
        assert self.low is not None
        assert self.high is not None
        return float(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep; one that another depends on comes before it."""

    dimensions: tuple[Dimension, ...]

    @property
    def is_conditional(self) -> bool:
        """Whether some dimension exists only beside some choices."""
        return any(dimension.when for dimension in self.dimensions)

    def active(self, params: Params) -> list[Dimension]:
        """The dimensions that exist for these values."""
        return [dimension for dimension in self.dimensions if dimension.is_active(params)]

    def overrides(self, params: Params) -> list[str]:
        """`KEY=VALUE` of every active dimension, as typed on the command line."""
        return [f"{dimension.key}={_text(params[dimension.key])}" for dimension in self.active(params)]

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point, for a space in which all dimensions are finite."""
        yield from self._points(0, {})

    def _points(self, index: int, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if index == len(self.dimensions):
            yield dict(params)
            return
        dimension = self.dimensions[index]
        if not dimension.is_active(params):
            yield from self._points(index + 1, params)
            return
        values = dimension.values()
        assert values is not None, f"{dimension.key} has infinitely many values"
        for value in values:
            yield from self._points(index + 1, {**params, dimension.key: value})

    @property
    def size(self) -> int | None:
        """How many points there are; None when there are infinitely many."""
        counts = {dimension.key: dimension.values() for dimension in self.dimensions}
        if any(values is None for values in counts.values()):
            return None
        deciding = {key for dimension in self.dimensions for key in dimension.when}

        def count(index: int, params: dict[str, Any]) -> int:
            if index == len(self.dimensions):
                return 1
            dimension = self.dimensions[index]
            values = counts[dimension.key]
            assert values is not None
            if not dimension.is_active(params):
                return count(index + 1, params)
            if dimension.key not in deciding:
                return len(values) * count(index + 1, params)
            return sum(count(index + 1, {**params, dimension.key: value}) for value in values)

        return count(0, {})

    def identity(self, params: Params) -> str:
        """A text that two points share exactly when they are the same configuration."""
        active = {dimension.key: params[dimension.key] for dimension in self.active(params)}
        return json.dumps(active, sort_keys=True)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [dataclasses.asdict(dimension) for dimension in self.dimensions]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Space:
        """The space that `to_json` wrote."""

        def read(item: dict[str, Any]) -> Dimension:
            when = {key: tuple(allowed) for key, allowed in item["when"].items()}
            return Dimension(**{**item, "choices": tuple(item["choices"]), "when": when})

        return cls(tuple(read(item) for item in data))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
