import numpy as np
import pytest
from scipy import ndimage

from medtrain.data.io.nifti import Volume
from medtrain.data.plan import ChannelNormalization
from medtrain.data.preprocess import ChannelStats, body_mask, channel_stats, normalize, prepare_image
from tests.data.small_data import grid_of

CT = ChannelNormalization("ct", lower=-100.0, upper=300.0, mean=100.0, std=50.0)
ZSCORE = ChannelNormalization("zscore")
NONE = ChannelNormalization("none")


def volume(image: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(image, spacing, grid_of(image.shape[1:], spacing))


def test_normalization_by_hand() -> None:
    array = np.array([[-500, 100, 150, 900], [2, 4, 6, 8], [7, 7, 0, 1]], dtype=np.int16)
    stats = (ChannelStats(0, 1), ChannelStats(5, 2), ChannelStats(0, 1))
    out = normalize(array, stats, (CT, ZSCORE, NONE))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[-4, 0, 1, 4], [-1.5, -0.5, 0.5, 1.5], [7, 7, 0, 1]])
    assert array[0, 0] == -500  # the input is left alone


def test_outside_the_body_stays_zero() -> None:
    array = np.array([[0, 0, 4, 6]], dtype=np.float32)
    body = np.array([False, False, True, True])
    masked = normalize(array, (ChannelStats(5, 1),), (ChannelNormalization("zscore", nonzero=True),), body)
    np.testing.assert_array_equal(masked, [[0, 0, -1, 1]])
    np.testing.assert_array_equal(normalize(array, (ChannelStats(5, 1),), (ZSCORE,), body), [[-5, -5, -1, 1]])


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e7])
def test_a_constant_image_becomes_zero(value: float) -> None:
    prepared = prepare_image(volume(np.full((1, 5, 6, 7), value, dtype=np.float32)), (1, 1, 1))
    out = prepared.normalized((ZSCORE,))
    np.testing.assert_array_equal(out, np.zeros((1, 5, 6, 7)))
    assert not normalize(prepared.array, prepared.stats, (ChannelNormalization("ct", 0, 1, 0.5, 0.0),)).any()


def test_statistics_equal_numpy_in_double_precision(rng: np.random.Generator) -> None:
    channel = rng.normal(1e4, 3, (9, 20, 21)).astype(np.float32)
    stats = channel_stats(channel)
    assert stats.mean == pytest.approx(channel.mean(dtype=np.float64), rel=1e-12)
    assert stats.std == pytest.approx(channel.std(dtype=np.float64), rel=1e-9)
    body = rng.random(channel.shape) < 0.3
    within = channel_stats(channel, body)
    assert within.mean == pytest.approx(channel[body].mean(dtype=np.float64), rel=1e-12)
    assert within.std == pytest.approx(channel[body].std(dtype=np.float64), rel=1e-9)
    assert channel_stats(channel, np.zeros_like(body)) == ChannelStats(0.0, 0.0)


def test_zscore_of_a_whole_case_has_mean_zero_and_std_one(rng: np.random.Generator) -> None:
    image = rng.normal(300, 40, (2, 12, 13, 14)).astype(np.int16)
    out = prepare_image(volume(image), (1, 1, 1)).normalized((ZSCORE, ZSCORE))
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), 1, atol=1e-5)


def test_body_is_what_scipy_fills(rng: np.random.Generator) -> None:
    image = (ndimage.gaussian_filter(rng.normal(size=(2, 14, 20, 18)), (0, 2, 2, 2)) > 0.02).astype(np.int16)
    expected = ndimage.binary_fill_holes((image != 0).any(axis=0))
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(body_mask(image), expected)
    assert body_mask(np.ones((1, 3, 3, 3))).all()


def test_cropping_and_statistics_follow_the_body() -> None:
    image = np.zeros((1, 8, 8, 8), dtype=np.int16)
    image[0, 2:7, 1:6, 3:8] = 50
    image[0, 2, 1, 3] = 0  # a corner of the box that is outside
    image[0, 4, 3, 5] = 0  # a hole
    plain = prepare_image(volume(image), (1, 1, 1))
    assert plain.geometry.crop == ((2, 7), (1, 6), (3, 8))
    assert plain.body is None
    assert plain.stats[0].mean == pytest.approx(50 * 123 / 125)
    masked = prepare_image(volume(image), (1, 1, 1), nonzero=True)
    assert masked.body is not None
    assert (masked.body.sum(), masked.body[0, 0, 0], masked.body[2, 2, 2]) == (124, False, True)
    assert masked.stats[0].mean == pytest.approx(50 * 123 / 124)


def test_normalising_commutes_with_resampling(rng: np.random.Generator) -> None:
    image = rng.normal(50, 10, (1, 10, 12, 11)).astype(np.float32)
    prepared = prepare_image(volume(image), (0.7, 0.8, 1.3))
    stats = prepared.stats[0]
    before = prepare_image(volume((image - np.float32(stats.mean)) / np.float32(stats.std)), (0.7, 0.8, 1.3)).array
    np.testing.assert_allclose(prepared.normalized((ZSCORE,)), before, atol=1e-4)


def test_stored_types() -> None:
    image = (np.arange(1 * 6 * 6 * 6).reshape(1, 6, 6, 6) % 200 + 1).astype(np.uint8)
    assert prepare_image(volume(image), (1, 1, 1)).array.dtype == np.uint8
    assert prepare_image(volume(image), (0.5, 1, 1)).array.dtype == np.int16  # splines overshoot below 0
    assert prepare_image(volume(image.astype(np.float32)), (0.5, 1, 1)).array.dtype == np.float32


def test_two_values_keep_the_slices() -> None:
    image = np.ones((1, 4, 10, 10), dtype=np.int16)
    prepared = prepare_image(volume(image, (5.0, 1.0, 1.0)), (2.0, 2.0))
    assert prepared.array.shape == (1, 4, 5, 5)
    assert prepared.geometry.spacing == (5.0, 2.0, 2.0)
