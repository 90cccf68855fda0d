"""A loss on the outputs of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medtrain.losses.base import SegmentationLoss


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one loss over the logits of several resolutions, finest first.

    The weight of output i is 2^-i, normalised to sum 1. nnU-Net gives the coarsest decoder resolution weight
    zero; networks here do not compute that output at all, so every output given counts. Labels are
    down-sampled to each output's size by nearest neighbour.

    Args:
        loss: The loss applied at each resolution.
    """

    def __init__(self, loss: SegmentationLoss) -> None:
        super().__init__()
        self.loss = loss

    @property
    def decomposable(self) -> bool:
        """Whether the loss of a batch is the mean of its samples' losses."""
        return self.loss.decomposable

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        label: Tensor,
        *,
        ignore_index: int | None = None,
        annotated: Tensor | None = None,
    ) -> Tensor:
        """The loss as a float32 scalar.

        Args:
            logits: One tensor [B, K, *S] or several, finest first.
            label: Class indices [B, *S] at the finest resolution.
            ignore_index: Label that counts nowhere.
            annotated: Which outputs count in each sample, bool [B, K]; None = all.
        """
        if isinstance(logits, Tensor):
            return self.loss(logits, label, ignore_index=ignore_index, annotated=annotated)
        terms = []
        for weight, output in zip(supervision_weights(len(logits)), logits):
            smaller = downsample_label(label, tuple(output.shape[2:]))
            terms.append(weight * self.loss(output, smaller, ignore_index=ignore_index, annotated=annotated))
        return sum(terms[1:], start=terms[0])


def supervision_weights(outputs: int) -> list[float]:
    """2^-i for i = 0..outputs-1, normalised to sum 1."""
    total = 2 - 2.0 ** (1 - outputs)
    return [2.0**-i / total for i in range(outputs)]


def downsample_label(label: Tensor, size: tuple[int, ...]) -> Tensor:
    """Nearest-neighbour labels [B, *size] of labels [B, *S].

    The voxel taken is floor(i S / size), as `torch.nn.functional.interpolate(mode="nearest")` does.
    """
    steps = [full // part for full, part in zip(label.shape[1:], size)]
    if all(step * part == full for step, part, full in zip(steps, size, label.shape[1:])):
        return label[(slice(None), *(slice(None, None, step) for step in steps))]
    # a network that padded its input predicts coarse voxels that reach beyond the image
    for axis, (full, part) in enumerate(zip(label.shape[1:], size), start=1):
        label = label.index_select(axis, torch.arange(part, device=label.device) * full // part)
    return label
