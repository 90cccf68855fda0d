"""Rotation, scaling and mirroring: their matrices, what they must read, and patches from reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medtrain.data.transforms import base
from medtrain.data.transforms.base import empty_patches, fit
from medtrain.data.transforms.cpu import resample_read
from medtrain.data.transforms.resample import Resampler, is_on_voxels

_GROUP_VOXELS = 2**22
"""Image values resampled at once on an accelerator: bounds the memory of a large 2-D batch."""


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Rotation by one angle (2-D) or about the axes D, then H, then W (3-D).

    Args:
        angles: Radians; one in 2-D, three in 3-D.

    Returns:
        [2, 2] or [3, 3], float64, acting on column vectors in array order.
    """
    if len(angles) == 1:
        return _plane_rotation(2, (0, 1), angles[0])
    about_d, about_h, about_w = (_plane_rotation(3, ((k + 1) % 3, (k + 2) % 3), angles[k]) for k in range(3))
    return about_w @ about_h @ about_d


def _plane_rotation(dims: int, plane: tuple[int, int], angle: float) -> np.ndarray:
    a, b = plane
    matrix = np.eye(dims)
    # Rounded, so that right angles give whole numbers: cos(pi / 2) is 6e-17 in floating point.
    matrix[a, a] = matrix[b, b] = round(math.cos(angle), 15)
    matrix[b, a] = round(math.sin(angle), 15)
    matrix[a, b] = -matrix[b, a]
    return matrix


def read_size(matrix: np.ndarray, patch_size: Sequence[int]) -> tuple[int, ...]:
    """The smallest box around the patch's centre that holds every voxel the resampling gives weight to.

    Args:
        matrix: From patch to read coordinates, [dims, dims].
        patch_size: Shape of the patch.

    Returns:
        At least `patch_size`; of the same parity on every axis, so that the centres coincide.
    """
    half = np.abs(matrix) @ ((np.asarray(patch_size) - 1) / 2)
    size = []
    for k, length in enumerate(patch_size):
        needed = 2 * half[k] + 1
        if not is_on_voxels(matrix[k], k):
            needed = max(needed, 2.0)  # a cell has two sides, even where the patch is one voxel thick
        # A whole number plus the rounding of sin and cos is still that whole number.
        size.append(length + 2 * max(0, math.ceil((needed - length) / 2 - 1e-9)))
    return tuple(size)


def place(batch: dict[str, Any], *, patch_size: tuple[int, ...], label_pad: int) -> tuple[Tensor, Tensor]:
    """Cut or resample the patches of a batch out of its reads, mirrored where the parameters say so.

    A sample's parameters may hold `"matrix"` (from patch to read coordinates) and `"mirror"` (axes). Mirroring
    commutes with all intensity transforms, so it is part of this one pass and costs nothing on resampled patches.

    Args:
        batch: As in `Augmentation.apply`.
        patch_size: Shape of the patches.
        label_pad: Class index outside the reads.

    Returns:
        Image [B, C, *P] and label [B, *P].
    """
    image, label = empty_patches(batch, patch_size)
    params: list[dict[str, Any]] = batch["params"]
    for i, sample in enumerate(params):
        if "matrix" in sample:
            continue
        axes = [axis - len(patch_size) for axis in sample.get("mirror", ())]
        for patches, read, fill in ((image, batch["image"][i], 0.0), (label, batch["label"][i], label_pad)):
            patch = fit(read, patch_size, fill=fill)
            patches[i].copy_(patch.flip(axes) if axes else patch)
    drawn = [i for i, sample in enumerate(params) if "matrix" in sample]
    if base.one_by_one(image.device):
        for i in drawn:
            resample_read(*_read(batch, i, label_pad), image[i], label[i])
    else:
        for group in _groups(drawn, image):
            images, labels, matrices = zip(*(_read(batch, i, label_pad) for i in group))
            image_rows, label_rows = Resampler(images, labels, matrices, patch_size).rows(0, patch_size[0])
            for position, i in enumerate(group):
                image[i].copy_(image_rows[position])
                label[i].copy_(label_rows[position])
    return image, label


def _read(batch: dict[str, Any], i: int, label_pad: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """A sample's read in the size it asked for, and its matrix with the mirroring."""
    sample = batch["params"][i]
    image = fit(batch["image"][i], sample["read_size"], fill=0.0).float()
    label = fit(batch["label"][i], sample["read_size"], fill=label_pad)
    return image, label, _mirrored(sample["matrix"], sample.get("mirror", ()))


def _mirrored(matrix: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    signs = np.ones(len(matrix))
    signs[list(axes)] = -1.0
    return matrix * signs


def _groups(drawn: Sequence[int], image: Tensor) -> Iterator[Sequence[int]]:
    """Samples of a batch on an accelerator that are resampled together."""
    limit = max(1, _GROUP_VOXELS // image[0].numel())
    for start in range(0, len(drawn), limit):
        yield drawn[start : start + limit]
