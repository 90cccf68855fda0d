"""Tiny data sets on disk for the tests of preparation and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medtrain.data.case import Case, Dataset
from medtrain.data.io.nifti import SourceGrid, write_image
from medtrain.data.plan import ChannelNormalization, Plan


def grid_of(shape: Sequence[int], spacing: Sequence[float]) -> SourceGrid:
    """A RAS file whose canonical frame has this (D, H, W) shape and spacing."""
    affine = np.diag([*reversed(spacing), 1.0])
    x, y, z = (int(n) for n in reversed(shape))
    return SourceGrid(tuple(tuple(row) for row in affine.tolist()), (x, y, z))


def small_case(seed: int, shape: Sequence[int], *, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noise around 100 with a brighter box (class 1) that has a darker corner (class 2)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 10, (channels, *shape)).round().astype(np.int16)
    label = np.zeros(shape, dtype=np.uint8)
    low = [n // 4 for n in shape]
    box = tuple(slice(a, a + max(1, n // 2)) for a, n in zip(low, shape))
    corner = tuple(slice(a, a + max(1, n // 4)) for a, n in zip(low, shape))
    label[box], label[corner] = 1, 2
    image[:, label == 1] += 100
    image[:, label == 2] += 200
    return image, label


def small_dataset(
    root: Path,
    *,
    cases: int = 5,
    shape: Sequence[int] = (12, 16, 14),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    channels: int = 1,
    ignore_value: int | None = None,
) -> Dataset:
    """Write cases of slightly different sizes and describe them."""
    root.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(cases):
        extent = (shape[0] + index % 2 * (shape[0] > 1), *shape[1:])
        image, label = small_case(index, extent, channels=channels)
        if ignore_value is not None:
            label[0] = ignore_value
        grid = grid_of(extent, spacing)
        paths = root / f"case_{index}_image.nii.gz", root / f"case_{index}_label.nii.gz"
        write_image(paths[0], image, grid)
        write_image(paths[1], label[None], grid)
        found.append(Case(f"case_{index}", (paths[0],), paths[1], f"case_{index}"))
    return Dataset(
        dataset_name="Small",
        root=root,
        channel_names=("MRI",) * channels,
        labels={"background": 0, "organ": 1, "tumour": 2},
        ignore_value=ignore_value,
        cases=tuple(found),
        test_cases=(),
    )


def small_plan(
    *,
    patch_size: tuple[int, ...] = (8, 8, 8),
    spacing: tuple[float, ...] | None = None,
    batch_size: int = 4,
    channels: int = 1,
    normalization: ChannelNormalization | None = None,
    ignore_index: int | None = None,
) -> Plan:
    """A plan for `small_dataset`."""
    dims = len(patch_size)
    return Plan(
        spatial_dims=dims,
        spacing=spacing or (1.0,) * dims,
        patch_size=patch_size,
        batch_size=batch_size,
        channels=(4, 8),
        strides=((1,) * dims, (2,) * dims),
        kernel_sizes=((3,) * dims, (3,) * dims),
        normalization=(normalization or ChannelNormalization("zscore"),) * channels,
        in_channels=channels,
        num_classes=3,
        class_names=("background", "organ", "tumour"),
        label_values=(0, 1, 2),
        ignore_index=ignore_index,
        channel_names=("MRI",) * channels,
        median_shape=(12, 16, 14),
    )
