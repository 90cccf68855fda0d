from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision_functional

from medtrain.data.transforms.images.resize import enlarged, fit_image, stretch


def random_image(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(256, size=shape, dtype=np.uint8) if dtype == np.uint8 else rng.random(shape, dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [(24, 24), (90, 20), (90, 100)])
def test_stretching_is_torchvisions_antialiased_resize(channels: int, dtype: type, size: tuple[int, int]) -> None:
    image = random_image(60, 70, channels, dtype=dtype)
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    expected = torchvision_functional.resize(planes, list(size), antialias=True).permute(1, 2, 0).numpy()
    result = stretch(image, size)
    assert result.dtype == dtype
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def test_fine_stripes_become_grey_and_no_pattern() -> None:
    stripes = np.zeros((210, 210, 1), dtype=np.float32)
    stripes[:, ::2] = 1
    shrunk = stretch(stripes, (40, 40))[:, 2:-2]
    assert abs(shrunk - 0.5).max() < 0.06  # linear interpolation alone gives values from 0 to 1


def test_letterbox_keeps_the_shape_and_fills_with_zeros() -> None:
    image = np.full((40, 20, 3), 200, dtype=np.uint8)
    mask = np.ones((40, 20), dtype=np.float32)
    fitted, fitted_mask = fit_image(image, mask, (20, 20), "letterbox")  # scale 0.5: 20 x 10, 5 columns on each side
    expected = np.zeros((20, 20), dtype=np.uint8)
    expected[:, 5:15] = 200
    np.testing.assert_array_equal(fitted, np.repeat(expected[..., None], 3, axis=2))
    assert fitted_mask is not None
    np.testing.assert_array_equal(fitted_mask, expected / np.float32(200))


def test_crop_keeps_the_shape_and_cuts_the_middle() -> None:
    image = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 20, 1))  # value = row; read-only
    fitted, _ = fit_image(image, None, (20, 20), "crop")  # scale 1: rows 10 to 29
    np.testing.assert_array_equal(fitted[:, 0, 0], np.arange(10, 30))


def test_random_crops_reach_both_ends() -> None:
    image = np.ascontiguousarray(np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None], (24, 20, 1)))
    rng = np.random.default_rng(0)
    first_rows = [int(fit_image(image, None, (20, 20), "crop", rng=rng)[0][0, 0, 0]) for _ in range(200)]
    assert set(first_rows) == {0, 1, 2, 3, 4}


def test_cut_pads_what_is_missing() -> None:
    image = np.ones((4, 10, 1), dtype=np.uint8)
    cut, _ = fit_image(image, None, (6, 6), "cut")
    np.testing.assert_array_equal(cut[..., 0].sum(axis=1), [0, 6, 6, 6, 6, 0])


def test_labels_are_not_interpolated() -> None:
    mask = np.array([[0, 7], [7, 0]], dtype=np.int64)
    result = stretch(mask, (4, 4), is_mask=True)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, np.kron(mask, np.ones((2, 2), dtype=np.int64)))
    np.testing.assert_array_equal(stretch(result, (2, 2), is_mask=True), mask)
    assert stretch(mask.astype(bool), (3, 3), is_mask=True).dtype == np.bool_


def test_volumes_are_stretched_along_depth_and_letterboxed_in_the_slice() -> None:
    volume = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None], (8, 4, 8, 2))  # value = slice
    mask = np.ones((8, 4, 8), dtype=np.uint8)
    fitted, fitted_mask = fit_image(np.ascontiguousarray(volume), mask, (4, 8, 8), "letterbox")
    assert fitted.shape == (4, 8, 8, 2)
    assert fitted_mask is not None
    # in the slice: 4 x 8 in 8 x 8, 2 rows of zeros above and below; an inner slice is centred between two old ones
    np.testing.assert_array_equal(fitted_mask[0].any(axis=1), [False, False, True, True, True, True, False, False])
    np.testing.assert_allclose(fitted[1:3, 4, 4, 0], [2.5, 4.5], atol=1e-5)


def test_an_image_of_the_right_size_is_not_copied() -> None:
    image = random_image(8, 9, 3)
    mask = np.zeros((8, 9), dtype=np.float32)
    for mode in ("letterbox", "stretch", "crop"):
        fitted, fitted_mask = fit_image(image, mask, (8, 9), mode)
        assert fitted is image
        assert fitted_mask is mask


def test_extreme_shapes_keep_at_least_one_pixel() -> None:
    assert fit_image(random_image(1000, 1, 1), None, (8, 8), "letterbox")[0].shape == (8, 8, 1)
    assert fit_image(random_image(1, 1000, 1), None, (8, 8), "crop")[0].shape == (8, 8, 1)


def test_enlarging_leaves_the_depth() -> None:
    assert enlarged((392, 392), 24 / 392) == (416, 416)
    assert enlarged((16, 100, 50), 0.1) == (16, 110, 55)
