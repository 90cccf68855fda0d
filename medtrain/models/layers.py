"""Building blocks shared by the convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError

NormName = Literal["instance", "batch", "group"]

LEAKY_SLOPE = 0.01
"""Negative slope of every leaky ReLU, and the `a` of the matching He initialisation."""

_DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_GROUPS = 8


def norm_layer(norm: NormName, spatial_dims: int, channels: int) -> nn.Module:
    """A normalisation with scale and shift.

    Args:
        norm: `instance` (statistics per sample and channel), `batch` (per channel), `group` (per sample and
            group of channels).
        spatial_dims: 2 or 3.
        channels: Feature channels.

    Raises:
        UsageError: `group` and the channels are not divisible into groups.
    """
    if norm == "instance":
        return InstanceNorm(channels)
    if norm == "batch":
        return _BATCH[spatial_dims](channels)
    groups = min(_GROUPS, channels)
    if channels % groups:
        raise UsageError(
            f"model.norm=group needs channels divisible by {groups}, got {channels}",
            hint="set model.channels to multiples of 8 or model.norm=instance",
        )
    return nn.GroupNorm(groups, channels)


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift that keeps channels-last tensors channels-last.

    Statistics are taken in float32 over each sample's voxels, in training and evaluation alike. PyTorch's own
    module folds the batch into the channels, which for a channels-last tensor means a transposing copy there and
    back. Normalising one sample is batch normalisation of a batch of one, for which there is a channels-last
    kernel: on a CPU in bfloat16 the layer then costs a third.

    D. Ulyanov et al., Instance Normalization, 2016.

    Args:
        channels: Feature channels C of the input [B, C, *S].
        eps: Added to the variance.

    Raises:
        UsageError: The features have one voxel only.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features, in the type and memory format of the input."""
        recorded = _is_recorded()
        if not recorded and math.prod(features.shape[2:]) == 1:
            raise UsageError(
                "the image shrinks to a single voxel inside the network, which leaves nothing to normalise",
                hint="use a larger data.patch_size, fewer stages (model.channels) or model.norm=batch",
            )
        # one call per sample would fix the batch size of a traced or exported graph
        if recorded or features.device.type != "cpu" or features.is_contiguous():
            cudnn = torch.backends.cudnn.enabled
            return torch.instance_norm(features, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)
        samples = [
            F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in features.split(1)
        ]
        return torch.cat(samples)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class UpConv(nn.Module):
    """Transposed convolution whose kernel is its stride: the up-sampling that inverts a strided convolution.

    Windows do not overlap, so every input voxel yields its own block of outputs: a matrix product and a
    permutation. On a CPU and channels-last input it is computed as such, which costs half of the deconvolution.

    Args:
        in_channels: Channels of the input [B, C, *S].
        out_channels: Channels of the output [B, K, *(S x stride)].
        stride: Factor per axis.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, *stride))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight, a=LEAKY_SLOPE)

    def forward(self, features: Tensor) -> Tensor:
        """Up-sampled features, in the memory format of the input."""
        if _is_recorded() or features.device.type != "cpu" or features.is_contiguous():
            transposed = F.conv_transpose2d if len(self.stride) == 2 else F.conv_transpose3d
            return transposed(features, self.weight, self.bias, stride=self.stride)
        return self._as_matrix_product(features)

    def _as_matrix_product(self, features: Tensor) -> Tensor:
        batch, _, *size = features.shape
        axes = len(size)
        weight = self.weight.movedim(1, -1).flatten(1)  # [C, prod(stride) * K]
        bias = self.bias.repeat(math.prod(self.stride))
        blocks = F.linear(features.movedim(1, -1), weight.t(), bias)
        blocks = blocks.view(batch, *size, *self.stride, self.weight.shape[1])
        # [B, d, h, w, kd, kh, kw, K] -> [B, d, kd, h, kh, w, kw, K]
        interleaved = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
        blocks = blocks.permute(0, *interleaved, 1 + 2 * axes)
        full = [s * k for s, k in zip(size, self.stride)]
        return blocks.reshape(batch, *full, self.weight.shape[1]).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, stride={self.stride}"


def _is_recorded() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class Conv2d(nn.Conv2d):
    """A 2-D convolution that is right for images narrower than its kernel too (see `_guarded`)."""

    def forward(self, features: Tensor) -> Tensor:
        """Convolved features."""
        return _guarded(self, features, super().forward)


class Conv3d(nn.Conv3d):
    """A 3-D convolution that is right for volumes narrower than its kernel too (see `_guarded`)."""

    def forward(self, features: Tensor) -> Tensor:
        """Convolved features."""
        return _guarded(self, features, super().forward)


def _guarded(layer: Conv2d | Conv3d, features: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Convolve in float32 where oneDNN's low-precision kernels are wrong.

    When an axis is shorter than the kernel, their weight gradient reads and writes beyond its buffers (oneDNN 3.13:
    NaN from run to run, or a corrupted heap). Such features are tiny, so float32 costs nothing.
    """
    if _is_recorded() or features.device.type != "cpu":
        return plain(features)
    if all(size >= kernel for size, kernel in zip(features.shape[2:], layer.kernel_size)):
        return plain(features)
    with torch.autocast("cpu", enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return layer._conv_forward(features.float(), layer.weight.float(), bias).to(features.dtype)


_CONV: dict[int, type[Conv2d] | type[Conv3d]] = {2: Conv2d, 3: Conv3d}


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    groups: int = 1,
    bias: bool = True,
) -> Conv2d | Conv3d:
    """A convolution with the padding that keeps the size at stride 1; kernel sizes must be odd."""
    padding = tuple((k - 1) // 2 for k in kernel)
    # torch annotates fixed lengths: the caller guarantees spatial_dims entries
    arguments: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding}
    arguments |= {"groups": groups, "bias": bias}
    return _CONV[spatial_dims](in_channels, out_channels, **arguments)


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
    """He initialisation for leaky ReLU of every convolution below `module`; biases start at zero (as in `UpConv`).

    K. He et al., Delving Deep into Rectifiers, 2015, eq. 15.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
