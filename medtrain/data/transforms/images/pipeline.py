"""Albumentations transforms as a function of a seed.

`Compose.set_random_seed` gives every transform a generator of its own with the same seed, so that transforms of equal
probability are always applied together: a horizontal and a vertical flip become a rotation or nothing. Here all
transforms of a pipeline draw from one stream.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from medtrain.data.transforms.images.build import albumentations, build_transforms
from medtrain.data.transforms.images.sides import ORIENTING

_PROBE = np.arange(4, dtype=np.uint8).reshape(2, 2)


class Pipeline:
    """Applies transforms one after another, each with its probability.

    It can be pickled and used in several threads: each builds its own transforms, when it first needs them.

    Args:
        transforms: In the form that `augment=albumentations` takes.
        spatial_dims: 2 for pictures, 3 for volumes, whose slices are all changed alike.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], *, spatial_dims: int) -> None:
        self._transforms = tuple(transforms)
        self._keys = ("image", "mask") if spatial_dims == 2 else ("images", "masks")
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_local"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _local=threading.local())
        if self._transforms:
            albumentations()  # while a process starts, not with its first image

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """Change an image, its mask along with it; say whether left and right changed places.

        Args:
            image: [H, W, C] or [D, H, W, C].
            mask: [H, W] or [D, H, W].
            seed: Of all random numbers.
        """
        if not self._transforms:
            return image, mask, False
        built = self._built(soft_mask=mask is not None and mask.dtype.kind == "f")
        image_key, mask_key = self._keys
        data = {image_key: image} if mask is None else {image_key: image, mask_key: mask}
        changed, mirrored = built(data, seed)
        return changed[image_key], changed.get(mask_key), mirrored

    def _built(self, *, soft_mask: bool) -> _Built:
        kind = "soft" if soft_mask else "hard"
        built: _Built | None = getattr(self._local, kind, None)
        if built is None:
            built = _Built(self._transforms, soft_mask=soft_mask)
            setattr(self._local, kind, built)
        return built


class _Built:
    """The transforms of one thread."""

    def __init__(self, transforms: Sequence[Mapping[str, Any]], *, soft_mask: bool) -> None:
        built = build_transforms(transforms)
        interpolation = cv2.INTER_LINEAR if soft_mask else None
        self._compose = albumentations().Compose(
            built.transforms, mask_interpolation=interpolation, is_check_shapes=False
        )
        self._applied: list[Callable[[np.ndarray], np.ndarray]] = []
        for transform in (leaf.transform for leaf in built.leaves):
            if type(transform).__name__ in ORIENTING:
                self._watch(transform)
            elif getattr(transform, "interpolation", None) in (cv2.INTER_CUBIC, cv2.INTER_LANCZOS4):
                _replace(transform, functools.partial(_clipped, transform.apply))
            elif type(transform).__name__ == "RandomBrightnessContrast":
                _replace(transform, functools.partial(_exposed, transform.apply))
            elif type(transform).__name__ == "GaussNoise":
                _replace(transform, functools.partial(_noisy, transform.apply))

    def __call__(self, data: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], bool]:
        self._compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        self._applied.clear()
        changed = self._compose(**data)
        if not self._applied:
            return changed, False
        probe = _PROBE
        for apply in self._applied:
            probe = apply(probe)
        left_pixels = {0, 2}  # of the probe as it was
        return changed, set(probe[:, 1].tolist()) == left_pixels

    def _watch(self, transform: Any) -> None:
        """Have a transform note when it was applied, and how."""
        original = transform.apply_with_params

        def noted(params: dict[str, Any], *args: Any, **data: Any) -> dict[str, Any]:
            self._applied.append(functools.partial(transform.apply, **params))
            return original(params, *args, **data)

        transform.apply_with_params = noted


def _replace(transform: Any, apply: Callable[..., np.ndarray]) -> None:
    """Have a transform change images, and slices of volumes, by another function."""

    def apply_to_slices(slices: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return np.stack([apply(part, **params) for part in slices])

    transform._key2func = {**transform._key2func, "image": apply, "images": apply_to_slices}


def _clipped(apply: Callable[..., np.ndarray], image: np.ndarray, **params: Any) -> np.ndarray:
    """Cubic interpolation leaves the range of float images, and a gamma transform makes NaN of negative numbers."""
    changed = apply(image, **params)
    return np.clip(changed, 0, 1, out=changed) if changed.dtype == np.float32 else changed


def _exposed(
    apply: Callable[..., np.ndarray], image: np.ndarray, alpha: float, beta: float, **params: Any
) -> np.ndarray:
    """Brightness and contrast of float images, where Albumentations makes images of constants first (slow)."""
    if image.dtype != np.float32:
        return apply(image, alpha=alpha, beta=beta, **params)
    changed = image * np.float32(alpha)
    changed += np.float32(beta)
    return np.clip(changed, 0, 1, out=changed)


def _noisy(apply: Callable[..., np.ndarray], image: np.ndarray, noise_map: np.ndarray, **params: Any) -> np.ndarray:
    """Noise on 8 bits, which Albumentations rounds towards none and adds three times as slowly."""
    if image.dtype != np.uint8:
        return apply(image, noise_map=noise_map, **params)
    whole = np.rint(noise_map).astype(np.int16).reshape(*image.shape[:2], -1)
    if whole.shape != image.shape:
        whole = np.repeat(whole, image.shape[2], axis=2)
    rows = (len(image), -1)
    return cv2.add(image.reshape(rows), whole.reshape(rows), dtype=cv2.CV_8U).reshape(image.shape)  # 0 to 255
