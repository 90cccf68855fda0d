"""What every segmentation loss shares: targets, class weights, ignored voxels, means per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError


class SegmentationLoss(nn.Module):
    """Base of the losses on logits [B, K, *S] and labels [B, *S].

    The value is the mean over the samples of the batch of a per-sample loss, in float32 whatever the logits' type;
    so a batch that is split into micro-batches, each weighted by its number of samples, has the same gradient.
    A loss for which this does not hold sets `decomposable` to False.

    K = 1 means one sigmoid channel: label 1 is foreground, 0 background.
    """

    decomposable: bool = True

    def forward(self, logits: Tensor, label: Tensor, *, ignore_index: int | None = None) -> Tensor:
        """The loss as a float32 scalar.

        Args:
            logits: Scores before softmax or sigmoid, [B, K, *S], any floating type.
            label: Class indices [B, *S] in 0..K-1, or `ignore_index`.
            ignore_index: Voxels with this label count nowhere; None = every voxel counts.
        """
        # under autocast a float32 operation may be lowered again, so it is switched off
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits.float(), label.long(), ignore_index)

    def compute(self, logits: Tensor, label: Tensor, ignore_index: int | None) -> Tensor:
        """The loss of float32 logits and int64 labels, outside autocast."""
        raise NotImplementedError


def check_class_weights(weights: tuple[float, ...] | None, num_classes: int) -> None:
    """Refuse class weights that do not match the classes.

    Raises:
        UsageError: The count differs from `num_classes`, a weight is negative, or all are zero.
    """
    if weights is None:
        return
    if len(weights) != num_classes:
        raise UsageError(
            f"loss.class_weights has {len(weights)} values, but there are {num_classes} classes",
            hint=f"give one weight per class, background first, e.g. {[1.0] * num_classes}",
        )
    if min(weights) < 0 or max(weights) == 0:
        raise UsageError(f"loss.class_weights must not be negative nor all zero, got {list(weights)}")


def weights_buffer(weights: tuple[float, ...] | None) -> Tensor | None:
    """Class weights as a float32 tensor [K] to be registered as a buffer."""
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)


def split_ignored(label: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Labels with ignored voxels set to 0, and the mask [B, *S] of the voxels that count (None = all)."""
    if ignore_index is None:
        return label, None
    valid = label != ignore_index
    return label.masked_fill(~valid, 0), valid


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Boolean targets [B, K, *S] of labels [B, *S]; with one class the mask of label 1, [B, 1, *S]."""
    if num_classes == 1:
        return (label == 1).unsqueeze(1)
    classes = torch.arange(num_classes, device=label.device).view(-1, *[1] * (label.dim() - 1))
    return label.unsqueeze(1) == classes


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over K channels, or the sigmoid of a single one."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def mean_per_sample(voxels: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over samples of the (weighted) mean of a voxel map [B, *S]; a sample of weight zero counts as loss 0."""
    if weight is None:
        return voxels.mean()
    weight = weight.to(voxels.dtype)
    total = weight.flatten(1).sum(1)
    return ((voxels * weight).flatten(1).sum(1) / total.clamp_min(torch.finfo(voxels.dtype).tiny)).mean()


def voxel_weights(label: Tensor, valid: Tensor | None, class_weights: Tensor | None) -> Tensor | None:
    """Weight of each voxel [B, *S]: its class's weight, 0 where ignored; None when all are 1."""
    if class_weights is None:
        return valid
    weight = class_weights.to(label.device)[label]
    return weight if valid is None else weight * valid


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    ignore_index: int | None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy, averaged within each sample by voxel weight and then over samples."""
    label, valid = split_ignored(label, ignore_index)
    voxels = voxel_cross_entropy(logits, label, label_smoothing=label_smoothing)
    return mean_per_sample(voxels, voxel_weights(label, valid, class_weights))


def voxel_cross_entropy(logits: Tensor, label: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of every voxel, [B, *S]; label smoothing as in `torch.nn.functional.cross_entropy`."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, label, label_smoothing=label_smoothing, reduction="none")
    # PyTorch has no deterministic NLLLoss on CUDA; this needs one more tensor of the logits' size
    log_probs = logits.log_softmax(1)
    voxels = -log_probs.masked_fill(~one_hot(label, logits.shape[1]), 0).sum(1)
    if label_smoothing:
        voxels = (1 - label_smoothing) * voxels - label_smoothing * log_probs.mean(1)
    return voxels


def focal(surprise: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma times the surprise -log p of targets with probability p."""
    # 1 - p = -expm1(-surprise), exact for p near 1; where p rounds to 1 the slope of a fractional power would be
    # infinite
    missing = (-(-surprise).expm1()).clamp_min(1e-12)
    return missing**gamma * surprise


def binary_cross_entropy(
    logits: Tensor, label: Tensor, *, ignore_index: int | None, pos_weight: float | None = None
) -> Tensor:
    """Sigmoid cross-entropy of every channel with its one-hot target, averaged over channels, voxels and samples."""
    label, valid = split_ignored(label, ignore_index)
    target = one_hot(label, logits.shape[1]).to(logits.dtype)
    weight = None if pos_weight is None else logits.new_full((), pos_weight)
    if valid is None:
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    voxels = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none").mean(1)
    return mean_per_sample(voxels, valid)
