"""Components that a lower threshold shows and no higher one has touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medtrain.metrics.certainty import FLOOR, at_least
from medtrain.metrics.surface import bounding_box

THRESHOLDS = (1 / 4, 1 / 8, FLOOR)
"""Below that of the prediction, one after the other."""

_MOST_VOXELS = 1_000_000
"""That a threshold may add: beyond, the network has hardly been trained, and finds specks by the thousand."""


@dataclass(frozen=True)
class Islands:
    """The islands of one threshold.

    Args:
        voxels: Coordinates of their voxels along each axis, [N] each.
        number: Which island each belongs to [N], from 1.
        highest: Highest byte within each island [M].
    """

    voxels: tuple[np.ndarray, ...]
    number: np.ndarray
    highest: np.ndarray


def find_islands(prediction: np.ndarray, certainty: np.ndarray) -> Iterator[Islands]:
    """The components of every threshold that touch neither the prediction nor those of higher thresholds.

    Takes less than ten bytes per voxel of the scan.

    Args:
        prediction: Mask [*S], bool; not changed.
        certainty: Bytes [*S], see `medtrain.metrics.certainty`.
    """
    above = prediction.copy()
    for threshold in THRESHOLDS:
        new = certainty >= at_least(threshold)
        new &= ~above
        if np.count_nonzero(new) > _MOST_VOXELS:
            return
        if (box := bounding_box(new)) is not None:
            yield _number_apart(new, above, box, certainty)
        above |= new


def _number_apart(new: np.ndarray, above: np.ndarray, box: tuple[slice, ...], certainty: np.ndarray) -> Islands:
    """Number the components of a mask, in array order, without those that touch another mask.

    Args:
        new: The mask [*S].
        above: The other one [*S], which shares no voxel with it.
        box: Around the mask.
        certainty: Bytes [*S].
    """
    from scipy import ndimage  # here, because SciPy takes most of a second to import

    wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)  # to see what is touched
    parts, count = ndimage.label(new[wide] | above[wide], structure=np.ones((3,) * new.ndim, dtype=bool))
    free = np.ones(count + 1, dtype=bool)
    free[parts[above[wide]]] = False
    free[0] = False
    names = np.where(free, np.cumsum(free), 0)
    places = np.nonzero(new[wide])
    number = names[parts[places]]
    apart = number > 0
    voxels = tuple(place[apart] + side.start for place, side in zip(places, wide, strict=True))
    highest = np.zeros(int(free.sum()) + 1, dtype=np.uint8)
    np.maximum.at(highest, number[apart], certainty[voxels])
    return Islands(voxels, number[apart], highest[1:])
