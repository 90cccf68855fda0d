"""Small pictures of images of any kind, with lines of text below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from medtrain.pictures.figure import plain, shorten
from medtrain.pictures.fonts import font
from medtrain.pictures.sheet import fit_size, grey
from medtrain.pictures.views import AXIAL, window_of

BACKGROUND = (24, 24, 26)
TEXT = (235, 235, 235)
DIM = (165, 165, 170)
RIGHT = (110, 190, 240)
WRONG = (245, 160, 60)
_LETTERS = 14
_LINE = 19

Line = tuple[str, tuple[int, int, int]]


def thumbnail(image: np.ndarray, size: int, *, channel: int = 0, index: int | None = None) -> np.ndarray:
    """An image in a square: a picture in grey or, with three channels, in colour; of a volume an axial slice.

    Args:
        image: [C, H, W] or [C, D, H, W]; 8 bit, or any numbers, whose 1st and 99th percentile are black and white.
        size: Pixels of the square; what the image does not fill is dark.
        channel: The channel to show where it is not colour.
        index: The slice of a volume; the middle one when None.

    Returns:
        uint8 [size, size, 3].
    """
    plane, window = plane_of(image, channel=channel, index=index)
    pixels = grey(plane, window, fit_size(plane.shape[:2], (1.0, 1.0), size))
    return centred(pixels, size, size)


def plane_of(
    image: np.ndarray, *, channel: int = 0, index: int | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """What to show of an image [H, W] or, in colour, [H, W, 3], and the values that are black and white.

    Args:
        image: [C, H, W] or [C, D, H, W].
        channel: The channel to show where it is not colour.
        index: The slice of a volume; the middle one when None.
    """
    image = np.asarray(image)
    assert image.ndim in (3, 4), f"an image is [C, H, W] or [C, D, H, W], not {image.shape}"
    if image.ndim == 3 and len(image) == 3:
        plane = np.moveaxis(image, 0, -1)
        return plane, (0.0, 255.0) if image.dtype == np.uint8 else window_of(image)
    values = image[min(channel, len(image) - 1)]
    window = window_of(values)
    if values.ndim == 3:
        values = AXIAL.show(values[len(values) // 2 if index is None else index])
    return values, window


def centred(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put a picture in the middle of a dark one; uint8 [height, width, 3].

    Args:
        pixels: uint8 [h, w, 3], not larger.
        height: Pixels.
        width: Pixels.
    """
    whole = np.full((height, width, 3), BACKGROUND, np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def captioned(pixels: np.ndarray, lines: Sequence[Line], *, longest: int | None = None) -> np.ndarray:
    """Write lines of text below a picture, each shortened to its width.

    Args:
        pixels: uint8 [H, W, 3].
        lines: Text and colour.
        longest: As many lines are left free, for pictures side by side.

    Returns:
        uint8 [H + lines, W, 3].
    """
    count = max(len(lines), longest or 0)
    return np.concatenate([pixels, write(lines, pixels.shape[1], 4 + _LINE * count)])


def write(lines: Sequence[Line], width: int, height: int) -> np.ndarray:
    """Lines of text on the dark ground, from the top; uint8 [height, width, 3].

    Args:
        lines: Text and colour.
        width: Pixels; longer texts lose their middle.
        height: Pixels.
    """
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for row, (text, color) in enumerate(lines):
        shown = shorten(plain(text), width - 4, _LETTERS)
        draw.text((2, 4 + row * _LINE + _LINE // 2), shown, font=font(_LETTERS), fill=color, anchor="lm")
    return np.asarray(image)


def absent(size: int, reason: str = "missing") -> np.ndarray:
    """A square that says why it holds no image; uint8 [size, size, 3].

    Args:
        size: Pixels.
        reason: A word or two.
    """
    image = Image.new("RGB", (size, size), (48, 48, 52))
    middle = size // 2
    text = shorten(plain(reason), size - 8, _LETTERS)
    ImageDraw.Draw(image).text((middle, middle), text, font=font(_LETTERS), fill=DIM, anchor="mm")
    return np.asarray(image)
