"""From rows of logits on a network's grid to the label map of the scan, as the rows come.

Grids share their outer borders, so output centre i lies at (i + 0.5) * n_in / n_out - 0.5 of the input; outside the
input the nearest value holds. Logits are interpolated linearly along every axis (by the nearest one along an axis that
is interpolated on its own, see `medtrain.data.geometry.low_resolution_axis`), then each voxel is decided: nothing with
an entry per class is ever held for more than a slab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medtrain.data.geometry import CaseGeometry
from medtrain.inference.postprocess import decide
from medtrain.inference.probability import ProbabilityMaps
from medtrain.inference.windows import Rows, outer

_SLAB_ELEMENTS = {"cpu": 2**20, "cuda": 2**22}
"""Numbers of a slab: a CPU's cache, or what keeps a GPU busy. Fixed, so that results do not depend on free memory."""

_COPIES = 8
"""Slabs that are in memory at once while one is interpolated and decided, some of them larger than it."""


class _Line:
    """Where the output samples of an axis lie among its input samples.

    Args:
        n_in: Input samples.
        n_out: Output samples.
        nearest: Take the nearest sample instead of interpolating between two.
    """

    def __init__(self, n_in: int, n_out: int, *, nearest: bool) -> None:
        self.n_in = n_in
        self.n_out = n_out
        centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
        if nearest or n_in == n_out:
            # half way between two samples the upper one is taken, whatever the rounding of `centres`
            self.low = np.clip(np.floor(centres + 0.5 + 1e-9).astype(np.int64), 0, n_in - 1)
            self.high = self.low
            self.share: np.ndarray | None = None
        else:
            centres = np.clip(centres, 0, n_in - 1)
            self.low = np.minimum(np.floor(centres).astype(np.int64), n_in - 1)
            self.high = np.minimum(self.low + 1, n_in - 1)
            self.share = (centres - self.low).astype(np.float32)

    @property
    def same(self) -> bool:
        """Whether nothing is interpolated."""
        return self.n_in == self.n_out

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First and one past the last input sample that the output samples start .. stop - 1 depend on."""
        return int(self.low[start]), int(self.high[stop - 1]) + 1

    def available(self, stop: int) -> int:
        """Output samples that depend on nothing from input sample `stop` on."""
        return int(np.searchsorted(self.high, stop))

    def apply(self, tensor: Tensor, axis: int, start: int, stop: int, offset: int) -> Tensor:
        """Output samples start .. stop - 1 along an axis of a tensor that holds the input samples from `offset` on."""
        if self.same:
            return tensor.narrow(axis, start - offset, stop - start)
        low = _select(tensor, axis, self.low[start:stop] - offset)
        if self.share is None:
            return low
        high = _select(tensor, axis, self.high[start:stop] - offset)
        share = torch.from_numpy(self.share[start:stop]).to(tensor.device)
        return low.lerp_(high, share.view(-1, *[1] * (tensor.ndim - 1 - axis)))


def _select(tensor: Tensor, axis: int, samples: np.ndarray) -> Tensor:
    """A copy of samples along an axis."""
    if tensor.device.type == "cpu" and axis == tensor.ndim - 1:  # torch takes many times longer along the last axis
        return torch.from_numpy(np.take(tensor.numpy(), samples, axis=axis))
    return tensor.index_select(axis, torch.from_numpy(samples).to(tensor.device))


class WayBack:
    """Turns finished rows into the label map of a scan.

    Args:
        geometry: How the scan came to the network's grid.
        regions: Class indices of every region; None for classes.
        axis: The axis along which rows come, first to last.
        maps: Keeps how sure the models are of some outputs; None for none.
        averaged: Rows are the mean probabilities of several models, not logits of one.
    """

    def __init__(
        self,
        geometry: CaseGeometry,
        regions: Sequence[Sequence[int]] | None,
        axis: int,
        maps: ProbabilityMaps | None = None,
        *,
        averaged: bool = False,
    ) -> None:
        self._geometry = geometry
        self._maps = maps
        self._averaged = averaged
        self._regions = regions
        self._axis = axis
        shapes = zip(geometry.resampled_shape, geometry.cropped_shape)
        self._lines = [_Line(a, b, nearest=i == geometry.low_axis) for i, (a, b) in enumerate(shapes)]
        self._across = [i for i in range(3) if i != axis]
        self._done = 0
        self._last: tuple[int, Tensor] | None = None
        self._label: np.ndarray | None = None
        self._inside: np.ndarray | None = None

    def temporaries(self, outputs: int, device: str = "cpu") -> int:
        """Bytes that it takes for K outputs, on a type of device."""
        slab = max(_SLAB_ELEMENTS.get(device, _SLAB_ELEMENTS["cpu"]), outputs * self._width())
        rows = outputs * math.prod(self._lines[i].n_in for i in self._across)
        return 4 * (_COPIES * slab + (0 if self._lines[self._axis].same else rows))

    @property
    def label(self) -> np.ndarray:
        """Class indices [D, H, W] of the whole scan; outside of its cropped box is background."""
        assert self._label is not None
        assert self._done == self._lines[self._axis].n_out, "rows are missing"
        return self._label

    def take(self, rows: Rows) -> None:
        """Interpolate and decide the output rows that depend on these and earlier rows alone."""
        line = self._lines[self._axis]
        sums = rows.sums
        assert all(sums.shape[1 + i] == self._lines[i].n_in for i in self._across), (sums.shape, self._geometry)
        stop = rows.first + sums.shape[1 + self._axis]
        until = line.available(stop)
        if until > self._done:
            self._take(rows, until)
            self._done = until
        if until < line.n_out and line.span(until, until + 1)[0] < stop:
            # the next output row lies between this last row and one that is to come
            last = sums.narrow(1 + self._axis, stop - 1 - rows.first, 1)
            kept = torch.empty(last.shape, dtype=last.dtype, device=last.device)
            for target, values in zip(kept, last):
                target.copy_(values)
                rows.was_read(1 / len(kept))
            self._last = (stop - 1, kept)

    def _width(self) -> int:
        """Numbers of one class in the thinnest slab: one row of the two axes that slabs are cut along."""
        line = self._lines[self._across[1]]
        return max(line.n_in, line.n_out)

    def _take(self, finished: Rows, until: int) -> None:
        """The output rows from `_done` to `until`, slab by slab."""
        across = self._lines[self._across[0]]
        thin = len(finished.sums) * self._width()
        most = max(1, _SLAB_ELEMENTS.get(finished.sums.device.type, _SLAB_ELEMENTS["cpu"]) // thin)
        # as many rows as the slab holds; of a slab that is cut both ways, both sides are made about equal
        steps_along = min(until - self._done, most)
        steps_across = min(across.n_out, max(1, most // steps_along))
        for start in range(self._done, until, steps_along):
            rows = (start, min(start + steps_along, until))
            for low in range(0, across.n_out, steps_across):
                columns = (low, min(low + steps_across, across.n_out))
                self._enter(self._slab(finished, rows, columns), rows, columns)
                finished.was_read((columns[1] - columns[0]) / across.n_out)

    def _slab(self, finished: Rows, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Logits [K, ...] of output rows x columns of the scan's box: gathered, without weights, interpolated."""
        sums, first, inverse = finished.sums, finished.first, finished.inverse
        axis, (other, third) = self._axis, self._across
        along, across = self._lines[axis].span(*rows), self._lines[other].span(*columns)
        slab = self._gather(sums, first, along, across)
        if inverse is not None:
            ranges = {axis: along, other: across, third: (0, self._lines[third].n_in)}
            factor = outer([inverse[i][slice(*ranges[i])] for i in range(3)])
            slab = slab * factor.float().to(slab.device)
        todo = {axis: (*rows, along[0]), other: (*columns, across[0]), third: (0, self._lines[third].n_out, 0)}
        for i in range(3):
            slab = self._lines[i].apply(slab, 1 + i, *todo[i])
        return slab

    def _gather(self, sums: Tensor, first: int, along: tuple[int, int], across: tuple[int, int]) -> Tensor:
        """Input samples of a slab, with the last row of before where it is needed."""
        dim, other = 1 + self._axis, 1 + self._across[0]
        sums = sums.narrow(other, across[0], across[1] - across[0])
        here = sums.narrow(dim, max(along[0] - first, 0), along[1] - max(along[0], first))
        if along[0] >= first:
            return here
        assert self._last is not None
        assert self._last[0] == along[0] == first - 1, "only the last row is kept"
        return torch.cat([self._last[1].narrow(other, across[0], across[1] - across[0]), here], dim=dim)

    def _enter(self, slab: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Decide a slab of logits [K, ...], and keep what is asked for of it."""
        decided = decide(slab, self._regions).cpu().numpy()
        crop = tuple(slice(*side) for side in self._geometry.crop)
        if self._inside is None:
            self._label = np.zeros(self._geometry.canonical_shape, dtype=decided.dtype)
            self._inside = self._label[crop]
            if self._maps is not None:
                self._maps.begin(self._geometry.canonical_shape, averaged=self._averaged)
        where = [slice(None)] * 3
        where[self._axis], where[self._across[0]] = slice(*rows), slice(*columns)
        self._inside[tuple(where)] = decided
        if self._maps is not None:
            self._maps.enter(slab, crop, where)
