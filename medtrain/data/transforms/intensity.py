"""Intensity transforms of nnU-Net, in place on the rows (sample and channel) of a batch that drew them.

The parameters of a sample are one entry per channel, None for channels left alone.

The formulas are those of batchgeneratorsv2 (Isensee et al., nnU-Net, Nature Methods 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.data.transforms import base
from medtrain.data.transforms.base import to_device
from medtrain.data.transforms.cpu import stretch

_EPS = 1e-7
_BLOCK_VOXELS = 2**16


def on_rows(
    image: Tensor, params: Sequence[dict[str, Any]], key: str, transform: Callable[[Tensor, np.ndarray], None]
) -> None:
    """Apply an in-place transform to the rows whose parameters hold `key`.

    Args:
        image: [B, C, *P], contiguous; changed in place.
        params: One dict per sample; `params[b][key]` has C entries, None where the channel is left alone.
        key: Name of the transform's parameter.
        transform: Takes rows [N, *P] and float64 values [N, ...] and changes the rows in place.
    """
    channels = image.shape[1]
    drawn = [
        (b * channels + c, value)
        for b, sample in enumerate(params)
        for c, value in enumerate(sample.get(key, ()))
        if value is not None
    ]
    if not drawn:
        return
    rows = image.view(-1, *image.shape[2:])
    values = np.array([value for _, value in drawn], dtype=np.float64)
    if base.one_by_one(image.device):
        for (row, _), value in zip(drawn, values):
            transform(rows[row : row + 1], value[None])
        return
    index = to_device(np.array([row for row, _ in drawn]), image.device)
    chosen = rows.index_select(0, index)
    transform(chosen, values)
    rows.index_copy_(0, index, chosen)


def add_noise(image: Tensor, params: Sequence[dict[str, Any]]) -> None:
    """Add white Gaussian noise: independent voxels and channels, one standard deviation per sample.

    The field comes from a CPU generator seeded by the sample's parameters, so it is the same on every device.

    Args:
        image: [B, C, *P]; changed in place.
        params: `"noise"`: `{"std": float, "seed": int}` where drawn.
    """
    for patch, sample in zip(image, params):
        if "noise" in sample:
            generator = torch.Generator().manual_seed(sample["noise"]["seed"])
            field = torch.empty(patch.shape, pin_memory=patch.is_cuda).normal_(generator=generator)
            patch.add_(field.to(patch.device, non_blocking=True), alpha=sample["noise"]["std"])


def blur(rows: Tensor, sigmas: np.ndarray) -> None:
    """Blur with a separable Gaussian, reflecting at the border.

    The kernel of an axis has 3, 5 or 7 taps for sigmas up to 1 (about 3 sigma on each side), normalised to sum 1.

    Args:
        rows: [N, *P]; changed in place.
        sigmas: Voxels, [N, dims].
    """
    for axis, sigma in enumerate(sigmas.T, start=1):
        length = rows.shape[axis]
        kernel = _half_kernels(sigma, largest=length - 1)
        radius = kernel.shape[1] - 1
        if radius == 0:
            continue
        pads = [0, 0] * (rows.ndim - 1)
        pads[2 * (rows.ndim - 1 - axis)] = pads[2 * (rows.ndim - 1 - axis) + 1] = radius
        padded = F.pad(rows, pads, mode="reflect")
        middle = padded.narrow(axis, radius, length)
        sides = [
            (padded.narrow(axis, radius - j, length), padded.narrow(axis, radius + j, length))
            for j in range(1, radius + 1)
        ]
        if len(rows) == 1:  # plain numbers are several times faster than columns of one
            first, *others = kernel[0].astype(np.float32).tolist()
            torch.mul(middle, first, out=rows)
            for (below, above), tap in zip(sides, others):
                rows.add_(below + above, alpha=tap)
            continue
        taps = to_device(kernel.astype(np.float32), rows.device)
        torch.mul(middle, _column(taps[:, 0], rows), out=rows)
        for (below, above), tap in zip(sides, taps.unbind(1)[1:]):
            rows.addcmul_(below + above, _column(tap, rows))


def _half_kernels(sigmas: np.ndarray, *, largest: int) -> np.ndarray:
    """Taps 0..radius of symmetric Gaussian kernels, [N, radius + 1]; shorter ones are filled with zeros."""
    # nnU-Net takes the odd number nearest to 6 sigma + 0.5 as kernel size.
    radii = np.minimum(np.floor((6 * sigmas + 0.5) / 2), largest)
    offsets = np.arange(int(radii.max()) + 1)
    taps = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2) * (offsets <= radii[:, None])
    return taps / (2 * taps.sum(1, keepdims=True) - taps[:, :1])


def brightness(rows: Tensor, factors: np.ndarray) -> None:
    """Multiply by a factor per row.

    Args:
        rows: [N, *P]; changed in place.
        factors: [N].
    """
    rows.mul_(_column(factors, rows))


def contrast(rows: Tensor, factors: np.ndarray) -> None:
    """Multiply the distance to the row's mean by a factor, and clamp to the row's former minimum and maximum.

    Args:
        rows: [N, *P]; changed in place.
        factors: [N].
    """
    mean, (low, high) = _mean(rows), _range(rows)
    factor = _column(factors, rows)
    rows.mul_(factor).add_(mean * (1 - factor))
    torch.clamp(rows, low, high, out=rows)


def low_resolution(rows: Tensor, scales: np.ndarray) -> None:
    """Simulate a coarser scan: take the nearest voxels of a smaller grid, then interpolate linearly back.

    Args:
        rows: [N, *P]; changed in place.
        scales: Size of the smaller grid relative to the patch, [N, dims].
    """
    shape = rows.shape[1:]
    for row, scale in zip(rows, scales):  # every row has its own small grid
        small = [max(1, round(length * factor)) for length, factor in zip(shape, scale.tolist())]
        coarse = F.interpolate(row[None, None], size=small, mode="nearest-exact")
        if not base.one_by_one(rows.device):
            mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
            row.copy_(F.interpolate(coarse, size=shape, mode=mode, align_corners=False)[0, 0])
        else:
            stretch(coarse[0, 0], row)


def gamma(rows: Tensor, exponents: np.ndarray) -> None:
    """Raise intensities, scaled to [0, 1] by the row's range, to a power; then restore the row's mean and deviation.

    Args:
        rows: [N, *P]; changed in place.
        exponents: [N].
    """
    _gamma(rows, exponents, inverted=False)


def gamma_inverted(rows: Tensor, exponents: np.ndarray) -> None:
    """The gamma transform of the negated image, negated back: it acts on the bright end.

    Args:
        rows: [N, *P]; changed in place.
        exponents: [N].
    """
    _gamma(rows, exponents, inverted=True)


def _gamma(rows: Tensor, exponents: np.ndarray, *, inverted: bool) -> None:
    # nnU-Net scales the power back to the row's range before it restores mean and deviation; the restoring undoes any
    # scale and shift, so it is left out.
    low, high = _range(rows)
    span = (high - low).clamp_(min=_EPS)
    origin, step = (high, -span) if inverted else (low, span)
    if base.one_by_one(rows.device):
        moments = [
            _power_in_blocks(row.view(-1), float(start), float(1 / scale), float(exponent))
            for row, start, scale, exponent in zip(rows, origin, step, exponents)
        ]
        (mean, deviation), (changed_mean, changed_deviation) = (
            tuple(torch.tensor(pair, dtype=torch.float32).view(-1, *[1] * (rows.ndim - 1)) for pair in zip(*part))
            for part in zip(*moments)
        )
    else:
        rows.sub_(origin).mul_(1 / step)
        mean, deviation = _moments(rows)
        rows.pow_(_column(exponents, rows))
        changed_mean, changed_deviation = _moments(rows)
    gain = deviation / changed_deviation.clamp_(min=_EPS)
    rows.mul_(gain * step).add_(origin + step * (mean - changed_mean * gain))


def _power_in_blocks(
    values: Tensor, origin: float, scale: float, exponent: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Scale values to [0, 1] and raise them to a power, in place, in blocks that stay in a CPU's cache.

    Returns:
        Mean and standard deviation after the scaling, and after the power.
    """
    before, after = _Moments(), _Moments()
    tiny = 2.0 ** (-100 / max(1.0, exponent))  # infinities and numbers too small to be normal take many times longer
    for block in values.split(_BLOCK_VOXELS):
        block.sub_(origin).mul_(scale)
        before.add(block)
        numbers = block.clamp_(min=tiny).numpy()
        np.log2(numbers, out=numbers)
        numbers *= np.float32(exponent)
        np.exp2(numbers, out=numbers)  # together several times faster than a power
        after.add(block)
    return before.result(), after.result()


class _Moments:
    """Mean and standard deviation of values in blocks; centred on the first one's mean, so that no digits are lost."""

    def __init__(self) -> None:
        self._centre: float | None = None
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, block: Tensor) -> None:
        if self._centre is None:
            self._centre = float(block.mean())
        centred = block - self._centre
        self._count += len(block)
        self._sum += float(centred.sum())
        self._squares += float(torch.dot(centred, centred))

    def result(self) -> tuple[float, float]:
        mean = self._sum / self._count
        return (self._centre or 0.0) + mean, math.sqrt(max(0.0, self._squares / self._count - mean**2))


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row, [N, 1, ...]; centred first, so that a large mean costs no digits."""
    mean = _mean(rows)
    norm = torch.linalg.vector_norm((rows - mean).flatten(1), dim=1) / math.sqrt(rows[0].numel())
    return mean, norm.view(mean.shape)


def _mean(rows: Tensor) -> Tensor:
    return rows.flatten(1).mean(1).view(-1, *[1] * (rows.ndim - 1))


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each row, [N, 1, ...]."""
    flat, shape = rows.flatten(1), (-1, *[1] * (rows.ndim - 1))
    return flat.amin(1).view(shape), flat.amax(1).view(shape)  # together much faster than aminmax


def _column(values: np.ndarray | Tensor, rows: Tensor) -> Tensor:
    """One value per row, [N, 1, ...], in the rows' dtype on their device."""
    column = values if isinstance(values, Tensor) else to_device(values.astype(np.float32), rows.device)
    return column.view(-1, *[1] * (rows.ndim - 1))
