"""The plain five-layer CNN, in 2-D and 3-D: the baseline that anything else must beat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from torch import Tensor, nn

from medtrain.models.classifier import ImageClassifier
from medtrain.models.encoders import Encoder, check_image_size, finish
from medtrain.models.freezing import Freeze
from medtrain.models.layers import ConvBlock, NormName, init_he
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.models.weights import load_weights
from medtrain.registry import Range, register

CHANNELS = (64, 128, 256, 512, 1024)
"""Feature channels of the five layers."""

_MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class CnnEncoder(Encoder):
    """Rows of 3x3 convolution, normalisation and leaky ReLU, with max-pooling by 2 between them.

    An axis that has shrunk to one element is not pooled further, so that thin volumes can be used.

    Args:
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W) of the images.
        drop_rate: Probability of dropping a pooled feature.
        channels: Feature channels of each layer.
        norm: See `medtrain.models.layers.norm_layer`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        drop_rate: float = 0.0,
        channels: tuple[int, ...] = CHANNELS,
        norm: NormName = "batch",
    ) -> None:
        super().__init__("cnn", in_channels, tuple(image_size))
        check_image_size(self.image_size, (2, 3), "cnn")
        dims = len(self.image_size)
        self.layers = nn.Sequential()
        size, width = self.image_size, in_channels
        for index, features in enumerate(channels):
            if index:
                factor = tuple(2 if side > 1 else 1 for side in size)
                self.layers.append(_MAX_POOL[dims](factor))
                size = tuple(side // f for side, f in zip(size, factor))
            self.layers.append(ConvBlock(dims, width, features, (3,) * dims, (1,) * dims, norm, 0.0))
            width = features
        self.first_convolutions = ("layers.0.conv.weight",)
        self.map = nn.Identity()
        self.dropout = nn.Dropout(drop_rate)
        self.num_features = self.map_features = width
        self.map_size = size
        init_he(self)

    def features_and_vector(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map and feature vector in one pass."""
        self.check_input(image)
        feature_map = self.map(self.layers(image))
        return feature_map, self.pool(feature_map)

    def pool(self, feature_map: Tensor) -> Tensor:
        """Mean over the map, with dropout."""
        return self.dropout(feature_map.flatten(2).mean(dim=2))

    def feature_layer(self) -> nn.Module:
        """The module whose output is the feature map."""
        return self.map


@register(
    "model",
    "cnn",
    runtime=("in_channels", "image_size", "num_outputs", "cumulative_targets"),
    tags=("2d", "3d", "images"),
)
class Cnn(ImageClassifier):
    """Five convolutions and a head, for images [B, C, H, W] and volumes [B, C, D, H, W].

    Args:
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W).
        num_outputs: Logits K.
        cumulative_targets: Targets that take cumulative logits.
        channels: Feature channels of each layer; its length is the number of layers.
        norm: Statistics per channel (batch), per sample and channel (instance), or per sample and 8 groups (group).
        drop_rate: Probability of dropping a feature before the head.
        weights: Null = random, or a file with weights of this network.
        min_matched: Share of the encoder's tensors that the weights must give.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        freeze: What does not learn: `none`, `backbone` (all but the head), or names of parts, e.g. [encoder.layers.0].
        checkpoint_layers: Parts that save memory by computing their activations twice, e.g. [encoder.layers.0].
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        num_outputs: int,
        cumulative_targets: int = 0,
        channels: tuple[int, ...] = CHANNELS,
        norm: NormName = "batch",
        drop_rate: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        weights: str | None = None,
        min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9,
        head: HeadName = "linear",
        freeze: Freeze = "none",
        checkpoint_layers: tuple[str, ...] = (),
    ) -> None:
        encoder = CnnEncoder(
            in_channels=in_channels, image_size=image_size, drop_rate=drop_rate, channels=channels, norm=norm
        )
        if weights is not None:
            load_weights(encoder, "timm" if weights == "timm" else Path(weights), min_matched=min_matched)
        layer = build_head(head, encoder.num_features, num_outputs, cumulative_targets=cumulative_targets)
        super().__init__(encoder, layer)
        finish(self, [encoder], freeze=freeze, checkpoint_layers=checkpoint_layers)
