"""Mistakes put into the hints of a cascade, so that the network does not learn to copy them: nnU-Net's rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_MORPH_P = 0.4
_RADIUS = (1, 8)
_REMOVE_P = 0.2
_LARGEST_SHARE = 0.15
"""Components that cover more of a patch than this stay."""


def disturb(hints: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grow, shrink, open or close structures of a label map, and leave some components out.

    With probability 0.4 every structure is dilated, eroded, opened or closed by a ball of 1 to 8 voxels; what grows
    takes the place of others. With probability 0.2 one component of every structure is removed.

    Args:
        hints: Class indices [D, H, W]; not changed.
        rng: Always asked for the same number of draws.

    Returns:
        A new map, or `hints` itself where nothing was drawn.
    """
    morph, remove = rng.random(2)
    seed = int(rng.integers(2**63))  # what follows depends on the map, and must not shift other draws
    if morph >= _MORPH_P and remove >= _REMOVE_P:
        return hints
    inner = np.random.Generator(np.random.Philox(seed))
    changed = hints.copy()
    classes = [int(index) for index in np.unique(hints) if index > 0]
    if morph < _MORPH_P:
        for index in inner.permutation(classes):
            _morph(changed, int(index), inner)
    if remove < _REMOVE_P:
        for index in classes:
            _remove(changed, index, inner)
    return changed


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Voxels within `radius` voxels of the mask."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)


def erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """Voxels more than `radius` voxels inside of the mask, which goes on beyond the border."""
    if mask.all():
        return mask
    return np.asarray(ndimage.distance_transform_edt(mask) > radius)


def _morph(hints: np.ndarray, index: int, rng: np.random.Generator) -> None:
    radius = int(rng.integers(_RADIUS[0], _RADIUS[1] + 1))
    steps: Sequence[str] = ("d", "e", "de", "ed")[int(rng.integers(4))]
    mask = before = hints == index
    for step in steps:
        mask = dilate(mask, radius) if step == "d" else erode(mask, radius)
    hints[before & ~mask] = 0
    hints[mask & ~before] = index


def _remove(hints: np.ndarray, index: int, rng: np.random.Generator) -> None:
    components, count = ndimage.label(hints == index, structure=np.ones((3,) * hints.ndim, dtype=bool))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    small = [number for number in range(1, count + 1) if sizes[number] < _LARGEST_SHARE * hints.size]
    if small:
        hints[components == small[int(rng.integers(len(small)))]] = 0
