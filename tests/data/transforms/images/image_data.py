"""Images for tests of augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np

from medtrain import registry


def make(component: str, *, size: tuple[int, ...] = (48, 48), channels: int = 3, **settings: Any) -> Any:
    """An augmentation as the builder makes it."""
    config = {"name": component, **settings}
    return registry.build("augment", config, image_size=size, spatial_dims=len(size), in_channels=channels)


def listed(*transforms: dict[str, Any], **settings: Any) -> Any:
    """`augment=albumentations` with these transforms."""
    return make("albumentations", transforms=list(transforms), **settings)


def photo(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    """Noise, which shows every change."""
    rng = np.random.default_rng(0)
    return rng.integers(256, size=shape, dtype=np.uint8) if dtype == np.uint8 else rng.random(shape, dtype=np.float32)


def blob(height: int, width: int) -> np.ndarray:
    """A smooth bright spot [H, W, 1] left of and above the middle."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = (rows - 0.4 * height) ** 2 + (columns - 0.3 * width) ** 2
    return np.exp(-distance / (0.02 * height * width))[..., None].astype(np.float32)
