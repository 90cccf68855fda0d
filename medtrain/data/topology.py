"""The shape of a U-Net that fits spacing, patch and memory: nnU-Net's rules.

Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature
Methods 18 (2021), 203-211, supplementary note 2; numbers as in nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MIN_FEATURE_MAP_EDGE = 4
"""No axis of the coarsest feature map gets shorter than this by pooling."""

_Steps = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of every stage, and the patch they fit.

    Args:
        patch_size: Voxels per axis, a multiple of `divisor`.
        strides: Stride of each stage per axis; the first is 1.
        kernel_sizes: Kernel of each stage per axis.
    """

    patch_size: tuple[int, ...]
    strides: _Steps
    kernel_sizes: _Steps

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each axis of a patch must be a multiple of."""
        return divisor(self.strides)


def divisor(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Product of the strides per axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def derive_topology(
    spacing: Sequence[float],
    patch_size: Sequence[float],
    *,
    max_stages: int | None = None,
    exact: bool = False,
) -> Topology:
    """Pool every axis that is long enough and whose voxels are not yet twice as coarse as the finest ones.

    Args:
        spacing: Voxel size in mm per axis.
        patch_size: Wanted voxels per axis; made larger to the next multiple of the strides' product.
        max_stages: Stop at this many stages.
        exact: Pool an axis only while it divides by two, so that the patch stays as given.
    """
    dims = len(spacing)
    edge = MIN_FEATURE_MAP_EDGE
    size, current = [float(n) for n in patch_size], [float(mm) for mm in spacing]
    kernel = [1] * dims
    strides: list[tuple[int, ...]] = [(1,) * dims]
    kernels: list[tuple[int, ...]] = []
    while max_stages is None or len(strides) < max_stages:
        axes = [i for i in range(dims) if size[i] >= 2 * edge and not (exact and size[i] % 2)]
        if not axes:
            break
        finest = min(current[i] for i in axes)
        axes = [i for i in axes if current[i] / finest < 2]
        if len(axes) == 1 and size[axes[0]] < 3 * edge:
            break
        # a kernel grows from 1 to 3 along an axis once its voxels are about as coarse as the finest
        kernel = [3 if kernel[i] == 3 or current[i] / min(current) < 2 else 1 for i in range(dims)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if i in axes else 1 for i in range(dims)))
        for i in axes:
            current[i] *= 2
            size[i] = math.ceil(size[i] / 2)
    kernels.append((3,) * dims)  # the bottleneck
    multiple = divisor(strides)
    patch = tuple(round_up(n, m) for n, m in zip(patch_size, multiple, strict=True))
    return Topology(patch, tuple(strides), tuple(kernels))


def derive_kernel_sizes(spacing: Sequence[float], strides: Sequence[Sequence[int]]) -> _Steps:
    """Kernels for given strides, by the rule of `derive_topology`."""
    current = [float(mm) for mm in spacing]
    kernel = [1] * len(current)
    kernels: list[tuple[int, ...]] = []
    for stride in strides[1:]:
        kernel = [3 if k == 3 or mm / min(current) < 2 else 1 for k, mm in zip(kernel, current, strict=True)]
        kernels.append(tuple(kernel))
        current = [mm * factor for mm, factor in zip(current, stride, strict=True)]
    return (*kernels, (3,) * len(current))


def round_up(size: float, multiple: int) -> int:
    """The smallest multiple not below `size` (a median shape may be half a voxel)."""
    rest = size % multiple
    return int(size if rest == 0 else size + multiple - rest)


def initial_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """A patch of 256^3 (2048^2) voxels that is isotropic in mm, clipped to the median case."""
    edge = 256.0 if len(spacing) == 3 else 2048.0
    volume = math.prod(1 / mm for mm in spacing)
    scale = edge / volume ** (1 / len(spacing))
    return tuple(min(round(scale / mm), extent) for mm, extent in zip(spacing, median_shape, strict=True))


def features(stages: int, *, base: int, largest: int) -> tuple[int, ...]:
    """Features per stage: doubled at each until `largest`."""
    return tuple(min(largest, base * 2**stage) for stage in range(stages))


def feature_map_elements(
    patch_size: Sequence[int], strides: Sequence[Sequence[int]], channels: Sequence[int], num_outputs: int
) -> int:
    """Elements of all convolution outputs of a plain U-Net for one patch: nnU-Net's stand-in for memory.

    Two convolutions per stage in encoder and decoder, one transposed convolution per decoder stage, and the logits at
    full resolution.
    """
    sizes = _stage_voxels(patch_size, strides)
    encoder = sum(2 * c * n for c, n in zip(channels, sizes, strict=True))
    decoder = sum(3 * c * n for c, n in zip(channels[:-1], sizes[:-1], strict=True))
    return encoder + decoder + num_outputs * sizes[0]


def residual_feature_map_elements(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    channels: Sequence[int],
    num_outputs: int,
    *,
    blocks: Sequence[int],
    decoder_convs: int,
) -> int:
    """The same of a U-Net with a residual encoder, as nnU-Net's ResEnc planners count it.

    A stem, two convolutions per block and the short-cut of each block that changes size or features; in the decoder a
    transposed convolution and `decoder_convs` others per stage; the logits.

    Args:
        patch_size: Voxels per axis.
        strides: Per stage and axis.
        channels: Features per stage.
        num_outputs: Channels of the logits.
        blocks: Residual blocks of each stage; later ones have as many as the last.
        decoder_convs: Convolutions of a decoder stage.
    """
    sizes = _stage_voxels(patch_size, strides)
    encoder = channels[0] * sizes[0]
    before = channels[0]
    for stage, (width, voxels) in enumerate(zip(channels, sizes, strict=True)):
        changes = width != before or any(step > 1 for step in strides[stage])
        encoder += (2 * blocks[min(stage, len(blocks) - 1)] + changes) * width * voxels
        before = width
    decoder = sum((decoder_convs + 1) * c * n for c, n in zip(channels[:-1], sizes[:-1], strict=True))
    return encoder + decoder + num_outputs * sizes[0]


def _stage_voxels(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Voxels of a patch at each stage."""
    sizes: list[int] = []
    extent = list(patch_size)
    for stride in strides:
        extent = [n // s for n, s in zip(extent, stride, strict=True)]
        sizes.append(math.prod(extent))
    return sizes


def shrink(
    topology: Topology,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    *,
    max_stages: int | None = None,
    strides: Sequence[Sequence[int]] | None = None,
) -> Topology:
    """Make the patch one step smaller along the axis that covers most of the median case.

    Args:
        topology: What to shrink; returned as it is when that axis cannot get any smaller.
        spacing: Voxel size in mm per axis.
        median_shape: Voxels of the median case per axis.
        max_stages: Stop pooling at this many stages.
        strides: Keep these strides (and the kernels) instead of deriving them anew.
    """
    coverage = [n / extent for n, extent in zip(topology.patch_size, median_shape, strict=True)]
    # the last of equal axes, as NumPy's argsort (insertion sort for few elements) orders them
    axis = max(range(len(coverage)), key=lambda i: (coverage[i], i))
    smaller = list(topology.patch_size)
    smaller[axis] -= topology.divisor[axis]
    if smaller[axis] <= 0:
        return topology
    if strides is not None:
        return replace(topology, patch_size=tuple(smaller))
    # the smaller patch may allow a finer step (224 instead of 192 below 256)
    step = derive_topology(spacing, smaller, max_stages=max_stages).divisor[axis]
    patch = list(topology.patch_size)
    patch[axis] -= step
    return derive_topology(spacing, patch, max_stages=max_stages)
