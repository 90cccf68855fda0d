"""Images and a table together, any of which a sample may lack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.aggregators import Aggregator, AggregatorName, AggregatorSettings, build_aggregator
from medtrain.models.freezing import FreezableModel
from medtrain.models.fusion import FUSIONS, Fused, FusionName, Tokens, build_fusion, drop_modalities
from medtrain.models.instances import Encoded, EncoderSettings, ImageEncoder
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.models.tabular import TableArch, TableEncoder, TableTokens
from medtrain.registry import Range, Spread, register

TABLE = "table"
IMAGE = "image"


@register(
    "model",
    "multimodal",
    runtime=(
        "in_channels",
        "image_size",
        "view_names",
        "max_instances",
        "num_numeric",
        "category_sizes",
        "num_outputs",
        "cumulative_targets",
    ),
    tags=("images", "2d", "3d", "table"),
)
class Multimodal(FreezableModel):
    """An image encoder, an encoder of the table, a fusion of the two, and a head.

    Named views are modalities of their own, or one when an `aggregator` is chosen; the images of a bag are always
    aggregated. A sample may lack any of its modalities, or all: the others decide, and nothing becomes NaN. With views
    there need not be a table.

    Args:
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W).
        view_names: Names of the views.
        max_instances: Most instances of a bag; None without bags.
        num_numeric: Numeric columns.
        category_sizes: Codes of each categorical column.
        num_outputs: Logits.
        cumulative_targets: Targets that take cumulative logits.
        image_encoder: Of the images.
        shared: One image encoder for all views, or one for each.
        chunk_size: Images encoded at a time, which bounds the memory of large bags; null = all.
        table_arch: `mlp` (a layer for each of the sizes) or `resnet` (3 residual blocks of the one size).
        table_dims: Sizes of the table's layers.
        table_drop: Dropout after each of them.
        fusion: How the modalities' features become one vector.
        fusion_dim: Size of that vector.
        fusion_drop: Dropout of that vector, and inside of fusions by attention.
        fusion_heads: Attention heads of `attention` and `cross_attention`; null = 4.
        fusion_layers: Layers of `attention`; null = 1.
        fusion_rank: Rank of `bilinear`; null = 16.
        fusion_sketch: Length of the sketch of `compact_kronecker`; null = 2048.
        fusion_weights: How much each modality counts in `gated` before training, images first, then the table; null =
            0.5 each.
        aggregator: How the images of a sample become one modality; null makes views modalities of their own.
        aggregation: Of the aggregator.
        modality_dropout: Probability of hiding a modality from the fusion in training, never all that a sample has.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        auxiliary_heads: Also predict from each modality alone; the task adds their losses.

    Raises:
        UsageError: There is one modality only, or a setting does not fit the others.
    """

    inputs: tuple[str, ...] = ("image", "present", "numeric", "categorical", "observed")

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        view_names: tuple[str, ...],
        max_instances: int | None,
        num_numeric: int,
        category_sizes: Sequence[int],
        num_outputs: int,
        cumulative_targets: int = 0,
        image_encoder: Annotated[EncoderSettings, Spread()] = EncoderSettings(),  # noqa: B008 - frozen
        shared: bool = True,
        chunk_size: Annotated[int, Range(ge=1)] | None = None,
        table_arch: TableArch | None = None,
        table_dims: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        table_drop: Annotated[float, Range(ge=0, lt=1)] | None = None,
        fusion: FusionName = "gated",
        fusion_dim: Annotated[int, Range(ge=1)] = 96,
        fusion_drop: Annotated[float, Range(ge=0, lt=1)] = 0.4,
        fusion_heads: Annotated[int, Range(ge=1)] | None = None,
        fusion_layers: Annotated[int, Range(ge=1)] | None = None,
        fusion_rank: Annotated[int, Range(ge=1)] | None = None,
        fusion_sketch: Annotated[int, Range(ge=2)] | None = None,
        fusion_weights: tuple[Annotated[float, Range(gt=0, lt=1)], ...] | None = None,
        aggregator: AggregatorName | None = None,
        aggregation: Annotated[AggregatorSettings, Spread()] = AggregatorSettings(),  # noqa: B008 - frozen
        modality_dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        head: HeadName = "linear",
        auxiliary_heads: bool = False,
    ) -> None:
        super().__init__()
        self.modality_dropout = modality_dropout
        self.has_table = bool(num_numeric or category_sizes)
        image_names = view_names if view_names and aggregator is None else (IMAGE,)
        self.modalities: tuple[str, ...] = (*image_names, TABLE) if self.has_table else tuple(image_names)
        _check_modalities(self.modalities, view_names, max_instances, aggregator)
        self.encoder = ImageEncoder(
            image_encoder,
            in_channels=in_channels,
            image_size=image_size,
            view_names=view_names,
            shared=shared,
            chunk_size=chunk_size,
        )
        self.num_numeric, self.num_categorical = num_numeric, len(category_sizes)
        self.table = self._make_table(category_sizes, {"arch": table_arch, "dims": table_dims, "drop": table_drop})
        self.aggregator = self._make_aggregator(aggregator, len(view_names), aggregation.options())
        image_dim = self.encoder.num_features if self.aggregator is None else self.aggregator.out_dim
        in_dims = [image_dim] * len(image_names) + ([] if self.table is None else [self.table.num_features])
        self.tokens = self._make_tokens(fusion, category_sizes, fusion_dim)
        self.fusion = build_fusion(
            fusion,
            in_dims=in_dims,
            dim=fusion_dim,
            drop=fusion_drop,
            token_dims=self._token_dims(len(image_names), fusion_dim),
            options={
                "heads": fusion_heads,
                "layers": fusion_layers,
                "rank": fusion_rank,
                "sketch": fusion_sketch,
                "weights": fusion_weights,
            },
        )
        self.head = build_head(head, fusion_dim, num_outputs, cumulative_targets=cumulative_targets)
        self.auxiliary = nn.ModuleList(
            build_head(head, size, num_outputs, cumulative_targets=cumulative_targets)
            for size in in_dims
            if auxiliary_heads
        )
        image_encoder.finish(self, self.encoder.each())

    def _make_aggregator(self, aggregator: str | None, num_views: int, options: Mapping[str, Any]) -> Aggregator | None:
        if aggregator is not None:
            return build_aggregator(aggregator, in_dim=self.encoder.num_features, num_views=num_views, options=options)
        for key, value in options.items():
            if value is not None:
                raise UsageError(
                    f"model.aggregator_{key} has no effect without model.aggregator",
                    hint="choose one, e.g. `model.aggregator=attention`, or leave it out",
                )
        return None

    def _make_table(self, category_sizes: Sequence[int], settings: Mapping[str, Any]) -> TableEncoder | None:
        options = {key: value for key, value in settings.items() if value is not None}
        if self.has_table:
            return TableEncoder(num_numeric=self.num_numeric, category_sizes=category_sizes, **options)
        if options:
            raise UsageError(
                f"model.table_{next(iter(options))} has no effect: the data have no tabular columns",
                hint="leave it out, or name tabular columns in the data's settings",
            )
        return None

    def _make_tokens(self, fusion: str, category_sizes: Sequence[int], dim: int) -> TableTokens | None:
        if fusion not in FUSIONS or not FUSIONS[fusion].needs_tokens:
            return None
        if self.aggregator is not None:
            raise UsageError(
                f"model.fusion={fusion} looks at the feature map of each image, and model.aggregator leaves one vector "
                "of them all",
                hint="use another fusion, e.g. model.fusion=gated, or views without model.aggregator",
            )
        if not self.has_table:
            return None
        return TableTokens(num_numeric=self.num_numeric, category_sizes=category_sizes, dim=dim)

    def _token_dims(self, num_images: int, dim: int) -> list[Tokens]:
        images = [Tokens(math.prod(self.encoder.map_size), self.encoder.map_features)] * num_images
        return images if self.tokens is None else [*images, Tokens(self.tokens.count, dim)]

    def forward(
        self,
        image: Tensor | None = None,
        present: Tensor | None = None,
        numeric: Tensor | None = None,
        categorical: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits [B, num_outputs], and what the settings add.

        Args:
            image: [B, C, *S], or [B, N, C, *S] with views or bags; None if no sample has any.
            present: [B, N] bool, [B, 1] for single images; None where all images exist.
            numeric: [B, N] standardised numbers.
            categorical: [B, M] codes.
            observed: Which tabular values are there; a sample without any lacks its table. None if all are.

        Returns:
            `logits`; `aux/<modality>` with auxiliary heads; `attention` [B, N] where an aggregator weighs images;
            `modality_weights` [B, modalities] where the fusion weighs them.
        """
        outputs: dict[str, Tensor] = {}
        given = next(value for value in (image, numeric, categorical) if value is not None)
        features, there, tokens = self._encode_images(image, present, given, outputs)
        if self.table is not None:
            self._encode_table(numeric, categorical, observed, features, there, tokens)
        exists = torch.stack(there, 1)
        if self.auxiliary:
            for name, head, value, exist in zip(self.modalities, self.auxiliary, features, there, strict=True):
                outputs[f"aux/{name}"] = head(value.masked_fill(~exist.unsqueeze(1), 0.0))
        if self.training and self.modality_dropout:
            exists = drop_modalities(exists, self.modality_dropout)
        fused: Fused = self.fusion(features, exists, tokens if self.fusion.needs_tokens else None)
        if fused.weights is not None:
            outputs["modality_weights"] = fused.weights
        return {"logits": self.head(fused.features), **outputs}

    def feature_layer(self) -> nn.Module:
        """The module whose output is the feature map of every image."""
        return self.encoder.feature_layer()

    def _encode_images(
        self, image: Tensor | None, present: Tensor | None, given: Tensor, outputs: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features, existence and tokens of the modalities that are images."""
        count = len(self.modalities) - self.has_table
        if image is None:
            nothing = self.fusion.in_dims[0]
            absent = torch.zeros(len(given), dtype=torch.bool, device=given.device)
            zeros = torch.zeros(len(given), nothing, device=given.device)
            cells = zeros.new_zeros(len(given), math.prod(self.encoder.map_size), self.encoder.map_features)
            return [zeros] * count, [absent] * count, [cells] * count
        encoded: Encoded
        encoded, exists = self.encoder(image, present, maps=self.fusion.needs_tokens)
        if self.aggregator is not None:
            found = self.aggregator(encoded.vectors, exists)
            if found.attention is not None:
                outputs["attention"] = found.attention
            return [found.features], [exists.any(1)], []
        assert encoded.vectors.shape[1] == count, f"{encoded.vectors.shape[1]} images for {count} modalities"
        tokens = [] if encoded.maps is None else [maps.flatten(2).transpose(1, 2) for maps in encoded.maps.unbind(1)]
        return list(encoded.vectors.unbind(1)), list(exists.unbind(1)), tokens

    def _encode_table(
        self,
        numeric: Tensor | None,
        categorical: Tensor | None,
        observed: Tensor | None,
        features: list[Tensor],
        there: list[Tensor],
        tokens: list[Tensor],
    ) -> None:
        """Add the features, existence and tokens of the table."""
        assert self.table is not None
        some = features[0]
        if numeric is None and categorical is None:
            numeric = some.new_zeros(len(some), self.num_numeric)
            categorical = torch.zeros(len(some), self.num_categorical, dtype=torch.int64, device=some.device)
            exists = torch.zeros(len(some), dtype=torch.bool, device=some.device)
        elif observed is None:
            exists = torch.ones(len(some), dtype=torch.bool, device=some.device)
        else:
            exists = observed.any(1)
        features.append(self.table(numeric, categorical, observed))
        there.append(exists)
        if self.tokens is not None:
            tokens.append(self.tokens(numeric, categorical, observed))


def _check_modalities(
    modalities: Sequence[str], view_names: Sequence[str], max_instances: int | None, aggregator: str | None
) -> None:
    """Refuse what cannot be fused.

    Raises:
        UsageError: One modality, an aggregator of single images, or a bag without an aggregator.
    """
    if max_instances is not None and aggregator is None:
        raise UsageError(
            "the data have bags of images, and model.aggregator does not say how they become one modality",
            hint="set `model.aggregator=gated_attention`",
        )
    if aggregator is not None and not view_names and max_instances is None:
        raise UsageError(
            f"model.aggregator={aggregator} has no effect: the data have one image for each sample",
            hint="leave model.aggregator=null",
        )
    if len(modalities) < 2:
        raise UsageError(
            "model=multimodal fuses several modalities, and the data have images alone",
            hint="name tabular columns in the data's settings, or use model=timm, model=mil or model=multiview",
        )
    if len(set(modalities)) < len(modalities):
        raise UsageError(f"a view cannot be named `{TABLE}`, which is the name of the tabular modality")
