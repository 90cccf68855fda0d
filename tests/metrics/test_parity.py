"""Surface and overlap metrics against MONAI, and against DeepMind's surface-distance where definitions agree."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medtrain.metrics.overlap import confusion_matrix, overlap_scores
from medtrain.metrics.surface import surface_metrics


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed")


def _blobs(seed: int, shape: tuple[int, ...] = (20, 28, 24), share: float = 0.3) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2.0)
    return noise > np.quantile(noise, 1 - share)


def _tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask]))[None]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (1.5, 0.8, 1.1)])
@pytest.mark.parametrize("kind", ["near", "far", "noise"])
def test_surface_metrics_equal_monai(spacing: tuple[float, ...], kind: str) -> None:
    metrics: Any = _import("monai.metrics")
    label = _blobs(0)
    prediction = {
        "near": np.roll(label, 1, axis=1),
        "far": _blobs(7, share=0.02),
        "noise": _blobs(3) ^ (_blobs(4, share=0.1)),
    }[kind]
    tensors = _tensor(prediction), _tensor(label)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = metrics.compute_hausdorff_distance(*tensors, percentile=95, spacing=list(spacing))
        nsd = metrics.compute_surface_dice(*tensors, class_thresholds=[1.2], spacing=list(spacing))
        asd = metrics.compute_average_surface_distance(*tensors, symmetric=True, spacing=list(spacing))
    ours = surface_metrics(prediction, label, spacing, nsd_tolerance_mm=1.2)
    assert ours["hd95_mm"] == pytest.approx(float(hd95), rel=1e-5)
    assert ours["nsd"] == pytest.approx(float(nsd), rel=1e-5)
    assert ours["asd_mm"] == pytest.approx(float(asd), rel=1e-5)


def test_overlap_equals_monai() -> None:
    metrics: Any = _import("monai.metrics")
    prediction, label = _blobs(1), _blobs(2)
    ours = overlap_scores(confusion_matrix(prediction, label, 2))
    tensors = _tensor(prediction), _tensor(label)
    dice = metrics.compute_dice(*(t.float() for t in tensors), include_background=False)
    iou = metrics.compute_iou(*(t.float() for t in tensors), include_background=False)
    counts = metrics.get_confusion_matrix(*(t.float() for t in tensors), include_background=False)
    assert ours["dice"][1] == pytest.approx(float(dice), rel=1e-6)
    assert ours["iou"][1] == pytest.approx(float(iou), rel=1e-6)
    for name in ("precision", "recall"):
        expected = metrics.compute_confusion_matrix_metric(name, counts)
        assert ours[name][1] == pytest.approx(float(expected), rel=1e-6)


def _slab(first: int) -> np.ndarray:
    mask = np.zeros((24, 60, 60), dtype=bool)
    mask[first : first + 10, 5:55, 5:55] = True
    return mask


def _deepmind(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    package: Any = _import("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = package.compute_surface_distances(label, prediction, spacing)
    nsd = package.compute_surface_dice_at_tolerance(distances, tolerance)
    return package.compute_robust_hausdorff(distances, 95), nsd


def test_flat_faces_shifted_along_their_normal_agree_with_deepmind() -> None:
    """A slab moved by 3 voxels of 2 mm: its two large faces are most of the surface in either definition."""
    spacing = (2.0, 0.8, 0.8)
    hd95, _ = _deepmind(_slab(7), _slab(4), spacing, 1.0)
    assert surface_metrics(_slab(7), _slab(4), spacing)["hd95_mm"] == pytest.approx(hd95) == 6.0


def test_equal_and_disjoint_masks_agree_with_deepmind() -> None:
    spacing = (2.0, 0.8, 0.8)
    assert _deepmind(_slab(4), _slab(4), spacing, 1.0) == (0.0, 1.0)
    assert surface_metrics(_slab(4), _slab(4), spacing) == {"hd95_mm": 0.0, "nsd": 1.0, "asd_mm": 0.0}
    far = np.zeros_like(_slab(4))
    far[20:, 58:, 58:] = True
    small = np.zeros_like(far)
    small[:3, :3, :3] = True
    assert _deepmind(far, small, spacing, 1.0)[1] == surface_metrics(far, small, spacing)["nsd"] == 0.0


def test_where_definitions_differ() -> None:
    """What the module says: area counts there, voxels here; a ball that grows by a voxel, where voxels are flat."""
    grid = np.ogrid[tuple(slice(-12, 13) for _ in range(3))]
    balls = [sum(g.astype(float) ** 2 for g in grid) <= radius**2 for radius in (8.5, 9.5)]
    spacing = (3.0, 1.0, 1.0)
    hd95, nsd = _deepmind(balls[0], balls[1], spacing, 1.0)
    ours = surface_metrics(balls[0], balls[1], spacing)
    assert abs(ours["nsd"] - nsd) > 0.02
    # no more apart than the diagonal of a voxel: elements lie that near to the centres of voxels
    assert abs(ours["hd95_mm"] - hd95) <= np.linalg.norm(spacing)
