"""A smooth map of noisy values over two parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medtrain.sweep.report.canvas import Scale

_CELLS = 120
_LEAST_WEIGHT = 0.1
"""Of a point at the centre; where all points together weigh less, nothing is known."""


@dataclass(frozen=True)
class Field:
    """A map.

    Args:
        x_edges: [X + 1], between the cells in units of the axis.
        y_edges: [Y + 1].
        values: [Y, X]; masked where no point is near.
    """

    x_edges: np.ndarray
    y_edges: np.ndarray
    values: np.ma.MaskedArray


def smooth_field(x: Scale, y: Scale, points: Sequence[tuple[Any, Any]], values: np.ndarray) -> Field:
    """The mean of the values nearby, weighted by a Gaussian kernel (Nadaraya-Watson); slots are never mixed.

    Args:
        x: Scale of the first parameter.
        y: Scale of the second.
        points: Pairs of values of the parameters.
        values: [N].
    """
    x_edges, x_near = _weights(x, [point[0] for point in points])
    y_edges, y_near = _weights(y, [point[1] for point in points])
    total = y_near @ x_near.T
    means = (y_near * values) @ x_near.T / np.maximum(total, 1e-12)
    return Field(x_edges, y_edges, np.ma.masked_where(total < _LEAST_WEIGHT, means))


def smooth_line(scale: Scale, points: Sequence[float], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the values nearby along a range, weighted by a Gaussian kernel; NaN where no point is near.

    Args:
        scale: Scale of the parameter, without slots.
        points: Its values.
        values: [N].

    Returns:
        Positions [X] on the axis, and means [X].
    """
    edges, near = _weights(scale, points)
    total = near.sum(1)
    means = (near @ values) / np.maximum(total, 1e-12)
    centres = np.sqrt(edges[1:] * edges[:-1]) if scale.log else (edges[1:] + edges[:-1]) / 2
    return centres, np.where(total < 1.0, np.nan, means)


def _weights(scale: Scale, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the cells along an axis, and the weight of every point in every cell [cells, N]."""
    if scale.slots:
        slots = np.arange(len(scale.slots))
        positions = np.array([scale.position(value) for value in values])
        return np.arange(len(scale.slots) + 1) - 0.5, (slots[:, None] == positions[None]).astype(np.float64)
    low, high = scale.limits
    unit = np.linspace(0, 1, _CELLS + 1)
    edges = low * (high / low) ** unit if scale.log else low + unit * (high - low)
    ends = scale.unit(low), scale.unit(high)  # in parts of the axis, whatever its scale
    centres = ends[0] + (unit[1:] + unit[:-1]) / 2 * (ends[1] - ends[0])
    positions = np.array([scale.unit(value) for value in values])
    # Scott's rule for two dimensions
    width = max(len(values) ** (-1 / 6) * float(positions.std()), 0.03)
    return edges, np.exp(-0.5 * ((centres[:, None] - positions[None]) / width) ** 2)
