"""One colour per class, the same in every picture."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

# told apart by people with colour-blindness; red, yellow and violet are kept for errors
_CLASSES: tuple[Color, ...] = (
    (86, 180, 233),
    (240, 150, 40),
    (50, 190, 120),
    (247, 150, 190),
    (120, 130, 245),
    (170, 110, 60),
    (30, 205, 205),
    (160, 200, 60),
)
MISSED: Color = (255, 60, 50)
EXTRA: Color = (255, 225, 70)
WRONG_CLASS: Color = (200, 80, 255)
IGNORED: Color = (110, 110, 110)


def class_color(index: int) -> Color:
    """The colour of a class; black is the background's.

    Args:
        index: Class index, >= 0.
    """
    if index == 0:
        return (0, 0, 0)
    if index <= len(_CLASSES):
        return _CLASSES[index - 1]
    # the golden angle spreads any number of hues evenly
    hue = (0.61803398875 * index) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (index % 2), 0.95 - 0.25 * (index % 3) / 2)
    return round(255 * red), round(255 * green), round(255 * blue)
