"""Any 2-D architecture of timm as a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from medtrain.models.classifier import ImageClassifier
from medtrain.models.encoders import Arch
from medtrain.models.instances import EncoderSettings
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Spread, register


@dataclass(frozen=True, kw_only=True)
class TimmSettings(EncoderSettings):
    """Of an architecture of timm.

    Args:
        arch: Name in timm, e.g. `resnet50`, `densenet121`, `convnext_tiny.fb_in22k_ft_in1k`, `vit_small_patch16_224`.
    """

    arch: Arch = "resnet18"


@register(
    "model", "timm", runtime=("in_channels", "image_size", "num_outputs", "cumulative_targets"), tags=("2d", "images")
)
class TimmModel(ImageClassifier):
    """An architecture of timm with a head, for images [B, C, H, W] of any number of channels.

    R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.

    Args:
        in_channels: Image channels C.
        image_size: (H, W); transformers are built for it.
        num_outputs: Logits K.
        cumulative_targets: Targets that take cumulative logits.
        encoder: The architecture.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.

    Raises:
        UsageError: The architecture is unknown, or cannot be built for these images.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        num_outputs: int,
        cumulative_targets: int = 0,
        encoder: Annotated[TimmSettings, Spread()] = TimmSettings(),
        head: HeadName = "linear",
    ) -> None:
        image_encoder = encoder.build(in_channels, image_size)
        layer = build_head(head, image_encoder.num_features, num_outputs, cumulative_targets=cumulative_targets)
        super().__init__(image_encoder, layer)
        encoder.finish(self, [image_encoder])
