"""Windows over a whole image, in an order in which it is finished row by row.

The windows are a product of starts along the axes. They are predicted layer by layer along one axis, and once a layer
is done no later window reaches the rows before the next layer's start: these are handed on, and only the rows that
windows still touch are held. That is K x (patch along that axis) x (the other two sides) x 4 bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medtrain.inference.room import Room, Store

_PROFILE_FLOOR = 1e-4
"""Smallest weight along one axis: below the default's edge (exp(-8) = 3.4e-4), far above where float32 underflows."""

_WINDOW_VOXELS = {"cpu": 2**16, "cuda": 2**21}
"""Voxels of one batch of windows when its size is not given: a CPU is fastest while activations fit its cache."""

_MAX_WINDOW_BATCH = 64
_SLAB_ELEMENTS = 2**18

_LAST_AXIS_WORTH = 1.5
"""Held rows may be this much larger where they lie along the last axis: there a window's rows are one piece."""

ModelFn = Callable[[Tensor], Tensor]
Region = tuple[slice, ...]


@dataclass(frozen=True)
class Rows:
    """Finished rows of an image.

    Args:
        sums: Weighted logits [K, *S] of these rows, valid until the consumer returns.
        first: Index of the first row.
        inverse: Per axis of S, one over the sum of the windows' weights, float64; their product undoes the weights.
            None where nothing was weighted.
        was_read: Told which share of the rows was read, so that little of a file is in memory at a time.
    """

    sums: Tensor
    first: int
    inverse: tuple[Tensor, ...] | None
    was_read: Callable[[float], None] = lambda share: None


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
    return outer([gaussian_profile(p, sigma_scale).double() for p in patch_size]).float().to(device)


def outer(vectors: Sequence[Tensor]) -> Tensor:
    """The product of one vector per axis."""
    return functools.reduce(lambda a, b: a[..., None] * b, vectors)


class Windows:
    """Where the windows of an image lie and in which order they are predicted.

    A patch with one axis less than the image runs slice by slice along the first one, in batches of slices.

    Args:
        shape: The image's voxels [*S], without channels.
        patch: Voxels of a window.
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1).
        batch: Windows per forward, or slices.
    """

    def __init__(self, shape: Sequence[int], patch: Sequence[int], *, overlap: float, batch: int) -> None:
        assert len(shape) - len(patch) in (0, 1), f"patch {tuple(patch)} does not fit an image {tuple(shape)}"
        self.patch = tuple(patch)
        self.sliced = len(shape) > len(patch)
        self.shape = tuple(shape)
        self._batch = batch
        window = (min(batch, shape[0]), *patch) if self.sliced else self.patch
        missing = [max(p - s, 0) for s, p in zip(shape, window)]
        self.pads = [(n // 2, n - n // 2) for n in missing]
        self.padded = tuple(s + n for s, n in zip(shape, missing))
        self.starts = [window_starts(s, p, overlap) for s, p in zip(self.padded, window)]
        if self.sliced:
            self.starts[0] = list(range(0, shape[0], batch))
        self.axis = 0 if self.sliced else _sweep_axis(self.padded, window, self.starts)
        self.depth = window[self.axis]
        self._window = window

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(len(starts) for starts in self.starts)

    def pad(self, image: Tensor) -> Tensor:
        """Pad an image [C, *S] with 0, half on each side."""
        if not any(low or high for low, high in self.pads):
            return image
        return F.pad(image, [n for pair in reversed(self.pads) for n in pair])

    def batches(self) -> Iterator[list[Region]]:
        """The windows of each forward, layer by layer: `batch` regions, or one of `batch` slices."""
        others = [starts for axis, starts in enumerate(self.starts) if axis != self.axis]
        regions = (
            tuple(
                slice(o, min(o + p, s))
                for o, p, s in zip((*rest[: self.axis], start, *rest[self.axis :]), self._window, self.padded)
            )
            for start in self.starts[self.axis]
            for rest in itertools.product(*others)
        )
        size = 1 if self.sliced else self._batch
        while group := list(itertools.islice(regions, size)):
            yield group

    def inverse_weights(self, sigma_scale: float) -> tuple[Tensor, ...] | None:
        """Per axis, one over the sum of the windows' weights, without the padding; float64.

        The windows are the product of the axes' starts and their weights the product of the axes' profiles, so the sum
        is the product of one sum per axis: no volume of weights is needed.
        """
        if not self.weighted:
            return None
        inverses = []
        for axis, (size, origins, length) in enumerate(zip(self.padded, self.starts, self._window)):
            total = torch.zeros(size, dtype=torch.float64)
            for origin in origins:
                if self.sliced and axis == 0:
                    total[origin : origin + length] = 1.0
                else:
                    total[origin : origin + length] += gaussian_profile(length, sigma_scale)
            low = self.pads[axis][0]
            inverses.append(1.0 / total[low : low + self.shape[axis]])
        return tuple(inverses)

    @property
    def weighted(self) -> bool:
        """Whether an image or slice takes several windows: otherwise the logits are the model's own."""
        return any(len(starts) > 1 for starts in (self.starts[1:] if self.sliced else self.starts))


def _sweep_axis(shape: Sequence[int], window: Sequence[int], starts: Sequence[Sequence[int]]) -> int:
    """The axis along which the fewest voxels are held, the last one where it holds few more."""
    held = [math.prod(shape) / s * p if len(origins) > 1 else math.inf for s, p, origins in zip(shape, window, starts)]
    best = min(held)
    if held[-1] <= _LAST_AXIS_WORTH * best:
        return len(shape) - 1
    return held.index(best)


def default_window_batch(patch: Sequence[int], device: torch.device) -> int:
    """Windows per forward: as many as keep a CPU's cache or a GPU busy."""
    voxels = _WINDOW_VOXELS.get(device.type, _WINDOW_VOXELS["cpu"])
    return max(1, min(_MAX_WINDOW_BATCH, voxels // math.prod(patch)))


@torch.no_grad()
def sweep(
    models: Sequence[ModelFn],
    images: Sequence[Tensor],
    windows: Windows,
    consume: Callable[[Rows], None],
    *,
    sigma_scale: float,
    mirror_axes: Sequence[int],
    regions: bool,
    device: torch.device,
    room: Room,
    temporaries: Callable[[int], int],
) -> None:
    """Predict an image window by window, blend by Gaussian weights, and hand on its rows as they are finished.

    Axes smaller than the patch are padded with 0 (the mean after normalisation) on both sides and cropped again. A
    single window keeps the model's own logits. Mirrored predictions are averaged as logits, as in nnU-Net. Of several
    models the probabilities are averaged, window by window: of classes the softmax; of regions the sigmoid, less one
    half, so that what is above 0 belongs to the region as for logits.

    Args:
        models: Each maps windows [B, C, *P] to logits [B, K, *P] of any float type; in evaluation mode already.
        images: [C, *S], normalised: one for all models, or one for each.
        windows: Where the windows lie.
        consume: Takes finished rows, in order along `windows.axis`.
        sigma_scale: Gaussian standard deviation as a fraction of the patch, > 0.
        mirror_axes: Axes of the patch (0 is the first) whose 2^n mirror combinations are averaged.
        regions: Whether outputs are regions, which may lie within each other.
        device: Where the models run.
        room: What the held rows may take.
        temporaries: Bytes that the consumer takes, by the number of outputs.

    Raises:
        UsageError: The held rows fit nowhere.
    """
    if device.type == "cuda":
        images = [_on_device(image, device) for image in images]
    padded = [windows.pad(image) for image in images]
    inverse = windows.inverse_weights(sigma_scale)
    rows: list[HeldRows] = []  # made when the first window tells the number of outputs
    weight: Tensor | None = None

    def predictions() -> Iterator[tuple[list[Region], Tensor]]:
        for group in windows.batches():
            gathered = [_gather(image, group, windows.sliced).to(device) for image in padded]
            yield group, _forward_all(models, gathered, mirror_axes, regions)

    for group, predicted in _one_behind(predictions(), lambda: bool(rows) and rows[0].device.type != device.type):
        if windows.count == 1:
            consume(_single(predicted, windows, inverse))
            return
        if not rows:
            rows.append(HeldRows(windows, predicted.shape[1], device, room, temporaries(predicted.shape[1])))
            weight = importance_map(windows.patch, sigma_scale, rows[0].device) if windows.weighted else None
        parts = [predicted.transpose(0, 1)] if windows.sliced else list(predicted)
        for part, region in zip(parts, group):
            start = region[windows.axis].start
            if start > rows[0].first:
                rows[0].finish(start, consume, inverse)
            rows[0].add(part, region, weight)
        del predicted, parts, part  # before the next ones are made
    rows[0].finish(windows.padded[windows.axis], consume, inverse)


class HeldRows:
    """Weighted logits [K, *S] of the rows that windows still touch.

    Args:
        windows: Where the windows lie.
        outputs: K.
        device: Where the network is; the rows may be kept elsewhere.
        room: What they may take.
        temporaries: Bytes that are needed besides.
    """

    def __init__(self, windows: Windows, outputs: int, device: torch.device, room: Room, temporaries: int) -> None:
        self._windows = windows
        self._axis = windows.axis
        shape = [outputs, *windows.padded]
        shape[self._axis + 1] = windows.depth
        self._store: Store = room.store(math.prod(shape), temporaries=temporaries, device=device)
        self._sums = self._store.tensor.view(shape)
        self.first = 0

    @property
    def device(self) -> torch.device:
        """Where they are kept."""
        return self._sums.device

    def add(self, part: Tensor, region: Region, weight: Tensor | None) -> None:
        """Add a weighted window [K, *P]; a whole window without a weight is the only one at its place."""
        along = region[self._axis]
        place = list(region)
        place[self._axis] = slice(along.start - self.first, along.stop - self.first)
        target = self._sums[(slice(None), *place)]
        part = part.to(self.device)
        at_a_time = 1 if self._store.on_disk else len(part)  # classes, whose pages can be given back in between
        for k in range(0, len(part), at_a_time):
            _add(target[k : k + at_a_time], part[k : k + at_a_time], weight)
            self._store.touched(4 * part[k : k + at_a_time].numel())

    def finish(self, stop: int, consume: Callable[[Rows], None], inverse: tuple[Tensor, ...] | None) -> None:
        """Hand on the rows before `stop`, and hold those from there on."""
        done = stop - self.first
        consume(self._cropped(done, inverse))
        if stop == self._windows.padded[self._axis]:
            return
        held = self._windows.depth - done
        for sums in self._sums:  # class by class: of a file, little is in memory at a time
            axis = self._axis
            for start in range(0, held, done):  # pieces that do not overlap
                length = min(done, held - start)
                sums.narrow(axis, start, length).copy_(sums.narrow(axis, start + done, length))
            sums.narrow(axis, held, done).zero_()
            self._store.touched(8 * sums.numel())
        self.first = stop

    def _cropped(self, rows: int, inverse: tuple[Tensor, ...] | None) -> Rows:
        """The first rows, without padding."""
        sums = self._sums.narrow(self._axis + 1, 0, rows)
        first = self.first
        for axis, ((low, _), size) in enumerate(zip(self._windows.pads, self._windows.shape)):
            if axis != self._axis:
                sums = sums.narrow(axis + 1, low, size)
        low, size = self._windows.pads[self._axis][0], self._windows.shape[self._axis]
        if low or rows > size:  # padded along the sweep: there is one layer
            sums = sums.narrow(self._axis + 1, low, size)
        held = 4 * self._sums.numel()
        return Rows(sums, first, inverse, lambda share: self._store.touched(int(share * held)))


def _add(target: Tensor, part: Tensor, weight: Tensor | None) -> None:
    """Add a weighted window [K, *P] in place; without a weight it is the only one at its place."""
    if weight is None:
        target.copy_(part)
    elif part.dtype == torch.float32 and part.is_contiguous():
        target.addcmul_(part, weight)
    else:
        # In slabs that stay in the cache: bfloat16 or channels-last logits are turned there, not in a big copy.
        rows = max(1, _SLAB_ELEMENTS * part.shape[1] // part.numel()) if part.device.type == "cpu" else part.shape[1]
        for i in range(0, part.shape[1], rows):
            slab = part[:, i : i + rows].to(torch.float32, memory_format=torch.contiguous_format)
            factor = weight if weight.ndim < part.ndim - 1 else weight[i : i + rows]
            target[:, i : i + rows].addcmul_(slab, factor)


def _single(predicted: Tensor, windows: Windows, inverse: tuple[Tensor, ...] | None) -> Rows:
    """The only window of an image, without padding."""
    sums = predicted.transpose(0, 1) if windows.sliced else predicted[0]
    crop = tuple(slice(low, low + size) for (low, _), size in zip(windows.pads, windows.shape))
    return Rows(sums[(slice(None), *crop)].float(), 0, inverse)


def _on_device(image: Tensor, device: torch.device) -> Tensor:
    """An image on a GPU, once instead of window by window, where it has the room."""
    if image.device.type == device.type:
        return image
    free, _ = torch.cuda.mem_get_info(device)
    return image.to(device) if 4 * image.numel() * image.element_size() <= free else image


def _gather(image: Tensor, regions: list[Region], sliced: bool) -> Tensor:
    """Windows [B, C, *P]."""
    if sliced:
        return image[(slice(None), *regions[0])].transpose(0, 1)
    if len(regions) == 1:
        return image[(slice(None), *regions[0])][None]
    return torch.stack([image[(slice(None), *region)] for region in regions])


def _one_behind(
    predictions: Iterator[tuple[list[Region], Tensor]], elsewhere: Callable[[], bool]
) -> Iterator[tuple[list[Region], Tensor]]:
    """Predictions as they come; those that are collected in main memory are copied while a GPU predicts the next."""
    waiting: tuple[list[Region], Tensor, torch.cuda.Event] | None = None
    for group, predicted in predictions:
        if predicted.device.type != "cuda" or not elsewhere():
            result = [(group, predicted)]
            del predicted  # the consumer alone holds it
            yield result.pop()
            continue
        host = torch.empty(predicted.shape, dtype=predicted.dtype, pin_memory=True)
        host.copy_(predicted, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[0], waiting[1]
        waiting = (group, host, copied)
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[0], waiting[1]


def _forward_all(
    models: Sequence[ModelFn], windows: Sequence[Tensor], mirror_axes: Sequence[int], regions: bool
) -> Tensor:
    """A model's logits, or the mean probabilities of several."""
    if len(models) == 1:
        return _forward(models[0], windows[0], mirror_axes)
    total: Tensor | None = None
    for index, model in enumerate(models):
        logits = _forward(model, windows[index % len(windows)], mirror_axes).float()
        probabilities = logits.sigmoid().sub_(0.5) if regions else logits.softmax(1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(models))


def _forward(model: ModelFn, windows: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Logits of the windows, the mean over all mirror combinations; the sum is taken in float32."""
    windows = windows.contiguous()
    logits = model(windows)
    assert isinstance(logits, Tensor), f"the model returns {type(logits).__name__} in evaluation mode, not one tensor"
    assert logits.shape[2:] == windows.shape[2:], f"logits {tuple(logits.shape)} for windows {tuple(windows.shape)}"
    axes = sorted({axis + 2 for axis in mirror_axes})
    if not axes:
        return logits
    total = logits.float().clone()
    combinations = [c for n in range(1, len(axes) + 1) for c in itertools.combinations(axes, n)]
    for dims in combinations:
        total += model(windows.flip(dims)).flip(dims)
    return total.div_(len(combinations) + 1)
