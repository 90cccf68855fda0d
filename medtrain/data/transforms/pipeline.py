"""The pipeline of random transforms: its settings, the drawing of parameters, the order of application.

Order, probabilities, ranges and formulas are nnU-Net's (Isensee et al., Nature Methods 2021, and its implementation
batchgeneratorsv2). Four things differ, on purpose:

- The parameters are drawn before the sample is read, so a patch without rotation or scaling (64 %) costs a plain read,
  and one with them reads exactly the box it needs: no corner of a patch is cut off and filled with zeros.
- Everything is computed on the device of the batch.
- Mirroring, which commutes with the intensity transforms, is part of the crop or the resampling.
- The axis of a "dummy 2-D" augmentation is the shortest one of the patch, wherever it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import torch

from medtrain.data.transforms import intensity
from medtrain.data.transforms.spatial import place, read_size, rotation_matrix
from medtrain.errors import UsageError
from medtrain.registry import Range

Probability = Annotated[float, Range(ge=0, le=1)]
Span = tuple[float, float]

ANISOTROPY = 3.0
"""Patches longer than this times their shortest side are rotated and scaled only across it ("dummy 2-D")."""

_ELONGATION = 1.5
"""2-D patches longer than this times their shorter side are rotated little."""

# Rows of the table of uniform numbers of one sample. The layout is fixed, so changing the probability or range of one
# transform leaves the draws of all others as they are.
_ROWS = (
    "rotation",
    "scaling",
    "mirror",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "low_resolution",
    "gamma_inverted",
    "gamma",
)


@dataclass(frozen=True, kw_only=True)
class RandomPipeline:
    """Random spatial and intensity transforms of training patches.

    Args:
        in_channels: Number of image channels; every channel draws its own intensity parameters.
        masked_channels: Channels normalised inside the non-zero region only: voxels that are 0 before the intensity
            transforms stay 0.
        rotation_p: Probability of a rotation (about all axes at once in 3-D).
        rotation_degrees: Angles are drawn from +- this many degrees; null follows nnU-Net: 30 in 3-D, 180 across the
            short axis of an anisotropic patch and in 2-D, 15 for 2-D patches with an aspect above 1.5.
        scaling_p: Probability of a scaling.
        scaling_range: Factor common to all axes; above 1 shows more of the scan, smaller.
        dummy_2d: Rotate and scale only across the shortest axis of a 3-D patch; null does so when the longest axis is
            more than 3 times longer.
        noise_p: Probability of Gaussian noise.
        noise_std: Standard deviation of the noise, in normalised intensity (nnU-Net calls it variance).
        blur_p: Probability of a Gaussian blur.
        blur_channel_p: Probability of each channel to take part in the blur.
        blur_sigma: Standard deviation of the blur in voxels, drawn per axis.
        brightness_p: Probability of a multiplication of the intensities.
        brightness_range: Factor; below 1 and above 1 are equally likely.
        contrast_p: Probability of a change of contrast about the mean, clamped to the former minimum and maximum.
        contrast_range: Factor; below 1 and above 1 are equally likely.
        low_resolution_p: Probability of a simulated low resolution.
        low_resolution_channel_p: Probability of each channel to take part in it.
        low_resolution_scale: Size of the simulated grid relative to the patch.
        gamma_inverted_p: Probability of a gamma transform of the negated image.
        gamma_p: Probability of a gamma transform.
        gamma_range: Exponent of both; below 1 and above 1 are equally likely.
        mirror_p: Probability of mirroring each axis.
        mirror_axes: Axes that may be mirrored, counted from 0 in the order (D, H, W) or (H, W), or from -1 backwards;
            null is all of them. Axis -1 runs from left to right.

    Raises:
        UsageError: A range is empty or holds impossible values.
    """

    in_channels: int
    masked_channels: tuple[int, ...] = ()
    rotation_p: Probability = 0.2
    rotation_degrees: Annotated[float, Range(ge=0, le=180)] | None = None
    scaling_p: Probability = 0.2
    scaling_range: Annotated[Span, Range(gt=0)] = (0.7, 1.4)
    dummy_2d: bool | None = None
    noise_p: Probability = 0.1
    noise_std: Annotated[Span, Range(ge=0)] = (0.0, 0.1)
    blur_p: Probability = 0.2
    blur_channel_p: Probability = 0.5
    blur_sigma: Annotated[Span, Range(gt=0)] = (0.5, 1.0)
    brightness_p: Probability = 0.15
    brightness_range: Annotated[Span, Range(gt=0)] = (0.75, 1.25)
    contrast_p: Probability = 0.15
    contrast_range: Annotated[Span, Range(ge=0)] = (0.75, 1.25)
    low_resolution_p: Probability = 0.25
    low_resolution_channel_p: Probability = 0.5
    low_resolution_scale: Annotated[Span, Range(gt=0, le=1)] = (0.5, 1.0)
    gamma_inverted_p: Probability = 0.1
    gamma_p: Probability = 0.3
    gamma_range: Annotated[Span, Range(gt=0)] = (0.7, 1.5)
    mirror_p: Probability = 0.5
    mirror_axes: tuple[Annotated[int, Range(ge=-3, le=2)], ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_range", "_scale", "_sigma", "_std")) and not value[0] <= value[1]:
                raise UsageError(
                    f"augment.{field.name} is empty: {value[0]:g} is larger than {value[1]:g}",
                    hint=f"type the smaller value first: augment.{field.name}=[{value[1]:g},{value[0]:g}]",
                )

    def draw(self, rng: np.random.Generator, *, patch_size: tuple[int, ...]) -> dict[str, Any]:
        """Draw the parameters of one sample; see `Augmentation.draw`.

        Transforms that were not drawn have no key. `"matrix"` maps patch to read coordinates; intensity parameters
        have one entry per channel, None where the channel is left alone.

        Raises:
            UsageError: `mirror_axes` names an axis the patch does not have.
        """
        table = rng.random((len(_ROWS), 2 + 4 * self.in_channels))
        noise_seed = int(rng.integers(2**63))
        uniform = dict(zip(_ROWS, table.tolist()))
        drawn = {row for row, values in uniform.items() if row != "mirror" and values[0] < getattr(self, f"{row}_p")}
        numbers = {row: values[1:] for row, values in uniform.items()}

        params: dict[str, Any] = {"read_size": tuple(patch_size)}
        if {"rotation", "scaling"} & drawn:
            matrix = self._matrix(drawn, numbers, patch_size)
            params |= {"matrix": matrix, "read_size": read_size(matrix, patch_size)}
        mirrored = [k for k in self._mirror_axes(len(patch_size)) if uniform["mirror"][k] < self.mirror_p]
        if mirrored:
            params["mirror"] = tuple(mirrored)
        if "noise" in drawn:
            params["noise"] = {"std": _between(self.noise_std, numbers["noise"][0]), "seed": noise_seed}
        if "blur" in drawn:
            params["blur"] = self._blur_sigmas(numbers["blur"], len(patch_size))
        if "low_resolution" in drawn:
            params["low_resolution"] = self._low_resolution_scales(numbers["low_resolution"], patch_size)
        for row, span in (
            ("brightness", self.brightness_range),
            ("contrast", self.contrast_range),
            ("gamma_inverted", self.gamma_range),
            ("gamma", self.gamma_range),
        ):
            if row in drawn:
                pairs = _chunks(numbers[row], 2, self.in_channels)
                params[row] = [_around_one(span, side, value) for side, value in pairs]
        return params

    @torch.no_grad()
    def apply(self, batch: dict[str, Any], *, patch_size: tuple[int, ...], label_pad: int) -> dict[str, Any]:
        """Cut, resample and change the patches of a batch; see `Augmentation.apply`.

        On a CPU the bits of a sample do not depend on the other samples of the batch or on its place among them.
        On an accelerator they agree to rounding, and nothing waits for the device.
        """
        image, label = place(batch, patch_size=patch_size, label_pad=label_pad)
        assert image.shape[1] == self.in_channels, "the reads do not have in_channels channels"
        params: list[dict[str, Any]] = batch["params"]
        masks = [(channel, image[:, channel] != 0) for channel in self.masked_channels]
        intensity.add_noise(image, params)
        for key, transform in (
            ("blur", intensity.blur),
            ("brightness", intensity.brightness),
            ("contrast", intensity.contrast),
            ("low_resolution", intensity.low_resolution),
            ("gamma_inverted", intensity.gamma_inverted),
            ("gamma", intensity.gamma),
        ):
            intensity.on_rows(image, params, key, transform)
        for channel, mask in masks:
            image[:, channel].mul_(mask)
        return {**batch, "image": image, "label": label}

    def _matrix(self, drawn: set[str], numbers: dict[str, list[float]], patch_size: Sequence[int]) -> np.ndarray:
        dims = len(patch_size)
        flat_axis = self._flat_axis(patch_size)
        turning = dims if flat_axis is None else 2
        matrix = np.eye(turning)
        if "rotation" in drawn:
            limit = math.radians(self._rotation_limit(patch_size))
            count = 3 if turning == 3 else 1
            matrix = rotation_matrix([limit * (2 * u - 1) for u in numbers["rotation"][:count]])
        if "scaling" in drawn:
            matrix = matrix * _between(self.scaling_range, numbers["scaling"][0])
        if flat_axis is None:
            return matrix
        whole = np.eye(dims)
        inside = [axis for axis in range(dims) if axis != flat_axis]
        whole[np.ix_(inside, inside)] = matrix
        return whole

    def _flat_axis(self, patch_size: Sequence[int]) -> int | None:
        """The axis that takes no part in rotation, scaling and low resolution, or None."""
        anisotropic = max(patch_size) > ANISOTROPY * min(patch_size) if self.dummy_2d is None else self.dummy_2d
        return int(np.argmin(patch_size)) if len(patch_size) == 3 and anisotropic else None

    def _rotation_limit(self, patch_size: Sequence[int]) -> float:
        if self.rotation_degrees is not None:
            return self.rotation_degrees
        if len(patch_size) == 2:
            return 15.0 if max(patch_size) > _ELONGATION * min(patch_size) else 180.0
        return 30.0 if self._flat_axis(patch_size) is None else 180.0

    def _mirror_axes(self, dims: int) -> tuple[int, ...]:
        axes = tuple(range(dims)) if self.mirror_axes is None else self.mirror_axes
        if any(not -dims <= axis < dims for axis in axes):
            raise UsageError(
                f"augment.mirror_axes={list(axes)} names an axis that a {dims}-D patch does not have",
                hint=f"axes are 0 to {dims - 1}; `augment.mirror_axes=null` mirrors all of them",
            )
        return tuple(sorted({axis % dims for axis in axes}))

    def _blur_sigmas(self, numbers: list[float], dims: int) -> list[tuple[float, ...] | None]:
        return [
            tuple(_between(self.blur_sigma, u) for u in axes[:dims]) if chosen < self.blur_channel_p else None
            for chosen, *axes in _chunks(numbers, 4, self.in_channels)
        ]

    def _low_resolution_scales(self, numbers: list[float], patch_size: Sequence[int]) -> list[tuple[float, ...] | None]:
        flat_axis = self._flat_axis(patch_size)
        scales: list[tuple[float, ...] | None] = []
        for chosen, u in _chunks(numbers, 2, self.in_channels):
            scale = _between(self.low_resolution_scale, u)
            axes = tuple(1.0 if axis == flat_axis else scale for axis in range(len(patch_size)))
            scales.append(axes if chosen < self.low_resolution_channel_p else None)
        return scales


def _chunks(numbers: list[float], width: int, count: int) -> list[list[float]]:
    return [numbers[width * i : width * (i + 1)] for i in range(count)]


def _between(span: Span, u: float) -> float:
    """Map u from [0, 1) to the span."""
    return span[0] + (span[1] - span[0]) * u


def _around_one(span: Span, side: float, u: float) -> float:
    """Map u to the part of the span below 1 or above 1, each chosen with probability 0.5 by `side`."""
    low, high = span
    if not low < 1 < high:
        return _between(span, u)
    return _between((low, 1.0), u) if side < 0.5 else _between((1.0, high), u)
