"""One loss per target of an image: classes, grades, labels, numbers and survival times together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.losses.class_weights import ClassWeighting
from medtrain.losses.ordinal import OrdinalForm
from medtrain.losses.units import ImageLoss, LossKind, TargetInfo
from medtrain.registry import Range, build, closest, get, register

PartName = Literal[
    "ce", "bce", "focal", "weighted_zone_ce", "ordinal", "emd", "mse", "mae", "huber", "cox", "discrete_survival"
]


@dataclass(frozen=True, kw_only=True)
class LossPart:
    """One loss on some of the targets; what is null is at the default of that loss.

    Args:
        targets: Names of the target columns, in the order in which the loss wants them.
        loss: The loss.
        weight: Its weight in the sum.
        class_weights: Of `ce`, `focal`, `ordinal` and `emd`.
        beta: The same.
        label_smoothing: Of `ce` and `weighted_zone_ce`.
        pos_weight: Of `bce`.
        gamma: Of `focal`.
        form: Of `ordinal`.
        delta: Of `huber`.
        unknown_weight: Of `weighted_zone_ce`.
        cuts: Of `discrete_survival`.
    """

    targets: tuple[str, ...]
    loss: PartName
    weight: Annotated[float, Range(gt=0)] = 1.0
    class_weights: ClassWeighting = None
    beta: Annotated[float, Range(gt=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Range(ge=0, lt=1)] | None = None
    pos_weight: Literal["none", "balanced"] | Annotated[float, Range(gt=0)] | tuple[float, ...] | None = None
    gamma: Annotated[float, Range(ge=0)] | None = None
    form: OrdinalForm | None = None
    delta: Annotated[float, Range(gt=0)] | None = None
    unknown_weight: Annotated[float, Range(ge=0, le=1)] | None = None
    cuts: tuple[float, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """The settings of the loss that are given."""
        own = {"targets", "loss", "weight"}
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        return {key: value for key, value in found.items() if value is not None}


NO_PARTS: list[LossPart] = []


@register("loss", "multitask", runtime=("targets", "event_times"), tags=("images",))
class MultitaskLoss(ImageLoss):
    """Weighted sum over parts of the loss of some target columns, each over the samples that have their label.

    With weights w_p the value is sum_p w_p S_p / N: S_p is the sum of the losses of part p over its labelled entries,
    weighted as that loss weighs classes, and N the number of samples with any label. Where every sample has all labels
    and classes weigh 1 on average, this is sum_p w_p L_p with the mean L_p of each single target; a part whose label
    is rare counts as often as it is there. The logits of the parts lie side by side.

    Args:
        targets: The target columns.
        event_times: Times of the events in the training part, for `discrete_survival`.
        parts: The losses and their targets; every target belongs to one part. Without any, each target is a part: `bce`
            for two classes, `ce` for more, `huber` for a number.

    Raises:
        UsageError: A target is unknown, left out or used twice, or a part has a setting that its loss does not.
    """

    kind: ClassVar[LossKind] = "mixed"

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        event_times: Sequence[float] | None = None,
        parts: list[LossPart] = NO_PARTS,
    ) -> None:
        settings = list(parts) or [default_part(target) for target in targets]
        columns = _columns(settings, targets)
        losses = [
            _build_part(part, [targets[index] for index in chosen], event_times)
            for part, chosen in zip(settings, columns, strict=True)
        ]
        super().__init__(targets, num_outputs=sum(loss.num_outputs for loss in losses))
        self.columns = columns
        """Indices of the target columns of every part."""
        self.parts = nn.ModuleList(losses)
        self.part_weights = tuple(part.weight for part in settings)
        self.decomposable = all(loss.decomposable for loss in losses)
        self.reweighs = next((loss.reweighs for loss in losses if loss.reweighs), "")

    @property
    def losses(self) -> list[ImageLoss]:
        """The loss of every part."""
        return [part for part in self.parts if isinstance(part, ImageLoss)]

    @property
    def units_per_sample(self) -> int:
        """A sample is one unit."""
        return 1

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        total = logits.sum() * 0
        for loss, weight, said, column in zip(
            self.losses, self.part_weights, self.split(logits), self.columns, strict=True
        ):
            total = total + weight * loss.compute(said, take_columns(target, column))[0]
        return total, self.units(target).sum()

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """The evidence of all parts, added up [B]."""
        found = zip(self.losses, self.split(logits), self.columns, strict=True)
        return torch.stack([loss.evidence(said, take_columns(target, column)) for loss, said, column in found]).sum(0)

    def units(self, target: Tensor) -> Tensor:
        """1 for every sample with any label [B]."""
        return (~target.isnan()).any(1).to(target.dtype)

    def split(self, logits: Tensor) -> list[Tensor]:
        """The logits [B, O_p] of every part, of logits [B, sum of O_p]."""
        return list(logits.flatten(1).split([loss.num_outputs for loss in self.losses], 1))

    def predict(self, logits: Tensor) -> Tensor:
        """There is no single meaning: ask every part, `loss.losses[p].predict(loss.split(logits)[p])`."""
        raise TypeError("the parts of a multitask loss predict, each for its own targets")


def take_columns(target: Tensor, columns: Sequence[int]) -> Tensor:
    """Some columns of [B, T]; an index would have to be copied to the device, for which everybody waits."""
    return torch.stack([target[:, column] for column in columns], 1)


def default_part(target: TargetInfo) -> LossPart:
    """The part of a target of which nothing is said."""
    if target.classes is None:
        return LossPart(targets=(target.target_name,), loss="huber")
    return LossPart(targets=(target.target_name,), loss="bce" if len(target.classes) == 2 else "ce")


def _columns(parts: Sequence[LossPart], targets: Sequence[TargetInfo]) -> list[list[int]]:
    names = [target.target_name for target in targets]
    used = [name for part in parts for name in part.targets]
    for name in used:
        if name not in names:
            near = closest(name, names)
            raise UsageError(
                f"loss.parts: {name} is not a target; targets are: {', '.join(names)}",
                hint=f"did you mean {near}?" if near else None,
            )
    twice = sorted({name for name in used if used.count(name) > 1})
    missing = [name for name in names if name not in used]
    if twice or missing:
        said = f"more than one has {', '.join(twice)}" if twice else f"none has {', '.join(missing)}"
        raise UsageError(f"loss.parts: every target belongs to one part, but {said}")
    return [[names.index(name) for name in part.targets] for part in parts]


def _build_part(part: LossPart, targets: list[TargetInfo], event_times: Sequence[float] | None) -> ImageLoss:
    settings, known = part.settings(), get("loss", part.loss).params
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise UsageError(
            f"loss.parts: loss={part.loss} of {', '.join(part.targets)} has no setting {', '.join(unknown)}",
            hint=f"it has: {', '.join(known) or 'none'}",
        )
    loss: ImageLoss = build("loss", {"name": part.loss, **settings}, targets=targets, event_times=event_times)
    return loss
