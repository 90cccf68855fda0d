"""Places in an image that somebody marked, by a box or a point, and the masks that stand for them."""

from __future__ import annotations

import json
import math
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

    @property
    def is_sound(self) -> bool:
        """Whether it has an extent."""
        return self.left < self.right and self.top < self.bottom

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

    @property
    def is_sound(self) -> bool:
        """Whether its radius, if one is given, is above 0."""
        return self.radius is None or self.radius > 0

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


@dataclass(frozen=True)
class Marks:
    """Several boxes or points in one image.

    Args:
        marks: At least one.
    """

    marks: tuple[Box | Point, ...]

    def mask(self, size: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
        """The largest value of any of them at every pixel, [*drawn]; see theirs."""
        masks = [mark.mask(size, drawn) for mark in self.marks]
        return np.asarray(np.maximum.reduce(masks))


Mark = Box | Point | Marks


def parse_marks(text: str, kind: type[Box | Point]) -> Box | Point | Marks:
    """Boxes or points from a cell: `[[left, top, right, bottom], ...]` or `[[x, y], [x, y, radius], ...]`.

    Args:
        text: JSON; one box or point may lack the outer brackets.
        kind: What they are.

    Raises:
        ValueError: It is none of this.
    """
    found = json.loads(text)
    if isinstance(found, list) and found and not isinstance(found[0], list):
        found = [found]
    lengths = (4,) if kind is Box else (2, 3)
    if not isinstance(found, list) or not found:
        raise ValueError("no list")
    for values in found:
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) not in lengths or not all(map(math.isfinite, values)):
            raise ValueError("wrong entries")
    marks = tuple(kind(*map(float, values)) for values in found)
    return marks[0] if len(marks) == 1 else Marks(marks)


def _covered(start: float, end: float, size: int, drawn: int) -> np.ndarray:
    """The share of each of `drawn` parts of an axis of `size` pixels that lies between two places."""
    edges = np.arange(drawn + 1) * (size / drawn)
    inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(inside / (size / drawn), 0.0, 1.0)


def _bump(middle: float, radius: float, size: int, drawn: int) -> np.ndarray:
    places = (np.arange(drawn) + 0.5) * (size / drawn) - 0.5
    return np.asarray(np.exp(-((places - middle) ** 2) / (2 * radius**2)))
