from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from medtrain.pictures.figure import draw_sentence
from medtrain.pictures.heat import Explained, draw_heat_maps, draw_instance_maps, heat_colors, lay_heat
from medtrain.pictures.samples import Sample

_HOT = tuple(round(255 * value) for value in mpl.colormaps["plasma"](1.0)[:3])


def test_the_scale_runs_from_dark_to_bright() -> None:
    colors = heat_colors(np.linspace(0, 1, 50)).astype(float)
    light = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()  # its order is seen without colours
    assert tuple(heat_colors(np.array([1.0, 7.0]))[1]) == _HOT
    np.testing.assert_array_equal(heat_colors(np.array([np.nan, -1.0])), heat_colors(np.zeros(2)))


def test_without_heat_the_picture_is_as_it_was_and_with_full_heat_it_is_the_colour() -> None:
    background = np.full((8, 8, 3), 120, np.uint8)
    heat = np.zeros((8, 8))
    heat[:4] = 1.0
    pixels = lay_heat(background, heat, opacity=1.0)
    assert (pixels[4:] == 120).all()
    assert (pixels[:4] == _HOT).all()
    half = lay_heat(background, heat, opacity=0.5)
    np.testing.assert_allclose(half[0, 0], (np.array(_HOT) + 120) / 2, atol=1)


def test_colour_pictures_become_grey_under_the_heat() -> None:
    background = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    pixels = lay_heat(background, np.zeros((4, 4)))
    assert (pixels == 76).all()  # 0.299 * 255


def test_small_maps_are_enlarged_with_their_areas_in_place() -> None:
    background = np.zeros((40, 40, 3), np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 3] = 1.0
    pixels = lay_heat(background, heat, opacity=1.0)
    bright = pixels.sum(axis=-1)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert row <= 5  # the corner's cell has its middle between pixels 4 and 5, and 34 and 35
    assert column >= 34
    assert bright[4, 35] > 0.85 * sum(_HOT)
    assert bright[:, :20].max() == 0
    assert bright[20:].max() == 0


def test_every_map_is_a_column_beside_its_image_above_the_scale(find: Any) -> None:
    image = np.full((1, 16, 16), 100, np.uint8)
    left, right = np.zeros((16, 16)), np.zeros((16, 16))
    left[:, :8], right[:, 8:] = 1.0, 1.0
    pixels = draw_heat_maps([Explained(image, {"mild": left, "severe": right})], title="t", panel_size=64, opacity=1.0)
    hot = find(pixels[:-36], _HOT, 1)
    columns = np.flatnonzero(hot.any(axis=0))
    first, second = columns[columns < columns.mean()], columns[columns > columns.mean()]
    step = 64 + 8
    assert second.min() - first.min() == pytest.approx(step + 32, abs=3)  # the other half of the next panel
    scale = pixels[-36:]
    ends = [
        np.flatnonzero(find(scale, tuple(color.tolist()), 1).any(axis=0)) for color in heat_colors(np.array([0.0, 1.0]))
    ]
    assert ends[1].max() - ends[0].min() == pytest.approx(220, abs=2)


def test_of_a_volume_the_slice_with_the_most_heat_is_shown(find: Any) -> None:
    image = np.zeros((1, 8, 16, 16), np.float32)
    image[0, 5, :, 2:14] = 1.0
    heat = np.zeros((4, 4, 4))
    heat[2, :, 0] = 1.0  # slices 4 and 5 of the image, at the left
    rows = [Explained(image, {"ill": heat})]
    pixels = draw_heat_maps(rows, title="t", panel_size=64, opacity=1.0)
    hot = find(pixels[:-36], _HOT, 1)
    # left and right change places for display: the patient's right is on the left of the picture
    start = 8 + 64 + 8  # of the second panel
    assert np.flatnonzero(hot.any(axis=0)).min() >= start + 32


def test_without_images_there_is_a_sentence_and_no_evidence_is_no_colour() -> None:
    np.testing.assert_array_equal(draw_heat_maps([], title="t"), draw_sentence("t", "There is no image to explain."))
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    pixels = draw_heat_maps([Explained(image, {"ill": np.zeros((2, 2))})], title="t", panel_size=64)
    panels = pixels[70 : 70 + 50].astype(int)
    assert np.ptp(panels, axis=-1).max() <= 2


def test_a_map_that_is_not_given_is_left_dark(find: Any) -> None:
    image, hot = np.full((1, 16, 16), 100, np.uint8), np.ones((16, 16))
    both, one = (
        draw_heat_maps([Explained(image, {"a": hot, "b": other})], title="t", panel_size=64, opacity=1.0)[:-36]
        for other in (hot, None)
    )
    assert both.shape == one.shape
    assert find(both, _HOT, 1).sum() == 2 * 64 * 64
    assert find(one, _HOT, 1).sum() == 64 * 64


def test_many_rows_of_few_maps_stand_in_two_columns(find: Any) -> None:
    image, hot = np.full((1, 16, 16), 100, np.uint8), np.ones((16, 16))
    six, seven = (
        draw_heat_maps([Explained(image, {"a": hot})] * count, title="t", panel_size=240, opacity=1.0)
        for count in (6, 7)
    )
    assert find(seven[:-36], _HOT, 1).sum() == 7 * 240 * 240
    assert seven.shape[0] < six.shape[0]
    assert seven.shape[1] > 1.5 * six.shape[1]


def test_of_a_bag_the_instances_with_attention_are_drawn_under_their_heat(find: Any) -> None:
    sample = Sample(
        sample_id="bag",
        image=np.full((4, 1, 16, 16), 100, np.uint8),
        truth="a",
        predicted="b",
        present=np.array([True, True, True, False]),
        attention=np.array([0.1, 0.6, 0.3, 0.0]),
    )
    maps = np.zeros((4, 16, 16))
    maps[1] = 1  # the one with the most attention
    maps[0] = 1  # not among the two that are shown
    maps[3] = 1  # not there
    pixels = draw_instance_maps([("worst", sample, maps)], title="t", columns=2, panel_size=64, opacity=1.0)
    assert find(pixels[:-36], _HOT, 1).sum() == 64 * 64
    views = draw_instance_maps(
        [("", sample, maps)], title="t", view_names=("w", "x", "y", "z"), panel_size=64, opacity=1.0
    )
    assert find(views[:-36], _HOT, 1).sum() == 2 * 64 * 64  # all views, but the one that is missing has no heat
    assert draw_instance_maps([], title="t").shape[2] == 3
