"""Losses of the classes of whole images, of zones and of yes-or-no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import focal, voxel_cross_entropy, weights_buffer
from medtrain.losses.class_weights import ClassWeighting, WeightTable, positive_weights, weights_of_classes
from medtrain.losses.units import ImageLoss, TargetInfo, class_names


class SoftmaxLoss(ImageLoss):
    """Base of the losses on K logits per target, averaged over the labelled entries by the weights of their classes.

    Args:
        targets: One or more targets (zones) with K classes each.
        loss_name: In messages.
        class_weighting: See `weights_of_classes`.
        beta: Of `effective_num`.
    """

    always_for = ""

    def __init__(
        self, targets: Sequence[TargetInfo], loss_name: str, class_weighting: ClassWeighting, beta: float | None
    ) -> None:
        num_classes = len(class_names(targets, loss_name))
        super().__init__(targets, num_outputs=len(targets) * num_classes)
        self.num_classes = num_classes
        self.weights = WeightTable(weights_of_classes(class_weighting, targets, num_classes=num_classes, beta=beta))
        self.reweighs = "class_weights" if self.weights.table is not None else ""

    def units(self, target: Tensor) -> Tensor:
        """Weight of every entry's class [B, T]; 0 where unlabelled."""
        return self.weights(target)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return self.each_class(logits.flatten(0, 1), target.flatten().long()).view(target.shape)

    def each_class(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss [N] of logits [N, K] and class indices [N]."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Probabilities [B, T, K] of logits [B, T * K]."""
        return self.by_target(logits).softmax(-1)

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """The logits of the true classes, added up over the labelled targets [B]."""
        index = target.nan_to_num(0).long().unsqueeze(-1)
        return (self.by_target(logits).gather(-1, index).squeeze(-1) * ~target.isnan()).sum(1)


class ClassCrossEntropy(SoftmaxLoss):
    """Softmax cross-entropy of every labelled entry; see `ce` for its arguments."""

    def __init__(
        self,
        targets: Sequence[TargetInfo],
        *,
        class_weights: ClassWeighting = None,
        beta: float | None = None,
        label_smoothing: float = 0.0,
        loss_name: str = "ce",
    ) -> None:
        super().__init__(targets, loss_name, class_weights, beta)
        self.label_smoothing = label_smoothing

    def each_class(self, logits: Tensor, label: Tensor) -> Tensor:
        """See the base class."""
        return voxel_cross_entropy(logits, label, label_smoothing=self.label_smoothing)


class ClassFocal(SoftmaxLoss):
    """Focal loss with a softmax over K classes; see `focal` for its arguments."""

    def __init__(
        self,
        targets: Sequence[TargetInfo],
        *,
        gamma: float = 2.0,
        class_weights: ClassWeighting = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(targets, "focal", class_weights, beta)
        self.gamma = gamma

    def each_class(self, logits: Tensor, label: Tensor) -> Tensor:
        """See the base class."""
        return focal(voxel_cross_entropy(logits, label), self.gamma)


class SigmoidLoss(ImageLoss):
    """Base of the losses on one logit per target that is yes or no.

    Args:
        targets: With two classes each, the second being positive.
        loss_name: In messages.
    """

    always_for = ""

    def __init__(self, targets: Sequence[TargetInfo], loss_name: str) -> None:
        if len(class_names(targets, loss_name)) > 2:
            raise UsageError(
                f"loss={loss_name} needs targets of two classes, but {targets[0].target_name} has "
                f"{len(targets[0].classes or ())}",
                hint="use loss=ce or loss=focal for classes that exclude each other",
            )
        super().__init__(targets, num_outputs=len(targets))

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return self.each_label(logits.squeeze(-1), target)

    def each_label(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss [B, T] of logits [B, T] and labels 0 or 1."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Probabilities [B, T, 2] of no and yes, of logits [B, T]."""
        scores = self.by_target(logits)
        return (scores * scores.new_tensor([-1.0, 1.0])).sigmoid()

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """The logits of what is there, added up [B]; where nothing is, minus those of what is known not to be."""
        scores, there = self.by_target(logits).squeeze(-1), target > 0
        absent = ~there & ~target.isnan() & ~there.any(1, keepdim=True)
        return (scores * there - scores * absent).sum(1)


class LabelCrossEntropy(SigmoidLoss):
    """Sigmoid cross-entropy of every labelled entry; see `bce` for its arguments."""

    def __init__(
        self,
        targets: Sequence[TargetInfo],
        *,
        pos_weight: Literal["none", "balanced"] | float | tuple[float, ...] = "none",
    ) -> None:
        super().__init__(targets, "bce")
        weights = positive_weights(pos_weight, self.targets)
        self.pos_weight: Tensor | None
        self.register_buffer("pos_weight", weights_buffer(weights), persistent=False)
        self.reweighs = "pos_weight" if weights is not None else ""

    def each_label(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        weight = None if self.pos_weight is None else self.pos_weight.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")


class LabelFocal(SigmoidLoss):
    """Focal loss with a sigmoid per target; see `focal` for its arguments."""

    def __init__(
        self,
        targets: Sequence[TargetInfo],
        *,
        gamma: float = 2.0,
        class_weights: ClassWeighting = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(targets, "focal")
        self.gamma = gamma
        self.weights = WeightTable(weights_of_classes(class_weights, self.targets, num_classes=2, beta=beta))
        self.reweighs = "class_weights" if self.weights.table is not None else ""

    def units(self, target: Tensor) -> Tensor:
        """Weight of every entry's class [B, T]; 0 where unlabelled."""
        return self.weights(target)

    def each_label(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return focal(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), self.gamma)
