from __future__ import annotations

import numpy as np
import pytest

from medtrain.errors import UsageError
from medtrain.pictures.case import WorstCase, draw_case
from medtrain.pictures.colors import EXTRA, IGNORED, MISSED, WRONG_CLASS, class_color
from medtrain.pictures.sheet import (
    Panel,
    Sheet,
    fit_size,
    grey,
    outline,
    overlay,
    paint,
    scale_labels,
    show_errors,
)

_NAMES = ["background", "liver", "tumour"]


def _volume(rng: np.random.Generator, shape: tuple[int, ...] = (20, 40, 48), channels: int = 2) -> WorstCase:
    label = np.zeros(shape, np.uint8)
    label[..., 10:30, 12:36] = 1
    label[..., 15:20, 20:26] = 2
    prediction = np.roll(label, 3, axis=-1)
    image = rng.standard_normal((channels, *shape)).astype(np.float32) + 3 * (label > 0)
    return WorstCase(
        case_id="liver_007",
        score=0.61,
        image=image.astype(np.float32),
        label=label,
        prediction=prediction,
        spacing=(5.0, 1.5, 1.5)[-len(shape) :],
    )


def _has(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == np.array(color, np.uint8)).all(axis=-1).any())


def test_a_volume_is_a_grid_of_four_views_and_six_columns(rng: np.random.Generator) -> None:
    pixels = draw_case(_volume(rng), _NAMES, title="t", panel_size=100)
    assert pixels.dtype == np.uint8
    assert 6 * 60 < pixels.shape[1] < 6 * 100 + 100
    assert 4 * 60 < pixels.shape[0] < 4 * 100 + 200
    for color in (class_color(1), class_color(2), MISSED, EXTRA, WRONG_CLASS):
        assert _has(pixels, color)


def test_a_single_slice_and_a_picture_are_one_row(rng: np.random.Generator) -> None:
    slice_pixels = draw_case(_volume(rng, (1, 40, 48)), _NAMES, title="t", panel_size=100)
    picture_pixels = draw_case(_volume(rng, (40, 48), channels=3), _NAMES, title="t", panel_size=100)
    assert slice_pixels.shape[0] < 250
    assert picture_pixels.shape[0] < 250


def test_a_colour_picture_keeps_its_colours() -> None:
    label = np.zeros((32, 32), np.uint8)
    image = np.zeros((3, 32, 32), np.float32)
    image[0, :, 16:] = 1.0  # black, then red
    case = WorstCase(case_id="x", score=1.0, image=image, label=label, prediction=label, spacing=(1.0, 1.0))
    assert _has(draw_case(case, ["background", "lesion"], title="t", panel_size=64), (255, 0, 0))


def test_ignored_areas_are_grey_and_in_the_legend(rng: np.random.Generator) -> None:
    case = _volume(rng)
    without = draw_case(case, _NAMES, title="t", panel_size=96)
    case["label"][:, :5] = 3
    marked = draw_case(case, _NAMES, title="t", panel_size=96)
    assert (marked == IGNORED).all(axis=-1).sum() > (without == IGNORED).all(axis=-1).sum() + 1000


def test_nothing_to_see_is_no_error(rng: np.random.Generator) -> None:
    case = _volume(rng)
    case["label"][:] = 0
    case["prediction"][:] = 0
    case["image"][:] = 0
    assert not _has(draw_case(case, _NAMES, title="t", panel_size=96), class_color(1))


def test_a_missing_channel_is_an_error(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match=r"channel=2: the images have 2 channel\(s\)") as caught:
        draw_case(_volume(rng), _NAMES, title="t", channel=2)
    assert caught.value.hint == "callbacks.previews.channel=1 is the last one"


def test_size_follows_the_spacing() -> None:
    # 20 rows of 5 mm are 100 mm, 50 columns of 1 mm are 50 mm
    assert fit_size((20, 50), (5.0, 1.0), 300) == (300, 150)
    assert fit_size((4, 8), (1.0, 1.0), 64) == (32, 64)
    assert fit_size((1, 1000), (0.1, 1.0), 100) == (1, 100)


def test_labels_are_scaled_without_mixing() -> None:
    labels = np.array([[0, 2], [1, 0]])
    np.testing.assert_array_equal(
        scale_labels(labels, (4, 4)), [[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 0, 0], [1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(scale_labels(np.arange(9)[None], (1, 3)), [[1, 4, 7]])  # centres


def test_grey_levels_follow_the_window() -> None:
    plane = np.array([[-5.0, 0.0], [5.0, np.nan]])
    pixels = grey(plane, (-5.0, 5.0), (2, 2))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 128], [255, 0]])
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_errors_are_told_apart() -> None:
    label = np.array([[1, 0, 1, 2, 1, 0, 7]])
    guess = np.array([[0, 1, 2, 2, 1, 0, 1]])
    pixels = show_errors(np.full((1, 7, 3), 200, np.uint8), label, guess, 3)
    same = (90, 90, 90)
    assert [tuple(p) for p in pixels[0].tolist()] == [MISSED, EXTRA, WRONG_CLASS, same, same, same, IGNORED]


def test_overlay_colours_areas_and_outlines() -> None:
    labels = np.zeros((9, 9), np.int64)
    labels[1:8, 1:8] = 1
    background = np.full((9, 9, 3), 100, np.uint8)
    pixels = overlay(background, labels, 2, opacity=0.5)
    assert tuple(pixels[0, 0]) == (100, 100, 100)
    assert tuple(pixels[1, 1]) == class_color(1)  # outline
    middle = [int((100 + c) / 2 + 0.5) for c in class_color(1)]
    assert pixels[4, 4].tolist() == middle
    assert not outline(np.ones((5, 5), int)).any()  # the edge of the picture is no outline


def test_colours_are_distinct_and_the_same_everywhere() -> None:
    colors = [class_color(index) for index in range(30)] + [MISSED, EXTRA, WRONG_CLASS, IGNORED]
    assert len(set(colors)) == len(colors)
    assert tuple(paint(np.array([[2]]), 5)[0, 0]) == tuple(paint(np.array([[2]]), 9)[0, 0]) == class_color(2)
    assert tuple(paint(np.array([[-1]]), 5)[0, 0]) == IGNORED


def test_sheet_grows_with_a_long_title_and_legend() -> None:
    panel = Panel(np.zeros((10, 10, 3), np.uint8))
    small = Sheet("t", ["a"], [("", [panel])]).draw()
    large = Sheet("a long title " * 20, ["a"], [("axial 1/2", [panel])], [(f"class {i}", (i, i, i)) for i in range(80)])
    drawn = large.draw()
    assert drawn.shape[1] > 1500
    assert drawn.shape[0] > small.shape[0] + 100  # several lines of legend
