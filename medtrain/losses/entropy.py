"""Cross-entropy, binary cross-entropy and focal: of voxels, and of whole images.

Each is one component for both families. Where the data have target columns, it is a loss of whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import (
    Regions,
    SegmentationLoss,
    Targets,
    binary_cross_entropy,
    check_class_weights,
    cross_entropy,
    focal,
    mean_per_sample,
    output_weights,
    refuse_regions,
    require_regions,
    voxel_cross_entropy,
    voxel_weights,
    weights_buffer,
)
from medtrain.losses.class_weights import ClassWeighting
from medtrain.losses.classes import ClassCrossEntropy, ClassFocal, LabelCrossEntropy, LabelFocal
from medtrain.losses.units import ImageLoss, TargetInfo
from medtrain.registry import Range, register


class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross-entropy of voxels; see `ce` for its arguments."""

    def __init__(
        self, *, num_classes: int, class_weights: tuple[float, ...] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(num_classes=num_classes)
        if num_classes < 2:
            raise UsageError("loss=ce needs two classes or more", hint="use loss=bce for a single sigmoid channel")
        check_class_weights(class_weights, num_classes)
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights_buffer(class_weights), persistent=False)

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        return cross_entropy(logits, targets, class_weights=self.class_weights, label_smoothing=self.label_smoothing)


class BinaryCrossEntropyLoss(SegmentationLoss):
    """Sigmoid cross-entropy of voxels; see `bce` for its arguments."""

    def __init__(self, *, num_classes: int, regions: Regions | None = None, pos_weight: float | None = None) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        require_regions("bce", num_classes, regions, instead="ce")
        self.pos_weight = pos_weight

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        return binary_cross_entropy(logits, targets, pos_weight=self.pos_weight)


class FocalLoss(SegmentationLoss):
    """Focal loss of voxels; see `focal` for its arguments."""

    def __init__(
        self,
        *,
        num_classes: int,
        regions: Regions | None = None,
        gamma: float = 2.0,
        class_weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, regions=regions)
        check_class_weights(class_weights, num_classes if self.exclusive else 2)
        self.gamma = gamma
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights_buffer(class_weights), persistent=False)

    def judge(self, logits: Tensor, targets: Targets) -> Tensor:
        """See the base class."""
        if self.exclusive:
            surprise = voxel_cross_entropy(logits, targets.label)
            weights = voxel_weights(targets.label, targets.valid, self.class_weights)
        else:
            hot = targets.hot.to(logits.dtype)
            surprise = F.binary_cross_entropy_with_logits(logits, hot, reduction="none")
            weights = voxel_weights(targets.hot.long(), output_weights(targets), self.class_weights)
        return mean_per_sample(focal(surprise, self.gamma), weights)


@register("loss", "ce", runtime=("num_classes", "regions", "targets"), tags=("segmentation", "images"))
def build_ce(
    *,
    num_classes: int | None = None,
    regions: Regions | None = None,
    targets: Sequence[TargetInfo] | None = None,
    class_weights: ClassWeighting = None,
    beta: Annotated[float, Range(gt=0, lt=1)] | None = None,
    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0,
) -> SegmentationLoss | ImageLoss:
    """Softmax cross-entropy, the mean over voxels or labelled samples by the weights of their classes.

    Voxels are averaged within each sample and then over samples; labelled samples, or all labelled zones of all
    samples, are one mean: sum(w_y l) / sum(w_y).

    Args:
        num_classes: Classes K of voxels, 2 or more.
        regions: Refused: they may lie within each other, and a softmax excludes that.
        targets: The target columns of whole images, with K classes each.
        class_weights: One weight per class, background first; `balanced` = n / (K n_k) and `effective_num` follow the
            counts n_k of the training part, which segmentation does not have; none or null = all equal. A class that
            the training part lacks weighs 1.
        beta: Of `effective_num`, whose weights are (1 - beta) / (1 - beta^n_k); null = 0.999.
        label_smoothing: Share of the target spread over all classes.

    Raises:
        UsageError: One class only, targets that are not classes, or weights that do not match the classes.
    """
    if targets is not None:
        return ClassCrossEntropy(targets, class_weights=class_weights, beta=beta, label_smoothing=label_smoothing)
    assert num_classes is not None
    refuse_regions("ce", regions)
    weights = voxel_class_weights(class_weights, beta)
    return CrossEntropyLoss(num_classes=num_classes, class_weights=weights, label_smoothing=label_smoothing)


@register("loss", "bce", runtime=("num_classes", "regions", "targets"), tags=("segmentation", "images"))
def build_bce(
    *,
    num_classes: int | None = None,
    regions: Regions | None = None,
    targets: Sequence[TargetInfo] | None = None,
    pos_weight: Literal["none", "balanced"] | Annotated[float, Range(gt=0)] | tuple[float, ...] = "none",
) -> SegmentationLoss | ImageLoss:
    """Sigmoid cross-entropy of every channel or yes-or-no target, each judged on its own.

    For regions of voxels (data.regions) it is averaged over regions, voxels and samples. Of targets, the mean is over
    the labelled entries of all targets and samples.

    Args:
        num_classes: Classes of voxels; with a single one there is one sigmoid.
        regions: Class indices of every region.
        targets: The target columns of whole images, with two classes each, the second being positive.
        pos_weight: Weight of positive entries: a number, a list with one per target, or `balanced`, the number of
            negative training samples divided by that of positive ones per target (1 where one of them is 0).

    Raises:
        UsageError: A target has more than two classes, or weights that do not match the targets.
    """
    if targets is not None:
        return LabelCrossEntropy(targets, pos_weight=pos_weight)
    assert num_classes is not None
    if pos_weight == "balanced" or isinstance(pos_weight, tuple):
        raise UsageError(
            f"loss.pos_weight={'balanced' if pos_weight == 'balanced' else list(pos_weight)} is for targets of whole "
            "images, and this is segmentation",
            hint="give one number, e.g. loss.pos_weight=3",
        )
    weight = None if pos_weight == "none" else pos_weight
    return BinaryCrossEntropyLoss(num_classes=num_classes, regions=regions, pos_weight=weight)


@register("loss", "focal", runtime=("num_classes", "regions", "targets"), tags=("segmentation", "images"))
def build_focal(
    *,
    num_classes: int | None = None,
    regions: Regions | None = None,
    targets: Sequence[TargetInfo] | None = None,
    gamma: Annotated[float, Range(ge=0)] = 2.0,
    class_weights: ClassWeighting = None,
    beta: Annotated[float, Range(gt=0, lt=1)] | None = None,
) -> SegmentationLoss | ImageLoss:
    """Cross-entropy weighted by (1 - p_target)^gamma, so that easy voxels or samples count little.

    T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017, eq. 4 and 5; a softmax over K classes, or a
    sigmoid for regions of voxels, a single channel of them, and targets of two classes.

    Args:
        num_classes: Classes K of voxels.
        regions: Class indices of every region; each is a sigmoid.
        targets: The target columns of whole images, with K classes each.
        gamma: Focusing exponent; 0 gives cross-entropy.
        class_weights: Weight per class (the paper's alpha), background first, two of them for a sigmoid; `balanced` and
            `effective_num` as in `ce`; none or null = all equal. The sum over voxels or samples is divided by the sum
            of these weights.
        beta: Of `effective_num`, as in `ce`.

    Raises:
        UsageError: Targets that are not classes, or weights that do not match the classes.
    """
    if targets is not None:
        sigmoid = all(len(target.classes or ()) == 2 for target in targets)
        loss = LabelFocal if sigmoid else ClassFocal
        return loss(targets, gamma=gamma, class_weights=class_weights, beta=beta)
    assert num_classes is not None
    weights = voxel_class_weights(class_weights, beta)
    return FocalLoss(num_classes=num_classes, regions=regions, gamma=gamma, class_weights=weights)


def voxel_class_weights(weighting: ClassWeighting, beta: float | None) -> tuple[float, ...] | None:
    """The weights that a list gives; voxels have no counts that others could be computed from."""
    if isinstance(weighting, str) and weighting != "none":
        raise UsageError(
            f"loss.class_weights={weighting} counts the samples of a table, and this is segmentation",
            hint="give one weight per class, background first, or use loss=dice_ce",
        )
    if beta is not None:
        raise UsageError("loss.beta belongs to loss.class_weights=effective_num", hint="leave it null")
    return weighting if isinstance(weighting, tuple) else None
