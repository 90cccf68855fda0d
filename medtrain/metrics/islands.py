"""Components that a lower threshold shows and no higher one has touched, found in memory that follows their voxels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medtrain.metrics.certainty import FLOOR, at_least

THRESHOLDS = (1 / 4, 1 / 8, FLOOR)
"""Below that of the prediction, one after the other."""

_MOST_VOXELS = 4_000_000
"""Of a threshold that is taken: about 600 MB while they are connected."""


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
        voxels = np.nonzero(new)
        if len(voxels[0]):
            number = _number_apart(voxels, above)
            apart = number > 0
            yield _islands(tuple(c[apart] for c in voxels), number[apart], certainty)
        above |= new


def _islands(voxels: tuple[np.ndarray, ...], number: np.ndarray, certainty: np.ndarray) -> Islands:
    highest = np.zeros(int(number.max(initial=0)) + 1, dtype=np.uint8)
    np.maximum.at(highest, number, certainty[voxels])
    return Islands(voxels, number, highest[1:])


def _number_apart(voxels: tuple[np.ndarray, ...], above: np.ndarray) -> np.ndarray:
    """Number the components of voxels, in array order; 0 for those that touch a mask.

    Args:
        voxels: In array order.
        above: The mask, which holds none of them.
    """
    from scipy import sparse  # here, because SciPy takes most of a second to import

    shape = above.shape
    flat = np.ravel_multi_index(voxels, shape)
    touches = np.zeros(len(flat), dtype=bool)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for offset in itertools.product((-1, 0, 1), repeat=above.ndim):
        if not any(offset):
            continue
        inside = np.all([(c + o >= 0) & (c + o < n) for c, o, n in zip(voxels, offset, shape)], axis=0)
        (from_,) = np.nonzero(inside)
        place = tuple(c[from_] + o for c, o in zip(voxels, offset))
        touches[from_] |= above[place]
        if offset > (0,) * above.ndim:  # each pair once
            wanted = np.ravel_multi_index(place, shape)
            at = np.minimum(np.searchsorted(flat, wanted), len(flat) - 1)
            same = flat[at] == wanted
            pairs.append((from_[same].astype(np.int32), at[same].astype(np.int32)))
    rows, columns = (np.concatenate(side) for side in zip(*pairs))
    graph = sparse.coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(flat),) * 2)
    count, component = sparse.csgraph.connected_components(graph, directed=False)
    free = np.bincount(component, weights=touches, minlength=count) == 0
    names = np.where(free, np.cumsum(free), 0)
    return names[component]
