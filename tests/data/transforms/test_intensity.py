"""Intensity transforms: hand-computed values, parity with scipy, statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from medtrain.data.transforms import intensity


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_noise_has_the_drawn_standard_deviation_and_no_mean() -> None:
    image = torch.full((2, 1, 40, 40, 40), 5.0)  # [B, C, D, H, W]
    intensity.add_noise(image, [{"noise": {"std": 0.08, "seed": 3}}, {}])
    assert image[0].mean().item() == pytest.approx(5.0, abs=0.001)
    assert image[0].std().item() == pytest.approx(0.08, rel=0.01)
    assert (image[1] == 5.0).all()


def test_noise_is_white_across_voxels_and_channels() -> None:
    image = torch.zeros(1, 2, 64, 64)
    intensity.add_noise(image, [{"noise": {"std": 1.0, "seed": 2**62 + 1}}])
    first, second = image[0]
    assert abs((first * second).mean().item()) < 0.05
    assert abs((first[1:] * first[:-1]).mean().item()) < 0.05


def test_noise_is_a_function_of_its_seed_only() -> None:
    params = [{"noise": {"std": 1.0, "seed": 7}}, {"noise": {"std": 1.0, "seed": 8}}]
    image = torch.zeros(2, 1, 9, 9)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    intensity.add_noise(image, params)
    swapped = torch.zeros(2, 1, 9, 9)
    intensity.add_noise(swapped, params[::-1])
    assert torch.equal(image, swapped.flip(0))
    assert not torch.equal(image[0], image[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2, 17, 12, 9), (2, 14, 11)])
def test_blur_equals_scipy(shape: tuple[int, ...]) -> None:
    rows = _rows(*shape)
    sigmas = np.array([[0.5, 0.7, 1.0], [0.95, 0.58, 0.6]])[:, : len(shape) - 1]  # kernels of 3, 5 and 7 voxels
    expected = rows.numpy().astype(np.float64)
    for n, row_sigmas in enumerate(sigmas):
        for axis, sigma in enumerate(row_sigmas):
            radius = {0.5: 1, 0.58: 1, 0.6: 2, 0.7: 2, 0.95: 3, 1.0: 3}[float(sigma)]
            expected[n] = scipy.ndimage.gaussian_filter1d(expected[n], sigma, axis, mode="mirror", radius=radius)
    intensity.blur(rows, sigmas)
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-6)


def test_blur_of_an_impulse_spreads_by_sigma_and_keeps_the_sum() -> None:
    rows = torch.zeros(1, 21, 21, 21)
    rows[0, 10, 10, 10] = 1.0
    intensity.blur(rows, np.array([[0.9, 1.0, 0.6]]))
    assert rows.sum().item() == pytest.approx(1.0, abs=1e-6)
    offset = torch.arange(21.0) - 10
    for axis, sigma in enumerate((0.9, 1.0, 0.6)):
        profile = rows[0].sum(dim=[k for k in range(3) if k != axis])
        assert (profile * offset**2).sum().sqrt().item() == pytest.approx(sigma, rel=0.06)  # cut at 2.5 to 3 sigma


def test_blur_of_white_noise_lowers_the_variance_by_the_kernel_energy() -> None:
    rows = _rows(1, 60, 60, 60)
    mean = rows.mean().item()
    intensity.blur(rows, np.array([[1.0, 1.0, 1.0]]))
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    energy = ((taps / taps.sum()) ** 2).sum()
    inner = rows[:, 3:-3, 3:-3, 3:-3]  # at the border reflection repeats voxels
    assert inner.var().item() == pytest.approx(energy**3, rel=0.05)
    assert rows.mean().item() == pytest.approx(mean, abs=1e-3)


def test_blur_leaves_constants_and_survives_thin_patches() -> None:
    rows = torch.full((2, 1, 2, 6), 3.0)
    intensity.blur(rows, np.full((2, 3), 1.0))
    torch.testing.assert_close(rows, torch.full((2, 1, 2, 6), 3.0))


def test_brightness_scales_mean_and_deviation() -> None:
    rows = _rows(2, 8, 8, 8) + 1
    before = rows.clone()
    intensity.brightness(rows, np.array([0.75, 1.25]))
    torch.testing.assert_close(rows[0], before[0] * 0.75)
    torch.testing.assert_close(rows[1], before[1] * 1.25)


def test_contrast_by_hand() -> None:
    rows = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[0.0, 2.0], [4.0, 6.0]]])  # [2, 2, 2], mean 3
    intensity.contrast(rows, np.array([0.5, 1.25]))
    assert rows[0].flatten().tolist() == [1.5, 2.5, 3.5, 4.5]
    assert rows[1].flatten().tolist() == [0.0, 1.75, 4.25, 6.0]  # -0.75 and 6.75 are clamped


def test_contrast_keeps_the_mean_scales_the_deviation_and_preserves_the_range() -> None:
    rows = _rows(2, 30, 30, 30)
    before = rows.clone()
    intensity.contrast(rows, np.array([0.8, 1.2]))
    torch.testing.assert_close(rows.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=1e-3, rtol=0)
    ratio = rows.std((1, 2, 3)) / before.std((1, 2, 3))
    torch.testing.assert_close(ratio, torch.tensor([0.8, 1.2]), rtol=1e-3, atol=0)
    assert rows[1].min() == before[1].min()
    assert rows[1].max() == before[1].max()


def test_low_resolution_by_hand() -> None:
    rows = torch.arange(8.0).repeat(1, 1, 1, 1)  # [1, 1, 1, 8]: 0 .. 7 along W
    intensity.low_resolution(rows, np.array([[1.0, 1.0, 0.5]]))
    # Four nearest voxels 1, 3, 5, 7 stand for 0.5, 2.5, 4.5, 6.5; between them linear, outside constant.
    assert rows.flatten().tolist() == [1.0, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.0]


def test_low_resolution_leaves_one_voxel_of_a_short_axis() -> None:
    rows = _rows(1, 3, 8)
    before = rows.clone()
    intensity.low_resolution(rows, np.array([[0.2, 1.0]]))  # 0.6 of a voxel along H: the middle one stands for all
    torch.testing.assert_close(rows[0], before[0, 1].expand(3, 8))


def test_low_resolution_keeps_the_mean_and_lowers_the_variance() -> None:
    rows = _rows(2, 40, 40, 40)
    before = rows.clone()
    intensity.low_resolution(rows, np.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]))
    assert torch.equal(rows[0], before[0])
    assert rows[1].mean().item() == pytest.approx(before[1].mean().item(), abs=0.03)
    # Linear interpolation at 1/4 and 3/4 of independent values: variance (1/16 + 9/16) per axis, more at the border.
    assert rows[1].var().item() == pytest.approx(0.625**3, rel=0.15)


@pytest.mark.parametrize(("transform", "sign"), [(intensity.gamma, 1.0), (intensity.gamma_inverted, -1.0)])
def test_gamma_equals_its_formula(transform: Callable[[Tensor, np.ndarray], None], sign: float) -> None:
    rows = _rows(2, 6, 7, 8)
    exponents = np.array([0.7, 1.5])
    expected = []
    for row, exponent in zip(rows.numpy().astype(np.float64), exponents):
        image = sign * row
        powered = ((image - image.min()) / np.ptp(image)) ** exponent * np.ptp(image) + image.min()
        expected.append(sign * ((powered - powered.mean()) / powered.std() * image.std() + image.mean()))
    transform(rows, exponents)
    np.testing.assert_allclose(rows.numpy(), np.stack(expected), atol=3e-6)


@pytest.mark.parametrize("transform", [intensity.gamma, intensity.gamma_inverted])
def test_gamma_retains_mean_and_deviation_but_not_the_shape(transform: Callable[[Tensor, np.ndarray], None]) -> None:
    rows = _rows(1, 30, 30, 30)
    before = rows.clone()
    transform(rows, np.array([1.5]))
    assert rows.mean().item() == pytest.approx(before.mean().item(), abs=1e-5)
    assert rows.std().item() == pytest.approx(before.std().item(), rel=1e-5)
    skewness = ((rows - rows.mean()) ** 3).mean() / rows.std() ** 3
    assert skewness.item() * (1 if transform is intensity.gamma else -1) > 0.1


def test_gamma_leaves_a_constant_image() -> None:
    for transform in (intensity.gamma, intensity.gamma_inverted):
        rows = torch.full((1, 4, 4), -2.0)
        transform(rows, np.array([1.3]))
        assert rows.flatten().tolist() == [-2.0] * 16


@pytest.mark.parametrize(
    ("transform", "values"),
    [
        (intensity.blur, np.array([[0.5, 1.0], [0.9, 0.6], [0.7, 0.7]])),
        (intensity.brightness, np.array([0.8, 1.0, 1.2])),
        (intensity.contrast, np.array([0.8, 1.0, 1.2])),
        (intensity.low_resolution, np.array([[0.5, 0.5], [0.8, 0.8], [1.0, 1.0]])),
        (intensity.gamma, np.array([0.7, 1.1, 1.4])),
        (intensity.gamma_inverted, np.array([0.7, 1.1, 1.4])),
    ],
)
def test_rows_together_equal_rows_alone(transform: Callable[[Tensor, np.ndarray], None], values: np.ndarray) -> None:
    rows = _rows(3, 20, 24)
    alone = rows.clone()
    transform(rows, values)  # as on an accelerator
    for n in range(3):
        transform(alone[n : n + 1], values[n : n + 1])
    torch.testing.assert_close(rows, alone, atol=1e-6, rtol=1e-5)


def test_on_rows_changes_only_the_channels_that_were_drawn() -> None:
    image = torch.ones(3, 2, 4, 4)
    params = [{"brightness": [None, 2.0]}, {}, {"brightness": [3.0, 4.0]}]
    intensity.on_rows(image, params, "brightness", intensity.brightness)
    assert image[:, :, 0, 0].tolist() == [[1.0, 2.0], [1.0, 1.0], [3.0, 4.0]]
