"""Weights of classes, given or computed from how often the training part has each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.losses.base import check_class_weights
from medtrain.losses.units import TargetInfo

log = logging.getLogger(__name__)

ClassWeighting = Literal["none", "balanced", "effective_num"] | tuple[float, ...] | None
"""`balanced` and `effective_num` count the training part; a list has one weight per class; null is `none`."""

DEFAULT_BETA = 0.999


class WeightTable(nn.Module):
    """Weights by class index, on the device of the model and on the CPU, so that nobody waits for a copy.

    Args:
        weights: One per class; None = all 1.
    """

    def __init__(self, weights: tuple[float, ...] | None) -> None:
        super().__init__()
        table = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.table: Tensor | None
        self.register_buffer("table", None if table is None else table.clone(), persistent=False)
        self.on_cpu = table  # not a buffer: it stays where it is

    def forward(self, label: Tensor) -> Tensor:
        """Weight of every entry of class indices or NaN, float as `label`; 0 where unlabelled."""
        labelled = ~label.isnan()
        if self.table is None or self.on_cpu is None:
            return labelled.to(label.dtype)
        table = self.table if self.table.device == label.device else self.on_cpu
        return table.to(label)[label.nan_to_num(0).long()] * labelled


def weights_of_classes(
    weighting: ClassWeighting, targets: Sequence[TargetInfo], *, num_classes: int, beta: float | None
) -> tuple[float, ...] | None:
    """The weight of every class, None when all are equal.

    Counts of several targets, such as zones, are added up. Weights that are computed are 1 on average over the training
    samples (`balanced`) or the classes (`effective_num`); a class that the training part does not have gets 1, because
    no formula gives it a finite weight.

    Args:
        weighting: As in a config.
        targets: The targets, all with K classes.
        num_classes: K.
        beta: Of `effective_num`; None = 0.999.

    Raises:
        UsageError: A list that does not match the classes, or a beta without use.
    """
    if beta is not None and weighting != "effective_num":
        raise UsageError("loss.beta has a meaning with loss.class_weights=effective_num only", hint="leave it null")
    if weighting is None or weighting == "none":
        return None
    names = targets[0].classes or tuple(str(index) for index in range(num_classes))
    if isinstance(weighting, tuple):
        if len(weighting) != num_classes:
            raise UsageError(
                f"loss.class_weights has {len(weighting)} values, but there are {num_classes} classes",
                hint=f"give one weight per class, in the order {', '.join(names)}",
            )
        check_class_weights(weighting, num_classes)
        return weighting
    counts = [sum(found) for found in zip(*(target.counts for target in targets), strict=True)]
    assert len(counts) == num_classes, f"{len(counts)} counts for {num_classes} classes"
    absent = [name for name, count in zip(names, counts) if count == 0]
    if absent:
        log.warning("no training sample has class %s: its weight in the loss is 1", ", ".join(absent))
    if weighting == "balanced":
        return balanced_weights(counts)
    return effective_number_weights(counts, beta=DEFAULT_BETA if beta is None else beta)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """N / (K n_k), as in scikit-learn, K being the classes that occur; 1 for one that does not."""
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)


def effective_number_weights(counts: Sequence[int], *, beta: float) -> tuple[float, ...]:
    """(1 - beta) / (1 - beta^n_k), scaled to a mean of 1 over the classes that occur; 1 for one that does not.

    Y. Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, eq. 2.

    Args:
        counts: Samples per class.
        beta: 0..1: 0 weighs all classes alike, and towards 1 the weights become those of `balanced`.
    """
    raw = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    scale = sum(count > 0 for count in counts) / sum(raw) if any(raw) else 1.0
    return tuple(value * scale if value else 1.0 for value in raw)


def positive_weights(
    setting: Literal["none", "balanced"] | float | tuple[float, ...], targets: Sequence[TargetInfo]
) -> tuple[float, ...] | None:
    """The weight of the positive entries of every yes-or-no target, None when all are 1.

    Args:
        setting: `balanced` is the number of negative training samples divided by that of positive ones, 1 where the
            training part lacks either; a number holds for all targets, a list has one per target.
        targets: With two classes each, the second being positive.

    Raises:
        UsageError: A list that does not match the targets.
    """
    if setting == "none":
        return None
    if isinstance(setting, tuple):
        if len(setting) != len(targets):
            raise UsageError(
                f"loss.pos_weight has {len(setting)} values, but there are {len(targets)} targets",
                hint=f"give one weight per target, in the order {', '.join(t.target_name for t in targets)}",
            )
        if min(setting) <= 0:
            raise UsageError(f"loss.pos_weight must be positive, got {list(setting)}")
        return setting
    if isinstance(setting, str):
        return tuple(_positive_weight(target) for target in targets)
    return (float(setting),) * len(targets)


def _positive_weight(target: TargetInfo) -> float:
    negative, positive = target.counts
    if negative and positive:
        return negative / positive
    lacking = "positive" if negative else "negative"
    log.warning("no training sample is %s for %s: loss.pos_weight is 1 there", lacking, target.target_name)
    return 1.0
