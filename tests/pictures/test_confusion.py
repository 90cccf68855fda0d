from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from medtrain.pictures.confusion import draw_confusion, draw_zone_confusions
from medtrain.pictures.figure import EMPTY, TOP, draw_sentence

_DARK, _LIGHT = mpl.colormaps["Blues"](1.0), mpl.colormaps["Blues"](0.0)


def _color(rgba: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in rgba[:3])


def _center(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


def test_rows_are_true_and_columns_predicted_classes(find: Any) -> None:
    # all of class 0 are taken for class 1: the dark cell is in the first row, at the right
    pixels = draw_confusion(np.array([[0.0, 8.0], [3.0, 3.0]]), ["normal", "ill"])
    row, column = _center(find(pixels, _color(_DARK))[:, :-90])  # without the scale
    half = find(pixels, _color(mpl.colormaps["Blues"](0.5)))
    below, left = _center(half[:, :-90])
    assert row == pytest.approx(TOP + 48, abs=6)  # cells of 96
    assert below == pytest.approx(TOP + 96 + 48, abs=6)
    assert column - left == pytest.approx(
        48, abs=6
    )  # 0.5 fills the second row, whose middle is half a cell to the left
    # the empty cell
    empty = find(pixels, _color(_LIGHT))[:, :-90]
    assert _center(empty)[0] == pytest.approx(TOP + 48, abs=3)
    assert column - _center(empty)[1] == pytest.approx(96, abs=6)


def test_colour_is_the_share_of_the_row_not_the_count(find: Any) -> None:
    pixels = draw_confusion(np.diag([1000.0, 1.0]), ["common", "rare"])
    dark = find(pixels, _color(_DARK))[:, :-90]
    assert dark[TOP : TOP + 96].sum() > 6000
    assert dark[TOP + 96 : TOP + 192].sum() > 6000


def test_a_class_without_samples_is_a_grey_row(find: Any) -> None:
    pixels = draw_confusion(np.array([[4.0, 0, 0], [0, 0, 0], [0, 0, 4.0]]), ["a", "b", "c"])
    grey = find(pixels, EMPTY)
    assert grey.sum() > 0.9 * 3 * 96 * 90
    assert _center(grey)[0] == pytest.approx(TOP + 1.5 * 96, abs=2)


@pytest.mark.parametrize("classes", [2, 5, 12, 30])
def test_names_of_any_number_of_classes_do_not_touch(classes: int, runs: Any) -> None:
    names = [f"finding {index} of the upper lobe of the left lung, segment {index}" for index in range(classes)]
    pixels = draw_confusion(1003 * np.eye(classes), names)
    ink = (pixels < 160).all(axis=-1)
    dark = find_left(pixels)
    cell = round((pixels.shape[1] - 90 - dark) / classes)
    bottom = TOP + classes * cell
    assert runs(ink[TOP:bottom, 30 : dark - 6]) == classes  # a row of text each
    assert runs(ink[bottom + 6 : -34, dark : dark + classes * cell].T) == classes


def find_left(pixels: np.ndarray) -> int:
    """The first column of the matrix."""
    blue = (pixels[TOP + 2 : TOP + 20, :, 2].astype(int) - pixels[TOP + 2 : TOP + 20, :, 0]) > 60
    return int(np.flatnonzero(blue.all(axis=0))[0])


def test_grades_frame_the_cells_that_are_off_by_one(find: Any) -> None:
    counts = np.eye(5) * 10
    plain, framed = (draw_confusion(counts, list("abcde"), ordered=ordered) for ordered in (False, True))
    width = min(plain.shape[1], framed.shape[1]) - 100
    changed = (plain[TOP + 5 : TOP + 285, :width] != framed[TOP + 5 : TOP + 285, :width]).any(axis=-1)
    left = find_left(plain)
    inside = changed[:, left + 5 :]
    # row 2 (of 58 pixels) is framed before column 1 and behind column 3
    columns = np.flatnonzero(inside[2 * 58 : 3 * 58 - 10].any(axis=0)) + 5
    assert set(np.round(columns / 58).astype(int)) == {1, 4}
    assert np.abs(columns / 58 - np.round(columns / 58)).max() < 0.06


def test_an_additional_column_such_as_no_prediction() -> None:
    counts = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]])
    wide = draw_confusion(counts, ["low", "high"], predicted_names=["low", "high", "none"])
    narrow = draw_confusion(counts[:, :2], ["low", "high"])
    assert wide.shape[1] - narrow.shape[1] == 96


def test_without_samples_there_is_a_sentence() -> None:
    expected = draw_sentence("confusion matrix", "There is no labelled sample: nothing can be compared.")
    np.testing.assert_array_equal(draw_confusion(np.zeros((2, 2)), ["a", "b"]), expected)
    expected = draw_sentence("zones", "There is no labelled zone: nothing can be compared.")
    np.testing.assert_array_equal(
        draw_zone_confusions(np.zeros((3, 2, 2)), ["a", "b"], list("xyz"), title="zones"), expected
    )


def test_zones_stand_in_pairs_each_with_its_own_matrix(find: Any) -> None:
    zones = ["right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf"]
    counts = np.stack([np.diag([5.0, 5.0])] * 5 + [np.zeros((2, 2))])
    pixels = draw_zone_confusions(counts, ["0", "1"], zones)
    step = 2 * 96 + 32  # cells, and the line of the zone's name
    dark = find(pixels, _color(_DARK))[:, :-70]
    tops = [dark[TOP + 22 + line * step : TOP + 22 + line * step + 192] for line in range(3)]
    whole = 2 * 96 * 96
    for line, matrices in ((0, 2), (1, 2), (2, 1)):  # the last zone has no label and no blue
        assert tops[line].sum() == pytest.approx(matrices * whole, rel=0.12)
    assert find(pixels, EMPTY)[TOP + 22 + 2 * step :].sum() == pytest.approx(4 * 96 * 96, rel=0.1)


def test_pictures_are_the_same_every_time() -> None:
    counts = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(draw_confusion(counts, list("abc")), draw_confusion(counts, list("abc")))
