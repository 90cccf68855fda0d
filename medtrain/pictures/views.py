"""Choose what to show of a volume: the planes through the worst error, oriented as radiologists expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]
_BLOCKS = 64
_MARGIN_MM = 10.0
_MARGIN_SHARE = 0.15
_LEAST_FIELD_MM = 40.0
_ZOOM_BELOW = 0.7


@dataclass(frozen=True)
class Plane:
    """A way to cut or project a volume [D, H, W] (inferior to superior, posterior to anterior, left to right).

    Args:
        name: Name of the view.
        axis: Axis that is cut or projected.
        flip: Whether to flip the rows and the columns of the slice for display.
        letters: Anatomical directions at the top, right, bottom and left edge; empty for pictures.
    """

    name: str
    axis: int
    flip: tuple[bool, bool]
    letters: str

    def show(self, plane: np.ndarray) -> np.ndarray:
        """Orient a slice [rows, columns] for display."""
        return plane[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    def aspect(self, spacing: Sequence[float]) -> tuple[float, float]:
        """Spacing of the rows and the columns in mm."""
        rows, columns = (value for axis, value in enumerate(spacing) if axis != self.axis)
        return rows, columns


# anterior up, superior up, the patient's right on the left of the picture, anterior on the left of the sagittal view
AXIAL = Plane("axial", 0, (True, True), "ALPR")
CORONAL = Plane("coronal", 1, (True, True), "SLIR")
SAGITTAL = Plane("sagittal", 2, (True, True), "SPIA")
PROJECTION = Plane("projection", 1, (True, True), "SLIR")
PICTURE = Plane("", 0, (False, False), "")


def find_focus(label: np.ndarray, prediction: np.ndarray, valid: np.ndarray) -> tuple[int, int, int]:
    """The voxel in the middle of the densest errors; without errors, of the foreground; else of the volume.

    Voxels weigh in inverse proportion to the size of their class, so that a missed lesion counts for more than the rim
    of the organ around it, as it does for the mean Dice.

    Args:
        label: Class indices [D, H, W].
        prediction: Class indices [D, H, W].
        valid: Where the label counts [D, H, W].
    """
    for mask in (valid & (label != prediction), valid & (label > 0), prediction > 0):
        flat = np.flatnonzero(mask)
        if len(flat):
            truth, guess = label.reshape(-1)[flat].astype(np.int64), prediction.reshape(-1)[flat].astype(np.int64)
            owner = np.where(truth > 0, truth, guess)
            classes, inverse = np.unique(owner, return_inverse=True)
            sizes = [np.count_nonzero(label == c) + np.count_nonzero(prediction == c) for c in classes]
            return _densest(np.stack(np.unravel_index(flat, label.shape)), 1 / np.asarray(sizes)[inverse], label.shape)
    depth, height, width = label.shape
    return depth // 2, height // 2, width // 2


def _densest(voxels: np.ndarray, weights: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The voxel [3, N] nearest to the centre of where the smoothed density is highest."""
    steps = [-(-size // _BLOCKS) for size in shape]
    grid = tuple(-(-size // step) for size, step in zip(shape, steps))
    blocks = voxels // np.asarray(steps)[:, None]
    counts = np.bincount(np.ravel_multi_index(tuple(blocks), grid), weights, minlength=int(np.prod(grid)))
    density = ndimage.uniform_filter(counts.reshape(grid), size=3, mode="constant")
    peak = np.asarray(np.unravel_index(int(density.argmax()), grid))
    near = voxels[:, (np.abs(blocks - peak[:, None]) <= 1).all(axis=0)]
    offset = near - near.mean(axis=1, keepdims=True)
    depth, height, width = near[:, (offset**2).sum(axis=0).argmin()].tolist()
    return depth, height, width


def field_of_view(mask: np.ndarray, spacing: Sequence[float]) -> Box:
    """The box around `mask` with a margin; the whole of an axis that would be cut only a little.

    Args:
        mask: What must be seen [D, H, W].
        spacing: mm per voxel of each axis.
    """
    box: list[slice] = []
    for axis, (size, mm) in enumerate(zip(mask.shape, spacing, strict=True)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if len(hit) == 0:
            return tuple(slice(0, n) for n in mask.shape)
        low, high = int(hit[0]), int(hit[-1]) + 1
        margin = max(_MARGIN_MM, _MARGIN_SHARE * (high - low) * mm, (_LEAST_FIELD_MM - (high - low) * mm) / 2) / mm
        low, high = max(0, low - round(margin)), min(size, high + round(margin))
        whole = high - low >= _ZOOM_BELOW * size
        box.append(slice(0, size) if whole else slice(low, high))
    return tuple(box)


def window_of(image: np.ndarray) -> tuple[float, float]:
    """Grey levels shown as black and white: the 1st and 99th percentile of what is not constant padding.

    Args:
        image: One channel, any shape.
    """
    flat = image.reshape(-1)
    sample = flat[:: max(1, flat.size // 1_000_000)]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    inside = sample[sample != flat[0]]  # the corner's value: air, or zero padding
    if inside.size < 0.02 * sample.size or inside.min() == inside.max():
        inside = sample
    low, high = np.percentile(inside, (1, 99))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
