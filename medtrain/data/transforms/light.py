"""A mild augmentation for short runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from medtrain.data.transforms.pipeline import Probability, RandomPipeline, Span
from medtrain.registry import Range, register


@register("augment", "light", runtime=("in_channels", "masked_channels"), tags=("segmentation",))
@dataclass(frozen=True, kw_only=True)
class LightAugmentation(RandomPipeline):
    """Left-right mirroring, small rotations and scalings, mild noise, brightness, contrast and gamma: for short runs.

    The same transforms as `nnunet` with smaller ranges; blur, low resolution and inverted gamma are off unless given a
    probability, and only the left-right axis is mirrored: bodies are nearly symmetric across it and across no other. A
    network that sees only a few epochs has little time to overfit and learns faster on easier patches.
    """

    mirror_axes: tuple[Annotated[int, Range(ge=-3, le=2)], ...] | None = (-1,)
    rotation_degrees: Annotated[float, Range(ge=0, le=180)] | None = 15.0
    scaling_range: Annotated[Span, Range(gt=0)] = (0.85, 1.2)
    noise_std: Annotated[Span, Range(ge=0)] = (0.0, 0.05)
    blur_p: Probability = 0.0
    brightness_range: Annotated[Span, Range(gt=0)] = (0.9, 1.1)
    contrast_range: Annotated[Span, Range(ge=0)] = (0.9, 1.1)
    low_resolution_p: Probability = 0.0
    gamma_inverted_p: Probability = 0.0
    gamma_p: Probability = 0.15
    gamma_range: Annotated[Span, Range(gt=0)] = (0.85, 1.2)
