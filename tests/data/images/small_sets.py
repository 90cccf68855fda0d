"""Tiny sets of labelled images, on disk and as settings, for the tests of the images family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medtrain.data.images.found import FoundImages
from medtrain.data.images.module import ImageModule
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.source import Machine
from medtrain.data.transforms.images.base import Augmented

CPU = Machine("cpu", 8.0, 2)
SIZE = (12, 10)


class Shifting:
    """Adds the seed's last digit to every pixel, and swaps left and right for odd seeds where it may."""

    mirrors = True
    mixup = 0.0
    cutmix = 0.0
    turning: tuple[str, ...] = ()

    def __init__(self, image_size: Sequence[int] = SIZE, *, mirrors: bool = True) -> None:
        self.image_size = tuple(image_size)
        self.mirrors = mirrors

    def train(self, image: np.ndarray, *, seed: int, mask: np.ndarray | None = None) -> Augmented:
        done = self.evaluate(image, mask)
        mirrored = self.mirrors and seed % 2 == 1
        picture = (done.image + np.asarray(seed % 10, image.dtype)).astype(image.dtype)
        return Augmented(picture[:, ::-1] if mirrored else picture, done.mask, mirrored)

    def evaluate(self, image: np.ndarray, mask: np.ndarray | None = None) -> Augmented:
        channels = image.shape[-1]
        if len(self.image_size) == 3:
            assert image.shape[:3] == self.image_size
            return Augmented(image, mask, False)
        small = cv2.resize(image, self.image_size[::-1], interpolation=cv2.INTER_NEAREST).reshape(*SIZE, channels)
        return Augmented(small, None if mask is None else cv2.resize(mask, self.image_size[::-1]), False)

    def require_sides(self) -> None:
        """Nothing is turned."""


@dataclass(frozen=True, kw_only=True)
class Given(ImageData):
    """Samples that a test made."""

    samples: SampleSet

    def read(self) -> SampleSet:
        return self.samples


def picture(path: Path, seed: int, shape: tuple[int, ...] = (*SIZE, 3), dtype: Any = np.uint8) -> Path:
    """Noise; colours for three channels."""
    array = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max // 2, shape, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def small_set(root: Path, count: int = 20, *, classes: int = 2, **changes: Any) -> SampleSet:
    """One picture and class per sample; two samples per patient."""
    samples = tuple(
        Sample(f"s{i:02d}", (picture(root / f"s{i:02d}.png", i),), (i % classes,), group=f"p{i // 2:02d}")
        for i in range(count)
    )
    names = tuple(f"c{k}" for k in range(classes))
    return replace(SampleSet("small", root, samples, (Target("y", names),)), **changes)


def open_module(
    settings: ImageData, *, augment: Any = None, seed: int = 0, model: dict[str, Any] | None = None
) -> tuple[ImageModule, ImagePlan, FoundImages]:
    """All that a run does with its data before the first step."""
    found = settings.find()
    plan, values = settings.derive(found, CPU, model=model or {}, augment={})
    filled = {value.key.partition(".")[2]: value.value for value in values if value.fills}
    filled = {key: value for key, value in filled.items() if getattr(settings, key) is None}
    settings = replace(settings, **filled)
    prepared = settings.prepare(plan, found, workers=1)
    augment = augment or Shifting(plan.image_size)
    return settings.open(plan, found, prepared, augment=augment, seed=seed), plan, found
