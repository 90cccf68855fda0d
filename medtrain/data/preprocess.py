"""From a scan to network input: crop, resample, normalise. The store and the predictor take the same way.

Stored images are not normalised: what normalisation needs of the training part changes with the split. It is an
affine map of the intensities (after clipping), so it commutes with resampling and is applied to patches as they are
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medtrain.data.geometry import CaseGeometry, nonzero_box, resample_label
from medtrain.data.io.nifti import Volume
from medtrain.data.plan import ChannelNormalization

_CONSTANT = 1e-8


@dataclass(frozen=True)
class ChannelStats:
    """Mean and standard deviation of one channel of one case, over the region that zscore uses."""

    mean: float
    std: float


@dataclass(frozen=True)
class PreparedImage:
    """A scan on the network's grid, its intensities as they were.

    Args:
        array: [C, D, H, W], int16 or uint8 where the scan's numbers are whole, else float32.
        body: Whether a voxel is inside the body, bool [D, H, W]; None where everything is, or nobody asked.
        stats: One entry per channel, for zscore.
        geometry: The way back to the scan's own grid.
    """

    array: np.ndarray
    body: np.ndarray | None
    stats: tuple[ChannelStats, ...]
    geometry: CaseGeometry

    def normalized(self, normalization: Sequence[ChannelNormalization]) -> np.ndarray:
        """Network input, float32 [C, D, H, W]; see `normalize`."""
        return normalize(self.array, self.stats, normalization, self.body)


def prepare_image(volume: Volume, spacing: Sequence[float], *, nonzero: bool = False) -> PreparedImage:
    """Crop a scan to where it is not zero and resample it by cubic splines.

    Args:
        volume: The scan as read, [C, D, H, W].
        spacing: Voxel size in mm to resample to: D, H, W, or H, W to keep the scan's own slices.
        nonzero: Find the body (what is not zero outside, holes filled) and take the statistics over it.
    """
    target = (volume.spacing[0], *spacing) if len(spacing) == 2 else tuple(spacing)
    geometry = CaseGeometry.between(volume.grid, nonzero_box(volume.array), target)
    (d0, d1), (h0, h1), (w0, w1) = geometry.crop
    cropped = volume.array[:, d0:d1, h0:h1, w0:w1]
    body = body_mask(cropped) if nonzero else None
    stats = tuple(channel_stats(channel, body) for channel in cropped)
    array = geometry.apply_image(volume.array, dtype=_stored_dtype(volume.array, geometry))
    if body is not None:
        body = None if body.all() else resample_mask(body, geometry)
    return PreparedImage(array=array, body=body, stats=stats, geometry=geometry)


def normalize(
    array: np.ndarray,
    stats: Sequence[ChannelStats],
    normalization: Sequence[ChannelNormalization],
    body: np.ndarray | None = None,
) -> np.ndarray:
    """Turn intensities into network input.

    A channel without contrast (standard deviation 0) becomes 0 everywhere.

    Args:
        array: [C, ...] as stored.
        stats: Statistics of the whole case, one entry per channel (used by zscore).
        normalization: The plan's entry per channel.
        body: bool [...]; where it is False, channels with `nonzero` become 0. None: everything is inside.

    Returns:
        float32 [C, ...], a new array.
    """
    assert len(array) == len(stats) == len(normalization), (array.shape, len(stats), len(normalization))
    out = array.astype(np.float32)
    for channel, stat, scheme in zip(out, stats, normalization, strict=True):
        if scheme.scheme == "none":
            continue
        if scheme.scheme == "ct":
            np.clip(channel, scheme.lower, scheme.upper, out=channel)
        mean, std = (scheme.mean, scheme.std) if scheme.scheme == "ct" else (stat.mean, stat.std)
        channel -= np.float32(mean)
        channel *= np.float32(1 / std if std > _CONSTANT * max(1.0, abs(mean)) else 0.0)
        if scheme.nonzero and body is not None:
            channel[~body] = 0
    return out


def channel_stats(channel: np.ndarray, body: np.ndarray | None = None) -> ChannelStats:
    """Mean and standard deviation in float64, slice by slice so that no large copy is made.

    Args:
        channel: [D, H, W].
        body: bool [D, H, W] to restrict to, or None.
    """
    count = channel.size if body is None else int(body.sum())
    if count == 0:
        return ChannelStats(0.0, 0.0)
    slices = [channel[i] if body is None else channel[i][body[i]] for i in range(len(channel))]
    mean = sum(float(part.sum(dtype=np.float64)) for part in slices) / count
    squares = sum(float(np.square(part - np.float64(mean)).sum()) for part in slices)
    return ChannelStats(mean, float(np.sqrt(squares / count)))


def body_mask(image: np.ndarray) -> np.ndarray:
    """What lies inside the body: some channel is not zero, or it is enclosed by such voxels; bool [D, H, W]."""
    present = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        present |= channel != 0
    if present.all():
        return present
    # equal to scipy.ndimage.binary_fill_holes, which iterates and takes minutes on a large scan
    empty, count = ndimage.label(~present)
    faces = [empty.take(side, axis=axis) for axis in range(3) for side in (0, -1)]
    outside = np.zeros(count + 1, dtype=bool)
    outside[np.unique(np.concatenate([face.ravel() for face in faces]))] = True
    outside[0] = False
    return ~outside[empty]


def resample_mask(mask: np.ndarray, geometry: CaseGeometry) -> np.ndarray:
    """Bring a mask of the cropped scan to the network's grid."""
    low_axis = geometry.low_axis
    return resample_label(mask.astype(np.uint8), geometry.resampled_shape, low_axis=low_axis).astype(bool)


def _stored_dtype(image: np.ndarray, geometry: CaseGeometry) -> np.dtype[Any]:
    """Whole numbers stay whole: rounding after the splines loses less than the scanner's own rounding did."""
    if image.dtype.kind == "f":
        return np.dtype(np.float32)
    # splines overshoot, below 0 too
    return image.dtype if geometry.resampled_shape == geometry.cropped_shape else np.dtype(np.int16)
