"""Any 2-D architecture of timm as a classifier."""

from __future__ import annotations

from typing import Annotated

from medtrain.models.classifier import ImageClassifier
from medtrain.models.encoders import Arch, Pooling, build_encoder
from medtrain.models.freezing import Freeze
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Range, register


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
        arch: Name in timm, e.g. `resnet50`, `densenet121`, `convnext_tiny.fb_in22k_ft_in1k`, `vit_small_patch16_224`.
        weights: Null = random; a file (safetensors, pth); a folder in the style of HuggingFace; `timm` = what timm's
            local cache has. Nothing is downloaded.
        min_matched: Share of the encoder's tensors that the weights must give.
        drop_rate: Probability of dropping a feature before the head.
        drop_path_rate: Probability of skipping a residual branch in the last block, rising to it from 0; null = the
            architecture's own.
        pooling: How a transformer's tokens become a vector: the class token or the mean; null = the architecture's own.
        small_input: A ResNet's stem as a 3x3 convolution without pooling, as MedMNIST trains at 28 pixels; null = for
            images below 64 pixels.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        freeze: What does not learn: `none`, `backbone` (only the head learns: a linear probe), or names of parts as the
            parameter summary shows them, `*` for any text, e.g. [encoder.model.layer1].
        checkpoint_layers: Parts that save memory by computing their activations twice, e.g. [encoder.model.blocks.*].

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
        arch: Arch = "resnet18",
        weights: str | None = None,
        min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9,
        drop_rate: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        drop_path_rate: Annotated[float, Range(ge=0, lt=1)] | None = None,
        pooling: Pooling | None = None,
        small_input: bool | None = None,
        head: HeadName = "linear",
        freeze: Freeze = "none",
        checkpoint_layers: tuple[str, ...] = (),
    ) -> None:
        encoder = build_encoder(
            arch,
            in_channels=in_channels,
            image_size=image_size,
            weights=weights,
            min_matched=min_matched,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pooling=pooling,
            small_input=small_input,
        )
        layer = build_head(head, encoder.num_features, num_outputs, cumulative_targets=cumulative_targets)
        super().__init__(encoder, layer)
        self.finish(freeze=freeze, checkpoint_layers=checkpoint_layers)
