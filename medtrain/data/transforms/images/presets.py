"""Typed augmentations of pictures: settings with names and ranges, so that they can be swept and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np

from medtrain.data.transforms.images.base import Augmented, ResizedImages
from medtrain.errors import UsageError
from medtrain.registry import Range, register

Probability = Annotated[float, Range(ge=0, le=1)]
Span = tuple[float, float]
Fraction = Annotated[float, Range(ge=0, lt=1)]

_MAX_CLAHE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class _Presets(ResizedImages):
    """What the typed augmentations share.

    Args:
        mirror_p: Probability of mirroring left and right.
        mirror_vertical_p: Probability of mirroring up and down.
        affine_p: Probability of a rotation, shift, scaling and shear at once.
        rotation_degrees: Angles are drawn from +- this many degrees.
        translation: Shifts are drawn from +- this part of the height and of the width.
        scaling_range: Factor common to both axes; above 1 shows less of the image, larger.
        border: What comes in from outside of the image: constant is black, edge repeats the outermost pixels, reflect
            mirrors the image at its edge.
        brightness: Brightness is changed by up to +- this part of the full range.
        contrast: Contrast is changed by up to +- this part of itself.
        saturation: Saturation is changed by up to +- this part of itself; 3 channels only.
        hue: Hue is shifted by up to +- this part of the colour circle; 3 channels only.
        color_p: Probability of a change of brightness and contrast, and of saturation and hue where they are not 0.
        dropout_p: Probability of blackening square holes.
        dropout_holes: Number of holes.
        dropout_size: Side of the holes, as a part of the shorter side of the image.
        margin: Images for training are made larger than `image_size` by this part, then cut to it at random (0.0612
            makes 416 pixels for 392).

    Raises:
        UsageError: A range is empty, or a setting needs 3 channels.
    """

    mirror_p: Probability = 0.5
    mirror_vertical_p: Probability = 0.0
    affine_p: Probability = 0.5
    rotation_degrees: Annotated[float, Range(ge=0, le=180)] = 15.0
    translation: Fraction = 0.05
    scaling_range: Annotated[Span, Range(gt=0)] = (0.9, 1.1)
    border: Literal["constant", "edge", "reflect"] = "constant"
    color_p: Probability = 0.5
    brightness: Fraction = 0.15
    contrast: Fraction = 0.15
    saturation: Fraction = 0.0
    hue: Annotated[float, Range(ge=0, le=0.5)] = 0.0
    dropout_p: Probability = 0.0
    dropout_holes: Annotated[int, Range(ge=1)] = 8
    dropout_size: Annotated[float, Range(gt=0, le=1)] = 0.1
    margin: Annotated[float, Range(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_range") and not value[0] <= value[1]:
                raise UsageError(
                    f"augment.{item.name} is empty: {value[0]:g} is larger than {value[1]:g}",
                    hint=f"type the smaller value first: augment.{item.name}=[{value[1]:g},{value[0]:g}]",
                )
        if self.in_channels != 3 and self.color_p and (self.saturation or self.hue):
            raise UsageError(
                f"augment.saturation and augment.hue need 3 channels, and the images have {self.in_channels}",
                hint="set `augment.saturation=0 augment.hue=0`",
            )

    def _mirroring(self) -> list[dict[str, Any]]:
        return _chosen({"name": "HorizontalFlip", "p": self.mirror_p}) + _chosen(
            {"name": "VerticalFlip", "p": self.mirror_vertical_p}
        )

    def _affine(self, shear: float = 0.0) -> list[dict[str, Any]]:
        turned = self.rotation_degrees or self.translation or shear or self.scaling_range != (1, 1)
        if not turned:
            return []
        borders = {"constant": "constant", "edge": "replicate", "reflect": "reflect_101"}
        return _chosen(
            {
                "name": "Affine",
                "rotate": [-self.rotation_degrees, self.rotation_degrees],
                "translate_percent": [-self.translation, self.translation],
                "scale": list(self.scaling_range),
                "keep_ratio": True,
                "shear": [-shear, shear],
                "border_mode": borders[self.border],
                "p": self.affine_p,
            }
        )

    def _jitter(self) -> list[dict[str, Any]]:
        if not (self.saturation or self.hue):
            return []
        return _chosen(
            {
                "name": "ColorJitter",
                "brightness": [1 - self.brightness, 1 + self.brightness],
                "contrast": [1 - self.contrast, 1 + self.contrast],
                "saturation": [1 - self.saturation, 1 + self.saturation],
                "hue": [-self.hue, self.hue],
                "p": self.color_p,
            }
        )

    def _exposure(self) -> list[dict[str, Any]]:
        if not (self.brightness or self.contrast):
            return []
        return _chosen(
            {
                "name": "RandomBrightnessContrast",
                "brightness_limit": [-self.brightness, self.brightness],
                "contrast_limit": [-self.contrast, self.contrast],
                "p": self.color_p,
            }
        )

    def _dropout(self) -> list[dict[str, Any]]:
        side = max(1, round(self.dropout_size * min(self.image_size[-2:])))
        return _chosen(
            {
                "name": "CoarseDropout",
                "num_holes_range": [self.dropout_holes, self.dropout_holes],
                "hole_height_range": [side, side],
                "hole_width_range": [side, side],
                "p": self.dropout_p,
            }
        )


@register("augment", "images", runtime=("image_size", "spatial_dims", "in_channels"), tags=("images",))
@dataclass(frozen=True, kw_only=True)
class MedicalImages(_Presets):
    """Mirroring, mild affine changes, brightness, contrast, gamma and noise for pictures and volumes of any kind.

    Slices of volumes are all changed alike. Paired targets (left lung, right lung) are exchanged where an image is
    mirrored. `augment=images_light` has smaller ranges, `augment=images_heavy` larger ones, and `augment=chest_xray`
    does not mirror.

    Args:
        shear_degrees: Angles are drawn from +- this many degrees; part of the affine change.
        gamma_p: Probability of a gamma transform.
        gamma_range: Exponent; above 1 darkens.
        clahe_p: Probability of a contrast-limited adaptive equalisation of the histogram (Zuiderveld 1994), in 8 x 8
            tiles; at most 3 channels.
        clahe_clip: Limit of its contrast is drawn from 1 to this.
        noise_p: Probability of Gaussian noise, the same in all channels.
        noise_std: Standard deviation of the noise, as a part of the full range.
    """

    shear_degrees: Annotated[float, Range(ge=0, lt=45)] = 5.0
    gamma_p: Probability = 0.0
    gamma_range: Annotated[Span, Range(gt=0)] = (0.8, 1.25)
    clahe_p: Probability = 0.0
    clahe_clip: Annotated[float, Range(ge=1)] = 2.0
    noise_p: Probability = 0.2
    noise_std: Annotated[Span, Range(ge=0, le=1)] = (0.0, 0.02)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_std[0] > self.noise_std[1]:
            raise UsageError(
                f"augment.noise_std is empty: {self.noise_std[0]:g} is larger than {self.noise_std[1]:g}",
                hint=f"type the smaller value first: augment.noise_std=[{self.noise_std[1]:g},{self.noise_std[0]:g}]",
            )
        if self.clahe_p and self.in_channels not in (1, _MAX_CLAHE_CHANNELS):
            raise UsageError(
                f"CLAHE works with 1 or 3 channels, and the images have {self.in_channels}",
                hint="set `augment.clahe_p=0`",
            )

    def recipe(self) -> Sequence[Mapping[str, Any]]:
        """The random changes in the form that `augment=albumentations` takes."""
        gamma = [100 * exponent for exponent in self.gamma_range]
        noise = {"name": "GaussNoise", "std_range": list(self.noise_std), "per_channel": False, "p": self.noise_p}
        return (
            *self._mirroring(),
            *self._affine(self.shear_degrees),
            *_chosen({"name": "CLAHE", "clip_limit": [1.0, self.clahe_clip], "p": self.clahe_p}),
            *(self._jitter() or self._exposure()),
            *_chosen({"name": "RandomGamma", "gamma_limit": gamma, "p": self.gamma_p}),
            *(_chosen(noise) if self.spatial_dims == 2 else ()),
            *self._dropout(),
        )

    def train(self, image: np.ndarray, *, seed: int, mask: np.ndarray | None = None) -> Augmented:
        """Change an image at random; see `ImageAugmentation.train`."""
        augmented = super().train(image, seed=seed, mask=mask)
        if self.spatial_dims == 2:
            return augmented
        rng = np.random.default_rng([seed, 2])  # Albumentations would give all slices the same noise
        chosen, std = rng.random() < self.noise_p, rng.uniform(*self.noise_std)
        return augmented._replace(image=add_noise(augmented.image, std, rng)) if chosen else augmented


@register("augment", "retinal", runtime=("image_size", "spatial_dims", "in_channels"), tags=("images",))
@dataclass(frozen=True, kw_only=True)
class RetinalImages(_Presets):
    """Colour photographs of the retina: mirrored and turned in any way, changed in colour, with holes.

    The transforms that trained the graders of diabetic retinopathy around RETFound, in their order and with their
    probabilities and ranges. For those of its low-rank adaptation: `augment.mirror_vertical_p=0.3 augment.affine_p=0
    augment.saturation=0 augment.hue=0 augment.dropout_p=0`.

    Args:
        rotate90_p: Probability of a rotation by 0, 90, 180 or 270 degrees.
    """

    resize: Literal["letterbox", "stretch", "crop"] = "stretch"
    mirror_vertical_p: Probability = 0.5
    rotate90_p: Probability = 0.5
    rotation_degrees: Annotated[float, Range(ge=0, le=180)] = 45.0
    translation: Fraction = 0.1
    brightness: Fraction = 0.2
    contrast: Fraction = 0.2
    saturation: Fraction = 0.2
    hue: Annotated[float, Range(ge=0, le=0.5)] = 0.1
    dropout_p: Probability = 0.3
    dropout_size: Annotated[float, Range(gt=0, le=1)] = 0.143

    def recipe(self) -> Sequence[Mapping[str, Any]]:
        """The random changes in the form that `augment=albumentations` takes."""
        color = self._jitter() + self._exposure()
        if len(color) == 2:
            color = [{"name": "OneOf", "transforms": color, "p": self.color_p}]
        return (
            *self._mirroring(),
            *_chosen({"name": "RandomRotate90", "p": self.rotate90_p}),
            *self._affine(),
            *color,
            *self._dropout(),
        )


def add_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, the same in all channels.

    Args:
        image: [*S, C], uint8 or float32.
        std: Standard deviation, as a part of the full range.
        rng: Where the noise comes from.
    """
    top = 255 if image.dtype == np.uint8 else 1
    noisy = rng.standard_normal((*image.shape[:-1], 1), dtype=np.float32) * np.float32(std * top) + image
    return np.clip(np.rint(noisy) if top == 255 else noisy, 0, top).astype(image.dtype)


def _chosen(transform: dict[str, Any]) -> list[dict[str, Any]]:
    """A list of the transform, empty if it is never applied."""
    return [transform] if transform["p"] else []
