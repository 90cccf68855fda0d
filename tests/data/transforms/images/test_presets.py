from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medtrain.errors import UsageError
from tests.data.transforms.images.image_data import blob, listed, make, photo

CONF = Path(__file__).parents[4] / "conf" / "augment"


def preset(name: str, **settings: Any) -> Any:
    """An augmentation as its file in conf/augment says."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    component = values.pop("defaults")[0].removeprefix("schema/").removesuffix("@_here_")
    return make(component, **{**values, **settings})


@pytest.mark.parametrize("name", ["images", "images_light", "images_heavy", "chest_xray", "retinal", "images_none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shape_type_and_range(name: str, dtype: type, channels: int) -> None:
    no_colour = {"saturation": 0.0, "hue": 0.0} if name == "retinal" else {}
    augment = preset(name, channels=channels, size=(40, 48), **no_colour)
    for seed in range(12):
        image, mask, _ = augment.train(photo(70, 60, channels, dtype=dtype), seed=seed)
        assert mask is None
        assert image.shape == (40, 48, channels)
        assert image.dtype == dtype
        assert image.flags.c_contiguous
        assert image.min() >= 0
        assert image.max() <= (255 if dtype == np.uint8 else 1 + 1e-6)
    still = augment.evaluate(photo(70, 60, channels, dtype=dtype)).image
    np.testing.assert_array_equal(still, augment.evaluate(photo(70, 60, channels, dtype=dtype)).image)
    assert still.shape == (40, 48, channels)


def test_types_agree() -> None:
    augment = make("images", noise_p=0.0, gamma_p=0.5)
    image = np.repeat((blob(60, 60) * 255).astype(np.uint8), 3, axis=2)
    for seed in range(10):
        whole = augment.train(image, seed=seed).image / np.float32(255)
        real = augment.train(image.astype(np.float32) / 255, seed=seed).image
        assert abs(whole - real).max() < 0.03


def test_retinal_is_the_published_list_with_todays_arguments() -> None:
    names = [(item["name"], item["p"]) for item in make("retinal", size=(224, 224)).recipe()]
    assert names == [
        ("HorizontalFlip", 0.5),
        ("VerticalFlip", 0.5),
        ("RandomRotate90", 0.5),
        ("Affine", 0.5),
        ("OneOf", 0.5),
        ("CoarseDropout", 0.3),
    ]
    affine, color, dropout = make("retinal", size=(224, 224)).recipe()[3:]
    assert affine["rotate"] == [-45, 45]
    assert affine["translate_percent"] == [-0.1, 0.1]
    assert affine["scale"] == [0.9, 1.1]
    assert color["transforms"][0] == {
        "name": "ColorJitter",
        "brightness": [0.8, 1.2],
        "contrast": [0.8, 1.2],
        "saturation": [0.8, 1.2],
        "hue": [-0.1, 0.1],
        "p": 0.5,
    }
    assert dropout["num_holes_range"] == [8, 8]
    assert dropout["hole_height_range"] == dropout["hole_width_range"] == [32, 32]
    image = photo(100, 80, 3)
    evaluated = make("retinal").evaluate(image).image
    np.testing.assert_array_equal(evaluated, make("images_none", resize="stretch").train(image, seed=5).image)


@pytest.mark.parametrize("name", ["images", "images_heavy", "chest_xray", "retinal"])
def test_recipes_are_lists_that_albumentations_takes(name: str) -> None:
    augment = preset(name, size=(48, 48))
    same = listed(*augment.recipe(), resize=augment.resize)
    image = photo(60, 60, 3)
    for seed in range(5):
        np.testing.assert_array_equal(augment.train(image, seed=seed).image, same.train(image, seed=seed).image)
    assert augment.turning == same.turning


SETTINGS: dict[str, Any] = {
    "mirror_p": 1.0,
    "mirror_vertical_p": 1.0,
    "rotation_degrees": 40.0,
    "translation": 0.3,
    "scaling_range": (1.5, 1.5),
    "shear_degrees": 30.0,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.9,
    "hue": 0.4,
    "gamma_p": 1.0,
    "clahe_p": 1.0,
    "noise_p": 1.0,
    "dropout_p": 1.0,
    "margin": 0.5,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_has_an_effect(key: str) -> None:
    off: dict[str, Any] = {
        "mirror_p": 0.0,
        "affine_p": 1.0,
        "rotation_degrees": 0.0,
        "translation": 0.0,
        "scaling_range": (1.0, 1.0),
        "shear_degrees": 0.0,
        "color_p": 1.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "noise_p": 0.0,
    }
    image = photo(48, 48, 3)
    np.testing.assert_array_equal(make("images", **off).train(image, seed=1).image, image)
    changed = make("images", **{**off, key: SETTINGS[key]}).train(image, seed=1).image
    assert abs(changed.astype(int) - image).mean() > 1


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        ("border", "constant", "edge"),
        ("border", "edge", "reflect"),
        ("dropout_holes", 1, 8),
        ("dropout_size", 0.1, 0.3),
        ("gamma_range", (0.5, 0.5), (2.0, 2.0)),
        ("noise_std", (0.01, 0.01), (0.2, 0.2)),
        ("resize", "letterbox", "stretch"),
        ("resize", "stretch", "crop"),
    ],
)
def test_values_make_a_difference(key: str, first: Any, second: Any) -> None:
    on = {"affine_p": 1.0, "dropout_p": 1.0, "gamma_p": 1.0, "noise_p": 1.0, "clahe_p": 1.0}
    image = photo(48, 64, 3)
    results = [make("images", **{**on, key: value}).train(image, seed=1).image for value in (first, second)]
    assert not np.array_equal(*results)


def test_the_limit_of_clahe_makes_a_difference() -> None:
    image = np.repeat((blob(48, 48) * 60).astype(np.uint8), 3, axis=2)
    settings = {"clahe_p": 1.0, "noise_p": 0.0, "color_p": 0.0, "affine_p": 0.0}
    results = [make("images", clahe_clip=clip, **settings).train(image, seed=1).image for clip in (1.0, 20.0)]
    assert not np.array_equal(*results)


def test_rotation_scaling_and_shift_stay_in_their_ranges() -> None:
    augment = make("images", affine_p=1.0, rotation_degrees=0.0, shear_degrees=0.0, translation=0.1, noise_p=0.0,
                   color_p=0.0, mirror_p=0.0, scaling_range=(1.0, 1.0), channels=1, size=(100, 100))  # fmt: skip
    image = np.zeros((100, 100, 1), dtype=np.float32)
    image[50, 50] = 1
    rows, columns = zip(*(np.argwhere(augment.train(image, seed=seed).image[..., 0] > 0.2)[0] for seed in range(60)))
    assert (min(rows), max(rows)) >= (40, 50)
    assert 45 >= min(rows) >= 39
    assert 55 <= max(columns) <= 60


def test_a_scaling_above_one_enlarges() -> None:
    still = {"rotation_degrees": 0.0, "shear_degrees": 0.0, "translation": 0.0, "noise_p": 0.0, "color_p": 0.0}
    image = blob(48, 48)
    for factor in (0.8, 1.25):
        augment = make("images", scaling_range=(factor, factor), affine_p=1.0, mirror_p=0.0, channels=1, **still)
        area = (augment.train(image, seed=0).image > 0.5).sum() / (image > 0.5).sum()
        assert area == pytest.approx(factor**2, rel=0.1)


def test_evaluation_is_not_training() -> None:
    """Training and validation each have a pipeline of their own, also on the same image."""
    augment = make("images", affine_p=1.0)
    image = photo(48, 48, 3)
    np.testing.assert_array_equal(augment.evaluate(image).image, image)
    assert not np.array_equal(augment.train(image, seed=0).image, image)
    np.testing.assert_array_equal(augment.evaluate(image).image, image)


@pytest.mark.parametrize("settings", [{}, {"resize": "crop"}, {"margin": 0.3}])
def test_the_mask_follows_the_image(settings: dict[str, Any]) -> None:
    augment = make("images", channels=1, affine_p=1.0, noise_p=0.0, color_p=0.0, dropout_p=0.0, **settings)
    image = blob(70, 90)
    for seed in range(10):
        changed, mask, _ = augment.train(image, seed=seed, mask=image[..., 0])
        np.testing.assert_allclose(mask, changed[..., 0], atol=1e-5)
    changed, mask, _ = augment.evaluate(image, image[..., 0])
    np.testing.assert_allclose(mask, changed[..., 0], atol=1e-6)


def test_the_given_image_is_not_changed() -> None:
    image = photo(48, 48, 3)
    before = image.copy()
    augment = preset("images_heavy")
    for seed in range(10):
        augment.train(image, seed=seed)
    np.testing.assert_array_equal(image, before)
    image.flags.writeable = False
    augment.train(image, seed=0)
    augment.evaluate(image)


def test_volumes() -> None:
    augment = make("images", size=(8, 32, 32), channels=1, gamma_p=1.0, affine_p=1.0, noise_p=1.0)
    volume, mask, _ = augment.train(photo(12, 40, 40, 1), seed=0, mask=np.ones((12, 40, 40), dtype=np.float32))
    assert volume.shape == (8, 32, 32, 1)
    assert mask.shape == (8, 32, 32)
    assert augment.evaluate(photo(12, 40, 40, 1)).image.shape == (8, 32, 32, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scaling_range": (1.2, 0.8)}, "scaling_range is empty"),
        ({"gamma_range": (2.0, 1.0)}, "gamma_range is empty"),
        ({"noise_std": (0.2, 0.1)}, "noise_std is empty"),
        ({"hue": 0.1, "channels": 1}, "need 3 channels"),
        ({"clahe_p": 0.5, "channels": 4}, "CLAHE"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make("images", **settings)
    assert caught.value.hint


def test_retinal_pictures_of_one_channel_need_a_decision() -> None:
    with pytest.raises(UsageError, match="need 3 channels") as caught:
        make("retinal", channels=1)
    assert caught.value.hint == "set `augment.saturation=0 augment.hue=0`"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_of_volumes_differs_from_slice_to_slice_and_has_its_strength(dtype: type) -> None:
    image = np.full((6, 48, 48, 2), 128 if dtype == np.uint8 else 0.5, dtype=dtype)
    augment = make("images", size=(6, 48, 48), channels=2, noise_p=1.0, noise_std=(0.1, 0.1), affine_p=0.0, color_p=0.0)
    noise = augment.train(image, seed=0).image.astype(float) - image.astype(float)
    assert noise.std() == pytest.approx(0.1 * (255 if dtype == np.uint8 else 1), rel=0.03)
    assert np.corrcoef(noise[0, ..., 0].ravel(), noise[1, ..., 0].ravel())[0, 1] < 0.1
    np.testing.assert_array_equal(noise[..., 0], noise[..., 1])
