"""The U-Nets of nnU-Net, with a plain and with a residual encoder, in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.layers import LEAKY_SLOPE, ConvBlock, NormName, UpConv, conv, init_he, norm_layer
from medtrain.models.padding import SegmentationNet
from medtrain.models.stages import Stages, UNetSettings
from medtrain.registry import Range, Spread, register

RESENC_BLOCKS = (1, 3, 4, 6)
"""Residual blocks of nnU-Net's first stages; every later one has as many as the last."""

EncoderStage = Callable[[int, int, int], nn.Module]
"""Makes the encoder's stage of an index, from input channels, to output channels."""


class _UNet(SegmentationNet):
    """What the U-Nets share: the decoder, the heads and the way through them."""

    def __init__(
        self,
        stages: Stages,
        encoder_stage: EncoderStage,
        *,
        spatial_dims: int,
        in_channels: int,
        num_outputs: int,
        decoder_convs: int,
        settings: UNetSettings,
    ) -> None:
        norm, dropout = settings.norm, settings.dropout
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=stages.divisor, norm=norm)
        self.deep_supervision = settings.deep_supervision
        widths, one = stages.channels, (1,) * spatial_dims
        before = (in_channels, *widths)
        self.encoder = nn.ModuleList(encoder_stage(i, before[i], width) for i, width in enumerate(widths))
        # the decoder is listed coarsest first, in the order of computation
        down = range(len(widths) - 2, -1, -1)
        self.up = nn.ModuleList(UpConv(widths[i + 1], widths[i], stages.strides[i + 1]) for i in down)
        self.decoder = nn.ModuleList(
            conv_row(decoder_convs, 2 * widths[i], widths[i], stages.kernels[i], one, norm, dropout) for i in down
        )
        heads = stages.supervised if self.deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims, widths[i], num_outputs, one, one) for i in range(heads))
        init_he(self)

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image that fits, or a list of them, finest first (training, deep supervision)."""
        skips: list[Tensor] = []
        features = image
        for block in self.encoder:
            features = block(features)
            skips.append(features)
        levels = len(self.decoder)
        outputs: list[Tensor] = []
        for index, (up, block) in enumerate(zip(self.up, self.decoder)):
            level = levels - 1 - index
            features = block(torch.cat((up(features), skips[level]), dim=1))
            if level < len(self.heads) and (level == 0 or self.training):
                outputs.insert(0, self.heads[level](features))
        return outputs if self.deep_supervision and self.training else outputs[0]


@register("model", "unet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class UNet(_UNet):
    """Encoder-decoder with skip connections for 2-D and 3-D segmentation (nnU-Net's PlainConvUNet).

    Each stage is a row of convolution, normalisation, leaky ReLU; the first convolution of a stage carries its
    stride, transposed convolutions go back up, skips are concatenated. Images are [B, C, H, W] or [B, C, D, H, W].
    With deep supervision the training forward returns a list of logits, finest first, at every decoder
    resolution but the coarsest (whose weight is zero in nnU-Net, so it is not computed); in eval mode it
    returns the finest [B, K, *S] alone.

    F. Isensee et al., nnU-Net, Nature Methods 2021.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        settings: Of stages and layers.
        convs_per_stage: Convolutions in each encoder stage.
        decoder_convs_per_stage: Convolutions in each decoder stage; null = as in the encoder.

    Raises:
        UsageError: The stages contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        settings: Annotated[UNetSettings, Spread()] = UNetSettings(),  # noqa: B008 - frozen
        convs_per_stage: Annotated[int, Range(ge=1)] = 2,
        decoder_convs_per_stage: Annotated[int, Range(ge=1)] | None = None,
    ) -> None:
        stages = settings.stages("unet", spatial_dims)

        def stage(index: int, before: int, width: int) -> nn.Module:
            kernel, stride = stages.kernels[index], stages.strides[index]
            return conv_row(convs_per_stage, before, width, kernel, stride, settings.norm, settings.dropout)

        super().__init__(
            stages,
            stage,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_outputs=num_outputs,
            decoder_convs=convs_per_stage if decoder_convs_per_stage is None else decoder_convs_per_stage,
            settings=settings,
        )


@register(
    "model", "resenc_unet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation")
)
class ResEncUNet(_UNet):
    """The U-Net with a deep residual encoder and a light decoder (nnU-Net's ResEnc).

    A stem of one convolution, then residual blocks of two convolutions in every stage, the first of which carries the
    stride; its short-cut is average-pooled and projected. The last norm of a block starts at zero, so that every block
    starts as the identity. Decoder, heads and deep supervision are those of `unet`. nnU-Net's presets M, L and XL are
    this network with larger patches and batches.

    F. Isensee et al., nnU-Net Revisited, MICCAI 2024; K. He et al., Deep Residual Learning, 2015.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        settings: Of stages and layers.
        blocks_per_stage: Residual blocks in each encoder stage; stages beyond the last entry have as many as it says.
        decoder_convs_per_stage: Convolutions in each decoder stage.
        preset: Patch and batch are planned for a GPU of 8 GB (m), 24 GB (l) or 40 GB (xl); the blocks are the same.
        dropout: Probability of zeroing a feature channel after the first convolution of a block and those of the
            decoder.

    Raises:
        UsageError: The stages contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        settings: Annotated[UNetSettings, Spread()] = UNetSettings(),  # noqa: B008 - frozen
        blocks_per_stage: tuple[Annotated[int, Range(ge=1)], ...] = RESENC_BLOCKS,
        decoder_convs_per_stage: Annotated[int, Range(ge=1)] = 1,
        preset: Literal["m", "l", "xl"] = "m",  # for the plan, see medtrain.data.footprint
    ) -> None:
        stages = settings.stages("resenc_unet", spatial_dims)
        if not blocks_per_stage:
            raise UsageError("model.blocks_per_stage is empty", hint="e.g. model.blocks_per_stage=[1,3,4,6]")
        norm, dropout, one = settings.norm, settings.dropout, (1,) * spatial_dims

        def stage(index: int, before: int, width: int) -> nn.Module:
            kernel, stride = stages.kernels[index], stages.strides[index]
            layers: list[nn.Module] = []
            if index == 0:
                layers.append(ConvBlock(spatial_dims, before, width, kernel, one, norm, dropout))
                before = width
            for block in range(blocks_per_stage[min(index, len(blocks_per_stage) - 1)]):
                start, step = (width, one) if block else (before, stride)
                layers.append(ResidualBlock(spatial_dims, start, width, kernel, step, norm, dropout))
            return nn.Sequential(*layers)

        super().__init__(
            stages,
            stage,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_outputs=num_outputs,
            decoder_convs=decoder_convs_per_stage,
            settings=settings,
        )
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    """Two convolutions beside a short-cut, then leaky ReLU (nnU-Net's BasicBlockD).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input [B, C, *S].
        out_channels: Channels of the output.
        kernel: Odd kernel size per axis.
        stride: Stride of the first convolution per axis; the short-cut is average-pooled.
        norm: See `norm_layer`.
        dropout: Probability of zeroing a channel after the first convolution.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        norm: NormName,
        dropout: float,
    ) -> None:
        super().__init__()
        one = (1,) * spatial_dims
        self.first = ConvBlock(spatial_dims, in_channels, out_channels, kernel, stride, norm, dropout)
        self.last_conv = conv(spatial_dims, out_channels, out_channels, kernel, one)
        self.last_norm = norm_layer(norm, spatial_dims, out_channels)
        self.stride = stride
        self.project: nn.Module | None = None
        if in_channels != out_channels:
            mixed = conv(spatial_dims, in_channels, out_channels, one, one, bias=False)
            self.project = nn.Sequential(mixed, norm_layer(norm, spatial_dims, out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the block."""
        shortcut = features
        if any(step > 1 for step in self.stride):
            pool: Any = F.avg_pool2d if len(self.stride) == 2 else F.avg_pool3d
            shortcut = pool(shortcut, self.stride, self.stride)
        if self.project is not None:
            shortcut = self.project(shortcut)
        return F.leaky_relu(self.last_norm(self.last_conv(self.first(features))) + shortcut, LEAKY_SLOPE)


def conv_row(
    convs: int,
    before: int,
    width: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    norm: NormName,
    dropout: float,
) -> nn.Sequential:
    """Convolution blocks one after the other; the first carries the stride.

    Args:
        convs: How many.
        before: Channels of the input.
        width: Channels of every output.
        kernel: Per axis.
        stride: Per axis.
        norm: See `norm_layer`.
        dropout: See `ConvBlock`.
    """
    dims = len(kernel)
    one = (1,) * dims
    return nn.Sequential(
        *(
            ConvBlock(dims, width if i else before, width, kernel, one if i else stride, norm, dropout)
            for i in range(convs)
        )
    )
