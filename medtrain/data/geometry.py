"""Resampling between voxel grids, and the way back from a network's grid to the scan's.

Resampling along the axes is linear and separable: one matrix per axis holds the 1-D spline interpolation with its
prefilter, and a volume is resampled by three matrix products. That equals `scipy.ndimage` (and so
`skimage.transform.resize(mode="edge", anti_aliasing=False)`) to float32 precision and is many times faster. Output is
made slab by slab, so the memory beside input and output stays bounded.

Conventions: grids share their outer borders, so output centre i lies at (i + 0.5) * n_in / n_out - 0.5 of the input;
outside the input the nearest value holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import ndimage

from medtrain.data.io.nifti import SourceGrid

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

ANISOTROPY_THRESHOLD = 3.0
"""Largest over smallest spacing above which the coarse axis is interpolated on its own (nnU-Net's "separate z")."""

_SLAB_BYTES = 64 * 2**20
_NEGLIGIBLE = 1e-7
_BLOCK = 64


# the axes of a few scans, both ways: a matrix is about a megabyte, and scans of other sizes need others
@functools.lru_cache(maxsize=32)
def interpolation_matrix(n_in: int, n_out: int, order: int) -> torch.Tensor:
    """The 1-D spline interpolation from n_in to n_out samples as a matrix [n_out, n_in], float32.

    Each column is scipy's answer to a unit impulse, so the spline prefilter is included. Weights below 1e-7 are
    dropped: the cubic prefilter decays by 0.27 per sample and the matrix becomes banded.

    Args:
        n_in: Samples of the input.
        n_out: Samples of the output.
        order: Degree of the spline: 0 (nearest), 1 (linear) ... 3 (cubic).
    """
    if n_in == n_out:
        return torch.eye(n_in)
    centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    if order == 0:
        # half way between two samples the upper one is taken, whatever the rounding of `centres`
        nearest = np.clip(np.floor(centres + 0.5 + 1e-9).astype(int), 0, n_in - 1)
        matrix = np.eye(n_in)[nearest]
    else:
        impulses = np.eye(n_in)
        columns = [ndimage.map_coordinates(e, [centres], order=order, mode="nearest") for e in impulses]
        matrix = np.stack(columns, axis=1)
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0.0
    return torch.from_numpy(matrix.astype(np.float32))


@functools.lru_cache(maxsize=512)
def _bands(n_in: int, n_out: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last input sample that each output sample depends on."""
    used = interpolation_matrix(n_in, n_out, order).numpy() != 0
    return used.argmax(axis=1), n_in - used[:, ::-1].argmax(axis=1)


def low_resolution_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis to be interpolated on its own because it is more than three times coarser than the finest one.

    nnU-Net's rule: the source's spacing decides, else the target's; with two equally coarse axes there is none.
    """
    for sizes in (np.asarray(spacing, dtype=float), np.asarray(target, dtype=float)):
        if sizes.max() / sizes.min() > ANISOTROPY_THRESHOLD:
            coarse = np.flatnonzero(np.isclose(sizes, sizes.max()))
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Voxels after resampling from `spacing` to `target` mm, at least one per axis."""
    d, h, w = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))
    return (d, h, w)


def nonzero_box(image: np.ndarray) -> Box:
    """The smallest box outside of which every channel of image [C, D, H, W] is zero; all of it if nothing is not."""
    present = [np.zeros(n, dtype=bool) for n in image.shape[1:]]
    for index in range(image.shape[1]):  # slice by slice: no mask of the whole scan
        plane = (image[:, index] != 0).any(axis=0)
        rows = plane.any(axis=1)
        present[0][index] = rows.any()
        present[1] |= rows
        present[2] |= plane.any(axis=0)
    if not present[0].any():
        return cast(Box, tuple((0, n) for n in image.shape[1:]))
    ends = [np.flatnonzero(along)[[0, -1]] for along in present]
    return cast(Box, tuple((int(first), int(last) + 1) for first, last in ends))


def resample_image(
    image: np.ndarray,
    shape: Sequence[int],
    *,
    order: int = 3,
    low_axis: int | None = None,
    dtype: np.dtype | type | None = None,
) -> np.ndarray:
    """Resample an image by splines.

    Args:
        image: [C, D, H, W].
        shape: Wanted (D, H, W).
        order: Degree of the spline, 0 to 3.
        low_axis: Spatial axis interpolated by the nearest sample instead, see `low_resolution_axis`.
        dtype: Type of the result; float32 if None. Integer types are rounded and clipped.

    Returns:
        [C, *shape]; the input itself where neither shape nor type changes.
    """
    kind = np.dtype(dtype or np.float32)
    if tuple(image.shape[1:]) == tuple(shape):
        return _convert(image, kind)
    out = np.empty((image.shape[0], *shape), dtype=kind)
    for channel, target in zip(image, out, strict=True):
        source = _tensor(channel)[None]

        def store(start: int, slab: torch.Tensor, target: np.ndarray = target) -> None:
            target[start : start + slab.shape[1]] = _convert(slab[0].numpy(), kind)

        _resample_slabs(source, shape, _orders(order, low_axis), store)
    return out


def resample_label(label: np.ndarray, shape: Sequence[int], *, low_axis: int | None = None) -> np.ndarray:
    """Resample class indices: linear interpolation of each class's indicator, then the largest one.

    Where the background and a class are equally large the class wins, as in nnU-Net. Each class is worked on within
    its bounding box only.

    Args:
        label: Class indices [D, H, W], 0 is the background.
        shape: Wanted (D, H, W).
        low_axis: Spatial axis interpolated by the nearest sample instead, see `low_resolution_axis`.

    Returns:
        [*shape] of the input's type.
    """
    if tuple(label.shape) == tuple(shape):
        return label
    orders = _orders(1, low_axis)
    out = np.zeros(tuple(shape), dtype=label.dtype)
    best = torch.zeros(tuple(shape))
    total = torch.zeros(tuple(shape))
    winner = torch.from_numpy(out)
    for value in np.unique(label):
        if value == 0:
            continue
        indicator = label == value
        box = _bounding_box(indicator)
        assert box is not None
        part = torch.from_numpy(indicator[_slices(box)].astype(np.float32))
        reached: list[slice] = []
        for axis, (low, high) in enumerate(box):
            rows = _affected(label.shape[axis], shape[axis], orders[axis], low, high)
            part = _contract(part, axis, label.shape[axis], orders[axis], shape[axis], rows=rows, offset=low)
            reached.append(slice(*rows))
        where = tuple(reached)
        total[where] += part
        larger = part > best[where]
        best[where] = torch.where(larger, part, best[where])
        winner[where] = torch.where(larger, torch.tensor(int(value), dtype=winner.dtype), winner[where])
    out[(1.0 - total > best).numpy()] = 0
    return out


@dataclass(frozen=True)
class CaseGeometry:
    """How a case got from its file to the network's grid, and the way back.

    Args:
        grid: The scan's grid in its file.
        crop: Box of the canonical frame that was kept, ((d0, d1), (h0, h1), (w0, w1)).
        resampled_shape: Voxels (D, H, W) of the box on the network's grid.
        spacing: Voxel size (D, H, W) in mm on the network's grid.
        low_axis: The axis interpolated on its own, or None; see `low_resolution_axis`.
    """

    grid: SourceGrid
    crop: Box
    resampled_shape: Shape
    spacing: Spacing
    low_axis: int | None

    @classmethod
    def between(cls, grid: SourceGrid, crop: Box, spacing: Sequence[float] | None) -> CaseGeometry:
        """The geometry of cropping a scan and resampling it to `spacing` mm (D, H, W); None keeps its own."""
        source = grid.spacing
        d, h, w = (float(value) for value in (source if spacing is None else spacing))
        shape = resampled_shape([high - low for low, high in crop], source, (d, h, w))
        return cls(grid, crop, shape, (d, h, w), low_resolution_axis(source, (d, h, w)))

    @classmethod
    def unchanged(cls, shape: Shape, spacing: Spacing) -> CaseGeometry:
        """The geometry of a scan of (D, H, W) voxels of a spacing in mm that is the network's grid as it is."""
        affine = np.diag([*spacing[::-1], 1.0])
        d, h, w = shape
        grid = SourceGrid(affine=tuple(tuple(float(v) for v in row) for row in affine), shape=(w, h, d))
        return cls.between(grid, ((0, d), (0, h), (0, w)), None)

    @property
    def canonical_shape(self) -> Shape:
        """Voxels (D, H, W) of the whole scan in the canonical frame."""
        return self.grid.canonical_shape

    @property
    def canonical_spacing(self) -> Spacing:
        """Voxel size (D, H, W) in mm of the scan in the canonical frame."""
        return self.grid.spacing

    @property
    def cropped_shape(self) -> Shape:
        """Voxels (D, H, W) of the kept box at the scan's own spacing."""
        d, h, w = (high - low for low, high in self.crop)
        return (d, h, w)

    def apply_image(self, image: np.ndarray, *, order: int = 3, dtype: np.dtype | type | None = None) -> np.ndarray:
        """Crop and resample a canonical image [C, D, H, W]; see `resample_image`."""
        cropped = image[(slice(None), *_slices(self.crop))]
        return resample_image(cropped, self.resampled_shape, order=order, low_axis=self.low_axis, dtype=dtype)

    def apply_label(self, label: np.ndarray) -> np.ndarray:
        """Crop and resample canonical class indices [D, H, W]; see `resample_label`."""
        return resample_label(label[_slices(self.crop)], self.resampled_shape, low_axis=self.low_axis)

    def near_label(self, label: np.ndarray) -> np.ndarray:
        """Class indices [D, H, W] of the whole scan on the network's grid, by the nearest voxel: for pictures."""
        near = []
        for (low, high), wanted in zip(self.crop, self.resampled_shape):
            at = np.floor((np.arange(wanted) + 0.5) * ((high - low) / wanted)).astype(np.int64)
            near.append(low + np.minimum(at, high - low - 1))
        return label[np.ix_(*near)]

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` restores the geometry exactly."""
        return {
            "grid": self.grid.to_json(),
            "crop": [list(side) for side in self.crop],
            "resampled_shape": list(self.resampled_shape),
            "spacing": list(self.spacing),
            "low_axis": self.low_axis,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CaseGeometry:
        """Restore a geometry from `to_json`."""
        return cls(
            grid=SourceGrid.from_json(data["grid"]),
            crop=cast(Box, tuple((int(low), int(high)) for low, high in data["crop"])),
            resampled_shape=cast(Shape, tuple(int(n) for n in data["resampled_shape"])),
            spacing=cast(Spacing, tuple(float(v) for v in data["spacing"])),
            low_axis=None if data["low_axis"] is None else int(data["low_axis"]),
        )


def _resample_slabs(
    source: torch.Tensor,
    shape: Sequence[int],
    orders: Sequence[int],
    consume: Callable[[int, torch.Tensor], None],
) -> None:
    """Resample [K, D, H, W] and hand over float32 slabs [K, s, H', W'] of output slices with their start."""
    channels, depth, height, width = source.shape
    lows, highs = _bands(depth, shape[0], orders[0])
    slice_bytes = 4 * channels * max(height, shape[1]) * max(width, shape[2])
    step = max(1, min(shape[0], _SLAB_BYTES // slice_bytes))
    # autocast would turn the products into 16-bit ones
    with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            low, high = int(lows[start:stop].min()), int(highs[start:stop].max())
            slab = source[:, low:high].to(torch.float32)
            slab = _contract(slab, 1, depth, orders[0], shape[0], rows=(start, stop), offset=low)
            slab = _contract(slab, 2, height, orders[1], shape[1])
            consume(start, _contract(slab, 3, width, orders[2], shape[2]))


def _contract(
    tensor: torch.Tensor,
    axis: int,
    n_in: int,
    order: int,
    n_out: int,
    *,
    rows: tuple[int, int] | None = None,
    offset: int = 0,
) -> torch.Tensor:
    """Interpolate one axis of a float32 tensor from n_in to n_out samples.

    Args:
        tensor: Holds the input samples from `offset` on along `axis`; those beyond its ends count as zero.
        axis: The axis to interpolate.
        n_in: Samples of the whole input axis.
        order: Degree of the spline.
        n_out: Samples of the whole output axis.
        rows: Range of output samples to make; all if None.
        offset: Index of the tensor's first sample in the whole input axis.
    """
    first, last = rows if rows is not None else (0, n_out)
    held = tensor.shape[axis]
    if n_in == n_out:
        return tensor.narrow(axis, first - offset, last - first)
    matrix = interpolation_matrix(n_in, n_out, order)
    lows, highs = _bands(n_in, n_out, order)
    before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
    columns = int(np.prod(after, dtype=np.int64))
    flat = tensor.reshape(-1, held) if columns == 1 else tensor.reshape(-1, held, columns)
    pieces: list[torch.Tensor] = []
    # a banded matrix is dense in blocks of rows: the products skip what is zero anyway
    for start in range(first, last, _BLOCK):
        stop = min(start + _BLOCK, last)
        low = max(int(lows[start:stop].min()), offset)
        high = max(min(int(highs[start:stop].max()), offset + held), low)
        block = matrix[start:stop, low:high].to(tensor.device)
        if columns == 1:
            pieces.append(flat[:, low - offset : high - offset] @ block.T)
        else:
            pieces.append(block @ flat[:, low - offset : high - offset])
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return joined.reshape(*before, last - first, *after)


def _affected(n_in: int, n_out: int, order: int, low: int, high: int) -> tuple[int, int]:
    """The range of output samples that depend on the input samples low .. high - 1."""
    if n_in == n_out:
        return low, high
    lows, highs = _bands(n_in, n_out, order)
    touched = np.flatnonzero((lows < high) & (highs > low))
    return (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)


def _orders(order: int, low_axis: int | None) -> list[int]:
    return [0 if axis == low_axis else order for axis in range(3)]


def _bounding_box(mask: np.ndarray) -> Box | None:
    sides: list[tuple[int, int]] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        sides.append((int(found[0]), int(found[-1]) + 1))
    return cast(Box, tuple(sides))


def _slices(box: Box) -> tuple[slice, slice, slice]:
    d, h, w = (slice(low, high) for low, high in box)
    return (d, h, w)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, copied only where torch cannot hold it (type, read-only, strides < 0)."""
    if array.dtype not in (np.uint8, np.int16, np.int32, np.float32, np.float16):
        array = array.astype(np.float32)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _convert(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype == dtype:
        return values
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        return np.clip(np.rint(values), info.min, info.max).astype(dtype)
    return values.astype(dtype)
