"""A loss on all that a model returns: its logits, those of auxiliary heads, and where it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.losses.attention import AttentionForm, entropy_term, mask_term, roughness, sharpness_term
from medtrain.losses.units import ImageLoss, mean_of
from medtrain.registry import Range

DEFAULT_AUX_WEIGHT = 0.3

AuxWeights = float | dict[str, float] | None
"""One weight for all auxiliary heads, or one per head; null is 0.3 where a model has such heads."""


@dataclass(frozen=True, kw_only=True)
class MapSupervision:
    """What is asked of the map of places that a model looks at.

    Args:
        source: `gradcam`: Grad-CAM of the truth on the model's feature map; `cam`: the same in less time, for models
            that end in one linear layer on the averaged feature map; `model`: the `attention_map` that it returns.
        mask: How the map is compared with the mask of a sample, for samples that have one; null = not at all.
        weight: Weight of that comparison.
        sharpness: What makes a map small in extent, with or without masks; null = nothing.
        sharpness_weight: Its weight.
        smoothness_weight: Weight of the total variation of the map.
    """

    source: Literal["gradcam", "cam", "model"] = "gradcam"
    mask: AttentionForm | None = "kl"
    weight: Annotated[float, Range(gt=0)] | None = None
    sharpness: Literal["entropy", "variance", "gini"] | None = None
    sharpness_weight: Annotated[float, Range(gt=0)] | None = None
    smoothness_weight: Annotated[float, Range(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.mask is None and self.sharpness is None and not self.smoothness_weight:
            raise UsageError(
                "task.attention asks for nothing: mask and sharpness are null and smoothness_weight is 0",
                hint="set one of them, or task.attention=null",
            )
        for choice, weight in (("mask", "weight"), ("sharpness", "sharpness_weight")):
            if getattr(self, choice) is None and getattr(self, weight) is not None:
                raise UsageError(
                    f"task.attention.{weight} has no effect with task.attention.{choice}=null",
                    hint=f"set task.attention.{choice}, or leave the weight null",
                )

    def terms(self, maps: Tensor, annotation: Tensor | None) -> dict[str, tuple[float, Tensor]]:
        """Weight and value per sample [B] of every term by name.

        Args:
            maps: [B, *s] in [0, 1].
            annotation: [B, *S], NaN where a sample has none; None where no sample has.

        Raises:
            UsageError: Masks are asked for, and the batch has none.
        """
        found: dict[str, tuple[float, Tensor]] = {}
        if self.mask is not None:
            if annotation is None:
                raise UsageError(
                    f"task.attention.mask={self.mask} compares with masks, and the data have none",
                    hint="name the masks in data, or set task.attention.mask=null and task.attention.sharpness=entropy",
                )
            found["attention_mask"] = (_or(self.weight), mask_term(maps, annotation, self.mask))
        if self.sharpness is not None:
            found["attention_sharpness"] = (_or(self.sharpness_weight), sharpness_term(maps, self.sharpness))
        if self.smoothness_weight:
            found["attention_smoothness"] = (self.smoothness_weight, roughness(maps))
        return found


@dataclass(frozen=True, kw_only=True)
class InstanceEntropy:
    """Keeps the attention over views or instances from sitting on one and from spreading over all.

    Args:
        weight: Weight of the squared difference of its entropy and `share` log N.
        share: 0 asks for one instance of N, 1 for all alike.
    """

    weight: Annotated[float, Range(gt=0)] = 0.1
    share: Annotated[float, Range(ge=0, le=1)] = 0.5


class SupervisedLoss(nn.Module):
    """The loss of the logits, plus weighted terms for auxiliary heads and attention.

    Auxiliary heads are judged by the same loss on the same targets. Terms of attention are sums over the samples with
    a label, divided by the weight of the batch in samples: the mean where all is labelled and classes weigh 1, and
    micro-batches, each weighted by `weight`, add up to the whole batch.

    Args:
        loss: Of the logits.
        aux_weights: Of the auxiliary heads.
        attention: Of the map of places.
        instance_entropy: Of the attention over views or instances.
    """

    def __init__(
        self,
        loss: ImageLoss,
        *,
        aux_weights: AuxWeights = None,
        attention: MapSupervision | None = None,
        instance_entropy: InstanceEntropy | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.aux_weights = aux_weights
        self.attention = attention
        self.instance_entropy = instance_entropy

    @property
    def decomposable(self) -> bool:
        """Whether the loss of a batch is the weighted mean of its parts' losses."""
        return self.loss.decomposable

    def weight(self, target: Tensor) -> float:
        """The sum of the weights of a batch's units, of targets on the CPU."""
        return self.loss.weight(target)

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        target: Tensor,
        *,
        maps: Tensor | None = None,
        annotation: Tensor | None = None,
        present: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms by name without their weights; only the loss itself where it is all there is.

        Args:
            outputs: What the model returned: `logits`, and maybe `aux/<name>`, `attention`, `attention_map`.
            target: [B, T].
            maps: Where the model looks [B, *s], for `source=gradcam` and `source=cam`.
            annotation: Where it should look [B, *S]; NaN where a sample has none.
            present: Which views or instances there are [B, V].

        Raises:
            UsageError: Something is asked for that the model does not return or the data do not have.
        """
        total, units = self.loss.sums(outputs["logits"], target)
        main = mean_of(total, units)
        terms = self._aux_terms(outputs, target)
        counted, samples = self._samples(units, target)
        for name, (weight, values) in self._attention_terms(outputs, maps, annotation, present).items():
            terms[name] = (weight, mean_of((values * counted).sum(), samples))
        if not terms:
            return main, {}
        loss = torch.stack([main, *(weight * value for weight, value in terms.values())]).sum()
        return loss, {"main": main.detach(), **{name: value.detach() for name, (_, value) in terms.items()}}

    def _samples(self, units: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples the attention counts of [B], and the number that their sum is divided by."""
        if not self.decomposable:
            return torch.ones_like(target[:, 0]), units.new_full((), len(target))
        # a micro-batch without labels has no weight, so attention without a label must not count in any batch
        labelled = self.loss.units(target).reshape(len(target), -1).any(1)
        return labelled, units / self.loss.units_per_sample

    def _aux_terms(self, outputs: Mapping[str, Tensor], target: Tensor) -> dict[str, tuple[float, Tensor]]:
        heads = {key.removeprefix("aux/"): value for key, value in outputs.items() if key.startswith("aux/")}
        return {
            f"aux/{name}": (weight, self.loss(heads[name], target))
            for name, weight in aux_weights(self.aux_weights, list(heads)).items()
        }

    def _attention_terms(
        self, outputs: Mapping[str, Tensor], maps: Tensor | None, annotation: Tensor | None, present: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        found: dict[str, tuple[float, Tensor]] = {}
        if self.attention is not None:
            if self.attention.source == "model":
                maps = _returned(
                    outputs, "attention_map", "task.attention.source=model", "task.attention.source=gradcam"
                )
            assert maps is not None, "the task computes the maps of source=gradcam and source=cam"
            found |= self.attention.terms(maps, annotation)
        if self.instance_entropy is not None:
            weights = _returned(
                outputs, "attention", "task.instance_entropy", "a model that weighs its views or instances by attention"
            )
            settings = self.instance_entropy
            found["attention_entropy"] = (settings.weight, entropy_term(weights, present, share=settings.share))
        return found


def aux_weights(setting: AuxWeights, heads: list[str]) -> dict[str, float]:
    """The weight of every auxiliary head of a model.

    Raises:
        UsageError: The setting has no effect, or names heads that the model does not have, or leaves some out.
    """
    if not heads and setting is not None and setting != {}:
        raise UsageError(
            "task.aux_weights is set, but the model has no auxiliary heads",
            hint="leave it null, or switch the model's auxiliary heads on",
        )
    if isinstance(setting, Mapping):
        wrong = sorted(set(setting) ^ set(heads))
        if wrong:
            raise UsageError(
                f"task.aux_weights names {', '.join(setting) or 'nothing'}, but the model's auxiliary heads are "
                f"{', '.join(heads)}",
                hint="give every head a weight, 0 for none, or one number for all",
            )
        return dict(setting)
    return dict.fromkeys(heads, _or(setting, DEFAULT_AUX_WEIGHT))


def _returned(outputs: Mapping[str, Tensor], key: str, setting: str, instead: str) -> Tensor:
    if key not in outputs:
        raise UsageError(
            f"{setting} needs a model that returns `{key}`; this one returns {', '.join(outputs)}",
            hint=f"choose {instead}",
        )
    return outputs[key]


def _or(value: float | None, default: float = 0.1) -> float:
    return default if value is None else value
