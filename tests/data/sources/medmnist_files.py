"""Files shaped like MedMNIST's, for tests that train on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = {"train": 24, "val": 8, "test": 8}


def write_medmnist(
    path: Path,
    *,
    size: int = 28,
    colours: bool = False,
    depth: int | None = None,
    num_classes: int = 2,
    num_labels: int = 1,
    sizes: dict[str, int] = SIZES,
    seed: int = 0,
) -> Path:
    """Write train, val and test; the brightness of the middle tells the class (of the first label column).

    Args:
        path: The .npz file.
        size: Rows and columns.
        colours: Whether images are [H, W, 3].
        depth: Slices of volumes [D, H, W]; None for pictures.
        num_classes: Of one label column; several columns hold 0 and 1.
        num_labels: Label columns.
        sizes: Images of each part.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    shape = (*(() if depth is None else (depth,)), size, size, *((3,) if colours else ()))
    middle = (slice(None), *([slice(None)] if depth is not None else []), slice(size // 4, -size // 4), slice(8, -8))
    for part, count in sizes.items():
        labels = rng.integers(0, num_classes if num_labels == 1 else 2, (count, num_labels), dtype=np.uint8)
        labels[:num_classes, 0] = np.arange(num_classes) % (num_classes if num_labels == 1 else 2)
        images = rng.normal(80, 20, (count, *shape))
        told = labels[:, 0].astype(float) * (120 / max(1, num_classes - 1))
        images[middle] += told.reshape(-1, *([1] * len(shape)))
        arrays[f"{part}_images"] = np.clip(images, 0, 255).astype(np.uint8)
        arrays[f"{part}_labels"] = labels
    np.savez_compressed(path, **arrays)
    return path
