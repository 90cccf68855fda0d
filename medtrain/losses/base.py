"""What every segmentation loss shares: targets, class weights, what does not count, means per sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError

Regions = tuple[tuple[int, ...], ...]
"""The class indices of every region, in the order of the outputs."""

_NEVER = -1e9
"""Logit of a class that is no answer for a voxel; its softmax is exactly 0."""


class SegmentationLoss(nn.Module):
    """Base of the losses on logits [B, K, *S] and labels [B, *S].

    The value is the mean over the samples of the batch of a per-sample loss, in float32 whatever the logits' type;
    so a batch that is split into micro-batches, each weighted by its number of samples, has the same gradient.
    A loss for which this does not hold sets `decomposable` to False.

    There are three kinds of outputs: a softmax over K classes, one sigmoid per region, whose classes may lie in
    others as well, and K = 1, a single sigmoid, where label 1 is foreground and 0 background.

    Args:
        num_classes: Classes that labels tell apart.
        regions: The class indices of every region; None without regions.
    """

    decomposable: bool = True

    def __init__(self, *, num_classes: int, regions: Regions | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.regions = regions
        table = None
        if regions is not None:
            table = torch.tensor([[index in region for index in range(num_classes)] for region in regions])
        self.membership: Tensor | None
        self.register_buffer("membership", table, persistent=False)

    @property
    def exclusive(self) -> bool:
        """Whether outputs exclude each other: a softmax."""
        return self.regions is None and self.num_classes > 1

    def forward(
        self, logits: Tensor, label: Tensor, *, ignore_index: int | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        """The loss as a float32 scalar.

        Args:
            logits: Scores before softmax or sigmoid, [B, K, *S], any floating type.
            label: Class indices [B, *S] in 0..K-1, or `ignore_index`.
            ignore_index: Voxels with this label count nowhere; None = every voxel counts.
            annotated: Which outputs were annotated in each sample, bool [B, K]; None = all. Of a softmax, classes that
                were not become one with the background (see `marginal`); sigmoid outputs that were not count nowhere.
        """
        # under autocast a float32 operation may be lowered again, so it is switched off
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits.float(), label.long(), ignore_index, annotated)

    def compute(
        self, logits: Tensor, label: Tensor, ignore_index: int | None, annotated: Tensor | None = None
    ) -> Tensor:
        """The loss of float32 logits and int64 labels, outside autocast."""
        if annotated is not None and self.exclusive:
            logits, label = marginal(logits, label, annotated, ignore_index)
        label, valid = split_ignored(label, ignore_index)
        return self.judge(logits, Targets(label, valid, annotated, self.num_classes, self.membership))

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """The loss of logits whose unknown classes are merged already."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over classes, or the sigmoid of every output."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()


@dataclass(frozen=True)
class Targets:
    """What the outputs should be.

    Args:
        label: Class indices [B, *S], 0 where ignored.
        valid: Voxels that count, bool [B, *S]; None = all.
        annotated: Outputs that count in each sample, bool [B, K]; None = all.
        num_classes: Classes that labels tell apart.
        membership: Whether a class belongs to an output, bool [K, num_classes]; None where outputs are classes.
    """

    label: Tensor
    valid: Tensor | None
    annotated: Tensor | None
    num_classes: int
    membership: Tensor | None

    @cached_property
    def hot(self) -> Tensor:
        """Whether an output should be 1, bool [B, K, *S]."""
        if self.membership is None:
            return one_hot(self.label, self.num_classes)
        return torch.stack([row[self.label] for row in self.membership.to(self.label.device)], dim=1)


def marginal(logits: Tensor, label: Tensor, annotated: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Let the background stand for the classes that nobody annotated in a sample.

    Where a class was not annotated, its voxels are labelled as background; so the probability of the background
    becomes the sum over itself and all such classes. G. Shi et al., Marginal loss and exclusion loss for partially
    supervised multi-organ segmentation, Medical Image Analysis 70 (2021), eq. 2 to 5.

    Args:
        logits: [B, K, *S].
        label: Class indices [B, *S].
        annotated: bool [B, K]; of the background it is not looked at.
        ignore_index: This label stays.

    Returns:
        Logarithms of the merged probabilities [B, K, *S], very low for classes without annotation, and labels in which
        voxels of such classes are background.
    """
    known = annotated.clone()
    known[:, 0] = True
    spread = known.view(*known.shape, *[1] * (logits.dim() - 2))
    log_probs = logits.log_softmax(1)
    merged = torch.cat([torch.ones_like(spread[:, :1]), ~spread[:, 1:]], dim=1)
    background = log_probs.masked_fill(~merged, -torch.inf).logsumexp(1, keepdim=True)
    joined = torch.cat([background, log_probs[:, 1:]], dim=1).masked_fill(~spread, _NEVER)
    if ignore_index is not None:
        known = torch.cat([known, known.new_ones(len(known), max(0, ignore_index + 1 - known.shape[1]))], dim=1)
    samples = torch.arange(len(label), device=label.device).view(-1, *[1] * (label.dim() - 1))
    return joined, label.masked_fill(~known[samples, label], 0)


def mean_per_output(values: Tensor, annotated: Tensor | None) -> Tensor:
    """Mean over samples of the mean over the outputs that count, of [B, K] or, of a whole batch, [K].

    A sample without any output that counts has the value 0.
    """
    if annotated is None:
        return values.mean()
    if values.dim() == 1:
        annotated = annotated.any(0)
    counts = annotated.sum(-1).clamp_min(1)
    return ((values * annotated).sum(-1) / counts).mean()


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


def mean_per_sample(voxels: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over samples of the (weighted) mean of a voxel map [B, ...]; a sample of weight zero counts as loss 0."""
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
    logits: Tensor, targets: Targets, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Softmax cross-entropy, averaged within each sample by voxel weight and then over samples."""
    voxels = voxel_cross_entropy(logits, targets.label, label_smoothing=label_smoothing, annotated=targets.annotated)
    return mean_per_sample(voxels, voxel_weights(targets.label, targets.valid, class_weights))


def voxel_cross_entropy(
    logits: Tensor, label: Tensor, *, label_smoothing: float = 0.0, annotated: Tensor | None = None
) -> Tensor:
    """Softmax cross-entropy of every voxel, [B, *S]; label smoothing as in `torch.nn.functional.cross_entropy`.

    What smoothing takes off goes to the classes that were annotated, the background among them.
    """
    smoothed = label_smoothing > 0
    if not torch.are_deterministic_algorithms_enabled() and (annotated is None or not smoothed):
        return F.cross_entropy(logits, label, label_smoothing=label_smoothing, reduction="none")
    # PyTorch has no deterministic NLLLoss on CUDA; this needs one more tensor of the logits' size
    log_probs = logits.log_softmax(1)
    voxels = -log_probs.masked_fill(~one_hot(label, logits.shape[1]), 0).sum(1)
    if not smoothed:
        return voxels
    if annotated is None:
        return (1 - label_smoothing) * voxels - label_smoothing * log_probs.mean(1)
    known = torch.cat([torch.ones_like(annotated[:, :1]), annotated[:, 1:]], dim=1)
    spread = known.view(*known.shape, *[1] * (logits.dim() - 2))
    mean = log_probs.masked_fill(~spread, 0).sum(1) / spread.sum(1)
    return (1 - label_smoothing) * voxels - label_smoothing * mean


def focal(surprise: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma times the surprise -log p of targets with probability p."""
    # 1 - p = -expm1(-surprise), exact for p near 1; where p rounds to 1 the slope of a fractional power would be
    # infinite
    missing = (-(-surprise).expm1()).clamp_min(1e-12)
    return missing**gamma * surprise


def binary_cross_entropy(logits: Tensor, targets: Targets, *, pos_weight: float | None = None) -> Tensor:
    """Sigmoid cross-entropy of every output with its target, averaged over outputs, voxels and samples."""
    hot = targets.hot.to(logits.dtype)
    weight = None if pos_weight is None else logits.new_full((), pos_weight)
    if targets.valid is None and targets.annotated is None:
        return F.binary_cross_entropy_with_logits(logits, hot, pos_weight=weight)
    each = F.binary_cross_entropy_with_logits(logits, hot, pos_weight=weight, reduction="none")
    return mean_per_sample(each, output_weights(targets))


def output_weights(targets: Targets) -> Tensor | None:
    """1 where an output of a voxel counts, else 0, [B, K, *S]; None when all count."""
    weight = None if targets.valid is None else targets.valid.unsqueeze(1).expand_as(targets.hot)
    if targets.annotated is not None:
        known = targets.annotated.view(*targets.annotated.shape, *[1] * (targets.hot.dim() - 2))
        weight = known.expand_as(targets.hot) if weight is None else weight & known
    return weight


def refuse_regions(name: str, regions: Regions | None) -> None:
    """Refuse regions for a loss whose outputs exclude each other.

    Raises:
        UsageError: There are regions.
    """
    if regions is not None:
        raise UsageError(
            f"loss={name} is a softmax over classes that exclude each other, and regions may lie within each other",
            hint="use loss=dice_bce; bce, dice, tversky and focal fit regions, too",
        )


def require_regions(name: str, num_classes: int, regions: Regions | None, *, instead: str) -> None:
    """Refuse classes that exclude each other for a loss that judges every output on its own.

    Raises:
        UsageError: There are several classes and no regions.
    """
    if regions is None and num_classes > 1:
        raise UsageError(
            f"loss={name} judges every output on its own, as regions need, and the classes of these data exclude each "
            "other",
            hint=f"use loss={instead}, or say which regions there are: data.regions={{whole: [...], core: [...]}}",
        )
