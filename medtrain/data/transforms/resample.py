"""Affine resampling of a group of reads of different sizes into patches of one size.

Sample points are p -> M (p - (P-1)/2) + (R-1)/2, with voxel centres at whole numbers: the centre of the patch (P)
lies on the centre of the read (R). The reads of a group are laid one after the other in one flat vector, so they
need no common size, and image and labels share one set of sample points. A CPU resamples one read at a time, see
`medtrain.data.transforms.cpu`.

Images are interpolated linearly, as nnU-Net does. Labels get the class with the largest linear weight, which is the
argmax of the linearly interpolated one-hot label (nnU-Net's rule too) without ever building the one-hot: at most
2^dims voxels have a weight, so their classes are compared with each other and the cost does not grow with the number
of classes. It is preferred to nearest neighbour because the boundary then is smooth, not a staircase of rotated voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medtrain.data.transforms.base import to_device


def is_on_voxels(row: np.ndarray, axis: int) -> bool:
    """Whether a row of a matrix only keeps or flips its own axis, so that every point lies on a voxel along it."""
    return abs(row[axis]) == 1.0 and np.count_nonzero(row) == 1


@dataclass(frozen=True)
class _Points:
    """Where the voxels of some rows of the patches lie in their reads.

    Args:
        lower: Flat index, within a read, of the voxel at the lower corner of each point's cell, [S, *P].
        weights: Per interpolated axis, the weight in [0, 1] of the cell's upper side, broadcastable to [S, *P].
    """

    lower: Tensor
    weights: tuple[Tensor, ...]


class Resampler:
    """A group of S reads and the matrices that map patches into them.

    Args:
        images: Float reads [C, *R], each of its own size R, large enough for its matrix (see `spatial.read_size`).
        labels: Integer reads [*R].
        matrices: From patch to read coordinates, [dims, dims] each.
        patch_size: Shape P of the patches.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        matrices: Sequence[np.ndarray],
        patch_size: Sequence[int],
    ) -> None:
        self._patch_size = tuple(patch_size)
        self._dims = dims = len(patch_size)
        self._matrices = matrices
        self._sizes = np.array([label.shape for label in labels])
        self._device = labels[0].device
        # Along the other axes every point of every sample is on a voxel: no interpolation, half the corners.
        self._axes = tuple(k for k in range(dims) if not all(is_on_voxels(m[k], k) for m in matrices))

        voxels, channels = self._sizes.prod(axis=1), images[0].shape[0]
        self._integer = torch.int32 if channels * voxels.sum() < 2**31 else torch.int64
        strides = np.stack([self._sizes[:, k + 1 :].prod(axis=1) for k in range(dims)])
        self._strides = self._columns(strides).to(self._integer)
        self._last = self._columns(self._sizes.T.astype(np.float32) - 1)
        self._image, self._label = _join(images), _join(labels)
        self._image_starts = self._starts(voxels, channels)
        self._label_starts = self._starts(voxels, 1)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Resample the rows start to stop of the patches' first axis.

        Returns:
            Image [S, C, stop - start, ...] and label [S, stop - start, ...].
        """
        points = self._locate(start, stop)
        return self._interpolate(points), self._choose_labels(points)

    def _columns(self, table: np.ndarray) -> Tensor:
        """A table [dims, S] on the device, as [dims, S, 1, ...] to broadcast over patches."""
        return to_device(np.ascontiguousarray(table), self._device).view(*table.shape, *[1] * self._dims)

    def _starts(self, voxels: np.ndarray, channels: int) -> Tensor:
        """Flat index of each read's channels in the joined vector, [S, channels, 1, ...]."""
        first = np.concatenate(([0], np.cumsum(voxels * channels)[:-1]))
        starts = first[:, None] + voxels[:, None] * np.arange(channels)
        return self._columns(starts).to(self._integer)

    def _locate(self, start: int, stop: int) -> _Points:
        lines = self._lines(start, stop)
        lower, weights = torch.zeros((), dtype=self._integer, device=self._device), []
        for k in range(self._dims):
            point = lines[k][0]
            for line in lines[k][1:]:
                point = point + line
            # Rounding may put a point 1e-5 outside the read; the last cell is [last - 1, last].
            point = torch.minimum(point.clamp_(min=0.0), self._last[k], out=point)
            cell = point.floor()
            if k in self._axes:
                cell = torch.minimum(cell, self._last[k] - 1, out=cell)
                weights.append(point.sub_(cell))
            lower = lower + cell.to(self._integer) * self._strides[k]
        shape = (len(self._sizes), stop - start, *self._patch_size[1:])
        return _Points(lower.expand(shape).contiguous(), tuple(weights))

    def _lines(self, start: int, stop: int) -> list[list[Tensor]]:
        """The terms M[k, j] (p_j - (P_j-1)/2) of each axis k, [S, 1, p_j, 1]; the first also holds (R_k-1)/2.

        They are computed in float64 and moved in one copy: a rotation by 90 degrees then hits voxels exactly.
        """
        ramps = [np.arange(length) - (length - 1) / 2 for length in self._patch_size]
        ramps[0] = ramps[0][start:stop]
        tables, places = [], []
        for k in range(self._dims):
            centre = (self._sizes[:, k, None] - 1) / 2
            for j, ramp in enumerate(ramps):
                factors = np.array([matrix[k, j] for matrix in self._matrices])
                if factors.any():
                    tables.append(factors[:, None] * ramp + centre)
                    places.append((k, j))
                    centre = np.zeros_like(centre)
        packed = to_device(np.concatenate(tables, axis=1).astype(np.float32), self._device)
        lines: list[list[Tensor]] = [[] for _ in range(self._dims)]
        for (k, j), piece in zip(places, packed.split([table.shape[1] for table in tables], dim=1)):
            lines[k].append(piece.reshape(len(self._matrices), *[-1 if axis == j else 1 for axis in range(self._dims)]))
        return lines

    def _interpolate(self, points: _Points) -> Tensor:
        def within(corner: Tensor, level: int) -> Tensor:
            if level == len(self._axes):
                return self._image.index_select(0, corner.view(-1)).view(corner.shape)
            below = within(corner, level + 1)
            above = within(corner + self._strides[self._axes[level]].unsqueeze(1), level + 1)
            return below.lerp_(above, points.weights[level].unsqueeze(1))

        return within(points.lower.unsqueeze(1) + self._image_starts, 0)

    def _choose_labels(self, points: _Points) -> Tensor:
        shape = points.lower.shape
        index = (points.lower + self._label_starts.squeeze(1)).view(-1)
        weights = [weight.expand(shape).reshape(-1) for weight in points.weights]
        per_sample = math.prod(shape[1:])
        if not self._axes:
            return self._label.index_select(0, index).view(shape)
        # finding the cells with several classes would make the host wait for an accelerator
        sample = torch.arange(index.numel(), device=self._device) // per_sample
        return self._vote(index, weights, sample).view(shape)

    def _vote(self, index: Tensor, weights: Sequence[Tensor], sample: Tensor) -> Tensor:
        """The class with the largest sum of corner weights, of N points.

        Of classes with equal weight the one met first wins, corners taken in array order.

        Args:
            index: Lower corner of each point's cell in the joined labels, [N].
            weights: Of the cell's upper side along each interpolated axis, [N] each.
            sample: Position in the group of the read of each point, [N].
        """
        corners, shares = index[None], torch.ones((1, 1), device=index.device)
        for k, weight in zip(reversed(self._axes), reversed(weights)):
            corners = torch.cat([corners, corners + self._strides[k].view(-1).index_select(0, sample)])
            shares = torch.cat([shares * (1 - weight), shares * weight])
        classes = self._label.index_select(0, corners.view(-1)).view(corners.shape)  # [2^axes, N]
        numbers, agrees = classes.float(), torch.empty_like(shares)  # comparing into float32 memory is fastest
        winner, best = classes[0], torch.zeros_like(shares[0])
        for candidate, number in zip(classes, numbers):
            score = torch.eq(numbers, number, out=agrees).mul_(shares).sum(dim=0)
            winner = torch.where(score > best, candidate, winner)
            best = torch.maximum(best, score)
        return winner


def _join(reads: Sequence[Tensor]) -> Tensor:
    return reads[0].reshape(-1) if len(reads) == 1 else torch.cat([read.reshape(-1) for read in reads])


def slabs(patch_size: Sequence[int], *, voxels: int) -> list[tuple[int, int]]:
    """Split the first axis of a patch into slabs of about so many voxels: (start, stop) of each."""
    rows = max(1, voxels // math.prod(patch_size[1:]))
    return [(start, min(start + rows, patch_size[0])) for start in range(0, patch_size[0], rows)]
