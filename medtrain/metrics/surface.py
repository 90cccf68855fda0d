"""Surface distances between two masks in mm: HD95, NSD and the average symmetric surface distance.

The surface of a mask is made of voxels: those of the mask with a face neighbour outside of it. So does MONAI, and
`hd95_mm`, `nsd` and `asd_mm` equal its `compute_hausdorff_distance(percentile=95)`, `compute_surface_dice` and
`compute_average_surface_distance(symmetric=True)` for masks that are not empty.

DeepMind's `surface-distance` (Nikolov et al. 2018) takes another surface, the elements of a mesh between the voxels,
each weighted with its area. The two agree where flat faces are shifted along their normal, and differ in three ways:

- An oblique face counts with its area there and with its number of voxels here, and where voxels are not cubes a face
  along the slices counts with more area than voxels: percentiles, shares and means shift.
- A structure one voxel thick has two faces a voxel apart there and one layer here.
- The elements of an edge lie up to half a voxel from the centre of the voxel, so that distances between edges and faces
  differ by a part of a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SURFACE_METRICS = ("hd95_mm", "nsd", "asd_mm")

_NEAR = 2000
"""Voxels around a query that are looked at one after the other, the nearest first, before anything is built."""

_BLOCK = 50
"""After so many of them the search asks itself whether to go on."""

_LOOK, _LOOK_EACH = 2.0, 0.003
"""Rough costs in microseconds: a look at a neighbour of all queries, and of one query."""

_BUILD_EACH, _ASK_EACH = 0.12, 6.0
"""The same of a tree: a point, and a query far from all of them."""

_PLANE_EACH, _ACROSS_EACH, _VOXEL_EACH = 0.02, 0.5, 0.25
"""The same of transforms: a voxel of a plane, a query across planes, and a voxel of a volume."""

_TIE = 1.0 + 1e-6
"""A distance equal to the tolerance counts as within it, whatever the rounding of spacing x index.

Spacings are lengths of the columns of a header's affine, which NIfTI stores in float32: they are off by up to 1e-7 of
themselves, more than any rounding here and less than any difference of tolerances that is meant.
"""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from every surface voxel of one mask to the nearest surface voxel of the other.

    Args:
        to_label: From the prediction's surface to the label's [N], mm, in array order.
        to_prediction: From the label's surface to the prediction's [M], mm, in array order.
    """

    to_label: np.ndarray
    to_prediction: np.ndarray


def surface_metrics(
    prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float], *, nsd_tolerance_mm: float = 1.0
) -> dict[str, float]:
    """Compute HD95, NSD and the average symmetric surface distance of one class.

    `hd95_mm` is the larger of the two directed 95th percentiles (MONAI's definition); `nsd`, the normalised surface
    distance or surface Dice, is the share of both surfaces' voxels within the tolerance of the other surface (Nikolov
    et al. 2018, MONAI's voxel form); `asd_mm` is the mean over the voxels of both surfaces.

    Empty masks: with both empty all three are NaN. With one empty no distance exists: `hd95_mm` and `asd_mm` are NaN,
    counted as undefined in summaries, and `nsd` is 0, so that the miss is not lost.

    Args:
        prediction: Mask [*S], bool.
        label: Mask [*S], bool.
        spacing: Voxel size in mm per axis, array order.
        nsd_tolerance_mm: Distance that still counts as right, >= 0.
    """
    distances = surface_distances(prediction, label, spacing)
    if distances is None:
        return {"hd95_mm": np.nan, "nsd": 0.0 if prediction.any() or label.any() else np.nan, "asd_mm": np.nan}
    both = np.concatenate([distances.to_label, distances.to_prediction])
    return {
        "hd95_mm": float(max(np.percentile(distances.to_label, 95), np.percentile(distances.to_prediction, 95))),
        "nsd": float(np.count_nonzero(both <= nsd_tolerance_mm * _TIE) / both.size),
        "asd_mm": float(both.mean()),
    }


def surface_distances(prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances | None:
    """Measure the distances between two surfaces, in mm; None if a mask is empty.

    The surface of a mask is the mask minus its erosion by face neighbours; outside the volume is background, so voxels
    at the border belong to it. Work is confined to the box around both masks.

    Args:
        prediction: Mask [*S], bool.
        label: Mask [*S], bool.
        spacing: Voxel size in mm per axis, array order.
    """
    assert prediction.shape == label.shape, f"prediction {prediction.shape}, label {label.shape}"
    assert len(spacing) == label.ndim, f"spacing {tuple(spacing)} for {label.ndim} axes"
    box, other = bounding_box(prediction), bounding_box(label)
    if box is None or other is None:
        return None
    union = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, other))
    scale = tuple(float(size) for size in spacing)
    margin = tuple(max(1, int(reach)) for reach in np.abs(_neighbours(scale)[0]).max(axis=0))
    first, second = _padded_surface(prediction[union], margin), _padded_surface(label[union], margin)
    one, two = np.flatnonzero(first), np.flatnonzero(second)
    return SurfaceDistances(_distances(one, second, two, scale, margin), _distances(two, first, one, scale, margin))


def surface(mask: np.ndarray) -> np.ndarray:
    """Mark the voxels [*S] of a bool mask that have a face neighbour outside the mask or outside the array."""
    return _inside(_padded_surface(mask, (1,) * mask.ndim), (1,) * mask.ndim)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds every true voxel, or None for an empty mask."""
    box: list[slice] = []
    while mask.ndim and mask.size:
        hits = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
        if hits.size == 0:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
        mask = np.asarray(mask[box[-1]].any(axis=0))
    return tuple(box) or None


def _padded_surface(mask: np.ndarray, margin: Sequence[int]) -> np.ndarray:
    """The surface of a mask amid a background of at least one voxel on each side."""
    padded = np.pad(mask, [(reach, reach) for reach in margin])
    flat = padded.reshape(-1)
    inner = flat.copy()
    step = 1
    for size in reversed(padded.shape):
        # Shifted along memory instead of along the axis: what wraps around is background.
        inner[step:] &= flat[:-step]
        inner[:-step] &= flat[step:]
        step *= size
    np.greater(flat, inner, out=inner)
    return inner.reshape(padded.shape)


def _inside(padded: np.ndarray, margin: Sequence[int]) -> np.ndarray:
    return padded[tuple(slice(reach, size - reach) for reach, size in zip(margin, padded.shape))]


@lru_cache(maxsize=32)
def _neighbours(scale: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest voxels of a voxel: offsets [N, ndim] and distances [N] in mm, ascending."""
    reached = sorted(scale)
    while True:
        ball = (2.0, math.pi, 4 / 3 * math.pi)[len(reached) - 1]
        radius = (_NEAR * math.prod(reached) / ball) ** (1 / len(reached))
        if radius >= reached[-1] or len(reached) == 1:
            break
        reached.pop()  # no neighbour along this axis is near: the ball is a disc
    axes = [np.arange(-int(radius / size) - 1, int(radius / size) + 2) for size in scale]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(scale))
    distances = np.sqrt(((offsets * np.asarray(scale)) ** 2).sum(axis=1))
    # All within the radius, so that the list ends with a whole shell; the first is the voxel itself.
    order = np.argsort(distances, kind="stable")[1 : np.count_nonzero(distances <= radius)]
    return offsets[order], distances[order]


def _distances(
    voxels: np.ndarray, target: np.ndarray, there: np.ndarray, scale: tuple[float, ...], margin: tuple[int, ...]
) -> np.ndarray:
    """Distance of each voxel of a surface to the nearest of another, exact by every method.

    Args:
        voxels: Flat indices [N] of the one in the padded volume.
        target: The other, padded.
        there: Its flat indices [M].
        scale: Spacing in mm.
        margin: Of the padding, per axis.
    """
    distances = np.zeros(voxels.size)
    plane = _square_plane(scale)

    def cost(queries: int) -> tuple[float, str]:
        tree = _BUILD_EACH * there.size + _ASK_EACH * queries
        transform = target.size * _VOXEL_EACH
        if plane is not None:
            transform = target.size * _PLANE_EACH + queries * _ACROSS_EACH
        return min((tree, "tree"), (transform, "transform"))

    # Voxels that both surfaces share are at distance 0 and need no search; good predictions share most.
    left = np.flatnonzero(~target.reshape(-1)[voxels])
    left = _look_around(target, voxels, left, distances, scale, lambda queries: cost(queries)[0])
    if left.size == 0:
        return distances
    if cost(left.size)[1] == "tree":
        # A tree over the surface, not a transform of the volume: tens of times faster for the surfaces of organs.
        # Sliding-midpoint splits build faster and serve queries far from the surface better than balanced ones.
        from scipy.spatial import cKDTree  # here, because SciPy takes most of a second to import

        points, queries = (_places(flat, target.shape) * np.asarray(scale) for flat in (there, voxels[left]))
        distances[left] = cKDTree(points, balanced_tree=False, compact_nodes=False).query(queries)[0]
        return distances
    # Scattered noise (early training) has surfaces as large as the volume.
    inner, places = _inside(target, margin), _places(voxels[left], target.shape) - margin
    if plane is not None:
        distances[left] = _through_planes(inner, places, scale, plane)
    else:
        from scipy import ndimage

        distances[left] = ndimage.distance_transform_edt(~inner, sampling=scale)[tuple(places.T)]
    return distances


def _places(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Indices [N, ndim] of flat indices [N]."""
    return np.stack(np.unravel_index(flat, shape), axis=1)


def _look_around(
    target: np.ndarray,
    voxels: np.ndarray,
    left: np.ndarray,
    distances: np.ndarray,
    scale: tuple[float, ...],
    cost: Callable[[int], float],
) -> np.ndarray:
    """Find what is near by looking at one neighbour after the other, the nearest first.

    Args:
        target: Padded surface.
        voxels: Flat indices of all queries [N].
        left: Which of them to serve.
        distances: Of all queries [N]; those found are written.
        scale: Spacing in mm.
        cost: Microseconds that so many queries take otherwise.

    Returns:
        Which are left: the search ends where going on at the pace of the last block costs more.
    """
    offsets, reaches = _neighbours(scale)
    steps = np.cumprod([1, *target.shape[:0:-1]])[::-1]
    flat = target.reshape(-1)
    queries = voxels[left]
    before = left.size
    if before == 0:
        return left
    for count, (shift, reach) in enumerate(zip((offsets @ steps).tolist(), reaches.tolist(), strict=True), start=1):
        found = flat[queries + shift]
        if found.any():
            distances[left[found]] = reach
            kept = ~found
            left, queries = left[kept], queries[kept]
        if left.size == 0:
            break
        if count % _BLOCK == 0:
            share = (before - left.size) / before
            to_go = _BLOCK * (_LOOK * math.log(left.size + 1) + _LOOK_EACH * left.size)
            if to_go > share * cost(left.size):
                break
            before = left.size
    return left


def _square_plane(scale: tuple[float, ...]) -> tuple[int, int] | None:
    """Two axes with equal spacing, the last ones first; None where there are none."""
    for first, second in ((-2, -1), (-3, -1), (-3, -2)):
        if -first <= len(scale) and math.isclose(scale[first], scale[second], rel_tol=1e-6):
            return first % len(scale), second % len(scale)
    return None


def _through_planes(
    target: np.ndarray, places: np.ndarray, scale: tuple[float, ...], plane: tuple[int, int]
) -> np.ndarray:
    """Distances [N] of voxels at places [N, ndim]: transforms of planes, and a search across them.

    OpenCV transforms planes of square pixels exactly (Felzenszwalb and Huttenlocher 2012); across the planes only the
    voxels asked for are searched, away from their plane until nothing nearer can come.
    """
    import cv2

    if target.ndim == 2:
        target, places, scale = target[None], np.insert(places, 0, 0, axis=1), (1.0, *scale)
        plane = (1, 2)
    (across,) = {0, 1, 2} - set(plane)
    stack = np.moveaxis(target, across, 0)
    squares = np.full(stack.shape, np.inf, dtype=np.float32)
    for number, slab in enumerate(stack):
        if slab.any():
            far = np.ascontiguousarray(~slab).view(np.uint8)
            squares[number] = np.rint(cv2.distanceTransform(far, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) ** 2)
    # Lines across the planes are contiguous, and served one after the other, to stay in the cache.
    depth = len(stack)
    lines = np.ascontiguousarray(squares.transpose(1, 2, 0)).reshape(-1)
    at = (places[:, plane[0]] * stack.shape[2] + places[:, plane[1]]) * depth + places[:, across]
    order = np.argsort(at)
    at, index = at[order], places[order, across]
    unit, size = scale[plane[0]] ** 2, scale[across]
    best = lines[at].astype(np.float64) * unit
    active = np.arange(at.size)
    for step in range(1, depth):
        active = active[best[active] > (step * size) ** 2]
        if active.size == 0:
            break
        for shift, valid in ((-step, index[active] >= step), (step, index[active] < depth - step)):
            some = active[valid]
            best[some] = np.minimum(best[some], lines[at[some] + shift] * np.float64(unit) + (step * size) ** 2)
    distances = np.empty(at.size)
    distances[order] = np.sqrt(best)
    return distances
