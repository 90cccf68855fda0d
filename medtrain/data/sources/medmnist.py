"""The data sets of MedMNIST."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medtrain.data.image_sets import read_medmnist
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import SampleSet
from medtrain.registry import register


@register("data", "medmnist", tags=("images",))
@dataclass(frozen=True, kw_only=True)
class MedmnistData(ImageData):
    """A file of MedMNIST (Yang et al. 2023, medmnist.com), 2-D or 3-D, divided as it is published.

    One label column is one target (`task=ordinal` for RetinaMNIST); several, as in ChestMNIST, are a target of two
    classes each (`task=multilabel`).

    Args:
        path: The .npz file.
        class_names: What the classes are called in results, by index; None for their numbers.
        target_names: What the label columns are called; None for `class`, or `label_0` and so on of several.
    """

    path: str
    class_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None

    def read(self) -> SampleSet:
        """Read the file; see `ImageData.read`."""
        path = Path(self.path).expanduser()
        return read_medmnist(path, class_names=self.class_names, target_names=self.target_names, store=Path(self.store))
