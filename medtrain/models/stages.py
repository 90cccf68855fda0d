"""The stages of an encoder and decoder: channels, strides and kernels, given or planned from the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from medtrain.errors import UsageError
from medtrain.models.layers import NormName
from medtrain.registry import Range

PerStage = tuple[int | tuple[int, ...], ...]
"""One entry per stage, finest first: a number for all axes, or one per axis."""


@dataclass(frozen=True)
class Stages:
    """Stages that fit each other, finest first.

    Args:
        channels: Feature channels of each stage.
        strides: Down-sampling on entering each stage, per axis; the first is 1.
        kernels: Odd kernel of each stage, per axis.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    @property
    def supervised(self) -> int:
        """Decoder resolutions that deep supervision predicts at: all but the coarsest, at least the finest."""
        return max(1, len(self) - 2)


@dataclass(frozen=True, kw_only=True)
class StageWidths:
    """The settings of every network whose stages can be planned.

    Args:
        channels: Feature channels per stage, finest first; null = planned from the data.
        strides: Down-sampling on entering each stage, one number or one per axis; null = planned from the data.
    """

    channels: tuple[int, ...] | None = None
    strides: PerStage | None = None

    def check(self, model: str, spatial_dims: int, kernel_sizes: PerStage | None) -> Stages:
        """Spell out what a model was given.

        Args:
            model: Its name, for messages.
            spatial_dims: 2 or 3.
            kernel_sizes: Per stage; None where no plan has filled them in.

        Raises:
            UsageError: Something is missing, or the stages contradict each other.
        """
        channels, strides = self.channels, self.strides
        given = {"channels": channels, "strides": strides, "kernel_sizes": kernel_sizes}
        if channels is None or strides is None or kernel_sizes is None:
            missing = ", ".join(f"model.{key}" for key, value in given.items() if value is None)
            raise UsageError(
                f"{model} needs {missing}, and no plan has filled this in",
                hint="e.g. model.channels=[32,64,128,256] model.strides=[1,2,2,2] model.kernel_sizes=[3,3,3,3]",
            )
        lengths = {f"model.{key}": len(value) for key, value in given.items() if value is not None}
        if len(set(lengths.values())) > 1 or len(channels) < 2:
            counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise UsageError(f"{model} needs one entry per stage, and two stages or more: {counts}")
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
        return Stages(tuple(channels), steps, kernels)


@dataclass(frozen=True, kw_only=True)
class UNetSettings(StageWidths):
    """The settings that the U-Nets share.

    Args:
        kernel_sizes: Odd convolution kernel per stage, one number or one per axis; null = planned from the data.
        norm: Statistics per sample and channel (instance), per channel (batch), or per sample and 8 groups (group).
        dropout: Probability of zeroing a feature channel after each convolution.
        deep_supervision: Also predict at coarser resolutions while training.
    """

    kernel_sizes: PerStage | None = None
    norm: NormName = "instance"
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    deep_supervision: bool = True

    def stages(self, model: str, spatial_dims: int) -> Stages:
        """See `check`."""
        return self.check(model, spatial_dims, self.kernel_sizes)


def _per_axis(key: str, value: int | tuple[int, ...], spatial_dims: int) -> tuple[int, ...]:
    axes = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(axes) != spatial_dims or any(v < 1 for v in axes):
        raise UsageError(
            f"model.{key}: each stage needs one number or {spatial_dims} (one per axis), all positive, got {value}"
        )
    return axes
