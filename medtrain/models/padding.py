"""Images of any size for networks that need a multiple of something: padded with zeros, the logits cropped back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.layers import NormName


class SegmentationNet(nn.Module):
    """Base of the networks that give every voxel of an image its logits, whatever the image's size.

    A network says by `divisor` of what the size must be a multiple along each axis, and implements `logits` for images
    of such a size. Other images are padded after their last voxel with zeros (where normalised images have their mean),
    and the logits are cropped. An image that fits is handed through as it is.

    Nothing comes before the image, so that voxel i of logits that are coarser by a factor s (deep supervision) covers
    the image's voxels i s to (i + 1) s - 1, and labels can be sampled exactly. Logits of several resolutions are
    cropped to the voxels of the coarsest that reach into the image, the finer ones to the same extent: their sizes
    divide each other, and `medtrain.losses.deep_supervision` leaves out what lies beyond the image.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        divisor: What the size must be a multiple of, per axis.
        norm: The normalisation of a network whose coarsest features have one voxel per `divisor` of the image: an image
            that leaves it a single value is refused.
    """

    def __init__(
        self, *, spatial_dims: int, in_channels: int, divisor: Sequence[int], norm: NormName | None = None
    ) -> None:
        super().__init__()
        assert len(divisor) == spatial_dims, (divisor, spatial_dims)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.divisor = tuple(divisor)
        self._norm = norm

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Down-sampling on entering each stage, the same along every axis, of a network where that is no setting.

        The plan makes patches a multiple of their product. None: the strides are a setting, or there are none.

        Args:
            settings: The model's settings.
        """
        return None

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits [B, K, *S] of an image [B, C, *S] whose size is a multiple of `divisor`, or a list, finest first."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it computes logits")

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits [B, K, *S] of an image [B, C, *S], or a list of them, finest first (training, deep supervision).

        In a list the finest reach as far as the coarsest, which may be a little beyond the image's end.

        Raises:
            MedtrainError: The image has other channels or dimensions than the network was built for.
            UsageError: It shrinks to a single voxel, which leaves nothing to normalise.
        """
        size = plain_size(image)
        self._check_input(image)
        pads = end_pads(size, self.divisor)
        if not any(pads):
            return self.logits(image)
        found = self.logits(F.pad(image, [n for pad in reversed(pads) for n in (0, pad)]))
        padded = tuple(n + pad for n, pad in zip(size, pads))
        if isinstance(found, Tensor):
            return _crop([found], size, padded)[0]
        return _crop(found, size, padded)

    def _check_input(self, image: Tensor) -> None:
        # a traced or exported graph must not depend on this check
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        if image.dim() != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            axes = ", ".join("DHW"[-self.spatial_dims :])
            raise MedtrainError(
                f"the network expects images [B, {self.in_channels}, {axes}], got {list(image.shape)}",
                hint=f"it was built for {self.spatial_dims}-D images of {self.in_channels} channel(s)",
            )
        single = all(n <= d for n, d in zip(image.shape[2:], self.divisor))
        if single and (self._norm == "instance" or (self._norm == "batch" and self.training and len(image) == 1)):
            factors = " x ".join(map(str, self.divisor))
            raise UsageError(
                "the image shrinks to a single voxel inside the network, which leaves nothing to normalise",
                hint=f"it shrinks by {factors}: use a larger data.patch_size or fewer stages",
            )


def end_pads(size: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Voxels to add after the last one, per axis, that make a size a multiple of `divisor`."""
    return tuple(-n % d for n, d in zip(size, divisor))


def plain_size(image: Tensor) -> tuple[int, ...]:
    """The size as numbers: in a trace they are tensors, and padding is recorded for the size that is traced."""
    if not torch.jit.is_tracing():
        return tuple(image.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(int(n) for n in image.shape[2:])


def _crop(outputs: Sequence[Tensor], size: Sequence[int], padded: Sequence[int]) -> list[Tensor]:
    """Logits of a padded image without what lies beyond the last voxel of the coarsest that reaches into the image."""
    parts = [plain_size(output) for output in outputs]
    steps = [max(whole // n for n in axis) for whole, axis in zip(padded, zip(*parts))]
    extent = [-(-n // step) * step for n, step in zip(size, steps)]
    return [
        output[(slice(None), slice(None), *(slice(kept * n // whole) for kept, n, whole in zip(extent, part, padded)))]
        for output, part in zip(outputs, parts)
    ]
