"""Sliding-window inference: overlapping windows, Gaussian weights, mirror test-time augmentation.

The logits of a whole volume live on one device while it is predicted: K x D x H x W x 4 bytes (float32), for instance
1.5 GB for 3 classes at 500^3 voxels and 11 GB for 105 classes at 300^3. On a GPU that lacks the room they are
collected in main memory instead, window by window.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medtrain.errors import UsageError
from medtrain.inference.postprocess import class_indices, keep_largest_components
from medtrain.registry import Range, register

_PROFILE_FLOOR = 1e-4
"""Smallest weight along one axis: below the default's edge (exp(-8) = 3.4e-4), far above where float32 underflows."""

_WINDOW_VOXELS = {"cpu": 2**16, "cuda": 2**21}
"""Voxels of one batch of windows when its size is not given: a CPU is fastest while activations fit its cache."""

_MAX_WINDOW_BATCH = 64
_SLAB_ELEMENTS = 2**18

ModelFn = Callable[[Tensor], Tensor]
Region = tuple[slice, ...]


@register("inference", "sliding_window", tags=("segmentation",))
@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Predict whole cases window by window, for evaluation and prediction.

    Args:
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1); 0.5 is nnU-Net's.
        sigma_scale: Width of the Gaussian window weights as a fraction of the patch, > 0.
        window_batch: Windows per forward; null chooses by patch size and device.
        mirror: Average the logits of all mirrored inputs in `evaluate`, `predict` and the final evaluation: slower
            (8 forwards in 3-D, 4 in 2-D), usually a little better.
        mirror_in_training: The same for the evaluations during training.
        mirror_axes: Axes of the patch that are mirrored, 0 is the first; null means all. Leave out an axis that
            training did not mirror (left and right organs told apart).
        keep_largest: Class names of which only the largest connected component is kept; `foreground` is all classes
            together.
    """

    overlap: Annotated[float, Range(ge=0, lt=1)] = 0.5
    sigma_scale: Annotated[float, Range(gt=0)] = 0.125
    window_batch: Annotated[int, Range(ge=1)] | None = None
    mirror: bool = True
    mirror_in_training: bool = False
    mirror_axes: tuple[Annotated[int, Range(ge=0, le=2)], ...] | None = None
    keep_largest: tuple[str, ...] = ()

    def predict_logits(
        self,
        model_fn: ModelFn,
        image: Tensor,
        *,
        patch_size: Sequence[int],
        mirror: bool,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Predict the logits [K, *S] of an image [C, *S] with these settings; see the function `predict_logits`.

        Args:
            model_fn: Maps windows [B, C, *P] to logits [B, K, *P], in evaluation mode.
            image: [C, D, H, W] or [C, H, W], normalised.
            patch_size: Voxels of a window: 3 numbers, or 2 for a model of slices.
            mirror: Whether to average over mirrored inputs: `self.mirror` or `self.mirror_in_training`.
            device: Where the model runs; None means the image's device.

        Raises:
            UsageError: `mirror_axes` names an axis that the patch does not have.
        """
        return predict_logits(
            model_fn,
            image,
            patch_size=patch_size,
            overlap=self.overlap,
            sigma_scale=self.sigma_scale,
            window_batch=self.window_batch,
            mirror_axes=self._axes(len(patch_size)) if mirror else (),
            device=device,
        )

    def postprocess(self, label: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
        """Keep the largest component of the classes in `keep_largest`; a label map [D, H, W] of class indices.

        Args:
            label: Class indices.
            class_names: The name of every index, background first.

        Raises:
            UsageError: `keep_largest` names an unknown class.
        """
        return keep_largest_components(label, class_indices(self.keep_largest, class_names))

    def _axes(self, spatial_dims: int) -> tuple[int, ...]:
        if self.mirror_axes is None:
            return tuple(range(spatial_dims))
        unknown = [axis for axis in self.mirror_axes if not 0 <= axis < spatial_dims]
        if unknown:
            raise UsageError(
                f"inference.mirror_axes names axis {unknown[0]}; a {spatial_dims}-D patch has axes 0 to"
                f" {spatial_dims - 1}"
            )
        return self.mirror_axes


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Place windows along one axis, evenly, the last one ending at the border (nnU-Net's rule).

    Args:
        size: Voxels along the axis, at least `patch`.
        patch: Voxels of a window.
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1).
    """
    assert size >= patch > 0, f"an axis of {size} voxels is padded to the patch of {patch} first"
    if size == patch:
        return [0]
    count = math.ceil((size - patch) / max(patch * (1.0 - overlap), 1.0)) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


@functools.lru_cache(maxsize=64)
def gaussian_profile(patch: int, sigma_scale: float) -> Tensor:
    """Weights [patch] of one window along one axis, at most 1 and symmetric.

    exp(-x^2 / 2 sigma^2) with x from -1 to 1 at the border voxels' centres and sigma = 2 `sigma_scale`, i.e. about
    `sigma_scale` times the patch in voxels: the edge weighs 3.4e-4 at 0.125 (nnU-Net) and 0.135 at 0.25. A floor of
    1e-4 keeps the weight sum positive for any sigma.

    Args:
        patch: Voxels of the window.
        sigma_scale: Standard deviation as a fraction of the patch, > 0.
    """
    if patch == 1:
        return torch.ones(1)
    x = torch.linspace(-1.0, 1.0, patch, dtype=torch.float64)
    return torch.exp(-0.5 * (x / (2.0 * sigma_scale)) ** 2).clamp_min(_PROFILE_FLOOR).float()


@functools.lru_cache(maxsize=8)
def importance_map(patch_size: tuple[int, ...], sigma_scale: float, device: torch.device) -> Tensor:
    """Weights [*P] of a window: the outer product of the axes' Gaussian profiles; computed once and kept.

    Args:
        patch_size: Voxels of the window.
        sigma_scale: Standard deviation as a fraction of the patch, > 0.
        device: Where the map is used.
    """
    profiles = [gaussian_profile(p, sigma_scale).double() for p in patch_size]
    return functools.reduce(lambda a, b: a[..., None] * b, profiles).float().to(device)


@torch.no_grad()
def predict_logits(
    model_fn: ModelFn,
    image: Tensor,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    sigma_scale: float = 0.125,
    window_batch: int | None = None,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
) -> Tensor:
    """Predict a volume window by window and blend the logits by Gaussian weights.

    A 2-D patch on a 3-D image runs slice by slice along D, in batches. Axes smaller than the patch are padded with 0
    (the mean after normalisation) on both sides and cropped again. An image covered by a single window gets the
    model's own logits, unweighted. Mirrored predictions are averaged as logits, as
    nnU-Net does. The result depends on nothing but the arguments: repeated calls on a CPU are bit-identical.

    Args:
        model_fn: Maps windows [B, C, *P] to logits [B, K, *P] of any float type; in evaluation mode already.
        image: [C, D, H, W] or [C, H, W], normalised.
        patch_size: Voxels of a window, 3 or 2 numbers; 2 with a 4-D image means slices along D.
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1).
        sigma_scale: Gaussian standard deviation as a fraction of the patch, > 0.
        window_batch: Windows per forward; None chooses by patch size and device. The last batch may be smaller.
        mirror_axes: Spatial axes of the patch (0 is the first) whose 2^n mirror combinations are averaged.
        device: Where the model runs; None means the image's device.

    Returns:
        Logits [K, *S] float32, S the image's spatial shape, on `device` (or on the CPU where that lacks memory).
    """
    device = image.device if device is None else torch.device(device)
    patch = tuple(patch_size)
    assert image.ndim - 1 in (len(patch), len(patch) + 1), f"patch {patch} does not fit an image {tuple(image.shape)}"
    sliced = image.ndim - 1 > len(patch)
    if device.type == "cuda" and image.device != device and _fits(image.numel() * image.element_size(), device):
        image = image.to(device)  # once, not window by window
    padded, crop = _pad_to_patch(image, patch)
    starts = [window_starts(s, p, overlap) for s, p in zip(padded.shape[-len(patch) :], patch)]
    batch = window_batch or _default_window_batch(patch, device)
    origins = list(itertools.product(*starts))

    logits: Tensor | None = None
    for regions in _batches(origins, patch, padded.shape[1] if sliced else 0, batch):
        windows = _gather(padded, regions, sliced).to(device)
        predicted = _forward(model_fn, windows, mirror_axes)
        if logits is None:
            logits = _accumulator((predicted.shape[1], *padded.shape[1:]), device)
            weight = importance_map(patch, sigma_scale, logits.device) if len(origins) > 1 else None
        _scatter(logits, predicted.to(logits.device), regions, weight, sliced)
    assert logits is not None
    if len(origins) > 1:
        _divide_by_weights(logits, starts, patch, sigma_scale)
    return logits[(slice(None), *crop)]


def _default_window_batch(patch: tuple[int, ...], device: torch.device) -> int:
    voxels = _WINDOW_VOXELS.get(device.type, _WINDOW_VOXELS["cpu"])
    return max(1, min(_MAX_WINDOW_BATCH, voxels // math.prod(patch)))


def _pad_to_patch(image: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad with 0, half on each side, and return the slices that undo it."""
    sizes = image.shape[-len(patch) :]
    pads = [(max(p - s, 0) // 2, max(p - s, 0) - max(p - s, 0) // 2) for s, p in zip(sizes, patch)]
    crop = tuple(slice(low, low + s) for (low, _), s in zip(pads, sizes))
    if image.ndim - 1 > len(patch):
        crop = (slice(None), *crop)
    if not any(low or high for low, high in pads):
        return image, crop
    return F.pad(image, [n for pair in reversed(pads) for n in pair]), crop


def _batches(origins: list[tuple[int, ...]], patch: tuple[int, ...], depth: int, batch: int) -> Iterator[list[Region]]:
    """Yield the windows of each forward: `batch` regions, or one region of `batch` neighbouring slices if depth > 0."""
    regions = [tuple(slice(o, o + p) for o, p in zip(origin, patch)) for origin in origins]
    if depth:
        for region in regions:
            for first in range(0, depth, batch):
                yield [(slice(first, min(first + batch, depth)), *region)]
    else:
        for first in range(0, len(regions), batch):
            yield regions[first : first + batch]


def _gather(image: Tensor, regions: list[Region], sliced: bool) -> Tensor:
    """Windows [B, C, *P]."""
    if sliced:
        return image[(slice(None), *regions[0])].transpose(0, 1)
    if len(regions) == 1:
        return image[(slice(None), *regions[0])][None]
    return torch.stack([image[(slice(None), *region)] for region in regions])


def _forward(model_fn: ModelFn, windows: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Logits of the windows, the mean over all mirror combinations; the sum is taken in float32."""
    windows = windows.contiguous()
    logits = model_fn(windows)
    assert isinstance(logits, Tensor), f"the model returns {type(logits).__name__} in evaluation mode, not one tensor"
    assert logits.shape[2:] == windows.shape[2:], f"logits {tuple(logits.shape)} for windows {tuple(windows.shape)}"
    axes = sorted({axis + 2 for axis in mirror_axes})
    if not axes:
        return logits
    total = logits.float().clone()
    combinations = [c for n in range(1, len(axes) + 1) for c in itertools.combinations(axes, n)]
    for dims in combinations:
        total += model_fn(windows.flip(dims)).flip(dims)
    return total.div_(len(combinations) + 1)


def _accumulator(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A zero float32 volume on the device, or on the CPU when it would take most of a GPU's free memory."""
    if device.type == "cuda" and not _fits(4 * math.prod(shape), device):
        device = torch.device("cpu")
    return torch.zeros(shape, dtype=torch.float32, device=device)


def _fits(num_bytes: int, device: torch.device) -> bool:
    """Whether a GPU has that much memory to spare: 70 % of what is free, the rest is the forward pass's."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return num_bytes <= 0.7 * (free + cached)


def _scatter(logits: Tensor, predicted: Tensor, regions: list[Region], weight: Tensor | None, sliced: bool) -> None:
    """Add weighted windows [B, K, *P] into the volume [K, *S], in place."""
    parts = [predicted.transpose(0, 1)] if sliced else list(predicted)
    for part, region in zip(parts, regions):
        target = logits[(slice(None), *region)]
        if weight is None:
            target.copy_(part)
        elif sliced:
            target.addcmul_(part.float(), weight)
        else:
            # In slabs that stay in the cache: bfloat16 or channels-last logits are turned there, not in a big copy.
            rows = max(1, _SLAB_ELEMENTS * part.shape[1] // part.numel()) if part.device.type == "cpu" else len(weight)
            for i in range(0, len(weight), rows):
                slab = part[:, i : i + rows].to(torch.float32, memory_format=torch.contiguous_format)
                target[:, i : i + rows].addcmul_(slab, weight[i : i + rows])


def _divide_by_weights(logits: Tensor, starts: list[list[int]], patch: tuple[int, ...], sigma_scale: float) -> None:
    """Divide by the sum of the windows' weights, in place.

    The windows are the product of the axes' starts and their weights the product of the axes' profiles, so the sum is
    the product of one sum per axis: no volume of weights is needed.
    """
    inverses = []
    for size, origins, length in zip(logits.shape[-len(patch) :], starts, patch):
        total = torch.zeros(size, dtype=torch.float64)
        for origin in origins:
            total[origin : origin + length] += gaussian_profile(length, sigma_scale)
        inverses.append(1.0 / total)
    plane = (inverses[-2][:, None] * inverses[-1]).float().to(logits.device)
    if len(patch) == 2:
        logits.mul_(plane)
    else:
        for z, inverse in enumerate(inverses[0].tolist()):
            logits[:, z].mul_(plane * inverse)
