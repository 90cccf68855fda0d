"""Cross-entropy of zones whose class may be unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.class_weights import WeightTable
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.losses.units import TargetInfo
from medtrain.registry import Range, closest, register

UNKNOWN_NAMES = frozenset({"unknown", "ungradable"})


@register("loss", "weighted_zone_ce", runtime=("targets",), tags=("images",))
class WeightedZoneCrossEntropy(ClassCrossEntropy):
    """Cross-entropy over all zones of all samples, in which the class of zones that cannot be graded weighs less.

    That class is learnt like any other, with the weight u instead of 1. An entry without a label counts nowhere.

    Args:
        targets: One target per zone, all with the same classes.
        unknown_class: The class of zones that cannot be graded; null = the last one, if it is called `unknown` or
            `ungradable`.
        unknown_weight: Its weight u.
        normalize: What the weighted sum is divided by. `weights`: the sum of the weights, so that among zones that are
            all unknown u cancels out; `entries`: the number of labelled zones, so that it never does.
        label_smoothing: Share of the target spread over all classes.

    Raises:
        UsageError: There is no such class, or the targets differ in their classes.
    """

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        unknown_class: str | None = None,
        unknown_weight: Annotated[float, Range(ge=0, le=1)] = 0.3,
        normalize: Literal["weights", "entries"] = "weights",
        label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__(targets, label_smoothing=label_smoothing, loss_name="weighted_zone_ce")
        unknown = _unknown_index(self.targets, unknown_class)
        weights = tuple(unknown_weight if index == unknown else 1.0 for index in range(self.num_classes))
        self.weights = WeightTable(weights)
        self.normalize = normalize

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; the sum is weighted in either way, the divisor in one."""
        losses = self.each(self.by_target(logits), target.nan_to_num(0))
        return (losses * self.weights(target)).sum(), self.units(target).sum()

    def units(self, target: Tensor) -> Tensor:
        """What every entry adds to the divisor [B, T]."""
        return self.weights(target) if self.normalize == "weights" else torch.isfinite(target).to(target.dtype)


def _unknown_index(targets: Sequence[TargetInfo], name: str | None) -> int:
    """The index of a class that all targets have at the same place."""
    if name is None:
        last = {(target.classes or ("",))[-1] for target in targets}
        if len(last) > 1 or UNKNOWN_NAMES.isdisjoint(name.lower() for name in last):
            raise UsageError(
                "loss=weighted_zone_ce weighs the class of zones that cannot be graded, and none of "
                f"{', '.join(targets[0].classes or ())} is called {' or '.join(sorted(UNKNOWN_NAMES))}",
                hint="name it with loss.unknown_class=..., or use loss=ce if every zone is graded",
            )
        name = last.pop()
    for target in targets:
        names = target.classes or ()
        if name not in names:
            near = closest(name, names)
            raise UsageError(
                f"loss.unknown_class={name} is not a class of target {target.target_name}: {', '.join(names)}",
                hint=f"did you mean loss.unknown_class={near}?" if near else "use loss=ce if every zone is graded",
            )
    found = {(target.classes or ()).index(name) for target in targets}
    if len(found) > 1:
        raise UsageError(f"class {name} has different indices in the targets: {sorted(found)}")
    return found.pop()
