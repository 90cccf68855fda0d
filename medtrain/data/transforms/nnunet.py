"""nnU-Net's augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from medtrain.data.transforms.pipeline import RandomPipeline
from medtrain.registry import register


@register("augment", "nnunet", runtime=("in_channels", "masked_channels"), tags=("segmentation",))
@dataclass(frozen=True, kw_only=True)
class NnunetAugmentation(RandomPipeline):
    """nnU-Net's augmentation: rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma, mirroring.

    The defaults are nnU-Net's probabilities and ranges. Isensee et al., Nature Methods 2021.
    """
