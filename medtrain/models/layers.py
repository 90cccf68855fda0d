"""Building blocks shared by the convolutional networks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medtrain.errors import MedtrainError

NormName = Literal["instance", "batch", "group"]

LEAKY_SLOPE = 0.01
"""Negative slope of every leaky ReLU, and the `a` of the matching He initialisation."""

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
_INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_GROUPS = 8


def conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> nn.Module:
    """A convolution with bias and the padding that keeps the size at stride 1; kernel sizes must be odd."""
    padding = tuple((k - 1) // 2 for k in kernel)
    return _CONV[spatial_dims](in_channels, out_channels, kernel, stride, padding)


def transposed_conv(spatial_dims: int, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.Module:
    """The up-sampling that inverts a stride: a transposed convolution whose kernel is its stride."""
    return _TRANSPOSED[spatial_dims](in_channels, out_channels, stride, stride)


def norm_layer(norm: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """A normalisation with scale and shift.

    Args:
        norm: `instance` (statistics per sample and channel), `batch` (per channel), `group` (per sample and
            group of channels).
        spatial_dims: 2 or 3.
        channels: Feature channels.

    Raises:
        MedtrainError: `group` and the channels are not divisible into groups.
    """
    if norm == "instance":
        return _INSTANCE[spatial_dims](channels, affine=True)
    if norm == "batch":
        return _BATCH[spatial_dims](channels)
    groups = min(_GROUPS, channels)
    if channels % groups:
        raise MedtrainError(
            f"model.norm=group needs channels divisible by {groups}, got {channels}",
            hint="set model.channels to multiples of 8 or model.norm=instance",
        )
    return nn.GroupNorm(groups, channels)


class ConvBlock(nn.Sequential):
    """Convolution, dropout (when set), normalisation, leaky ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input [B, C, *S].
        out_channels: Channels of the output.
        kernel: Odd kernel size per axis.
        stride: Stride per axis.
        norm: See `norm_layer`.
        dropout: Probability of zeroing a channel; 0 adds no layer.
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
        self.conv = conv(spatial_dims, in_channels, out_channels, kernel, stride)
        if dropout:
            self.dropout = _DROPOUT[spatial_dims](dropout)
        self.norm = norm_layer(norm, spatial_dims, out_channels)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


def init_he(module: nn.Module) -> None:
    """He initialisation for leaky ReLU of every convolution below `module`; biases start at zero.

    K. He et al., Delving Deep into Rectifiers, 2015, eq. 15.
    """
    for layer in module.modules():
        if isinstance(layer, (*_CONV.values(), *_TRANSPOSED.values())):
            nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE)
            if isinstance(layer.bias, Tensor):
                nn.init.zeros_(layer.bias)
