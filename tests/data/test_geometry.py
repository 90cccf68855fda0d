import json
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from medtrain.data import geometry
from medtrain.data.geometry import (
    CaseGeometry,
    interpolation_matrix,
    low_resolution_axis,
    nonzero_box,
    resample_image,
    resample_label,
    resampled_shape,
)
from medtrain.data.io.nifti import SourceGrid

SHAPES = [
    ((13, 40, 31), (20, 33, 62)),
    ((13, 40, 31), (5, 90, 31)),
    ((7, 20, 9), (14, 10, 18)),
    ((1, 12, 1), (3, 5, 4)),
    ((150, 3, 140), (70, 2, 260)),  # longer than one block of rows
]


def reference(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """`scipy.ndimage.map_coordinates` on half-pixel-centred coordinates, in double precision."""
    centres = [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(volume.shape, shape)]
    return ndimage.map_coordinates(
        volume.astype(np.float64), np.meshgrid(*centres, indexing="ij"), order=order, mode="nearest"
    )


def grid_of(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> SourceGrid:
    """A RAS file whose canonical frame has this (D, H, W) shape and spacing."""
    affine = np.diag([*spacing[::-1], 1.0])
    return SourceGrid(tuple(tuple(row) for row in affine.tolist()), shape[::-1])


def blobs(shape: tuple[int, ...], classes: int, seed: int = 0) -> np.ndarray:
    """A label of smooth structures, class 0 outermost and most frequent."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)])
    fields[0] += 0.05
    return fields.argmax(0).astype(np.uint8)


@pytest.mark.parametrize(("source", "shape"), SHAPES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_splines_equal_scipy(source: tuple[int, ...], shape: tuple[int, ...], order: int) -> None:
    image = np.random.default_rng(0).normal(size=(2, *source)).astype(np.float32)
    got = resample_image(image, shape, order=order)
    assert got.dtype == np.float32
    for channel, expected in zip(got, image):
        np.testing.assert_allclose(channel, reference(expected, shape, order), atol=5e-6)


@pytest.mark.parametrize(("source", "shape"), SHAPES)
@pytest.mark.parametrize("order", [1, 3])
def test_splines_equal_skimage_resize(source: tuple[int, ...], shape: tuple[int, ...], order: int) -> None:
    # skimage.transform.resize(mode="edge", anti_aliasing=False) is this call
    image = np.random.default_rng(0).normal(size=source).astype(np.float32)
    factors = [m / n for n, m in zip(source, shape)]
    expected = ndimage.zoom(image.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resample_image(image[None], shape, order=order)[0], expected, atol=5e-6)


def test_intensities_of_ct_stay_within_a_hundredth_of_a_hounsfield_unit() -> None:
    image = np.random.default_rng(0).integers(-1024, 3071, size=(20, 30, 30)).astype(np.int16)
    got = resample_image(image[None], (31, 24, 47))[0]
    np.testing.assert_allclose(got, reference(image, (31, 24, 47), 3), atol=0.01)
    rounded = resample_image(image[None], (31, 24, 47), dtype=np.int16)
    assert rounded.dtype == np.int16
    np.testing.assert_array_equal(rounded[0], np.rint(got))


def test_linear_interpolation_by_hand() -> None:
    # centres of 4 samples over 2: -0.25, 0.25, 0.75, 1.25
    np.testing.assert_allclose(interpolation_matrix(2, 4, 1), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], atol=1e-7)
    # 4 -> 2: the mean of neighbours
    np.testing.assert_allclose(interpolation_matrix(4, 2, 1), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], atol=1e-7)


def test_nearest_takes_the_upper_sample_half_way() -> None:
    # centres 0.5 and 2.5 of 4 samples
    np.testing.assert_array_equal(interpolation_matrix(4, 2, 0), [[0, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(interpolation_matrix(2, 4, 0).argmax(1), [0, 0, 1, 1])


@pytest.mark.parametrize(("n_in", "n_out", "order"), list(product([1, 2, 5, 100], [1, 3, 100, 211], [0, 1, 3])))
def test_matrices_keep_constants(n_in: int, n_out: int, order: int) -> None:
    matrix = interpolation_matrix(n_in, n_out, order)
    assert matrix.shape == (n_out, n_in)
    np.testing.assert_allclose(matrix.sum(1), np.ones(n_out), atol=2e-6)


def test_same_shape_is_returned_as_it_is() -> None:
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    assert resample_image(image, (4, 5, 6)) is image
    label = blobs((4, 5, 6), 3)
    assert resample_label(label, (4, 5, 6)) is label


def test_low_axis_takes_the_nearest_slice() -> None:
    image = np.random.default_rng(0).normal(size=(6, 10, 10)).astype(np.float32)
    got = resample_image(image[None], (9, 15, 20), low_axis=0)[0]
    # centres (i + 0.5) * 6 / 9 - 0.5 = -1/6, 1/2, 7/6, 11/6, 5/2, ...
    slices = [0, 1, 1, 2, 3, 3, 4, 5, 5]
    for target, source in enumerate(slices):
        np.testing.assert_allclose(got[target], reference(image[source], (15, 20), 3), atol=5e-6)


def test_results_do_not_depend_on_the_size_of_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).normal(size=(1, 40, 20, 20)).astype(np.float32)
    whole = resample_image(image, (55, 31, 17))
    monkeypatch.setattr(geometry, "_SLAB_BYTES", 10_000)
    np.testing.assert_allclose(resample_image(image, (55, 31, 17)), whole, atol=1e-6)


def test_autocast_does_not_reach_in() -> None:
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    expected = resample_image(image, (30, 25, 15))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(resample_image(image, (30, 25, 15)), expected)


@pytest.mark.parametrize(("source", "shape"), SHAPES)
@pytest.mark.parametrize("low_axis", [None, 0])
def test_labels_equal_the_largest_of_the_interpolated_indicators(
    source: tuple[int, ...], shape: tuple[int, ...], low_axis: int | None
) -> None:
    label = blobs(source, 4)
    got = resample_label(label, shape, low_axis=low_axis)
    assert got.dtype == label.dtype
    orders = [0 if axis == low_axis else 1 for axis in range(3)]
    values = np.stack([(label == k).astype(np.float64) for k in range(4)])
    for axis, order in enumerate(orders):
        matrix = interpolation_matrix(source[axis], shape[axis], order).numpy().astype(np.float64)
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis + 1)), 0, axis + 1)
    largest = values.max(0)
    chosen = np.take_along_axis(values, got[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(chosen, largest, atol=1e-5)
    # where two are equally large, background yields to a class
    tied = (largest - values[0] < 1e-9) & (np.sort(values, axis=0)[-2] > largest - 1e-9)
    assert (got[tied] > 0).all()


def test_label_by_hand() -> None:
    label = np.array([0, 1, 1, 0, 0, 0, 2, 2], np.int16).reshape(1, 1, 8)
    # halves: (0, 1), (1, 0), (0, 0), (2, 2): ties go to the class
    np.testing.assert_array_equal(resample_label(label, (1, 1, 4)).ravel(), [1, 1, 0, 2])
    np.testing.assert_array_equal(resample_label(label, (1, 1, 16)).ravel(), np.repeat(label.ravel(), 2))


def test_label_without_foreground_stays_empty() -> None:
    assert not resample_label(np.zeros((4, 5, 6), np.uint8), (8, 3, 7)).any()
    assert (resample_label(np.full((4, 5, 6), 3, np.uint8), (8, 3, 7)) == 3).all()


def test_rules_of_anisotropy() -> None:
    assert low_resolution_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0)) == 0
    assert low_resolution_axis((3.0, 1.0, 1.0), (3.0, 1.0, 1.0)) is None  # more than three times, not three
    assert low_resolution_axis((1.0, 1.0, 1.0), (1.0, 1.0, 4.0)) == 2  # the target decides when the source does not
    assert low_resolution_axis((5.0, 5.0, 1.0), (1.0, 1.0, 1.0)) is None


def test_shape_after_resampling() -> None:
    assert resampled_shape((10, 20, 30), (2.5, 1.0, 0.8), (1.0, 1.0, 1.0)) == (25, 20, 24)
    assert resampled_shape((1, 20, 30), (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 20, 30)


def test_nonzero_box_covers_every_channel() -> None:
    image = np.zeros((2, 5, 6, 7), np.int16)
    assert nonzero_box(image) == ((0, 5), (0, 6), (0, 7))
    image[0, 1, 2, 3] = -1000
    image[1, 3, 4, 1] = 1
    assert nonzero_box(image) == ((1, 4), (2, 5), (1, 4))


@pytest.mark.parametrize("spacing", [(1.0, 0.9, 1.1), (2.6, 1.4, 1.4)])
def test_there_and_back_keeps_labels(spacing: tuple[float, float, float]) -> None:
    shape = (24, 40, 36)
    d, h, w = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    label = ((d - 12) ** 2 * 4 + (h - 18) ** 2 + (w - 17) ** 2 < 150).astype(np.uint8)
    label[12:18, 20:26, 10:16] = 2
    case = CaseGeometry.between(grid_of(shape, (2.6, 1.4, 1.4)), ((2, 24), (0, 38), (3, 36)), spacing)
    assert case.cropped_shape == (22, 38, 33)
    inside = case.apply_label(label)
    assert inside.shape == case.resampled_shape
    back = np.zeros_like(label)
    back[2:24, :38, 3:36] = resample_label(inside, case.cropped_shape, low_axis=case.low_axis)
    if spacing == case.canonical_spacing:
        np.testing.assert_array_equal(back, label)
    for value in (1, 2):
        overlap = 2 * ((back == value) & (label == value)).sum() / ((back == value).sum() + (label == value).sum())
        assert overlap > 0.97
    near = case.near_label(label)
    assert near.shape == case.resampled_shape
    assert (near == inside).mean() > 0.97


def test_near_label_takes_the_voxel_at_each_centre() -> None:
    case = CaseGeometry.between(grid_of((2, 5, 6), (1.0, 1.0, 1.0)), ((0, 2), (1, 5), (0, 6)), (1.0, 2.0, 0.5))
    label = np.arange(60).reshape(2, 5, 6)
    near = case.near_label(label)
    assert near.shape == (2, 2, 12)
    # centres of 2 voxels over 4: 1 and 3 from the box's border, that is rows 1 + 1 and 1 + 3
    np.testing.assert_array_equal(near, label[:, [2, 4]].repeat(2, axis=2))


def test_images_are_cropped_and_resampled() -> None:
    image = np.random.default_rng(0).normal(size=(1, 10, 12, 14)).astype(np.float32)
    case = CaseGeometry.between(grid_of((10, 12, 14), (8.0, 1.0, 1.0)), ((1, 9), (0, 12), (2, 14)), (4.0, 2.0, 1.0))
    assert case.low_axis == 0
    assert case.resampled_shape == (16, 6, 12)
    got = case.apply_image(image)
    np.testing.assert_allclose(got[0, 5], reference(image[0, 1:9, :, 2:][2], (6, 12), 3), atol=5e-6)


def test_geometry_survives_json() -> None:
    case = CaseGeometry.between(grid_of((10, 12, 14), (8.0, 1 / 3, 0.7)), ((1, 9), (0, 12), (2, 14)), (4.0, 0.1, 1.0))
    assert CaseGeometry.from_json(json.loads(json.dumps(case.to_json()))) == case
    assert case.canonical_shape == (10, 12, 14)
    assert case.canonical_spacing == (8.0, 1 / 3, 0.7)


def test_matrices_of_many_sizes_are_not_kept_for_ever() -> None:
    for size in range(40, 140):
        interpolation_matrix(size, 30, 1)
    assert interpolation_matrix.cache_info().currsize <= 32
