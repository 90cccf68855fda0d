"""Samples with several images: bags of instances, and named views."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.aggregators import Aggregated, AggregatorName, build_aggregator
from medtrain.models.encoders import Pooling
from medtrain.models.freezing import FreezableModel, Freeze
from medtrain.models.instances import EncoderSettings, ImageArch, ImageEncoder, finish
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Range, register


class SeveralImages(FreezableModel):
    """An image encoder, an aggregator over what it says of each image, and a head.

    Args:
        arch: `cnn` (2-D and 3-D) or any architecture of timm (2-D), e.g. `resnet18`.
        weights: Weights of the encoder: a file, a folder, `timm` for those in timm's local cache; null = random.
        min_matched: Share of the encoder's weights that the file must hold.
        freeze: What does not learn: `none`, `backbone` (the image encoder), or names of parts as the parameter summary
            shows them, `*` for any text, e.g. [encoder.shared.model.layer1].
        checkpoint_layers: Parts that save memory by computing their activations twice, e.g. [encoder.*.model.layer1].
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        drop_rate: Dropout of each image's features.
        drop_path_rate: Stochastic depth of the encoder's last block; null = the architecture's own.
        pooling: How a transformer's tokens become a vector: its class `token`, or their mean (`avg`); null = the
            architecture's own.
        small_input: A stem for small images; null = for images under 64 pixels, where the architecture is a ResNet.
        aggregator_dim: Hidden size of the aggregator; null = 128 for attention, 256 for the others that have one.
        aggregator_heads: Attention heads of `transformer` and `cross_view_attention`; null = 8.
        aggregator_layers: Layers of `transformer`; null = 2.
        aggregator_drop: Dropout of the aggregator; null = 0.1 where it has one.
        chunk_size: Images encoded at a time, which bounds the memory of large bags; null = all.
    """

    inputs: tuple[str, ...] = ("image", "present")

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        aggregator: str,
        num_views: int,
        num_outputs: int,
        cumulative_targets: int,
        head: HeadName,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.aggregator = build_aggregator(
            aggregator, in_dim=encoder.num_features, num_views=num_views, options=options
        )
        self.head = build_head(head, self.aggregator.out_dim, num_outputs, cumulative_targets=cumulative_targets)

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits [B, num_outputs], with `attention` [B, N] over the images where the aggregator weighs them.

        Args:
            image: [B, N, C, *S].
            present: [B, N] bool; None where all images exist.
        """
        encoded, there = self.encoder(image, present)
        found: Aggregated = self.aggregator(encoded.vectors, there)
        logits = self.head(found.features)
        return logits if found.attention is None else {"logits": logits, "attention": found.attention}

    def feature_layer(self) -> nn.Module:
        """The module whose output is the feature map of every image."""
        return self.encoder.feature_layer()


@register(
    "model",
    "mil",
    runtime=("in_channels", "image_size", "view_names", "max_instances", "num_outputs", "cumulative_targets"),
    tags=("images", "2d", "3d"),
)
class MultipleInstance(SeveralImages):
    """Multiple-instance learning: a bag of images, of which some decide, with one label.

    The instances of all bags are encoded together, padding left out, `chunk_size` at a time. M. Ilse et al.,
    Attention-based Deep Multiple Instance Learning, 2018.

    Args:
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W).
        view_names: Names of the views, empty for bags.
        max_instances: Most instances of a bag; None without bags.
        num_outputs: Logits.
        cumulative_targets: Targets that take cumulative logits.
        aggregator: How instances become a bag. With `attention`, `gated_attention` and `transformer` the model tells
            which instances decided.

    Raises:
        UsageError: The data have one image for each sample, or a setting does not fit.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        view_names: tuple[str, ...],
        max_instances: int | None,
        num_outputs: int,
        cumulative_targets: int = 0,
        arch: ImageArch = "resnet18",
        weights: str | None = None,
        min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9,
        drop_rate: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        drop_path_rate: Annotated[float, Range(ge=0, lt=1)] | None = None,
        pooling: Pooling | None = None,
        small_input: bool | None = None,
        head: HeadName = "linear",
        freeze: Freeze = "none",
        checkpoint_layers: tuple[str, ...] = (),
        aggregator: AggregatorName = "gated_attention",
        aggregator_dim: Annotated[int, Range(ge=1)] | None = None,
        aggregator_heads: Annotated[int, Range(ge=1)] | None = None,
        aggregator_layers: Annotated[int, Range(ge=1)] | None = None,
        aggregator_drop: Annotated[float, Range(ge=0, lt=1)] | None = None,
        chunk_size: Annotated[int, Range(ge=1)] | None = 64,
    ) -> None:
        if max_instances is None and not view_names:
            raise UsageError(
                "model=mil takes bags, and the data have one image for each sample",
                hint="use model=timm, or data with several rows for each sample",
            )
        settings = EncoderSettings(
            arch=arch,
            weights=weights,
            min_matched=min_matched,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pooling=pooling,
            small_input=small_input,
        )
        super().__init__(
            encoder=ImageEncoder(settings, in_channels=in_channels, image_size=image_size, chunk_size=chunk_size),
            aggregator=aggregator,
            num_views=len(view_names),
            num_outputs=num_outputs,
            cumulative_targets=cumulative_targets,
            head=head,
            options={
                "dim": aggregator_dim,
                "heads": aggregator_heads,
                "layers": aggregator_layers,
                "drop": aggregator_drop,
            },
        )
        finish(self, self.encoder.each(), freeze=freeze, checkpoint_layers=checkpoint_layers)


@register(
    "model",
    "multiview",
    runtime=("in_channels", "image_size", "view_names", "num_outputs", "cumulative_targets"),
    tags=("images", "2d", "3d"),
)
class MultiView(SeveralImages):
    """Several named views of a case, 2-D or 3-D, of which any may be missing.

    Args:
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W).
        view_names: Names of the views.
        num_outputs: Logits.
        cumulative_targets: Targets that take cumulative logits.
        shared: One encoder for all views, or one for each.
        aggregator: How views become a case. `learned_weight` and `cross_view_attention` know the views by name.

    Raises:
        UsageError: The data have no views, or a setting does not fit.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        view_names: tuple[str, ...],
        num_outputs: int,
        cumulative_targets: int = 0,
        arch: ImageArch = "resnet18",
        weights: str | None = None,
        min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9,
        drop_rate: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        drop_path_rate: Annotated[float, Range(ge=0, lt=1)] | None = None,
        pooling: Pooling | None = None,
        small_input: bool | None = None,
        head: HeadName = "linear",
        freeze: Freeze = "none",
        checkpoint_layers: tuple[str, ...] = (),
        shared: bool = True,
        aggregator: AggregatorName = "attention",
        aggregator_dim: Annotated[int, Range(ge=1)] | None = None,
        aggregator_heads: Annotated[int, Range(ge=1)] | None = None,
        aggregator_layers: Annotated[int, Range(ge=1)] | None = None,
        aggregator_drop: Annotated[float, Range(ge=0, lt=1)] | None = None,
        chunk_size: Annotated[int, Range(ge=1)] | None = None,
    ) -> None:
        if not view_names:
            raise UsageError(
                "model=multiview takes named views, and the data have none",
                hint="use model=mil for bags, or name the views in the data's settings",
            )
        settings = EncoderSettings(
            arch=arch,
            weights=weights,
            min_matched=min_matched,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pooling=pooling,
            small_input=small_input,
        )
        super().__init__(
            encoder=ImageEncoder(
                settings,
                in_channels=in_channels,
                image_size=image_size,
                view_names=view_names,
                shared=shared,
                chunk_size=chunk_size,
            ),
            aggregator=aggregator,
            num_views=len(view_names),
            num_outputs=num_outputs,
            cumulative_targets=cumulative_targets,
            head=head,
            options={
                "dim": aggregator_dim,
                "heads": aggregator_heads,
                "layers": aggregator_layers,
                "drop": aggregator_drop,
            },
        )
        finish(self, self.encoder.each(), freeze=freeze, checkpoint_layers=checkpoint_layers)
