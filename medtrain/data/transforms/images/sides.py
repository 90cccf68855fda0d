"""Which transforms exchange left and right, and which leave no left and right at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ORIENTING = ("HorizontalFlip", "TimeReverse", "VerticalFlip", "Transpose", "RandomRotate90", "D4", "SquareSymmetry")
"""Transforms that bring every pixel to another place of the grid."""

_MIRRORING = ("HorizontalFlip", "TimeReverse")
_TURNING = ("Transpose", "RandomRotate90", "D4", "SquareSymmetry", "CubicSymmetry", "RandomGridShuffle")
_ANGLES = {  # name -> (argument, its default)
    "Rotate": ("limit", 90),
    "SafeRotate": ("limit", 90),
    "ShiftScaleRotate": ("rotate_limit", 45),
    "Affine": ("rotate", 0),
}
_STEEP = 45.0  # degrees, up to which the left half of an image stays mostly on the left


def mirroring(transforms: Sequence[Mapping[str, Any]]) -> bool:
    """Whether left and right ever change places.

    Args:
        transforms: In the form that `augment=albumentations` takes.
    """
    return any(item["name"] in _MIRRORING or _turns(item) for item in _active(transforms))


def turning(transforms: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of transforms after which left and right may be neither where they were nor exactly exchanged.

    Args:
        transforms: In the form that `augment=albumentations` takes.
    """
    return tuple(dict.fromkeys(item["name"] for item in _active(transforms) if _turns(item)))


def _active(transforms: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for item in transforms:
        if item.get("p", 1) == 0:
            continue
        if "transforms" in item:
            yield from _active(item["transforms"])
        else:
            yield item


def _turns(item: Mapping[str, Any]) -> bool:
    name = item["name"]
    if name == "Affine" and any(number < 0 for number in _numbers(item.get("scale", 1))):
        return True
    argument, default = _ANGLES.get(name, ("", 0))
    return name in _TURNING or any(abs(angle) > _STEEP for angle in _numbers(item.get(argument, default)))


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a number, a range, or ranges by axis."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield float(value)
