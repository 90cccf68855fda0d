from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.errors import ConfigError, Problem
from tests.data.transforms.images.image_data import blob, listed, photo

FLIP = {"name": "HorizontalFlip", "p": 0.5}


def problems(*transforms: Any, **settings: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        listed(*transforms, **settings)
    return list(caught.value.problems)


def only(*transforms: Any, **settings: Any) -> Problem:
    (problem,) = problems(*transforms, **settings)
    return problem


def test_an_unknown_transform_is_answered_with_the_nearest() -> None:
    problem = only(FLIP, {"name": "RandomGama"})
    assert problem.where == "augment.transforms[1].name"
    assert problem.hint == "did you mean `RandomGamma`?"
    assert only({"name": "horizontal_flip"}).hint == "did you mean `HorizontalFlip`?"
    assert "RandomGamma" in (only({"name": "xyz"}).hint or "")


@pytest.mark.parametrize(
    ("transform", "argument", "right"),
    [
        ({"name": "RandomGamma", "gama_limit": [80, 120]}, "gama_limit", "gamma_limit"),
        ({"name": "CoarseDropout", "max_holes": 8}, "max_holes", "num_holes_range"),
        ({"name": "CoarseDropout", "max_height": 8}, "max_height", "hole_height_range"),
        ({"name": "CoarseDropout", "fill_value": 0}, "fill_value", "fill"),
        ({"name": "GaussNoise", "var_limit": [10, 50]}, "var_limit", "std_range"),
        ({"name": "RandomResizedCrop", "height": 8, "size": [8, 8]}, "height", "size"),
        ({"name": "OneOf", "transforms": [FLIP], "prob": 1}, "prob", "p"),
    ],
)
def test_arguments_that_albumentations_would_ignore(transform: dict[str, Any], argument: str, right: str) -> None:
    problem = problems(transform)[0]
    assert problem.where == f"augment.transforms[0].{argument}"
    assert "has no argument" in problem.message
    assert f"`{right}`" in (problem.hint or "") or right in (problem.hint or "").split(": ")[1].split(", ")


def test_all_mistakes_are_told_at_once_with_their_places() -> None:
    nested = {"name": "OneOf", "p": 2, "transforms": [FLIP, {"name": "Sharpn"}, {"name": "Blur", "blur_limits": 3}]}
    found = problems({"p": 0.5}, nested, {"name": "RandomGamma", "p": 1.5}, "HorizontalFlip")
    assert [problem.where for problem in found] == [
        "augment.transforms[0]",
        "augment.transforms[1].p",
        "augment.transforms[1].transforms[1].name",
        "augment.transforms[1].transforms[2].blur_limits",
        "augment.transforms[2].p",
        "augment.transforms[3]",
    ]


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ({"name": "Normalize"}, "normalised after"),
        ({"name": "ToTensorV2"}, "become tensors"),
        ({"name": "Lambda"}, "functions"),
        ({"name": "Compose", "transforms": []}, "Sequential"),
        ({"name": "ShiftScaleRotate"}, "Affine"),
        ({"name": "RandomCrop", "height": 8}, "Field required"),
        ({"name": "RandomCrop", "height": 400, "width": 400}, "cannot be applied"),
        ({"name": "MaskDropout"}, "needs mask"),
        ({"name": "FDA"}, "needs fda_metadata"),
        ({"name": "Mosaic"}, "needs mosaic_metadata"),
        ({"name": "CubicSymmetry"}, "cannot be applied to pictures"),
        ({"name": "BBoxSafeRandomCrop"}, "cannot be applied"),
        ({"name": "SomeOf", "n": 3, "transforms": [FLIP]}, "greater than number"),
        ({"name": "OneOf", "transforms": []}, "nothing to choose"),
        ({"name": "OneOf", "transforms": [{"name": "Blur", "p": 0}]}, "nothing to choose"),
        ({"name": "OneOf"}, "needs `transforms`"),
        ({"name": "OneOf", "transforms": "Blur"}, "must be a list"),
        ({"name": "Affine", "interpolation": "cubick"}, "no interpolation 'cubick'"),
        ({"name": "SelectiveChannelTransform", "transforms": [FLIP]}, "some channels only"),
    ],
)
def test_transforms_that_cannot_work_are_refused_before_training(transform: dict[str, Any], words: str) -> None:
    assert words in only(transform).message


@pytest.mark.parametrize("name", ["ColorJitter", "HueSaturationValue", "RGBShift", "ToGray"])
@pytest.mark.parametrize("channels", [1, 5])
def test_changes_of_colour_need_three_channels(name: str, channels: int) -> None:
    assert f"the images have {channels}" in only({"name": name}, channels=channels).message
    listed({"name": name}, channels=3)


def test_a_transform_may_not_change_the_number_of_channels() -> None:
    assert "turns 1 channels into 3" in only({"name": "ToRGB"}, channels=1).message


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_channels_and_types(channels: int, dtype: type) -> None:
    augment = listed(
        {"name": "OneOf", "transforms": [{"name": "RandomGamma", "gamma_limit": [80, 120]}, {"name": "Blur"}], "p": 1},
        {
            "name": "SomeOf",
            "n": 2,
            "transforms": [FLIP, {"name": "VerticalFlip"}, {"name": "RandomBrightnessContrast"}],
        },
        {
            "name": "Sequential",
            "p": 1,
            "transforms": [{"name": "Affine", "scale": [0.9, 1.1], "interpolation": "cubic"}],
        },
        {"name": "CoarseDropout", "num_holes_range": [1, 3], "hole_height_range": [4, 8], "hole_width_range": [4, 8]},
        channels=channels,
    )
    for seed in range(8):
        image = augment.train(photo(60, 40, channels, dtype=dtype), seed=seed).image
        assert image.shape == (48, 48, channels)
        assert image.dtype == dtype
        assert image.flags.c_contiguous
        assert image.min() >= 0
        assert image.max() <= (255 if dtype == np.uint8 else 1)


def test_selected_channels() -> None:
    gamma = {"name": "RandomGamma", "gamma_limit": [200, 200], "p": 1}
    augment = listed({"name": "SelectiveChannelTransform", "channels": [1], "transforms": [gamma], "p": 1}, channels=2)
    image = photo(48, 48, 2, dtype=np.float32)
    result = augment.train(image, seed=0).image
    np.testing.assert_array_equal(result[..., 0], image[..., 0])
    np.testing.assert_allclose(result[..., 1], image[..., 1] ** 2, atol=1e-6)


def test_probabilities_and_arguments_take_effect() -> None:
    image = photo(48, 48, 3, dtype=np.float32)
    gamma = {"name": "RandomGamma", "gamma_limit": [200, 200]}
    np.testing.assert_allclose(listed({**gamma, "p": 1}).train(image, seed=0).image, image**2, atol=1e-6)
    np.testing.assert_array_equal(listed({**gamma, "p": 0}).train(image, seed=0).image, image)
    applied = sum(not np.array_equal(listed({**gamma, "p": 0.3}).train(image, seed=s).image, image) for s in range(200))
    assert 40 < applied < 80  # 60 expected, 6.5 standard deviation


def test_mask_and_image_stay_together() -> None:
    augment = listed(
        {"name": "Affine", "rotate": [-40, 40], "translate_percent": [-0.1, 0.1], "p": 1},
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "RandomRotate90", "p": 1},
        {"name": "ElasticTransform", "alpha": 20, "sigma": 5, "p": 0.5},
        {"name": "RandomCrop", "height": 40, "width": 40, "p": 0.5},
        channels=1,
    )
    image = blob(60, 80)
    for seed in range(20):
        changed, mask, _ = augment.train(image, seed=seed, mask=image[..., 0])
        np.testing.assert_allclose(mask, changed[..., 0], atol=1e-5)
        labels = augment.train(image, seed=seed, mask=(image[..., 0] > 0.5).astype(np.int32)).mask
        assert set(np.unique(labels)) <= {0, 1}
        assert np.mean(labels != (changed[..., 0] > 0.5)) < 0.02


def test_transforms_of_whole_images_see_them_before_they_shrink() -> None:
    image = np.zeros((100, 100, 1), dtype=np.float32)
    image[:, 50:] = 1
    crop = {"name": "Crop", "x_min": 50, "y_min": 0, "x_max": 60, "y_max": 10}
    whole = listed(crop | {"p": 1}, resize_first=False, channels=1, resize="stretch")
    assert whole.train(image, seed=0).image.min() == 1  # the pixels from 50 to 59
    assert whole.evaluate(image).image.mean() == pytest.approx(0.5, abs=0.01)
    assert "cannot be applied" in only(crop | {"p": 1}, channels=1).message  # there are only 48 columns


def test_volumes_are_changed_alike_in_all_slices() -> None:
    affine = {"name": "Affine", "rotate": [20, 20], "p": 1}
    brightness = {"name": "RandomBrightnessContrast", "p": 1}
    augment = listed(affine, FLIP, brightness, size=(6, 32, 32), channels=2)
    volume = np.repeat(photo(1, 40, 40, 2), 6, axis=0)
    changed, mask, _ = augment.train(volume, seed=1, mask=np.ones(volume.shape[:-1], dtype=np.uint8))
    assert changed.shape == (6, 32, 32, 2)
    assert mask.shape == (6, 32, 32)
    for part in changed:
        np.testing.assert_array_equal(part, changed[0])


def test_cubic_interpolation_stays_in_the_range_and_gamma_makes_no_nan() -> None:
    cubic = {"name": "Affine", "rotate": [30, 30], "interpolation": "cubic", "p": 1}
    gamma = {"name": "RandomGamma", "gamma_limit": [50, 50], "p": 1}
    image = np.zeros((48, 48, 1), dtype=np.float32)
    image[20:28, 20:28] = 1
    result = listed(cubic, gamma, channels=1).train(image, seed=0).image
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("by_max", [True, False])
def test_brightness_and_contrast_are_those_of_albumentations(dtype: type, by_max: bool) -> None:
    import albumentations

    limits = {"brightness_limit": [0.3, 0.3], "contrast_limit": [0.4, 0.4], "brightness_by_max": by_max, "p": 1}
    image = photo(48, 48, 3, dtype=dtype)
    expected = albumentations.RandomBrightnessContrast(**limits)(image=image)["image"]
    result = listed({"name": "RandomBrightnessContrast", **limits}).train(image, seed=0).image
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("per_channel", [False, True])
def test_noise_is_rounded_to_the_nearest_and_stays_in_range(channels: int, per_channel: bool) -> None:
    """Albumentations cuts it off, so that a deviation of half a grey level would change next to nothing."""
    augment = listed({"name": "GaussNoise", "std_range": [0.002, 0.002], "per_channel": per_channel, "p": 1.0},
                     size=(64, 64), channels=channels)  # fmt: skip
    image = np.full((64, 64, channels), 100, dtype=np.uint8)
    noise = augment.train(image, seed=1).image.astype(float) - 100
    assert noise.std() == pytest.approx((0.51**2 + 1 / 12) ** 0.5, rel=0.06)  # with that of rounding
    assert (channels == 1 or not per_channel) == bool((noise[..., 0] == noise[..., -1]).all())
    strong = listed({"name": "GaussNoise", "std_range": [0.5, 0.5], "p": 1.0}, size=(64, 64), channels=channels)
    values = strong.train(image, seed=2).image
    assert (values.min(), values.max()) == (0, 255)
