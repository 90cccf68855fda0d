"""CMUNeXt: a light U-Net of depth-wise convolutions with large kernels, in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.layers import NormName, conv, norm_layer
from medtrain.models.padding import SegmentationNet
from medtrain.registry import Range, register


@dataclass(frozen=True)
class _Variant:
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    block_kernels: tuple[int, ...]


VARIANTS = {
    "s": _Variant((8, 16, 32, 64, 128), (1, 1, 1, 1, 1), (3, 3, 7, 7, 9)),
    "base": _Variant((16, 32, 128, 160, 256), (1, 1, 1, 3, 1), (3, 3, 7, 7, 7)),
    "l": _Variant((32, 64, 128, 256, 512), (1, 1, 1, 6, 3), (3, 3, 7, 7, 7)),
}
"""The paper's variants."""

_POOL: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}
_UPSAMPLE = {2: "bilinear", 3: "trilinear"}


@register("model", "cmunext", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class CMUNeXt(SegmentationNet):
    """A light encoder-decoder for segmentation: large depth-wise kernels, inverted bottlenecks, fused skips.

    A stage is a row of blocks (a depth-wise convolution beside a short-cut, then a bottleneck of four times the
    channels) and a convolution to the stage's width; max-pooling by 2 lies between stages. The decoder up-samples
    linearly and fuses the skip with a convolution of two groups. Images are [B, C, H, W] or [B, C, D, H, W].

    F. Tang et al., CMUNeXt, ISBI 2024; the paper has images and batch normalisation.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        variant: The paper's sizes: s, base or l.
        widths: Feature channels of each stage, finest first; null = those of the variant.
        blocks: Blocks in each stage; null = those of the variant.
        block_kernels: Odd kernel of each stage's depth-wise convolutions; null = those of the variant.
        norm: Statistics per channel (batch), per sample and channel (instance), or per sample and 8 groups (group).

    Raises:
        UsageError: Widths, blocks and kernels contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        variant: Literal["s", "base", "l"] = "base",
        widths: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        blocks: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        block_kernels: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        norm: NormName = "batch",
    ) -> None:
        chosen = _choose(variant, widths, blocks, block_kernels)
        wide = chosen.widths
        divisor = (2 ** (len(wide) - 1),) * spatial_dims
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=divisor, norm=norm)
        dims = spatial_dims
        self.stem = _conv_norm(dims, in_channels, wide[0], norm)
        before = (wide[0], *wide)
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(_Block(dims, before[i], kernel, norm) for _ in range(count)),
                _conv_norm(dims, before[i], wide[i], norm),
            )
            for i, (count, kernel) in enumerate(zip(chosen.blocks, chosen.block_kernels))
        )
        # the decoder is listed coarsest first, in the order of computation
        down = range(len(wide) - 2, -1, -1)
        self.up = nn.ModuleList(_conv_norm(dims, wide[i + 1], wide[i], norm) for i in down)
        self.fuse = nn.ModuleList(_fusion(dims, wide[i], norm) for i in down)
        self.head = conv(dims, wide[0], num_outputs, (1,) * dims, (1,) * dims)

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class."""
        stages = len(settings["widths"] or VARIANTS[settings["variant"]].widths)
        return (1,) + (2,) * (stages - 1)

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        features = self.stem(image)
        skips: list[Tensor] = []
        for index, stage in enumerate(self.encoder):
            features = stage(_POOL[self.spatial_dims](features, 2) if index else features)
            skips.append(features)
        for up, fuse, skip in zip(self.up, self.fuse, skips[-2::-1]):
            finer = F.interpolate(features, scale_factor=2.0, mode=_UPSAMPLE[self.spatial_dims], align_corners=False)
            features = fuse(torch.cat((skip, up(finer)), dim=1))
        return self.head(features)


class _Block(nn.Module):
    """A depth-wise convolution beside a short-cut, then an inverted bottleneck; the norm follows the activation."""

    def __init__(self, dims: int, width: int, kernel: int, norm: NormName) -> None:
        super().__init__()
        one = (1,) * dims
        depthwise = conv(dims, width, width, (kernel,) * dims, one, groups=width)
        self.depthwise = nn.Sequential(depthwise, nn.GELU(), norm_layer(norm, dims, width))
        self.bottleneck = _bottleneck(dims, width, 4 * width, width, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        return self.bottleneck(self.depthwise(features) + features)


def _conv_norm(dims: int, before: int, width: int, norm: NormName) -> nn.Sequential:
    convolution = conv(dims, before, width, (3,) * dims, (1,) * dims)
    return nn.Sequential(convolution, norm_layer(norm, dims, width), nn.ReLU(inplace=True))


def _bottleneck(dims: int, before: int, hidden: int, width: int, norm: NormName) -> nn.Sequential:
    one = (1,) * dims
    layers: list[nn.Module] = []
    for start, end in ((before, hidden), (hidden, width)):
        layers += [conv(dims, start, end, one, one), nn.GELU(), norm_layer(norm, dims, end)]
    return nn.Sequential(*layers)


def _fusion(dims: int, width: int, norm: NormName) -> nn.Sequential:
    """Skip and up-sampled features are looked at apart, a group each, then mixed."""
    apart = conv(dims, 2 * width, 2 * width, (3,) * dims, (1,) * dims, groups=2)
    mixed = _bottleneck(dims, 2 * width, 4 * width, width, norm)
    return nn.Sequential(apart, nn.GELU(), norm_layer(norm, dims, 2 * width), *mixed)


def _choose(
    variant: str,
    widths: tuple[int, ...] | None,
    blocks: tuple[int, ...] | None,
    block_kernels: tuple[int, ...] | None,
) -> _Variant:
    usual = VARIANTS[variant]
    chosen = _Variant(
        tuple(widths or usual.widths), tuple(blocks or usual.blocks), tuple(block_kernels or usual.block_kernels)
    )
    lengths = {"widths": len(chosen.widths), "blocks": len(chosen.blocks), "block_kernels": len(chosen.block_kernels)}
    if len(set(lengths.values())) > 1 or len(chosen.widths) < 2:
        counts = ", ".join(f"model.{key} has {length}" for key, length in lengths.items())
        raise UsageError(
            f"cmunext needs one entry per stage, and two stages or more: {counts}",
            hint="set model.widths, model.blocks and model.block_kernels together",
        )
    if any(kernel % 2 == 0 for kernel in chosen.block_kernels):
        raise UsageError(f"model.block_kernels must be odd, got {list(chosen.block_kernels)}")
    return chosen
