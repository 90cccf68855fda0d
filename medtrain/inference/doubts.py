"""What makes an image unlike those that a model was trained on, though it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medtrain.data.images.copies import ImageCopies
from medtrain.data.images.plan import ImagePlan
from medtrain.data.io.images import read_image_file
from medtrain.data.sample import ImageRef

_SMALL = 0.5
"""Images with less than this share of the pixels of the network's input, along an axis, are enlarged a lot."""

_COLOURS = ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA")
_GREY_TOLERANCE = 16
"""JPEG files of grey pictures stored as colours differ by a few levels between their channels."""

_NOTICED_SHARE = 0.01


class DoubtingImages(ImageCopies):
    """Reads images from their files, exactly as their copies hold them, and notes what is unusual about them.

    Args:
        plan: Of the training images.
    """

    def __init__(self, plan: ImagePlan) -> None:
        super().__init__(Path(), plan.image_format, copied={}, digests={})
        self._plan = plan
        # a number of channels that the user chose is meant to convert images
        self._told_channels = plan.reasons.get("data.channels")
        self._notes: list[tuple[str, str]] = []

    def read(self, ref: ImageRef) -> np.ndarray:
        """An image as `read_for` gives it."""
        array = super().read(ref)
        name = ref.name if isinstance(ref, Path) else str(ref)
        self._notes += [(name, note) for note in self._doubts(ref, array)]
        return array

    def doubts(self) -> str:
        """What was noted, in a sentence; empty as a rule."""
        several = self._plan.several_images
        return "; ".join(f"{name}: {note}" if several else note for name, note in self._notes)

    def _doubts(self, ref: ImageRef, array: np.ndarray) -> Iterator[str]:
        if array.min() == array.max():
            yield "no contrast: every pixel has the same value"
        plane, wanted = array.shape[-3:-1], self._plan.image_size[-2:]
        if any(have < _SMALL * want for have, want in zip(plane, wanted)):
            have, want = (" x ".join(map(str, shape)) for shape in (plane, wanted))
            yield f"only {have} pixels, and the model looks at {want}"
        if self._told_channels is None or array.min() == array.max():
            return
        channels = array.shape[-1]
        if channels == 3 and "grey" not in self._told_channels and not _is_coloured(array):
            yield "grey, and the training images are in colour"
        if channels == 1 and isinstance(ref, Path) and _has_colours(ref):
            yield "in colour, and the training images are grey: it was made grey"


def _is_coloured(array: np.ndarray) -> bool:
    """Whether channels [..., 3] differ in more than a few pixels, or by more than rounding."""
    values = array if array.dtype == np.uint8 else array * 255
    spread = values.max(axis=-1).astype(np.float32) - values.min(axis=-1)
    return bool((spread > _GREY_TOLERANCE).mean() > _NOTICED_SHARE)


def _has_colours(path: Path) -> bool:
    """Whether a picture's file says that it has colours, and it does."""
    try:
        with Image.open(path) as file:  # reads the header only
            if file.mode not in _COLOURS:
                return False
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # NIfTI and DICOM, which are grey, or what only OpenCV reads
    return _is_coloured(np.moveaxis(read_image_file(path, channels=3).array, 0, -1))
