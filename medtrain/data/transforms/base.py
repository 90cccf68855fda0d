"""What an augmentation is, and the centre crop every one of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation(Protocol):
    """Random changes of training patches: drawn per sample on the host, applied per batch on the device.

    `draw` runs where a sample is read, before it is read, so that exactly the voxels its parameters need are
    read. `apply` runs on the device of the batch. Nothing is random but through the generator given to `draw`.
    """

    def draw(self, rng: np.random.Generator, *, patch_size: tuple[int, ...]) -> dict[str, Any]:
        """Draw the parameters of one sample.

        Args:
            rng: The sample's own generator; every call takes the same number of values from it.
            patch_size: Shape of the patch the network gets.

        Returns:
            Plain values that can be pickled. `"read_size"` is the shape of the box to read around the patch's
            centre: at least `patch_size`, on every axis of the same parity, so that the two share their centre.
        """
        ...

    def apply(self, batch: dict[str, Any], *, patch_size: tuple[int, ...], label_pad: int) -> dict[str, Any]:
        """Turn a list of reads into a batch of patches. The reads themselves are not changed.

        Args:
            batch: `"image"`: list of float tensors [C, *R], `"label"`: list of integer tensors [*R] and `"params"`:
                list of dicts from `draw`, with R = `params["read_size"]` for each sample. Smaller reads are
                padded, larger ones cropped around their centre. Other keys are passed on.
            patch_size: Shape of the patches, *P.
            label_pad: Class index of voxels outside a read; their intensity is 0.

        Returns:
            The batch with `"image"` [B, C, *P], float32, and `"label"` [B, *P] in the dtype of the reads.
        """
        ...


def fit(volume: Tensor, size: Sequence[int], *, fill: float) -> Tensor:
    """Crop or pad the last axes of a tensor around its centre; the tensor itself when nothing is to do.

    Args:
        volume: [..., *R].
        size: Wanted shape of the last axes.
        fill: Value of padded voxels.
    """
    pads: list[int] = []
    for axis, wanted in enumerate(size, start=volume.ndim - len(size)):
        excess = volume.shape[axis] - wanted
        if excess > 0:
            volume = volume.narrow(axis, excess // 2, wanted)
        before = max(-excess, 0) // 2
        pads = [before, max(-excess, 0) - before, *pads]
    return F.pad(volume, pads, value=fill) if any(pads) else volume


def empty_patches(batch: dict[str, Any], patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Memory for the patches of a batch: image [B, C, *P] float32 and label [B, *P], on the device of the reads."""
    images, labels = cast(list[Tensor], batch["image"]), cast(list[Tensor], batch["label"])
    image = torch.empty((len(images), images[0].shape[0], *patch_size), device=images[0].device)
    label = torch.empty((len(labels), *patch_size), dtype=labels[0].dtype, device=labels[0].device)
    return image, label


def one_by_one(device: torch.device) -> bool:
    """Whether samples are computed each by itself: on a CPU, for bits that do not depend on the rest of the batch.

    There it also keeps the working set in the cache. An accelerator computes the samples of a batch together.
    """
    return device.type == "cpu"


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small host array to a device without waiting for the device."""
    return torch.from_numpy(values).to(device, non_blocking=True)
