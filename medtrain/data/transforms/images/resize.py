"""One size for images of any size.

Images are interpolated linearly, and where they shrink averaged over all pixels that fall together: without that, fine
structures are dropped or become patterns. Torch does so as Pillow and torchvision do, whose resizing the pretrained
weights have seen, and with three channels of uint8 seven times as fast as OpenCV's area interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

Resize = Literal["letterbox", "stretch", "crop"]

_FAST_CHANNELS = (3, 4)


def fit_image(
    image: np.ndarray,
    mask: np.ndarray | None,
    size: Sequence[int],
    mode: Resize | Literal["cut"],
    *,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Bring an image and its mask to a size; what has it already is returned as it is.

    Args:
        image: [*S, C], uint8 or float32.
        mask: [*S], or None.
        size: Two or three sides.
        mode: `stretch`: each axis by its own factor. `letterbox`: rows and columns by one factor, so that all of the
            image is seen, with zeros around. `crop`: by one factor, so that nothing is left empty, and what stands out
            is cut off. `cut`: nothing is scaled, what stands out is cut off.
        rng: Says where `crop` and `cut` cut; None for the centre.
    """
    height, width = image.shape[-3:-1]
    tall, wide = size[-2:]
    inner = (tall, wide)
    if mode == "cut":
        inner = (height, width)
    elif mode != "stretch":
        scale = (min if mode == "letterbox" else max)(tall / height, wide / width)
        limit = min if mode == "letterbox" else max
        inner = tuple(limit(whole, max(1, round(side * scale))) for side, whole in zip((height, width), (tall, wide)))
    depth = tuple(image.shape[:-3]) if mode == "cut" else tuple(size[:-2])
    places = [
        _place(have, want, None if rng is None else rng.random())
        for have, want in zip((*depth, *inner), (*size[:-2], tall, wide))
    ]
    image = _cut_or_pad(stretch(image, (*depth, *inner)), size, places)
    if mask is not None:
        mask = _cut_or_pad(stretch(mask, (*depth, *inner), is_mask=True), size, places)
    return image, mask


def stretch(array: np.ndarray, size: Sequence[int], *, is_mask: bool = False) -> np.ndarray:
    """Resample an image [*S, C] or a mask [*S] to a size; masks of whole numbers get the nearest value.

    Args:
        array: uint8 or float32; a mask of whole numbers may have any type.
        size: Two or three sides.
        is_mask: There is no axis of channels.
    """
    have, want = array.shape[: len(size)], tuple(size)
    if have == want:
        return array
    if is_mask and array.dtype.kind in "iub":
        return array[np.ix_(*(_nearest(old, new) for old, new in zip(have, want)))]
    if len(size) == 3:  # slice by slice, then along D
        return _stretch_depth(_stretch_planes(array, want[1:], channels=not is_mask), want[0])
    return _stretch_planes(array, want, channels=not is_mask)


def enlarged(size: Sequence[int], margin: float) -> tuple[int, ...]:
    """A size whose rows and columns are longer by a part of themselves."""
    return (*size[:-2], *(math.ceil(side * (1 + margin) - 1e-9) for side in size[-2:]))


def _stretch_planes(array: np.ndarray, size: tuple[int, ...], *, channels: bool) -> np.ndarray:
    """Resample rows and columns: the last two axes, or those before that of channels."""
    planes = array if channels else array[..., None]
    if planes.shape[-3:-1] == size:
        return array
    planes = np.moveaxis(planes, -1, -3)
    fast = array.dtype == np.uint8 and planes.shape[-3] in _FAST_CHANNELS
    batch = planes.reshape(-1, *planes.shape[-3:]) if fast else planes.reshape(-1, 1, *planes.shape[-2:])
    resized = _interpolate(batch, size).reshape(*planes.shape[:-2], *size)
    resized = np.ascontiguousarray(np.moveaxis(resized, -3, -1))
    return resized if channels else resized[..., 0]


def _stretch_depth(array: np.ndarray, depth: int) -> np.ndarray:
    if len(array) == depth:
        return array
    rows = array.reshape(1, 1, len(array), -1)
    return _interpolate(rows, (depth, rows.shape[-1])).reshape(depth, *array.shape[1:])


def _interpolate(batch: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resample [B, C, H, W]; uint8 is fastest where channels come last in memory."""
    if not batch.flags.writeable:  # torch warns of tensors on memory that must not be written to
        batch = batch.copy(order="K")
    return F.interpolate(torch.from_numpy(batch), size=size, mode="bilinear", antialias=True).numpy()


def _nearest(old: int, new: int) -> np.ndarray:
    """The places on an axis of `old` values that lie nearest to the middles of `new` values."""
    return ((2 * np.arange(new) + 1) * old) // (2 * new)


def _place(have: int, want: int, where: float | None) -> int:
    """Where the result begins in the image, or with a minus the image in the result."""
    room = have - want
    if room <= 0 or where is None:
        return room // 2 if room >= 0 else -(-room // 2)
    return int(where * (room + 1))


def _cut_or_pad(array: np.ndarray, size: Sequence[int], places: Sequence[int]) -> np.ndarray:
    if array.shape[: len(size)] == tuple(size):
        return array
    source = tuple(slice(max(0, place), max(0, place) + want) for place, want in zip(places, size))
    part = array[source]
    if part.shape[: len(size)] == tuple(size):
        return np.ascontiguousarray(part)
    result = np.zeros((*size, *array.shape[len(size) :]), dtype=array.dtype)
    target = tuple(slice(max(0, -place), max(0, -place) + have) for place, have in zip(places, part.shape))
    result[target] = part
    return result
