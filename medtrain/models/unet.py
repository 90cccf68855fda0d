"""The plain convolutional U-Net of nnU-Net, in 2-D and 3-D."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.layers import ConvBlock, NormName, UpConv, conv, init_he
from medtrain.registry import Range, register


@register("model", "unet", runtime=("spatial_dims", "in_channels", "num_classes"), tags=("2d", "3d", "segmentation"))
class UNet(nn.Module):
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
        num_classes: Logit channels K.
        channels: Feature channels per stage, finest first; null = planned from the data.
        strides: Down-sampling on entering each stage, one number or one per axis; null = planned from the data.
        kernel_sizes: Odd convolution kernel per stage, one number or one per axis; null = planned from the data.
        convs_per_stage: Convolutions in each encoder stage.
        decoder_convs_per_stage: Convolutions in each decoder stage; null = as in the encoder.
        norm: Statistics per sample and channel (instance), per channel (batch), or per sample and 8 groups (group).
        dropout: Probability of zeroing a feature channel after each convolution.
        deep_supervision: Also predict at coarser resolutions while training.

    Raises:
        UsageError: The stages contradict each other, or an input's size is not a multiple of `divisor`.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_classes: int,
        channels: tuple[int, ...] | None = None,
        strides: tuple[int | tuple[int, ...], ...] | None = None,
        kernel_sizes: tuple[int | tuple[int, ...], ...] | None = None,
        convs_per_stage: Annotated[int, Range(ge=1)] = 2,
        decoder_convs_per_stage: Annotated[int, Range(ge=1)] | None = None,
        norm: NormName = "instance",
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        widths, steps, kernels = _check_stages(channels, strides, kernel_sizes, spatial_dims)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        self.divisor: tuple[int, ...] = tuple(math.prod(s[axis] for s in steps) for axis in range(spatial_dims))

        one = (1,) * spatial_dims

        def stage(
            convs: int, before: int, width: int, kernel: tuple[int, ...], stride: tuple[int, ...] = one
        ) -> nn.Sequential:
            return nn.Sequential(
                *(
                    ConvBlock(spatial_dims, width if i else before, width, kernel, one if i else stride, norm, dropout)
                    for i in range(convs)
                )
            )

        self.encoder = nn.ModuleList(
            stage(convs_per_stage, before, width, kernel, stride)
            for before, width, kernel, stride in zip((in_channels, *widths), widths, kernels, steps)
        )
        # the decoder is listed coarsest first, in the order of computation
        down = range(len(widths) - 2, -1, -1)
        decoder_convs = convs_per_stage if decoder_convs_per_stage is None else decoder_convs_per_stage
        self.up = nn.ModuleList(UpConv(widths[i + 1], widths[i], steps[i + 1]) for i in down)
        self.decoder = nn.ModuleList(stage(decoder_convs, 2 * widths[i], widths[i], kernels[i]) for i in down)
        num_outputs = max(1, len(widths) - 2) if deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims, widths[i], num_classes, one, one) for i in range(num_outputs))
        init_he(self)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits [B, K, *S] of an image [B, C, *S], or a list of them, finest first (training, deep supervision)."""
        self._check_input(image)
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

    def _check_input(self, image: Tensor) -> None:
        # a traced or exported graph must not depend on these checks
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        size = tuple(image.shape[2:])
        if len(size) != self.spatial_dims or image.shape[1] != self.in_channels:
            axes = ", ".join("DHW"[-self.spatial_dims :])
            raise MedtrainError(
                f"unet expects images [B, {self.in_channels}, {axes}], got {list(image.shape)}",
                hint=f"this network was built for {self.spatial_dims}-D images of {self.in_channels} channel(s)",
            )
        if any(s % d for s, d in zip(size, self.divisor)):
            fits = tuple(math.ceil(s / d) * d for s, d in zip(size, self.divisor))
            raise UsageError(
                f"unet down-samples by {_show(self.divisor)}, so an image of {_show(size)} does not fit",
                hint=f"set data.patch_size to multiples of {_show(self.divisor)}, e.g. {list(fits)}",
            )


def _check_stages(
    channels: tuple[int, ...] | None,
    strides: tuple[int | tuple[int, ...], ...] | None,
    kernel_sizes: tuple[int | tuple[int, ...], ...] | None,
    spatial_dims: int,
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    given = {"channels": channels, "strides": strides, "kernel_sizes": kernel_sizes}
    if channels is None or strides is None or kernel_sizes is None:
        missing = ", ".join(f"model.{key}" for key, value in given.items() if value is None)
        raise UsageError(
            f"unet needs {missing}, and no plan has filled this in",
            hint="e.g. model.channels=[32,64,128,256] model.strides=[1,2,2,2] model.kernel_sizes=[3,3,3,3]",
        )
    lengths = {f"model.{key}": len(value) for key, value in given.items() if value is not None}
    if len(set(lengths.values())) > 1 or len(channels) < 2:
        counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UsageError(f"unet needs one entry per stage, and two stages or more: {counts}")
    if any(width < 1 for width in channels):
        raise UsageError(f"model.channels must be positive, got {list(channels)}")
    steps = tuple(_per_axis("strides", stride, spatial_dims) for stride in strides)
    kernels = tuple(_per_axis("kernel_sizes", kernel, spatial_dims) for kernel in kernel_sizes)
    if any(k % 2 == 0 for kernel in kernels for k in kernel):
        raise UsageError(f"model.kernel_sizes must be odd, got {[list(kernel) for kernel in kernels]}")
    if any(s != 1 for s in steps[0]):
        raise UsageError(
            f"model.strides must start with 1 so that the output has the image's size, got {list(steps[0])}"
        )
    return tuple(channels), steps, kernels


def _per_axis(key: str, value: int | tuple[int, ...], spatial_dims: int) -> tuple[int, ...]:
    axes = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(axes) != spatial_dims or any(v < 1 for v in axes):
        raise UsageError(
            f"model.{key}: each stage needs one number or {spatial_dims} (one per axis), all positive, got {value}"
        )
    return axes


def _show(size: tuple[int, ...]) -> str:
    return " x ".join(str(s) for s in size)
