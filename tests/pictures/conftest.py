"""Where things are in a picture."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest

Has = Callable[..., bool]


def mask_of(pixels: np.ndarray, color: str | tuple[int, int, int], tolerance: int = 2) -> np.ndarray:
    """Where a picture has a colour; bool [H, W]."""
    wanted = np.array(color if not isinstance(color, str) else [round(255 * v) for v in mpl.colors.to_rgb(color)])
    return (np.abs(pixels.astype(int) - wanted) <= tolerance).all(axis=-1)


@pytest.fixture
def find() -> Callable[..., np.ndarray]:
    """Where a picture has a colour."""
    return mask_of


@pytest.fixture
def runs() -> Callable[[np.ndarray], int]:
    """In how many separate rows there is something."""

    def count(ink: np.ndarray) -> int:
        return int((np.diff(ink.any(axis=1).astype(int), prepend=0) == 1).sum())

    return count
