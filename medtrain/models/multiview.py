"""Samples with several images: bags of instances, and named views."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.aggregators import Aggregated, AggregatorName, AggregatorSettings, build_aggregator
from medtrain.models.freezing import FreezableModel
from medtrain.models.instances import EncoderSettings, ImageEncoder
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Range, Spread, register


class SeveralImages(FreezableModel):
    """An image encoder, an aggregator over what it says of each image, and a head.

    Args:
        image_encoder: Of the images.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        aggregation: Of the aggregator.
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
        aggregation: AggregatorSettings,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.aggregator = build_aggregator(
            aggregator, in_dim=encoder.num_features, num_views=num_views, options=aggregation.options()
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
        image_encoder: Annotated[EncoderSettings, Spread()] = EncoderSettings(),  # noqa: B008 - frozen
        head: HeadName = "linear",
        aggregator: AggregatorName = "gated_attention",
        aggregation: Annotated[AggregatorSettings, Spread()] = AggregatorSettings(),  # noqa: B008 - frozen
        chunk_size: Annotated[int, Range(ge=1)] | None = 64,
    ) -> None:
        if max_instances is None and not view_names:
            raise UsageError(
                "model=mil takes bags, and the data have one image for each sample",
                hint="use model=timm, or data with several rows for each sample",
            )
        super().__init__(
            encoder=ImageEncoder(image_encoder, in_channels=in_channels, image_size=image_size, chunk_size=chunk_size),
            aggregator=aggregator,
            num_views=len(view_names),
            num_outputs=num_outputs,
            cumulative_targets=cumulative_targets,
            head=head,
            aggregation=aggregation,
        )
        image_encoder.finish(self, self.encoder.each())


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
        image_encoder: Annotated[EncoderSettings, Spread()] = EncoderSettings(),  # noqa: B008 - frozen
        head: HeadName = "linear",
        shared: bool = True,
        aggregator: AggregatorName = "attention",
        aggregation: Annotated[AggregatorSettings, Spread()] = AggregatorSettings(),  # noqa: B008 - frozen
        chunk_size: Annotated[int, Range(ge=1)] | None = None,
    ) -> None:
        if not view_names:
            raise UsageError(
                "model=multiview takes named views, and the data have none",
                hint="use model=mil for bags, or name the views in the data's settings",
            )
        super().__init__(
            encoder=ImageEncoder(
                image_encoder,
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
            aggregation=aggregation,
        )
        image_encoder.finish(self, self.encoder.each())
