"""Surface metrics against known answers, brute force and SciPy's transforms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from medtrain.data.io.nifti import SourceGrid
from medtrain.metrics import surface as module
from medtrain.metrics.surface import bounding_box, surface, surface_distances, surface_metrics


def _box(shape: tuple[int, ...], *bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*b) for b in bounds)] = True
    return mask


def _ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.ogrid[tuple(slice(s) for s in shape)]
    return sum((g - c) ** 2 for g, c in zip(grid, centre)) <= radius**2


def _noise(seed: int, shape: tuple[int, ...] = (9, 8, 10), share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def _brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of the surfaces that SciPy's erosion gives."""
    surfaces = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.asarray(spacing) for m in (a, b)]
    pairs = cdist(*surfaces)
    return pairs.min(axis=1), pairs.min(axis=0)


def test_two_shifted_cubes() -> None:
    """10^3 cubes shifted by 3 voxels of 2 mm along the first axis.

    By symmetry both directions agree. Of a cube's 488 surface voxels only those of the shifted cube's surface at
    distance 0 (its 4 sides where the cubes overlap: 7 layers of 36) are shared.
    """
    a, b = _box((20, 14, 14), (2, 12), (2, 12), (2, 12)), _box((20, 14, 14), (5, 15), (2, 12), (2, 12))
    distances = surface_distances(a, b, (2.0, 1.0, 1.0))
    assert distances is not None
    assert distances.to_label.size == distances.to_prediction.size == 10**3 - 8**3
    assert np.count_nonzero(distances.to_label == 0) == 7 * 36
    assert distances.to_label.max() == 6.0
    scores = surface_metrics(a, b, (2.0, 1.0, 1.0), nsd_tolerance_mm=0.0)
    assert scores["hd95_mm"] == 6.0
    assert scores["nsd"] == pytest.approx(252 / 488)


def test_parallel_plates() -> None:
    """Every distance between two one-voxel plates 4 voxels of 1.5 mm apart is 6 mm."""
    a, b = _box((8, 5, 5), (1, 2), (0, 5), (0, 5)), _box((8, 5, 5), (5, 6), (0, 5), (0, 5))
    scores = surface_metrics(a, b, (1.5, 1.0, 1.0), nsd_tolerance_mm=5.9)
    assert scores == {"hd95_mm": 6.0, "nsd": 0.0, "asd_mm": 6.0}
    assert surface_metrics(a, b, (1.5, 1.0, 1.0), nsd_tolerance_mm=6.0)["nsd"] == 1.0


def test_concentric_balls_are_a_radius_apart() -> None:
    scores = surface_metrics(_ball((64,) * 3, (32,) * 3, 24), _ball((64,) * 3, (32,) * 3, 18), (0.5, 0.5, 0.5))
    assert scores["hd95_mm"] == pytest.approx(3.0, abs=0.3)
    assert scores["asd_mm"] == pytest.approx(3.0, abs=0.3)
    assert scores["nsd"] == 0.0


def test_equal_masks_are_perfect() -> None:
    mask = _noise(0)
    assert surface_metrics(mask, mask, (1.0, 2.0, 3.0)) == {"hd95_mm": 0.0, "nsd": 1.0, "asd_mm": 0.0}


def _force(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search look at one neighbour only and go on with a method, or find everything by itself."""
    costs = {
        "look": {"_LOOK": 0.0, "_LOOK_EACH": 0.0},
        "tree": {"_LOOK": 1e12, "_ASK_EACH": 0.0, "_BUILD_EACH": 0.0},
        "transform": {"_LOOK": 1e12, "_ASK_EACH": 1e9},
    }
    for name, value in {"_BLOCK": 1, **costs[method]}.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("method", ["look", "tree", "transform"])
@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (2.5, 0.8, 0.8), (0.8, 2.5, 0.8), (0.8, 0.8, 3.0)]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_every_method_equals_brute_force(
    method: str, spacing: tuple[float, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _force(method, monkeypatch)
    a, b = _noise(1, share=share), _noise(2, share=share)
    distances = surface_distances(a, b, spacing)
    assert distances is not None
    expected = _brute_force(a, b, spacing)
    np.testing.assert_allclose(distances.to_label, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(distances.to_prediction, expected[1], rtol=1e-12, atol=1e-12)
    scores = surface_metrics(a, b, spacing, nsd_tolerance_mm=1.3)
    both = np.concatenate(expected)
    assert scores["hd95_mm"] == pytest.approx(max(np.percentile(e, 95) for e in expected))
    assert scores["nsd"] == pytest.approx((both <= 1.3).mean())
    assert scores["asd_mm"] == pytest.approx(both.mean())


@pytest.mark.parametrize("shape", [(7, 8, 9), (12, 11), (1, 6, 6), (2, 2, 2)])
def test_surface_equals_erosion(shape: tuple[int, ...]) -> None:
    for seed, share in itertools.product(range(3), (0.2, 0.9, 1.0)):
        mask = _noise(seed, shape, share)
        assert (surface(mask) == (mask & ~ndimage.binary_erosion(mask))).all()


@pytest.mark.parametrize("method", ["look", "tree", "transform"])
@pytest.mark.parametrize("spacing", [(1.0, 0.5), (0.7, 0.7)])
def test_two_dimensional_masks(method: str, spacing: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    _force(method, monkeypatch)
    a, b = _box((40, 10), (2, 5), (2, 5)), _box((40, 10), (30, 33), (4, 7))
    expected = _brute_force(a, b, spacing)
    distances = surface_distances(a, b, spacing)
    assert distances is not None
    np.testing.assert_allclose(distances.to_label, expected[0])
    np.testing.assert_allclose(distances.to_prediction, expected[1])


def test_a_line_of_voxels() -> None:
    """One-dimensional masks, and a plane of voxels much larger than another: a neighbour list of any shape."""
    a, b = np.zeros(50, dtype=bool), np.zeros(50, dtype=bool)
    a[3:6], b[40] = True, True
    assert surface_metrics(a, b, (2.0,))["hd95_mm"] == pytest.approx(np.percentile([70.0, 74.0], 95))
    a, b = _box((2, 30, 30), (0, 1), (2, 9), (2, 9)), _box((2, 30, 30), (1, 2), (20, 29), (2, 9))
    distances = surface_distances(a, b, (1000.0, 0.001, 0.001))
    assert distances is not None
    np.testing.assert_allclose(distances.to_label, _brute_force(a, b, (1000.0, 0.001, 0.001))[0])


def test_far_masks_and_stray_voxels() -> None:
    """What lies beyond the neighbours that are looked at: organs that miss each other, and a few voxels astray."""
    a, b = _ball((40, 60, 60), (8, 12, 12), 6), _ball((40, 60, 60), (30, 48, 46), 7)
    stray = b.copy()
    stray[2, 3, 50] = stray[39, 0, 0] = True
    for one, two in ((a, b), (b, stray), (stray, b)):
        expected = _brute_force(one, two, (2.0, 0.8, 0.8))
        distances = surface_distances(one, two, (2.0, 0.8, 0.8))
        assert distances is not None
        np.testing.assert_allclose(distances.to_label, expected[0], atol=1e-9)
        np.testing.assert_allclose(distances.to_prediction, expected[1], atol=1e-9)


def test_metrics_do_not_depend_on_what_surrounds_the_masks() -> None:
    a, b = _noise(3), _noise(4)
    padded = [np.pad(m, ((2, 5), (0, 3), (4, 0))) for m in (a, b)]
    assert surface_metrics(*padded, (1.0, 2.0, 0.5)) == surface_metrics(a, b, (1.0, 2.0, 0.5))


def test_swapping_the_masks_changes_nothing() -> None:
    a, b = _noise(5), _noise(6, share=0.1)
    one, two = surface_metrics(a, b, (1.0, 2.0, 0.5)), surface_metrics(b, a, (1.0, 2.0, 0.5))
    assert one == pytest.approx(two)


def test_distance_equal_to_the_tolerance_is_within() -> None:
    """3 voxels of 0.1 mm are 0.30000000000000004 mm in floating point."""
    a, b = _box((8, 1, 1), (0, 1), (0, 1), (0, 1)), _box((8, 1, 1), (3, 4), (0, 1), (0, 1))
    assert surface_metrics(a, b, (0.1, 1.0, 1.0), nsd_tolerance_mm=0.3)["nsd"] == 1.0


@pytest.mark.parametrize("voxels", [2, 3, 5, 10])
@pytest.mark.parametrize("size", [0.4, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.6])
def test_distance_equal_to_the_tolerance_in_float32(size: float, voxels: int) -> None:
    """A header's 0.4 mm are 0.4000000059604645 mm: plates a multiple of it apart are within that tolerance."""
    a, b = _box((12, 3, 3), (0, 1), (0, 3), (0, 3)), _box((12, 3, 3), (voxels, voxels + 1), (0, 3), (0, 3))
    spacing = (float(np.float32(size)), 1.0, 1.0)
    assert surface_metrics(a, b, spacing, nsd_tolerance_mm=round(size * voxels, 6))["nsd"] == 1.0
    assert surface_metrics(a, b, spacing, nsd_tolerance_mm=0.9999 * size * voxels)["nsd"] == 0.0


def test_oblique_scans_in_float32() -> None:
    """Cubes of 1 mm shifted by a voxel are within 1 mm, however the scan is turned."""
    mask = _box((14, 14, 14), (2, 11), (2, 11), (2, 11))
    generator = np.random.default_rng(0)
    for axis in range(12):
        turned = Rotation.from_euler("xyz", generator.uniform(-20, 20, 3), degrees=True).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = turned.astype(np.float32)
        spacing = SourceGrid(affine=tuple(map(tuple, affine.tolist())), shape=(14, 14, 14)).spacing
        assert surface_metrics(np.roll(mask, 1, axis=axis % 3), mask, spacing)["nsd"] == 1.0


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert all(np.isnan(v) for v in surface_metrics(empty, empty, (1, 1, 1)).values())
    for prediction, label in ((empty, full), (full, empty)):
        scores = surface_metrics(prediction, label, (1, 1, 1))
        assert scores["nsd"] == 0.0
        assert np.isnan(scores["hd95_mm"])
        assert np.isnan(scores["asd_mm"])


def test_bounding_box() -> None:
    assert bounding_box(_box((5, 6, 7), (1, 4), (0, 1), (5, 7))) == (slice(1, 4), slice(0, 1), slice(5, 7))
    assert bounding_box(np.zeros((3, 3), dtype=bool)) is None
