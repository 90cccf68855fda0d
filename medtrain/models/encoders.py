"""Image encoders: what turns an image into a feature map and a feature vector, whatever the architecture."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.freezing import FreezableModel, Freeze
from medtrain.models.recompute import recompute
from medtrain.registry import Format

if TYPE_CHECKING:
    from medtrain.models.weights import LoadReport

log = logging.getLogger(__name__)

Pooling = Literal["token", "avg"]


def parse_arch(text: str) -> str:
    """Check the name of an architecture.

    Raises:
        ValueError: timm has none of this name; names the nearest.
    """
    from medtrain.models.timm_encoder import check_arch  # imports timm, which takes a second

    try:
        check_arch(text)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return text


Arch = Annotated[str, Format(parse_arch, "resnet50, densenet121, vit_small_patch16_224")]
"""The name of an architecture of timm, with or without a weight tag."""


class Encoder(nn.Module):
    """The image part of a model. Subclasses are made by `build_encoder`.

    Args:
        arch: The architecture's name.
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W) of the images.

    Attributes:
        num_features: Length F of the pooled vector.
        map_features: Channels of the feature map; F in all but a few architectures that widen after pooling.
        map_size: (h, w) or (d, h, w) of the feature map.
        first_convolutions: Names, in `network`, of the weights whose second axis are the image channels.
        pretrained_config: timm's description of the weights it has for the architecture.
        weights_report: What `load_weights` found; null for random weights.
    """

    num_features: int
    map_features: int
    map_size: tuple[int, ...]
    first_convolutions: tuple[str, ...]
    pretrained_config: Any = None
    weights_report: LoadReport | None = None

    def __init__(self, arch: str, in_channels: int, image_size: tuple[int, ...]) -> None:
        super().__init__()
        self.arch = arch
        self.in_channels = in_channels
        self.image_size = image_size

    @property
    def network(self) -> nn.Module:
        """The module whose names files of weights use."""
        return self

    def features(self, image: Tensor) -> Tensor:
        """Feature map [B, map_features, *map_size] of images [B, C, *S]."""
        return self.features_and_vector(image)[0]

    def pool(self, feature_map: Tensor) -> Tensor:
        """Feature vector [B, F] of a feature map: the mean over it, and what the architecture does after its mean."""
        raise NotImplementedError

    def features_and_vector(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map and feature vector in one pass."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Feature vector [B, F] of images [B, C, *S], pooled as the architecture does it."""
        return self.features_and_vector(image)[1]

    def feature_layer(self) -> nn.Module:
        """The module whose output is the last feature map [B, map_features, *map_size] that `forward` depends on.

        Raises:
            UsageError: The architecture's vector does not depend on such a map.
        """
        raise NotImplementedError

    def check_input(self, image: Tensor) -> None:
        """Refuse images of another shape than the encoder was built for.

        Raises:
            MedtrainError: With both shapes.
        """
        # a traced or exported graph must not depend on these checks
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        expected = (self.in_channels, *self.image_size)
        if tuple(image.shape[1:]) != expected:
            shape = ", ".join(str(size) for size in expected)
            raise MedtrainError(
                f"the encoder expects images [B, {shape}], got {list(image.shape)}",
                hint="it was built for images of this size and number of channels",
            )


def build_encoder(
    arch: str,
    *,
    in_channels: int,
    image_size: tuple[int, ...],
    weights: str | None = None,
    min_matched: float = 0.9,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    pooling: Pooling | None = None,
    small_input: bool | None = None,
) -> Encoder:
    """Build an image encoder by name.

    Args:
        arch: `cnn` (2-D and 3-D), or any architecture of timm (2-D), e.g. `resnet50`, `convnext_tiny.fb_in22k`.
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W) of the images.
        weights: Where the weights come from (see `medtrain.models.weights.load_weights`): null, a file, a folder, or
            `timm` for those in timm's local cache.
        min_matched: Share of the encoder's weights that the file must hold.
        drop_rate: Probability of dropping a pooled feature.
        drop_path_rate: Probability of skipping a residual branch in the last block, rising to it from 0; null = the
            architecture's own.
        pooling: How a transformer's tokens become a vector: its class `token`, or their mean (`avg`); null = the
            architecture's own.
        small_input: Replace a stem that shrinks images four times by a 3x3 convolution without pooling; null = for
            images smaller than 64 pixels, where the architecture is a ResNet.

    Raises:
        UsageError: The architecture is unknown or cannot be had this way; says what can.
        MedtrainError: The weights do not fit.
    """
    if arch == "cnn":
        from medtrain.models.cnn import CnnEncoder  # it is an Encoder

        refused = {"drop_path_rate": drop_path_rate, "pooling": pooling, "small_input": small_input}
        for key, value in refused.items():
            if value is not None and value is not False:
                raise UsageError(
                    f"arch=cnn has no {key}, got {value}", hint=f"leave {key}=null, or choose another arch"
                )
        encoder: Encoder = CnnEncoder(in_channels=in_channels, image_size=image_size, drop_rate=drop_rate)
    else:
        from medtrain.models.timm_encoder import TimmEncoder  # it is an Encoder

        encoder = TimmEncoder(
            arch,
            in_channels=in_channels,
            image_size=image_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pooling=pooling,
            small_input=small_input,
        )
    if weights is not None:
        from medtrain.models.weights import load_weights  # weights are adapted to encoders

        load_weights(encoder, "timm" if weights == "timm" else Path(weights), min_matched=min_matched)
    return encoder


def check_image_size(image_size: tuple[int, ...], dims: tuple[int, ...], arch: str) -> None:
    """Refuse images whose number of axes an architecture cannot take.

    Raises:
        UsageError: Says what can be used instead.
    """
    if len(image_size) not in dims or math.prod(image_size) < 1:
        allowed = " and ".join(f"{dim}-D" for dim in dims)
        raise UsageError(
            f"{arch} takes {allowed} images, got an image size of {list(image_size)}",
            hint="model=cnn takes volumes" if len(image_size) == 3 else None,
        )


def finish(
    model: FreezableModel, encoders: Sequence[Encoder], *, freeze: Freeze, checkpoint_layers: tuple[str, ...]
) -> None:
    """Freeze parts of a model for good and let others compute their activations twice.

    Args:
        model: With the image encoders below `encoder`, which are what `backbone` means.
        encoders: Of the model.
        freeze: `none`, `backbone` or patterns (see `select_parameters`).
        checkpoint_layers: See `recompute`.

    Raises:
        UsageError: A pattern fits nothing.
    """
    if freeze != "none":
        model.lock(("encoder",) if freeze == "backbone" else freeze)
        for encoder in encoders:
            frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
            if frozen and encoder.weights_report is None:
                log.warning("model.freeze=%s without model.weights: the image encoder stays random", freeze)
                break
    if checkpoint_layers:
        recompute(model, checkpoint_layers)
