"""Between the points of our space and Optuna's parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from medtrain.config.space import Dimension, Space

FIXED = "fixed_params"
"""Where Optuna keeps the values of a trial that is enqueued."""


@functools.cache
def _distribution(kind: str, low: Any, high: Any, step: Any, log: bool, choices: tuple[str, ...]) -> BaseDistribution:
    if kind == "choice":
        return CategoricalDistribution(choices)
    if kind == "int":
        step = int(step or 1)
        return IntDistribution(int(low), int(low) + (int(high) - int(low)) // step * step, log=log, step=step)
    if step is not None:
        high = _multiple(low, step, math.floor((high - low) / step + 1e-9))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def distribution(dimension: Dimension) -> BaseDistribution:
    """The distribution of a dimension; its upper end is the last value that the step reaches."""
    return _distribution(
        dimension.kind, dimension.low, dimension.high, dimension.step, dimension.log, dimension.choices
    )


def distributions(space: Space, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The distributions of the dimensions that a point has."""
    return {dimension.key: distribution(dimension) for dimension in space.active(params)}


def canonical(dimension: Dimension, value: Any) -> Any:
    """The value as it is written: a step lands on the same float however it was reached, a whole number is an int."""
    if dimension.kind == "choice":
        return value
    near = dimension.nearest(value)
    if dimension.kind == "int":
        return int(near)
    if dimension.step is None or dimension.low is None:
        return float(near)
    return _multiple(dimension.low, dimension.step, round((near - dimension.low) / dimension.step))


def contains(dimension: Dimension, value: Any) -> bool:
    """Whether a value is one of this dimension's, but for the rounding of a float."""
    if dimension.kind == "choice":
        return value in dimension.choices
    near = dimension.nearest(value)
    return near is not None and math.isclose(near, value, rel_tol=1e-9, abs_tol=1e-12)


def points(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a finite space, in the order in which the values were typed."""
    known = {dimension.key: dimension for dimension in space.dimensions}
    for point in space.points():
        yield {key: canonical(known[key], value) for key, value in point.items()}


def point_of(space: Space, trial: FrozenTrial, *, drawn_only: bool = False) -> dict[str, Any] | None:
    """The whole point that a trial has or will have; None while some of its values are still to be drawn.

    Args:
        space: The space.
        trial: The trial.
        drawn_only: Look only at the values it has, not at those that were set for it beforehand.
    """
    known = dict(trial.params) if drawn_only else {**trial.system_attrs.get(FIXED, {}), **trial.params}
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        if dimension.is_active(point):
            if dimension.key not in known:
                return None
            point[dimension.key] = known[dimension.key]
    return point


def identities(space: Space, trials: Iterable[FrozenTrial]) -> dict[str, FrozenTrial]:
    """The first trial of every point that is tried or about to be, by the point's identity."""
    found: dict[str, FrozenTrial] = {}
    for trial in trials:
        point = point_of(space, trial)
        if point is not None:
            found.setdefault(space.identity(point), trial)
    return found


def _multiple(low: float, step: float, count: int) -> float:
    """`low + count * step` in decimal: three steps of 0.1 are 0.3, as Optuna reckons, too."""
    return float(Decimal(str(low)) + count * Decimal(str(step)))
