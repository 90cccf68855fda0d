"""Labelled images from folders named after classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from medtrain.data.image_sets import read_image_folder
from medtrain.data.images.settings import ImageData
from medtrain.data.io.description import parse_group_pattern
from medtrain.data.io.folders import require_folder
from medtrain.data.sample import SampleSet
from medtrain.registry import Format, register

_SOURCE = "it holds one folder of images per class, or train, val and test with such folders"


@register("data", "image_folder", tags=("images",))
@dataclass(frozen=True, kw_only=True)
class ImageFolderData(ImageData):
    """A folder with one folder of images per class, or with `train`, `val` and `test` that hold such folders.

    Args:
        group_pattern: Regular expression whose first group finds the patient in an image's path below its class,
            without suffix; None takes every image for a patient of its own.
    """

    group_pattern: Annotated[str, Format(parse_group_pattern, r"'^(\w+?)_'")] | None = None

    def read(self) -> SampleSet:
        """Find the images; see `ImageData.read`."""
        root = require_folder(self.root, example="data.root=/path/to/FOLDER", source=_SOURCE, what="images")
        return read_image_folder(root, group_pattern=self.group_pattern)
