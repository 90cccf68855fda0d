"""Any transforms of Albumentations, listed in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medtrain.data.transforms.images.base import ResizedImages
from medtrain.data.transforms.images.build import build_transforms, try_transforms
from medtrain.data.transforms.images.resize import fit_image
from medtrain.registry import register

_WHOLE_IMAGE = 1024  # pixels; what a transform of whole images is tried on


@register("augment", "albumentations", runtime=("image_size", "spatial_dims", "in_channels"), tags=("images",))
@dataclass(frozen=True, kw_only=True)
class ListedAugmentation(ResizedImages):
    """Transforms of Albumentations by name, each with its own arguments, applied one after another.

    `augment.transforms=[{name: HorizontalFlip}, {name: RandomGamma, gamma_limit: [80, 120], p: 0.3}]`. OneOf, SomeOf,
    RandomOrder, Sequential and their kind hold a list `transforms` of their own. Names and arguments are those of
    Albumentations 2.0.8; what it does not know is an error, as is a transform that does not fit the images. Slices of
    volumes are all changed alike.

    Args:
        transforms: Each with its `name` and arguments. Interpolations and borders may be written as words
            (`interpolation: cubic`, `border_mode: reflect_101`).
        resize_first: Transforms get images of `image_size`; false gives them the whole images, for transforms that cut
            something out (RandomResizedCrop), and takes longer. What comes out in another size is stretched to
            `image_size`; a whole image is resized as `resize` says.

    Raises:
        ConfigError: Everything that is wrong with the transforms.
    """

    transforms: list[dict[str, Any]]
    resize_first: bool = True

    def __post_init__(self) -> None:
        size = self.image_size
        if not self.resize_first:
            size = (*size[:-2], *(max(side, _WHOLE_IMAGE) for side in size[-2:]))
        try_transforms(build_transforms(self.transforms), image_size=size, in_channels=self.in_channels)

    def recipe(self) -> Sequence[Mapping[str, Any]]:
        """The transforms as they were listed."""
        return self.transforms

    def _enter(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        return super()._enter(image, mask, seed) if self.resize_first else (image, mask)

    def _leave(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        return fit_image(image, mask, self.image_size, "stretch" if self.resize_first else self.resize)
