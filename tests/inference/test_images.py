"""Prediction of images: parts, mirrored copies averaged as probabilities, settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference, batch_size, mirror_images, split_batch


def images(count: int = 1, size: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    pixels = torch.arange(count * torch.Size(size).numel(), dtype=torch.float32).reshape(count, 1, *size)
    return {"case_id": [f"c{index}" for index in range(count)], "image": pixels, "weight": float(count)}


def corner(batch: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
    """The first pixel of every image."""
    return batch["image"].flatten(1)[:, :1]


def test_probabilities_are_averaged_not_logits() -> None:
    def predict(batch: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
        return torch.sigmoid(corner(batch, axes))

    found = ImageInference(mirror=True).predict(predict, images(), spatial_dims=2, mirror=True)
    expected = (torch.tensor(0.0).sigmoid() + torch.tensor(2.0).sigmoid()) / 2  # pixels 0 and 2 are the corners
    assert float(found) == pytest.approx(float(expected))
    assert float(found) != pytest.approx(float(torch.tensor(1.0).sigmoid()))


@pytest.mark.parametrize(
    ("axes", "expected"),
    [(None, (0 + 2) / 2), ((0,), (0 + 3) / 2), ((1,), (0 + 2) / 2), ((0, 1), (0 + 3 + 2 + 5) / 4)],
)
def test_axes_are_those_of_the_image(axes: tuple[int, ...] | None, expected: float) -> None:
    found = ImageInference(mirror=True, mirror_axes=axes).predict(corner, images(), spatial_dims=2, mirror=True)
    assert float(found) == expected
    views = {**images(), "image": images()["image"][:, None]}  # [B, V, C, H, W]
    assert float(ImageInference(mirror=True, mirror_axes=axes).predict(corner, views, spatial_dims=2, mirror=True)) == (
        expected
    )


def test_the_copy_as_it_is_comes_first_and_says_how_it_is_mirrored() -> None:
    seen: list[tuple[int, ...]] = []

    def predict(batch: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
        seen.append(axes)
        return corner(batch, axes)

    settings = ImageInference(mirror=True, mirror_axes=(0, 2))
    settings.predict(predict, images(size=(2, 2, 2)), spatial_dims=3, mirror=True)
    assert seen == [(), (0,), (2,), (0, 2)]
    settings.predict(predict, images(size=(2, 2, 2)), spatial_dims=3, mirror=False)
    assert seen[4:] == [()]


def test_parts_have_the_batch_size_and_the_same_result() -> None:
    sizes = []

    def predict(batch: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
        sizes.append(len(batch["case_id"]))
        assert len(batch["image"]) == len(batch["case_id"])
        return corner(batch, axes)

    whole = ImageInference().predict(predict, images(5), spatial_dims=2, mirror=False)
    parts = ImageInference(batch_size=2).predict(predict, images(5), spatial_dims=2, mirror=False)
    assert sizes == [5, 2, 2, 1]
    assert torch.equal(whole, parts)
    assert whole.dtype == torch.float64


def test_a_batch_is_split_along_samples_only() -> None:
    batch = {**images(3), "names": ("a", "b"), "scale": torch.tensor(2.0)}
    first, second = split_batch(batch, 2)
    assert (first["case_id"], second["case_id"]) == (["c0", "c1"], ["c2"])
    assert second["names"] == ("a", "b")
    assert float(second["scale"]) == 2.0
    assert batch_size({"image": torch.zeros(4, 1)}) == 4
    assert next(split_batch(batch, 3)) is batch


def test_without_images_nothing_is_mirrored() -> None:
    table = {"case_id": ["a"], "numeric": torch.ones(1, 2)}
    assert mirror_images(table, (1,), 2) is table


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": "youden", "min_sensitivity": 0.9}, "both choose the threshold"),
        ({"mirror_axes": (0,)}, "has no effect without mirroring"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ImageInference(**settings)


def test_an_axis_that_an_image_does_not_have() -> None:
    with pytest.raises(UsageError, match="an image has 2 axes, 0 to 1"):
        ImageInference(mirror=True, mirror_axes=(2,)).copies(2, mirror=True)


def test_what_was_asked_for() -> None:
    assert not ImageInference().has_threshold
    assert ImageInference(threshold=0.3).has_threshold
    assert ImageInference(threshold=0.3).fixed_threshold == 0.3
    assert not ImageInference(threshold=0.3).chooses_threshold
    assert ImageInference(threshold="youden").chooses_threshold
    assert ImageInference(min_sensitivity=0.9).chooses_threshold
