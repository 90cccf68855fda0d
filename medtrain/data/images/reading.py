"""From an image file to the array that augmentation gets: channels, intensities, and no more pixels than are of use."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from medtrain.data.image_sets import read_sample_image
from medtrain.data.images.plan import ImageFormat
from medtrain.data.io.images import Image, image_error, picture_size, to_float
from medtrain.data.marks import Mark, Marks, Point
from medtrain.data.sample import Annotation, ImageRef
from medtrain.data.transforms.images.resize import stretch

KEPT_DETAIL = 2
"""Pictures that are reduced keep this many pixels per pixel of the network's input, along each axis; volumes one."""

REDUCED_ABOVE = 3.0
"""Pictures with more than this are reduced."""

FAINTEST = 0.02
"""Masks that are nowhere above this part of their range hold class numbers rather than what is to be looked at."""

# whoever reads is one of several processes or threads already
cv2.setNumThreads(1)


def read_for(image_format: ImageFormat, ref: ImageRef) -> np.ndarray:
    """Read an image as augmentation gets it.

    Args:
        image_format: What it is to become.
        ref: Where it is.

    Returns:
        [H, W, C] or [D, H, W, C], contiguous: uint8, or float32 from 0 to 1 with the precision of float16.

    Raises:
        DataError: It cannot be read, or cannot become that.
    """
    channels: Literal[1, 3] | None = None
    if image_format.in_channels in (1, 3):
        channels = image_format.in_channels  # type: ignore[assignment]
    min_side = KEPT_DETAIL * max(image_format.image_size) if image_format.spatial_dims == 2 else None
    image = read_sample_image(ref, channels=channels, min_side=min_side)
    path = ref if isinstance(ref, Path) else ref.path
    _check(image, image_format, path)
    array = np.ascontiguousarray(np.moveaxis(scale(image, image_format, path), 0, -1))
    return _narrow(reduce(array, image_format.image_size))


def scale(image: Image, image_format: ImageFormat, path: Path) -> np.ndarray:
    """[C, ...] uint8 as it is, or float32 from 0 to 1."""
    if image_format.window is not None:
        if image.max_value is not None:
            message = f"holds values from 0 to {image.max_value:g}, not Hounsfield units that a CT window is for"
            raise image_error(path, message, "set data.window=null, or leave out this image")
        return to_float(image, "none", window=image_format.window, path=path)
    is_bytes = image.array.dtype == np.uint8 and image.max_value == 255
    if image_format.scaling == "auto":
        return image.array if is_bytes else to_float(image, "percentile", path=path)
    if image_format.scaling == "full_range" and is_bytes:
        return image.array
    return to_float(image, image_format.scaling, path=path)


def reduce(array: np.ndarray, image_size: tuple[int, ...]) -> np.ndarray:
    """An image without the pixels that nothing downstream would look at, in its own shape but for the depth.

    Args:
        array: [H, W, C] or [D, H, W, C].
        image_size: What the network sees.
    """
    limit, kept = (REDUCED_ABOVE, KEPT_DETAIL) if len(image_size) == 2 else (1.0, 1.0)
    height, width = array.shape[-3:-1]
    ratio = min(height / image_size[-2], width / image_size[-1])
    plane = (height, width)
    if ratio > limit:
        plane = (max(1, round(height * kept / ratio)), max(1, round(width * kept / ratio)))
    depth = tuple(min(have, want) for have, want in zip(array.shape[:-3], image_size[:-2]))
    return stretch(array, (*depth, *plane))


def read_annotation(annotation: Annotation, want: tuple[int, int], ref: ImageRef) -> np.ndarray:
    """A mask [H, W] from 0 to 1 on the grid of an image that was read.

    Masks of whole numbers that are 0 but for one value are 1 there, whatever the value.

    Args:
        annotation: The mask, or a box or point in pixels of the image file.
        want: H and W of the image as it was read.
        ref: The image.

    Raises:
        DataError: It cannot be read, its shape is another, it marks nothing, or it lies beyond the image.
    """
    if isinstance(annotation, Mark):
        path = ref if isinstance(ref, Path) else ref.path
        size = _file_size(ref)
        if len(size) != 2:
            raise image_error(path, "a box or point marks a place in a picture, and this is a volume")
        whole = (size[0], size[1])
        for mark in annotation.marks if isinstance(annotation, Marks) else (annotation,):
            if not mark.mask(whole, want).any() or (isinstance(mark, Point) and not mark.inside(whole)):
                raise image_error(path, f"{mark} lies beyond the image of {size[0]} x {size[1]} (H x W)")
        return annotation.mask(whole, want)
    path = annotation if isinstance(annotation, Path) else annotation.path
    found = read_sample_image(annotation, channels=1)
    if found.array.ndim != 3:
        raise image_error(path, "an annotation must be a picture")
    height, width = found.array.shape[1:]
    if abs(math.log((height / width) / (want[0] / want[1]))) > 0.03:
        raise image_error(path, f"is {height} x {width}, which is another shape than its image's")
    mask = _marked(found, path)
    if mask.max() < FAINTEST:
        message = f"marks nothing: its largest value is {100 * mask.max():.1f} % of what a pixel can be"
        raise image_error(path, message, "make what matters white; leave the cell empty where there is nothing")
    return np.ascontiguousarray(stretch(mask, want, is_mask=True))


def _marked(mask: Image, path: Path) -> np.ndarray:
    """The values of a mask [H, W] from 0 to 1."""
    values = mask.array[0]
    if values.dtype.kind in "iu" and np.isin(values, (0, values.max())).all():
        return (values > 0).astype(np.float32)
    return to_float(mask, "full_range" if mask.max_value else "min_max", path=path)[0]


@lru_cache(maxsize=1 << 16)
def _file_size(ref: ImageRef) -> tuple[int, ...]:
    """The shape of an image in its file, which may be read smaller."""
    told = picture_size(ref) if isinstance(ref, Path) else None
    return told or read_sample_image(ref).array.shape[1:]


def _check(image: Image, image_format: ImageFormat, path: Path) -> None:
    dims = image.array.ndim - 1
    if dims != image_format.spatial_dims:
        have = "a volume" if dims == 3 else "a picture"
        want = "volumes" if image_format.spatial_dims == 3 else "pictures"
        raise image_error(path, f"is {have}, but the set is of {want}")
    if len(image.array) != image_format.in_channels:
        raise image_error(path, f"holds {len(image.array)} channels, but the set has {image_format.in_channels}")


def _narrow(array: np.ndarray) -> np.ndarray:
    """Floating point as a copy keeps it, so that copies make no difference."""
    return array if array.dtype == np.uint8 else array.astype(np.float16).astype(np.float32)
