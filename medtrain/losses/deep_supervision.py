"""A loss on the outputs of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medtrain.errors import MedtrainError
from medtrain.losses.base import SegmentationLoss


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one loss over the logits of several resolutions, finest first.

    The weight of output i is 2^-i, normalised to sum 1. nnU-Net gives the coarsest decoder resolution weight
    zero; networks here do not compute that output at all, so every output given counts.

    An output that is coarser than the finest by a factor s is compared with every s-th label, as nearest-neighbour
    down-sampling takes them (nnU-Net). The outputs of a padded image begin where the image does and reach beyond
    its end (`medtrain.models.padding`): voxels of which none lies in the image do not count.

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
            logits: One tensor [B, K, *S] or several, finest first. The sizes of the coarser ones divide that of the
                finest, which may exceed that of the label.
            label: Class indices [B, *S] at the finest resolution.
            ignore_index: Label that counts nowhere.
            annotated: Which outputs count in each sample, bool [B, K]; None = all.

        Raises:
            MedtrainError: The sizes of the outputs do not fit each other or the label.
        """
        if isinstance(logits, Tensor):
            return self.loss(logits, label, ignore_index=ignore_index, annotated=annotated)
        terms = []
        finest = tuple(logits[0].shape[2:])
        for weight, output in zip(supervision_weights(len(logits)), logits):
            smaller = downsample_label(label, _steps(finest, tuple(output.shape[2:]), tuple(label.shape[1:])))
            inside = output[(slice(None), slice(None), *(slice(n) for n in smaller.shape[1:]))]
            terms.append(weight * self.loss(inside, smaller, ignore_index=ignore_index, annotated=annotated))
        return sum(terms[1:], start=terms[0])


def supervision_weights(outputs: int) -> list[float]:
    """2^-i for i = 0..outputs-1, normalised to sum 1."""
    total = 2 - 2.0 ** (1 - outputs)
    return [2.0**-i / total for i in range(outputs)]


def downsample_label(label: Tensor, steps: Sequence[int]) -> Tensor:
    """Every steps-th voxel of labels [B, *S], from the first on: [B, *ceil(S / steps)].

    Where the size is a multiple of the step that is `torch.nn.functional.interpolate(mode="nearest")`.
    """
    return label[(slice(None), *(slice(None, None, step) for step in steps))]


def _steps(finest: tuple[int, ...], size: tuple[int, ...], label: tuple[int, ...]) -> tuple[int, ...]:
    """How many voxels of the finest output one of another output covers, per axis."""
    if any(full % part for full, part in zip(finest, size)) or any(n > full for n, full in zip(label, finest)):
        raise MedtrainError(
            f"deep supervision: outputs of {list(finest)} and {list(size)} voxels do not fit labels of {list(label)}",
            hint="the finest output must cover the label, and the sizes of the coarser ones must divide its size",
        )
    return tuple(full // part for full, part in zip(finest, size))
