"""Soft Dice, alone and combined with cross-entropy."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import (
    Regions,
    SegmentationLoss,
    Targets,
    binary_cross_entropy,
    check_class_weights,
    cross_entropy,
    mean_per_output,
    refuse_regions,
    require_regions,
    weights_buffer,
)
from medtrain.registry import Range, register


def soft_counts(
    probs: Tensor, targets: Targets, *, include_background: bool, batch_dice: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the voxels that count, per sample and output [B, K'] (per output [K'] over the batch with batch_dice).

    Args:
        probs: Probabilities [B, K, *S].
        targets: What they should be.
        include_background: Keep output 0.
        batch_dice: Add up the samples; outputs without annotation in a sample add nothing.

    Returns:
        The sum of probability x target, of the probabilities and of the targets.
    """
    target, valid, annotated = targets.hot, targets.valid, targets.annotated
    if not include_background:
        probs, target = probs[:, 1:], target[:, 1:]
        annotated = None if annotated is None else annotated[:, 1:]
    if valid is not None:
        target = target & valid.unsqueeze(1)
        probs = probs * valid.unsqueeze(1)
    axes = tuple(range(2, probs.dim()))
    overlap = (probs * target).sum(axes)
    predicted = probs.sum(axes)
    present = target.sum(axes).to(probs.dtype)
    if not batch_dice:
        return overlap, predicted, present
    if annotated is not None:
        overlap, predicted, present = overlap * annotated, predicted * annotated, present * annotated
    return overlap.sum(0), predicted.sum(0), present.sum(0)


def soft_dice(overlap: Tensor, predicted: Tensor, present: Tensor, smooth: float) -> Tensor:
    """Dice score (2 I + s) / (P + T + s) of soft counts; 1 when a class is neither there nor predicted."""
    # without smoothing an absent, unpredicted class is 0/0: the floor makes it 0 with a finite gradient
    tiny = torch.finfo(predicted.dtype).tiny
    return (2 * overlap + smooth) / (predicted + present + smooth).clamp_min(tiny)


class _DiceTerm:
    """The Dice part of a loss, from probabilities.

    Args:
        include_background: Keep output 0, which is no background unless there is a softmax.
        batch_dice: Add up the batch.
        smooth: Added to numerator and denominator.
    """

    def __init__(self, *, include_background: bool, batch_dice: bool, smooth: float) -> None:
        self.include_background = include_background
        self.batch_dice = batch_dice
        self.smooth = smooth

    def __call__(self, probs: Tensor, targets: Targets) -> Tensor:
        counts = soft_counts(probs, targets, include_background=self.include_background, batch_dice=self.batch_dice)
        annotated = targets.annotated
        if annotated is not None and not self.include_background:
            annotated = annotated[:, 1:]
        return mean_per_output(1 - soft_dice(*counts, self.smooth), annotated)


def _check_factors(**factors: float) -> None:
    if not any(factors.values()):
        raise UsageError(f"{' and '.join(f'loss.{key}' for key in factors)} are both 0, so there is no loss")


@register("loss", "dice", runtime=("num_classes", "regions"), tags=("segmentation",))
class DiceLoss(SegmentationLoss):
    """Soft Dice loss: 1 minus the mean over classes and samples of the Dice score of the probabilities.

    A class absent from a sample scores smooth / (sum of its probabilities + smooth): close to 0 while anything
    is predicted, 1 when nothing is, as in nnU-Net. F. Milletari et al., V-Net, 2016.

    Args:
        num_classes: Classes K; 1 uses a sigmoid, more a softmax.
        regions: Class indices of every region; each is a sigmoid.
        include_background: Count class 0 as a class (always, when K = 1); regions have no background.
        batch_dice: Add up the whole batch before forming the score, for rare and small structures.
        smooth: Added to numerator and denominator.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        regions: Regions | None = None,
        include_background: bool = False,
        batch_dice: bool = False,
        smooth: Annotated[float, Range(ge=0)] = 1e-5,
    ) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        self.dice = _DiceTerm(
            include_background=include_background or not self.exclusive,
            batch_dice=batch_dice,
            smooth=smooth,
        )
        self.decomposable = not batch_dice

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        return self.dice(self.probabilities(logits), targets)


@register("loss", "dice_bce", runtime=("num_classes", "regions"), tags=("segmentation",))
class DiceBCELoss(SegmentationLoss):
    """Weighted sum of soft Dice and binary cross-entropy, both of sigmoid probabilities.

    For regions (data.regions), each of them judged on its own. With bce_weight=1 it is nnU-Net's loss for them. Dice
    treats absent ones as `dice` does.

    Args:
        num_classes: Classes; with a single one there is one sigmoid.
        regions: Class indices of every region.
        dice_weight: Factor of the Dice term.
        bce_weight: Factor of the binary cross-entropy.
        batch_dice: Add up the whole batch before forming the Dice score.
        smooth: Added to numerator and denominator of Dice.

    Raises:
        UsageError: Both factors are zero, or the classes exclude each other.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        regions: Regions | None = None,
        dice_weight: Annotated[float, Range(ge=0)] = 1.0,
        bce_weight: Annotated[float, Range(ge=0)] = 0.5,
        batch_dice: bool = False,
        smooth: Annotated[float, Range(ge=0)] = 1e-5,
    ) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        require_regions("dice_bce", num_classes, regions, instead="dice_ce")
        _check_factors(dice_weight=dice_weight, bce_weight=bce_weight)
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.dice = _DiceTerm(
            include_background=True,
            batch_dice=batch_dice,
            smooth=smooth,
        )
        self.decomposable = not batch_dice

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        dice = self.dice(self.probabilities(logits), targets)
        bce = binary_cross_entropy(logits, targets)
        return self.dice_weight * dice + self.bce_weight * bce


@register("loss", "dice_ce", runtime=("num_classes", "regions"), tags=("segmentation",))
class DiceCELoss(SegmentationLoss):
    """Weighted sum of soft Dice and softmax cross-entropy, nnU-Net's loss.

    Dice treats absent classes as `dice` does.

    Args:
        num_classes: Classes K, 2 or more.
        regions: Refused: they may lie within each other, and a softmax excludes that.
        dice_weight: Factor of the Dice term.
        ce_weight: Factor of the cross-entropy.
        include_background: Count class 0 in the Dice term.
        batch_dice: Add up the whole batch before forming the Dice score.
        smooth: Added to numerator and denominator of Dice.
        class_weights: Cross-entropy weight per class, background first; null = all equal.
        label_smoothing: Share of the target spread over all classes in the cross-entropy.

    Raises:
        UsageError: One class only, regions, both factors zero, or weights that do not match the classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        regions: Regions | None = None,
        dice_weight: Annotated[float, Range(ge=0)] = 1.0,
        ce_weight: Annotated[float, Range(ge=0)] = 1.0,
        include_background: bool = False,
        batch_dice: bool = False,
        smooth: Annotated[float, Range(ge=0)] = 1e-5,
        class_weights: tuple[float, ...] | None = None,
        label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        refuse_regions("dice_ce", regions)
        if num_classes < 2:
            raise UsageError(
                "loss=dice_ce needs two classes or more", hint="use loss=dice_bce for a single sigmoid channel"
            )
        _check_factors(dice_weight=dice_weight, ce_weight=ce_weight)
        check_class_weights(class_weights, num_classes)
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.label_smoothing = label_smoothing
        self.dice = _DiceTerm(
            include_background=include_background or not self.exclusive,
            batch_dice=batch_dice,
            smooth=smooth,
        )
        self.decomposable = not batch_dice
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights_buffer(class_weights), persistent=False)

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        dice = self.dice(self.probabilities(logits), targets)
        ce = cross_entropy(logits, targets, class_weights=self.class_weights, label_smoothing=self.label_smoothing)
        return self.dice_weight * dice + self.ce_weight * ce
