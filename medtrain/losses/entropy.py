"""Voxel-wise losses: cross-entropy, binary cross-entropy and focal."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import (
    SegmentationLoss,
    binary_cross_entropy,
    check_class_weights,
    cross_entropy,
    mean_per_sample,
    one_hot,
    split_ignored,
    voxel_cross_entropy,
    voxel_weights,
    weights_buffer,
)
from medtrain.registry import Range, register


@register("loss", "ce", runtime=("num_classes",), tags=("segmentation",))
class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross-entropy: the (weighted) mean over the voxels of each sample, averaged over samples.

    Args:
        num_classes: Classes K, 2 or more.
        class_weights: Weight per class, background first; null = all equal.
        label_smoothing: Share of the target spread over all classes.

    Raises:
        UsageError: One class only, or weights that do not match the classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_weights: tuple[float, ...] | None = None,
        label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UsageError("loss=ce needs two classes or more", hint="use loss=bce for a single sigmoid channel")
        check_class_weights(class_weights, num_classes)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights_buffer(class_weights), persistent=False)

    def compute(self, logits: Tensor, label: Tensor, ignore_index: int | None) -> Tensor:
        """See the base class."""
        return cross_entropy(
            logits,
            label,
            ignore_index=ignore_index,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )


@register("loss", "bce", runtime=("num_classes",), tags=("segmentation",))
class BinaryCrossEntropyLoss(SegmentationLoss):
    """Sigmoid cross-entropy of every channel with its one-hot target, averaged over channels, voxels and samples.

    Args:
        num_classes: Channels K; with more than one, each is judged on its own (no softmax).
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def compute(self, logits: Tensor, label: Tensor, ignore_index: int | None) -> Tensor:
        """See the base class."""
        return binary_cross_entropy(logits, label, ignore_index=ignore_index)


@register("loss", "focal", runtime=("num_classes",), tags=("segmentation",))
class FocalLoss(SegmentationLoss):
    """Cross-entropy whose voxels are weighted by (1 - p_target)^gamma, so that easy voxels count little.

    T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, eq. 4 and 5; a softmax over K classes, or a
    sigmoid when K = 1.

    Args:
        num_classes: Classes K.
        gamma: Focusing exponent; 0 gives cross-entropy.
        class_weights: Weight per class (the paper's alpha), background first; null = all equal. The sum over
            voxels is divided by the sum of these weights. With K = 1 give two values, background and foreground.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        gamma: Annotated[float, Range(ge=0)] = 2.0,
        class_weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        check_class_weights(class_weights, max(2, num_classes))
        self.num_classes = num_classes
        self.gamma = gamma
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights_buffer(class_weights), persistent=False)

    def compute(self, logits: Tensor, label: Tensor, ignore_index: int | None) -> Tensor:
        """See the base class."""
        label, valid = split_ignored(label, ignore_index)
        if self.num_classes == 1:
            target = one_hot(label, 1).to(logits.dtype)
            surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none").squeeze(1)
        else:
            surprise = voxel_cross_entropy(logits, label)
        # surprise = -log p of the target, so 1 - p = -expm1(-surprise), exact for p near 1; where p rounds to 1
        # the slope of a fractional power would be infinite
        missing = (-(-surprise).expm1()).clamp_min(1e-12)
        voxels = missing**self.gamma * surprise
        return mean_per_sample(voxels, voxel_weights(label, valid, self.class_weights))
