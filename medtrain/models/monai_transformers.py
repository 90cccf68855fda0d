"""MONAI's transformers for segmentation, as registered models; MONAI is imported when one is built."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.layers import NormName
from medtrain.models.monai_networks import check_groups, monai_network, monai_norm
from medtrain.models.padding import SegmentationNet, plain_size
from medtrain.registry import Range, register

SWIN_DIVISOR = 32
"""Swin UNETR embeds 2 voxels per axis and merges four times."""
UNETR_TOKEN = 16
"""Voxels per axis of one of UNETR's tokens."""


@register(
    "model", "swin_unetr", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation")
)
class SwinUNETR(SegmentationNet):
    """MONAI's Swin UNETR: a Swin transformer as encoder, a convolutional decoder. Needs the extra `monai`.

    A. Hatamizadeh et al., Swin UNETR, BrainLes 2021; https://docs.monai.io/en/stable/networks.html#swinunetr

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        width: Features of the first stage, a multiple of 12; the paper has 48.
        depths: Transformer layers of the four stages.
        num_heads: Attention heads of the four stages.
        window_size: Tokens per axis that attend to each other.
        norm: Of the decoder: per sample and channel (instance), per channel (batch), per sample and 8 groups (group).
        dropout: Probability of zeroing a feature.
        attention_dropout: Probability of zeroing an attention weight.
        drop_path: Probability of leaving out a residual branch, rising to this value at the last layer.
        recompute: Compute the transformer's activations again in the backward pass: less memory, more time.

    Raises:
        MissingExtraError: MONAI, or einops, is not installed.
        UsageError: The sizes contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        width: Annotated[int, Range(ge=12)] = 48,
        depths: tuple[int, int, int, int] = (2, 2, 2, 2),
        num_heads: tuple[int, int, int, int] = (3, 6, 12, 24),
        window_size: Annotated[int, Range(ge=2)] = 7,
        norm: NormName = "instance",
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        attention_dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        drop_path: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        recompute: bool = False,
    ) -> None:
        if width % 12:
            raise UsageError(f"model.width must be a multiple of 12, got {width}")
        for stage, heads in enumerate(num_heads):
            if heads < 1 or (width * 2**stage) % heads:
                raise UsageError(
                    f"model.num_heads[{stage}]={heads} does not divide the {width * 2**stage} features of that stage"
                )
        check_groups(norm, width)
        divisor = (SWIN_DIVISOR,) * spatial_dims
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=divisor, norm=norm)
        self.network = monai_network("swin_unetr", "swin_unetr", "SwinUNETR", packages=("einops",))(
            in_channels=in_channels,
            out_channels=num_outputs,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            feature_size=width,
            norm_name=monai_norm(norm),
            drop_rate=dropout,
            attn_drop_rate=attention_dropout,
            dropout_path_rate=drop_path,
            use_checkpoint=recompute,
            spatial_dims=spatial_dims,
        )

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class."""
        return (1, 2, 2, 2, 2, 2)

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        with _sizes_are_fixed():
            return self.network(image)


@register(
    "model",
    "unetr",
    runtime=("spatial_dims", "in_channels", "num_outputs", "patch_size"),
    tags=("2d", "3d", "segmentation"),
)
class UNETR(SegmentationNet):
    """MONAI's UNETR: a vision transformer as encoder, a convolutional decoder. Needs the extra `monai`.

    It learns a position for every token of a patch, so it takes images of one size: that of a patch, padded.

    A. Hatamizadeh et al., UNETR, WACV 2022; https://docs.monai.io/en/stable/networks.html#unetr

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        patch_size: Voxels of a patch per axis.
        width: Features of the decoder at full resolution.
        hidden_size: Features of a token, a multiple of the heads.
        mlp_dim: Features of the layers between attention.
        num_heads: Attention heads.
        norm: Of the decoder: per sample and channel (instance), per channel (batch), per sample and 8 groups (group).
        dropout: Probability of zeroing a feature.

    Raises:
        MissingExtraError: MONAI, or einops, is not installed.
        UsageError: The sizes contradict each other, or an image is larger than a patch.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        patch_size: tuple[int, ...],
        width: Annotated[int, Range(ge=1)] = 16,
        hidden_size: Annotated[int, Range(ge=1)] = 768,
        mlp_dim: Annotated[int, Range(ge=1)] = 3072,
        num_heads: Annotated[int, Range(ge=1)] = 12,
        norm: NormName = "instance",
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    ) -> None:
        if hidden_size % num_heads:
            raise UsageError(f"model.hidden_size={hidden_size} is not a multiple of model.num_heads={num_heads}")
        check_groups(norm, width)
        size = tuple(-(-n // UNETR_TOKEN) * UNETR_TOKEN for n in patch_size)
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=size)
        self.network = monai_network("unetr", "unetr", "UNETR", packages=("einops",))(
            in_channels=in_channels,
            out_channels=num_outputs,
            img_size=size,
            feature_size=width,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            norm_name=monai_norm(norm),
            dropout_rate=dropout,
            spatial_dims=spatial_dims,
        )
        for block in self.network.vit.blocks:
            if hasattr(block, "norm_cross_attn"):  # of cross attention, which there is none of: no gradient reaches it
                block.norm_cross_attn = nn.Identity()

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class: one token per 16 voxels."""
        return (1, 2, 2, 2, 2)

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        size = plain_size(image)
        if size != self.divisor:
            raise UsageError(
                f"unetr was built for images of {' x '.join(map(str, self.divisor))}, got {' x '.join(map(str, size))}",
                hint="predict in windows of data.patch_size",
            )
        with _sizes_are_fixed():
            return self.network(image)


@contextmanager
def _sizes_are_fixed() -> Iterator[None]:
    """Silence what MONAI's sums and checks of sizes give rise to in a trace, which is recorded for one size anyway."""
    with warnings.catch_warnings():
        if torch.jit.is_tracing():
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"monai\.")
        yield
