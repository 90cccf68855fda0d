"""What an augmentation of whole images is: the size of all of them, the random changes of those for training."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np

from medtrain.data.transforms.images.pipeline import Pipeline
from medtrain.data.transforms.images.resize import enlarged, fit_image
from medtrain.data.transforms.images.sides import mirroring, turning
from medtrain.errors import UsageError
from medtrain.registry import Range


class Augmented(NamedTuple):
    """An image that is ready to be stacked.

    Args:
        image: [*image_size, C], uint8 or float32 as it came; it may be the array that was given.
        mask: [*image_size] in the type it came, or None.
        mirrored: Left and right changed places.
    """

    image: np.ndarray
    mask: np.ndarray | None
    mirrored: bool


class ImageAugmentation(Protocol):
    """Random changes of whole images, and the size that all of them get."""

    @property
    def mirrors(self) -> bool:
        """Whether left and right ever change places."""
        ...

    @property
    def turning(self) -> tuple[str, ...]:
        """The transforms after which left and right may be neither where they were nor exactly exchanged."""
        ...

    @property
    def mixup(self) -> float:
        """Parameter of the shares by which images of a batch are blended; 0 for none."""
        ...

    @property
    def cutmix(self) -> float:
        """The same of boxes that are exchanged."""
        ...

    def train(self, image: np.ndarray, *, seed: int, mask: np.ndarray | None = None) -> Augmented:
        """Change an image at random.

        Args:
            image: [H, W, C] or [D, H, W, C], uint8, or float32 from 0 to 1.
            seed: Not negative. The same seed gives the same result in any process and any order.
            mask: [H, W] or [D, H, W]; changed along. Floating point is interpolated, whole numbers are not.
        """
        ...

    def evaluate(self, image: np.ndarray, mask: np.ndarray | None = None) -> Augmented:
        """Bring an image to its size and change nothing else; arguments as for `train`."""
        ...

    def require_sides(self) -> None:
        """Make sure that left and right can be told after every change.

        Raises:
            UsageError: They cannot, because there are `turning` transforms.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ResizedImages:
    """Images of one size without random changes; what every augmentation of images builds on.

    Args:
        image_size: (H, W) or (D, H, W) of the result.
        spatial_dims: 2 for pictures, 3 for volumes.
        in_channels: Channels of the images.
        resize: How images get their size. letterbox keeps their shape and fills the rest with black, stretch changes
            it, crop keeps it and cuts off what is too much: at random in training, on both sides alike in evaluation.
            Slices of volumes likewise; along D volumes are always stretched.
        mixup: Training images are blended with others, and their targets likewise, by shares of Beta(mixup, mixup); 0
            for none. 0.2 is usual.
        cutmix: A box of training images is that of another image, and their targets are shares accordingly, of
            Beta(cutmix, cutmix); 0 for none. 1.0 is usual. With both, each is as likely.
    """

    image_size: tuple[int, ...]
    spatial_dims: int
    in_channels: int
    resize: Literal["letterbox", "stretch", "crop"] = "letterbox"
    mixup: Annotated[float, Range(ge=0)] = 0.0
    cutmix: Annotated[float, Range(ge=0)] = 0.0

    def recipe(self) -> Sequence[Mapping[str, Any]]:
        """The random changes in the form that `augment=albumentations` takes."""
        return ()

    @functools.cached_property
    def mirrors(self) -> bool:
        """Whether left and right ever change places."""
        return mirroring(self.recipe())

    @functools.cached_property
    def turning(self) -> tuple[str, ...]:
        """The transforms after which left and right may be neither where they were nor exactly exchanged."""
        return turning(self.recipe())

    def train(self, image: np.ndarray, *, seed: int, mask: np.ndarray | None = None) -> Augmented:
        """Change an image at random; see `ImageAugmentation.train`."""
        self._check(image, mask)
        image, mask = self._enter(image, mask, seed)
        image, mask, mirrored = self._pipeline(image, mask, seed)
        image, mask = self._leave(image, mask)
        return Augmented(image, mask, mirrored)

    def evaluate(self, image: np.ndarray, mask: np.ndarray | None = None) -> Augmented:
        """Bring an image to its size and change nothing else; see `ImageAugmentation.evaluate`."""
        self._check(image, mask)
        return Augmented(*fit_image(image, mask, self.image_size, self.resize), mirrored=False)

    def require_sides(self) -> None:
        """Make sure that left and right can be told after every change.

        Raises:
            UsageError: They cannot, because there are `turning` transforms.
        """
        if self.turning:
            names = ", ".join(self.turning)
            raise UsageError(
                f"the targets have a left and a right side, which cannot be told after {names}",
                hint="choose an augmentation that does not turn images, such as `augment=chest_xray`; "
                "mirroring (HorizontalFlip) and rotations of up to 45 degrees are fine",
            )

    @property
    def margin(self) -> float:
        """By how much images for training are larger than `image_size` before a random part of them is cut out."""
        return 0.0

    @functools.cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline(self.recipe(), spatial_dims=self.spatial_dims)

    def _enter(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The image as the first transform gets it."""
        if self.resize != "crop" and not self.margin:
            return fit_image(image, mask, self.image_size, self.resize)
        rng = np.random.default_rng([seed, 1])  # a second stream beside that of the transforms
        image, mask = fit_image(image, mask, enlarged(self.image_size, self.margin), self.resize, rng=rng)
        return fit_image(image, mask, self.image_size, "cut", rng=rng) if self.margin else (image, mask)

    def _leave(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """What the last transform returned, in its final size."""
        return fit_image(image, mask, self.image_size, "stretch")

    def _check(self, image: np.ndarray, mask: np.ndarray | None) -> None:
        assert image.ndim == self.spatial_dims + 1, f"an image of shape {image.shape} has no channels at its end"
        assert image.shape[-1] == self.in_channels, f"{image.shape} has no {self.in_channels} channels"
        assert image.dtype in (np.uint8, np.float32), f"images are uint8 or float32, not {image.dtype}"
        assert mask is None or mask.shape == image.shape[:-1], "image and mask differ in size"
