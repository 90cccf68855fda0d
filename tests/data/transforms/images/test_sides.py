from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.errors import UsageError
from tests.data.transforms.images.image_data import listed, make

FLIP = {"name": "HorizontalFlip", "p": 0.5}
UPSIDE_DOWN = {"name": "VerticalFlip", "p": 0.5}


def marked(*shape: int) -> np.ndarray:
    """The left half is bright."""
    image = np.zeros((*shape, 1), dtype=np.uint8)
    image[..., : shape[-1] // 2, :] = 200
    return image


def is_right(image: np.ndarray) -> bool:
    half = image.shape[-2] // 2
    return bool(image[..., half:, :].mean() > image[..., :half, :].mean())


@pytest.mark.parametrize(
    "transforms",
    [
        [FLIP],
        [FLIP, UPSIDE_DOWN],
        [FLIP, FLIP, {"name": "Affine", "rotate": [-20, 20], "p": 0.5}],
        [{"name": "OneOf", "transforms": [FLIP, UPSIDE_DOWN], "p": 0.8}],
        [{"name": "SomeOf", "n": 2, "transforms": [FLIP, UPSIDE_DOWN, {"name": "NoOp"}]}],
        [{"name": "RandomOrder", "n": 2, "transforms": [FLIP, {"name": "Sequential", "transforms": [FLIP, FLIP]}]}],
        [{"name": "OneOrOther", "transforms": [FLIP, {"name": "Sequential", "transforms": [FLIP]}]}],
    ],
)
def test_mirrored_says_where_the_left_half_is(transforms: list[dict[str, Any]]) -> None:
    augment = listed(*transforms, channels=1)
    assert augment.mirrors
    assert augment.turning == ()
    augment.require_sides()
    seen = set()
    for seed in range(40):
        image, _, mirrored = augment.train(marked(48, 48), seed=seed)
        assert mirrored == is_right(image)
        seen.add(mirrored)
    assert seen == {True, False}
    assert not augment.evaluate(marked(48, 48)).mirrored


@pytest.mark.parametrize("name", ["D4", "SquareSymmetry", "Transpose", "RandomRotate90"])
def test_turns_are_told_and_refused_where_sides_matter(name: str) -> None:
    augment = listed({"name": name, "p": 1}, FLIP, channels=1)
    assert augment.turning == (name,)
    assert augment.mirrors
    with pytest.raises(UsageError, match=name):
        augment.require_sides()
    for seed in range(40):  # the corners alone: after a quarter turn neither side is left or right
        image, _, mirrored = augment.train(marked(48, 48), seed=seed)
        quarter_turn = image[0, 0, 0] != image[-1, 0, 0]
        assert mirrored == (not quarter_turn and is_right(image))


@pytest.mark.parametrize(
    ("transform", "turns"),
    [
        ({"name": "Rotate"}, True),  # its default is 90 degrees
        ({"name": "Rotate", "limit": 45}, False),
        ({"name": "SafeRotate", "limit": [-10, 60]}, True),
        ({"name": "Affine", "rotate": [-180, 180]}, True),
        ({"name": "Affine", "rotate": 30, "scale": {"x": [0.9, 1.1]}}, False),
        ({"name": "Affine", "scale": {"x": [-1, 1]}}, True),
        ({"name": "RandomGridShuffle"}, True),
        ({"name": "D4", "p": 0}, False),
        ({"name": "OneOf", "transforms": [{"name": "D4"}], "p": 0}, False),
        ({"name": "Perspective"}, False),
    ],
)
def test_what_turns(transform: dict[str, Any], turns: bool) -> None:
    augment = listed(transform)
    assert bool(augment.turning) == turns
    assert augment.mirrors == turns


def test_volumes_are_mirrored_along_their_last_axis() -> None:
    augment = make("images", size=(4, 32, 32), channels=1, affine_p=0.0, noise_p=0.0, color_p=0.0)
    seen = set()
    for seed in range(20):
        volume, _, mirrored = augment.train(marked(4, 32, 32), seed=seed)
        assert mirrored == is_right(volume)
        seen.add(mirrored)
    assert seen == {True, False}


def test_the_presets() -> None:
    assert make("images").mirrors
    assert make("images").turning == ()
    assert not make("images", mirror_p=0.0).mirrors
    assert make("images", rotation_degrees=90.0).turning == ("Affine",)
    assert make("retinal").turning == ("RandomRotate90",)
    assert make("retinal", rotate90_p=0.0).turning == ()
    assert not make("images_none").mirrors
