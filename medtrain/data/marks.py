"""Places in an image that somebody marked, by a box or a point, and the masks that stand for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SHARE = 0.09
"""Of an image's shorter side: how far a point without a radius reaches. 20 of 224 pixels."""


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels of the image file, as it is shown upright.

    Args:
        left: First column.
        top: First row.
        right: Column behind the last one.
        bottom: Row behind the last one.
    """

    left: float
    top: float
    right: float
    bottom: float

    def mask(self, size: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
        """The share of every pixel that lies in the box, [*drawn]; parts beyond the image are cut off.

        Args:
            size: H and W of the image file.
            drawn: H and W of the mask.
        """
        rows = _covered(self.top, self.bottom, size[0], drawn[0])
        columns = _covered(self.left, self.right, size[1], drawn[1])
        return np.asarray(rows[:, None] * columns, dtype=np.float32)


@dataclass(frozen=True)
class Point:
    """A place in an image.

    Args:
        x: Column of its pixel in the image file, as it is shown upright; 0 is the first one.
        y: Row.
        radius: Standard deviation of the bump around it in pixels; None for 0.09 of the shorter side.
    """

    x: float
    y: float
    radius: float | None = None

    def mask(self, size: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
        """A Gaussian bump of height 1 around the point, [*drawn].

        Args:
            size: H and W of the image file.
            drawn: H and W of the mask.
        """
        radius = self.radius if self.radius is not None else _SHARE * min(size)
        rows = _bump(self.y, radius, size[0], drawn[0])
        columns = _bump(self.x, radius, size[1], drawn[1])
        return np.asarray(rows[:, None] * columns, dtype=np.float32)

    def inside(self, size: tuple[int, int]) -> bool:
        """Whether the point lies in an image of H and W."""
        return -0.5 <= self.y < size[0] and -0.5 <= self.x < size[1]


Mark = Box | Point


def _covered(start: float, end: float, size: int, drawn: int) -> np.ndarray:
    """The share of each of `drawn` parts of an axis of `size` pixels that lies between two places."""
    edges = np.arange(drawn + 1) * (size / drawn)
    inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(inside / (size / drawn), 0.0, 1.0)


def _bump(middle: float, radius: float, size: int, drawn: int) -> np.ndarray:
    places = (np.arange(drawn) + 0.5) * (size / drawn) - 0.5
    return np.asarray(np.exp(-((places - middle) ** 2) / (2 * radius**2)))
