"""What every loss of whole images shares: targets that may be unlabelled, and a mean over weighted units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError

LossKind = Literal["classes", "numbers", "survival", "mixed"]
"""What the outputs of a loss mean, so that a task can refuse a loss it cannot judge."""


class TargetInfo(Protocol):
    """What a loss needs to know of one target column, learnt from the training part."""

    @property
    def target_name(self) -> str:
        """The column."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of its classes by index; None for a number."""
        ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Labelled training samples per class."""
        ...

    @property
    def mean(self) -> float:
        """Of the training part's numbers."""
        ...

    @property
    def std(self) -> float:
        """Of the training part's numbers."""
        ...


class ImageLoss(nn.Module):
    """Base of the losses on logits and targets [B, T], one column per target, NaN where unlabelled.

    The value is the weighted mean of the losses of *units*, the labelled entries of the batch unless a loss says
    otherwise, in float32 whatever the logits' type. `weight` is the sum of the units' weights, so that the mean over a
    batch is the mean over its micro-batches, weighted by it, to rounding. A loss for which this does not hold sets
    `decomposable` to False. Without a labelled unit the value is 0, with a gradient of 0.

    Attributes:
        targets: The target columns, in their order.
        num_outputs: Size of the last layer of the model: logits are [B, num_outputs], or [B, T, num_outputs / T].
        kind: What the outputs mean.
        always_for: What `evidence` speaks for, whatever the target; empty where it speaks for the target.
        reweighs: Name of the setting that gives classes weights of their own; empty where none does.
    """

    decomposable: bool = True
    kind: ClassVar[LossKind] = "classes"
    always_for: ClassVar[str] = "a larger number"
    reweighs: str = ""

    def __init__(self, targets: Sequence[TargetInfo], *, num_outputs: int) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.num_outputs = num_outputs

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over the units of the batch as a scalar.

        Args:
            logits: [B, num_outputs] or [B, T, num_outputs / T], any floating type.
            target: [B, T], on the device of the logits.
        """
        total, units = self.sums(logits, target)
        return mean_of(total, units)

    def sums(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the weighted losses of the units, and the sum of their weights."""
        # under autocast a float32 operation may be lowered again, so it is switched off
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return self.compute(scores, target.to(scores.dtype))

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `sums`, of logits in full precision and outside autocast."""
        units = self.units(target)
        losses = self.each(self.by_target(logits), target.nan_to_num(0))
        return (losses * units).sum(), units.sum()

    def weight(self, target: Tensor) -> float:
        """The sum of the weights of a batch's units.

        Args:
            target: [B, T], on the CPU, so that nobody waits for the device.
        """
        return float(self.units(target).sum(dtype=torch.float64))

    def units(self, target: Tensor) -> Tensor:
        """Weight of every entry [B, T]; 0 where unlabelled."""
        return (~target.isnan()).to(target.dtype)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every entry [B, T].

        Args:
            logits: [B, T, O].
            target: [B, T], 0 where unlabelled.
        """
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """What the logits mean: probabilities [B, T, K] of classes, or numbers [B, T] in the unit of the target."""
        raise NotImplementedError

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """What speaks for the truth [B], so that its gradient shows where the model sees it (Grad-CAM).

        Args:
            logits: As for `forward`.
            target: [B, T]; what is unlabelled does not count.
        """
        return (self.by_target(logits).sum(-1) * ~target.isnan()).sum(1)

    @property
    def cumulative_targets(self) -> int:
        """Targets of which logit k is that of P(y > k), as an `OrdinalHead` gives them; 0 where logits are others."""
        return 0

    @property
    def units_per_sample(self) -> int:
        """Units that a wholly labelled sample has, where classes weigh 1."""
        return len(self.targets)

    def by_target(self, logits: Tensor) -> Tensor:
        """Logits [B, T, O] of logits [B, T * O] or [B, T, O]."""
        found = logits.numel() // max(1, logits.shape[0])
        assert found == self.num_outputs, f"{found} logits per sample, expected {self.num_outputs}"
        return logits.reshape(logits.shape[0], len(self.targets), self.num_outputs // len(self.targets))


def mean_of(total: Tensor, units: Tensor) -> Tensor:
    """A sum over weighted units divided by their weight; 0 without weight."""
    return total / torch.where(units > 0, units, torch.ones_like(units))


def class_names(targets: Sequence[TargetInfo], loss_name: str) -> tuple[str, ...]:
    """The classes of the targets, which must all have the same number of them.

    Raises:
        UsageError: There is no target, one is a number, or the numbers of classes differ.
    """
    if not targets:
        raise UsageError(f"loss={loss_name} needs a target column", hint="name one with data.targets")
    numbers = [target.target_name for target in targets if target.classes is None]
    if numbers:
        raise UsageError(
            f"loss={loss_name} is one of classes, but these targets are numbers: {', '.join(numbers)}",
            hint="for numbers: task=regression with loss=huber, mse or mae; for classes and numbers together: "
            "task=multitask",
        )
    classes = [target.classes or () for target in targets]
    if len({len(names) for names in classes}) > 1:
        sizes = ", ".join(f"{target.target_name} has {len(names)}" for target, names in zip(targets, classes))
        raise UsageError(
            f"loss={loss_name} needs targets with the same number of classes, but {sizes}",
            hint="use loss=multitask, which gives every target a loss of its own",
        )
    if len(classes[0]) < 2:
        raise UsageError(f"target {targets[0].target_name} has fewer than two classes: {list(classes[0])}")
    return classes[0]
