"""Losses of numbers, on the scale of the training part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.units import ImageLoss, LossKind, TargetInfo
from medtrain.registry import Range, register

log = logging.getLogger(__name__)


class RegressionLoss(ImageLoss):
    """Base of the losses on one output per number, averaged over the labelled entries.

    Args:
        targets: Numbers.
        standardize: Compare with (target - mean) / std of the training part, so that outputs are of the order of 1
            and targets in different units count alike; predictions are brought back.
    """

    kind: ClassVar[LossKind] = "numbers"

    def __init__(self, targets: Sequence[TargetInfo], loss_name: str, *, standardize: bool) -> None:
        check_numbers(targets, loss_name)
        super().__init__(targets, num_outputs=len(targets))
        self.mean: Tensor
        self.std: Tensor
        means, stds = zip(*(_scale(target) if standardize else (0.0, 1.0) for target in targets))
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float64), persistent=False)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        # the difference of large numbers, such as times in seconds, is taken in float64
        scaled = (target.double() - self.mean) / self.std
        return self.each_number(logits.squeeze(-1), scaled.to(logits.dtype))

    def each_number(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss [B, T] of outputs and targets on the same scale."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Numbers [B, T] in the unit of the targets."""
        return (self.by_target(logits).squeeze(-1).double() * self.std + self.mean).float()


def check_numbers(targets: Sequence[TargetInfo], loss_name: str) -> None:
    """Refuse targets that are classes.

    Raises:
        UsageError: There is no target, or one is of classes.
    """
    if not targets:
        raise UsageError(f"loss={loss_name} needs a target column", hint="name one with data.targets")
    classes = [target.target_name for target in targets if target.classes is not None]
    if classes:
        raise UsageError(
            f"loss={loss_name} is one of numbers, but these targets are classes: {', '.join(classes)}",
            hint="for classes: task=classification with loss=ce or focal, or task=ordinal, multilabel or zones; "
            "for both together: task=multitask",
        )


def _scale(target: TargetInfo) -> tuple[float, float]:
    if target.std > 0:
        return target.mean, target.std
    log.warning("all training samples have the same %s: it is centred but not scaled", target.target_name)
    return target.mean, 1.0


@register("loss", "mse", runtime=("targets",), tags=("images",))
class MSELoss(RegressionLoss):
    """Squared error of the standardised numbers.

    Args:
        targets: Numbers.
        standardize: Compare with (target - mean) / std of the training part.
    """

    def __init__(self, *, targets: Sequence[TargetInfo], standardize: bool = True) -> None:
        super().__init__(targets, "mse", standardize=standardize)

    def each_number(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return (output - target).square()


@register("loss", "mae", runtime=("targets",), tags=("images",))
class MAELoss(RegressionLoss):
    """Absolute error of the standardised numbers; far-off samples count less than with `mse`.

    Args:
        targets: Numbers.
        standardize: Compare with (target - mean) / std of the training part.
    """

    def __init__(self, *, targets: Sequence[TargetInfo], standardize: bool = True) -> None:
        super().__init__(targets, "mae", standardize=standardize)

    def each_number(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return (output - target).abs()


@register("loss", "huber", runtime=("targets",), tags=("images",))
class HuberLoss(RegressionLoss):
    """Half the squared error up to delta, linear beyond; of the standardised numbers.

    Args:
        targets: Numbers.
        standardize: Compare with (target - mean) / std of the training part.
        delta: Where the line begins, in standard deviations when standardised.
    """

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        standardize: bool = True,
        delta: Annotated[float, Range(gt=0)] = 1.0,
    ) -> None:
        super().__init__(targets, "huber", standardize=standardize)
        self.delta = delta

    def each_number(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return F.huber_loss(output, target, delta=self.delta, reduction="none")
