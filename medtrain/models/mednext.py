"""MedNeXt: a U-Net made of ConvNeXt blocks, in 2-D and 3-D."""

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
from medtrain.models.recompute import recompute
from medtrain.registry import Range, register


@dataclass(frozen=True)
class _Variant:
    blocks: tuple[int, ...]
    expansions: tuple[int, ...]


VARIANTS = {
    "s": _Variant((2,) * 9, (2,) * 9),
    "b": _Variant((2,) * 9, (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "m": _Variant((3, 4, 4, 4, 4, 4, 4, 4, 3), (2, 3, 4, 4, 4, 4, 4, 3, 2)),
    "l": _Variant((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}
"""The paper's variants: encoder, bottleneck and decoder in the order of computation."""

_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@register("model", "mednext", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class MedNeXt(SegmentationNet):
    """Encoder-decoder of ConvNeXt blocks, with residual down- and up-sampling and skips that are added.

    A block is a depth-wise convolution, a norm, and an inverted bottleneck beside a short-cut. Features double from
    stage to stage. With deep supervision the training forward returns a list of logits, finest first, at every decoder
    resolution; in eval mode it returns the finest alone. Images are [B, C, H, W] or [B, C, D, H, W].

    S. Roy et al., MedNeXt, MICCAI 2023. Global response normalisation: S. Woo et al., ConvNeXt V2, CVPR 2023.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        variant: The paper's sizes: s, b, m or l.
        kernel_size: Of the depth-wise convolutions; the paper has 3 and 5, and begins 5 with a trained network of 3
            (UpKern): model.kernel_size=5 trainer.init_from=RUN.
        width: Feature channels at full resolution.
        blocks: Blocks of each encoder stage, the bottleneck and each decoder stage; null = those of the variant.
        expansions: How many times wider the bottlenecks are, in the same order; null = those of the variant.
        norm: Statistics per sample and channel (instance), per channel (batch), or per sample and 8 groups (group).
        grn: Global response normalisation inside the bottlenecks.
        deep_supervision: Also predict at coarser resolutions while training.
        checkpoint_layers: Modules that compute their activations again in the backward pass instead of keeping them,
            `*` for any text: `encoder.*`, `decoder.*`. Less memory, more time.

    Raises:
        UsageError: Blocks and expansions contradict each other.
    """

    resizable_kernels = True  # by trainer.init_from: a norm after each takes out the scale that interpolation changes

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        variant: Literal["s", "b", "m", "l"] = "s",
        kernel_size: Literal[3, 5, 7] = 3,
        width: Annotated[int, Range(ge=1)] = 32,
        blocks: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        expansions: tuple[Annotated[int, Range(ge=1)], ...] | None = None,
        norm: NormName = "instance",
        grn: bool = False,
        deep_supervision: bool = True,
        checkpoint_layers: tuple[str, ...] = (),
    ) -> None:
        chosen = _choose(variant, blocks, expansions)
        depth = len(chosen.blocks) // 2
        divisor = (2**depth,) * spatial_dims
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=divisor, norm=norm)
        self.deep_supervision = deep_supervision
        one = (1,) * spatial_dims
        widths = [width * 2**level for level in (*range(depth + 1), *range(depth - 1, -1, -1))]

        def stage(index: int) -> nn.Sequential:
            shape = (spatial_dims, widths[index], widths[index], chosen.expansions[index], kernel_size)
            return nn.Sequential(*(Block(*shape, norm=norm, grn=grn) for _ in range(chosen.blocks[index])))

        def step(index: int, change: Literal["down", "up"]) -> Block:
            shape = (spatial_dims, widths[index - 1], widths[index], chosen.expansions[index], kernel_size)
            return Block(*shape, norm=norm, grn=grn, change=change)

        self.stem = conv(spatial_dims, in_channels, width, one, one)
        self.encoder = nn.ModuleList(stage(i) for i in range(depth + 1))
        self.down = nn.ModuleList(step(i, "down") for i in range(1, depth + 1))
        # the decoder is listed coarsest first, in the order of computation
        self.up = nn.ModuleList(step(i, "up") for i in range(depth + 1, 2 * depth + 1))
        self.decoder = nn.ModuleList(stage(i) for i in range(depth + 1, 2 * depth + 1))
        heads = depth if deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims, width * 2**i, num_outputs, one, one) for i in range(heads))
        if checkpoint_layers:
            recompute(self, checkpoint_layers)

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class."""
        return (1,) + (2,) * (len(settings["blocks"] or VARIANTS[settings["variant"]].blocks) // 2)

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image that fits, or a list of them, finest first (training, deep supervision)."""
        features = self.stem(image)
        skips: list[Tensor] = []
        for stage, down in zip(self.encoder, self.down):
            skips.append(stage(features))
            features = down(skips[-1])
        features = self.encoder[-1](features)
        outputs: list[Tensor] = []
        for index, (up, stage) in enumerate(zip(self.up, self.decoder)):
            level = len(self.decoder) - 1 - index
            features = stage(up(features) + skips[level])
            if level == 0 or (self.deep_supervision and self.training):
                outputs.insert(0, self.heads[level](features))
        return outputs if self.deep_supervision and self.training else outputs[0]


class Block(nn.Module):
    """A ConvNeXt block: depth-wise convolution, norm, expansion, GELU, compression, beside a short-cut.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input [B, C, *S].
        out_channels: Channels of the output.
        expansion: How many times wider the bottleneck is than the input.
        kernel_size: Of the depth-wise convolution.
        norm: See `norm_layer`.
        grn: Global response normalisation after the GELU.
        change: Halve or double the size; the short-cut is then a convolution of one voxel with the same stride.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        expansion: int,
        kernel_size: int,
        *,
        norm: NormName = "instance",
        grn: bool = False,
        change: Literal["none", "down", "up"] = "none",
    ) -> None:
        super().__init__()
        one, two = (1,) * spatial_dims, (2,) * spatial_dims
        self.depthwise: nn.Module
        self.shortcut: nn.Module = nn.Identity()
        if change == "up":
            transposed = _TRANSPOSED[spatial_dims]
            half = kernel_size // 2
            self.depthwise = transposed(in_channels, in_channels, kernel_size, 2, half, groups=in_channels)
            self.shortcut = transposed(in_channels, out_channels, 1, 2)
        else:
            stride = two if change == "down" else one
            kernel = (kernel_size,) * spatial_dims
            self.depthwise = conv(spatial_dims, in_channels, in_channels, kernel, stride, groups=in_channels)
            if change == "down":
                self.shortcut = conv(spatial_dims, in_channels, out_channels, one, stride)
        self.norm = norm_layer(norm, spatial_dims, in_channels)
        self.expand = conv(spatial_dims, in_channels, expansion * in_channels, one, one)
        self.activation = nn.GELU()
        self.response = GlobalResponseNorm(expansion * in_channels) if grn else nn.Identity()
        self.compress = conv(spatial_dims, expansion * in_channels, out_channels, one, one)
        # doubling n voxels by a transposed convolution gives 2n - 1: the paper's code adds the first one
        self.pad = [1, 0] * spatial_dims if change == "up" else []

    def forward(self, features: Tensor) -> Tensor:
        """Features of the block."""
        inner = self.activation(self.expand(self.norm(self.depthwise(features))))
        found = self.compress(self.response(inner)) + self.shortcut(features)
        return F.pad(found, self.pad) if self.pad else found


class GlobalResponseNorm(nn.Module):
    """Channels compete: each is weighted by its norm over the image relative to the mean of all channels'.

    S. Woo et al., ConvNeXt V2, CVPR 2023, algorithm 1. Starts as the identity.

    Args:
        channels: C of the input [B, C, *S].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        axes = tuple(range(2, features.dim()))
        energy = torch.linalg.vector_norm(features.float(), dim=axes, keepdim=True)
        relative = (energy / (energy.mean(1, keepdim=True) + 1e-6)).to(features.dtype)
        shape = (1, -1) + (1,) * len(axes)
        return features + self.weight.view(shape) * (features * relative) + self.bias.view(shape)


def _choose(variant: str, blocks: tuple[int, ...] | None, expansions: tuple[int, ...] | None) -> _Variant:
    usual = VARIANTS[variant]
    chosen = _Variant(tuple(blocks or usual.blocks), tuple(expansions or usual.expansions))
    counts = (len(chosen.blocks), len(chosen.expansions))
    if counts[0] != counts[1] or counts[0] < 3 or counts[0] % 2 == 0:
        raise UsageError(
            "mednext needs one entry per encoder stage, one for the bottleneck and one per decoder stage (an odd "
            f"number): model.blocks has {counts[0]}, model.expansions has {counts[1]}",
            hint="e.g. model.blocks=[2,2,2,2,2] model.expansions=[2,3,4,3,2]",
        )
    return chosen
