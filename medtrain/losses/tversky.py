"""Tversky loss."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import Regions, SegmentationLoss, Targets, mean_per_output
from medtrain.losses.dice import soft_counts
from medtrain.registry import Range, register


@register("loss", "tversky", runtime=("num_classes", "regions"), tags=("segmentation",))
class TverskyLoss(SegmentationLoss):
    """1 - TP / (TP + alpha FP + beta FN), averaged over classes and samples; alpha = beta = 0.5 is soft Dice.

    A class absent from a sample is handled as in `dice`. S. Salehi et al., Tversky loss function for image
    segmentation using 3D fully convolutional deep networks, 2017, eq. 4.

    Args:
        num_classes: Classes K; 1 uses a sigmoid, more a softmax.
        regions: Class indices of every region; each is a sigmoid.
        alpha: Weight of false positives.
        beta: Weight of false negatives; above alpha it favours sensitivity.
        include_background: Count class 0 as a class (always, when K = 1); regions have no background.
        batch_dice: Add up the whole batch before forming the score, for rare and small structures.
        smooth: Added to numerator and denominator.

    Raises:
        UsageError: alpha and beta are both zero.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        regions: Regions | None = None,
        alpha: Annotated[float, Range(ge=0)] = 0.3,
        beta: Annotated[float, Range(ge=0)] = 0.7,
        include_background: bool = False,
        batch_dice: bool = False,
        smooth: Annotated[float, Range(ge=0)] = 1e-5,
    ) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        if alpha == 0 and beta == 0:
            raise UsageError("loss.alpha and loss.beta are both 0, which makes the Tversky score 1 everywhere")
        self.alpha = alpha
        self.beta = beta
        self.include_background = include_background or not self.exclusive
        self.smooth = smooth
        self.batch_dice = batch_dice
        self.decomposable = not batch_dice

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        hit, predicted, present = soft_counts(
            self.probabilities(logits),
            targets,
            include_background=self.include_background,
            batch_dice=self.batch_dice,
        )
        errors = self.alpha * (predicted - hit) + self.beta * (present - hit)
        score = (hit + self.smooth) / (hit + errors + self.smooth).clamp_min(torch.finfo(hit.dtype).tiny)
        annotated = targets.annotated
        if annotated is not None and not self.include_background:
            annotated = annotated[:, 1:]
        return mean_per_output(1 - score, annotated)
