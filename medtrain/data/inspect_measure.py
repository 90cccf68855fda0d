"""Measure one labelled case: what can be compared with the same of all others."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from medtrain.data.io.nifti import Volume

GRID = 16
"""Cells per axis of the thumbnails by which cases are laid over each other."""

_SAMPLE_VOXELS = 2_000_000
_LABELLED_VOXELS = 30_000_000  # connected components of larger boxes are found on every other voxel
_SHELL_VOXELS = 4_000_000
_SHELL_STEPS = 2
_MOST_MAPS = 8
FACES = (("inferior", "superior"), ("posterior", "anterior"), ("left", "right"))
"""Names of the two ends of D, H and W."""


@dataclass(frozen=True)
class ClassMeasure:
    """One class in one case.

    Args:
        voxels: Number.
        volume_ml: Millilitres.
        centre: Of mass, as shares of the scan's extent (D, H, W): 0 inferior, posterior, left; 1 the other ends.
        reach: Standard deviation of its voxels' places, in mm (D, H, W).
        components: Connected parts, corners touching.
        largest: Share of the voxels that lie in the largest part.
        borders: Faces of the scan that it touches, from `FACES`.
        level: Mean intensity of the first channel: 0 at the scan's 1st percentile, 1 at its 99th.
        variation: Standard deviation of its intensities, in the same units.
        contrast: Mean intensity inside minus that of a shell of 2 voxels around, in the same units; NaN without one.
    """

    voxels: int
    volume_ml: float
    centre: tuple[float, float, float]
    reach: tuple[float, float, float]
    components: int
    largest: float
    borders: tuple[str, ...]
    level: float
    variation: float
    contrast: float


@dataclass(frozen=True)
class CaseMeasure:
    """What is compared of a case.

    Args:
        case_id: The case.
        shape: Voxels (D, H, W).
        spacing: mm (D, H, W).
        orientation: Where the file's axes point to, such as "RAS".
        percentiles: 1st, 50th and 99th of each channel.
        classes: By class index; those without a voxel are missing.
        ignored: Voxels that nobody annotated.
        digest: Of the image's voxels.
        thumbnail: First channel, brought to `GRID` cells per axis, mean 0 and deviation 1 [GRID^3].
        occupancy: Share of each class in these cells [K, GRID^3]; of more than 8 classes every eighth together.
    """

    case_id: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    percentiles: tuple[tuple[float, float, float], ...]
    classes: dict[int, ClassMeasure]
    ignored: int
    digest: str
    thumbnail: np.ndarray = field(repr=False)
    occupancy: np.ndarray = field(repr=False)

    @property
    def extent(self) -> tuple[float, float, float]:
        """Of the scan, in mm (D, H, W)."""
        d, h, w = (n * mm for n, mm in zip(self.shape, self.spacing))
        return d, h, w


def measure_case(case_id: str, image: Volume, classes: np.ndarray, num_classes: int) -> CaseMeasure:
    """Measure a case.

    Args:
        case_id: Its name.
        image: [C, D, H, W].
        classes: Class indices [D, H, W]; values from num_classes on are ignored.
        num_classes: Number of classes, with the background.
    """
    percentiles = tuple(_percentiles(channel) for channel in image.array)
    low, _, high = percentiles[0]
    span = max(high - low, 1e-6 * max(abs(high), abs(low), 1.0))
    first = image.array[0]
    found: dict[int, ClassMeasure] = {}
    ignored = 0
    for index, box in enumerate(ndimage.find_objects(classes), start=1):
        if box is None:
            continue
        if index >= num_classes:
            ignored += int((classes[box] == index).sum())
        else:
            found[index] = _measure_class(first, classes, index, box, image.spacing, low, span)
    d, h, w = classes.shape
    state = hashlib.blake2b(repr(image.array.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(image.array).data)
    return CaseMeasure(
        case_id=case_id,
        shape=(d, h, w),
        spacing=image.spacing,
        orientation=image.grid.axis_codes,
        percentiles=percentiles,
        classes=found,
        ignored=ignored,
        digest=state.hexdigest(),
        thumbnail=_standardize(_cells(np.clip(_sparse(first), low, high))),
        occupancy=_occupancy(_sparse(classes), num_classes),
    )


def _measure_class(
    image: np.ndarray,
    classes: np.ndarray,
    index: int,
    box: tuple[slice, ...],
    spacing: tuple[float, float, float],
    low: float,
    span: float,
) -> ClassMeasure:
    mask = classes[box] == index
    voxels = int(np.count_nonzero(mask))
    values = image[box][mask]
    inside = float(values.mean(dtype=np.float64))
    variation = math.sqrt(float(np.square(values - np.float32(inside)).mean(dtype=np.float64)))
    components, largest = _components(mask)
    borders = [
        name
        for side, n, faces in zip(box, classes.shape, FACES)
        for name, touches in zip(faces, (side.start == 0, side.stop == n))
        if touches and n > 1
    ]
    places = [_place(mask, axis) for axis in range(3)]
    d, h, w = ((box[axis].start + mean) / classes.shape[axis] for axis, (mean, _) in enumerate(places))
    reach = [deviation * mm for (_, deviation), mm in zip(places, spacing)]
    shell = _shell_mean(image, classes, index, box)
    return ClassMeasure(
        voxels=voxels,
        volume_ml=voxels * float(np.prod(spacing)) / 1000,
        centre=(d, h, w),
        reach=(reach[0], reach[1], reach[2]),
        components=components,
        largest=largest,
        borders=tuple(borders),
        level=(inside - low) / span,
        variation=variation / span,
        contrast=(inside - shell) / span,
    )


def _place(mask: np.ndarray, axis: int) -> tuple[float, float]:
    """Mean and standard deviation of the voxels' places along an axis, in voxels from the beginning of the mask."""
    counts = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    at = np.arange(len(counts)) + 0.5
    mean = float(counts @ at / counts.sum())
    return mean, math.sqrt(float(counts @ np.square(at - mean) / counts.sum()) + 1 / 12)  # a voxel has a width


def _components(mask: np.ndarray) -> tuple[int, float]:
    if mask.size > _LABELLED_VOXELS:
        mask = mask[::2, ::2, ::2]
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count == 0:
        return 1, 1.0  # what falls between every other voxel
    sizes = np.bincount(parts.reshape(-1))[1:]
    return int(count), float(sizes.max() / sizes.sum())


def _shell_mean(image: np.ndarray, classes: np.ndarray, index: int, box: tuple[slice, ...]) -> float:
    """Mean intensity of what lies just outside of a class; NaN where there is nothing.

    Of a class in a large box only every so manieth voxel is looked at.
    """
    size = float(np.prod([side.stop - side.start for side in box]))
    step = max(1, round((size / _SHELL_VOXELS) ** (1 / 3)))
    reach = _SHELL_STEPS * step
    wide = tuple(
        slice(max(0, side.start - reach), min(n, side.stop + reach), step) for side, n in zip(box, classes.shape)
    )
    mask = classes[wide] == index
    shell = ndimage.binary_dilation(mask, iterations=_SHELL_STEPS) & ~mask
    return float(image[wide][shell].mean(dtype=np.float64)) if shell.any() else math.nan


def _percentiles(channel: np.ndarray) -> tuple[float, float, float]:
    flat = channel.reshape(-1)
    low, middle, high = np.percentile(flat[:: max(1, flat.size // _SAMPLE_VOXELS)], (1, 50, 99))
    return float(low), float(middle), float(high)


def _sparse(array: np.ndarray) -> np.ndarray:
    """At most about 4 voxels per cell and axis."""
    return array[tuple(slice(None, None, max(1, n // (4 * GRID))) for n in array.shape)]


def _cells(array: np.ndarray) -> np.ndarray:
    """Means over `GRID` cells per axis [GRID, GRID, GRID]; float32."""
    for axis, n in enumerate(array.shape):
        edges = np.linspace(0, n, GRID + 1)
        starts = np.minimum(edges[:-1].astype(np.int64), n - 1)
        counts = np.maximum(np.diff(np.append(starts, n)), 1)
        if n < GRID:
            array = array.take(starts, axis=axis)
            continue
        shape = [1, 1, 1]
        shape[axis] = GRID
        array = np.add.reduceat(array, starts, axis=axis, dtype=np.float32) / counts.reshape(shape).astype(np.float32)
    return np.asarray(array, np.float32)


def _occupancy(classes: np.ndarray, num_classes: int) -> np.ndarray:
    groups = min(num_classes - 1, _MOST_MAPS)
    group = np.where((classes > 0) & (classes < num_classes), (classes.astype(np.int16) - 1) % groups, -1)
    return np.stack([_cells(group == index) for index in range(groups)]).astype(np.float16)


def _standardize(cells: np.ndarray) -> np.ndarray:
    deviation = float(cells.std())
    return np.asarray((cells - cells.mean()) / deviation if deviation > 0 else cells * 0, np.float32)
