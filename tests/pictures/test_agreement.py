from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.pictures.agreement import draw_agreement, draw_global_scores, draw_grades
from medtrain.pictures.figure import MAIN, SECOND, TOP, cut, draw_sentence, widest

_LEFT, _SIDE = 68, 400
_RIGHT = _LEFT + _SIDE + 76


def _rows(mask: np.ndarray) -> list[int]:
    """Rows in which a coloured line crosses most of the picture's part."""
    return np.flatnonzero(mask.sum(axis=1) > 0.5 * mask.shape[1]).tolist()


def test_the_mean_difference_and_the_limits_of_agreement_are_lines(find: Any) -> None:
    # differences 1, 3, 1, 3: mean 2, standard deviation sqrt(4 / 3) = 1.1547, limits 2 -+ 2.2632 = -0.2632, 4.2632
    true = np.array([10.0, 20.0, 30.0, 40.0])
    pixels = draw_agreement(true + [1.0, 3.0, 1.0, 3.0], true)
    orange = find(pixels, SECOND, 40)[TOP : TOP + _SIDE, _RIGHT : _RIGHT + _SIDE]
    reach = 1.15 * 4.2632
    expected = [(reach - value) / (2 * reach) * _SIDE for value in (4.2632, 2.0, -0.2632)]
    rows = np.array(_rows(orange | np.roll(orange, 12, axis=1)))  # two of them are dashed
    for place in expected:
        assert np.abs(rows - place).min() <= 2
    assert all(np.abs(np.array(expected) - row).min() <= 3 for row in rows)


def test_perfect_predictions_lie_on_the_line_of_identity(find: Any) -> None:
    true = np.linspace(0, 10, 9)
    pixels = draw_agreement(true, true)
    blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 80)[TOP : TOP + _SIDE, _LEFT : _LEFT + _SIDE]
    rows, columns = np.nonzero(blue)
    assert np.abs(rows + columns - _SIDE).max() <= 8
    off = draw_agreement(true + 3, true)
    rows, columns = np.nonzero((off[..., 2].astype(int) - off[..., 0] > 80)[TOP : TOP + _SIDE, _LEFT : _LEFT + _SIDE])
    assert (rows + columns < _SIDE - 50).all()  # too much is said: above the line


def test_unlabelled_samples_are_left_out_and_without_others_there_is_a_sentence() -> None:
    true = np.array([1.0, 2.0, np.nan])
    said = np.array([1.5, 2.5, 9.0])
    np.testing.assert_array_equal(draw_agreement(said, true), draw_agreement(said[:2], true[:2]))
    sentence = "There is no labelled sample: nothing can be compared."
    expected = draw_sentence("age", sentence)
    np.testing.assert_array_equal(draw_agreement(said[2:], true[2:], title="age"), expected)
    np.testing.assert_array_equal(draw_grades(said[2:], true[2:], ["a", "b"], title="age"), expected)


@pytest.mark.parametrize("values", [np.zeros(1), np.full(3, 7.0), np.array([1e-9, 1e9])])
def test_odd_values_are_drawn(values: np.ndarray) -> None:
    assert draw_agreement(values, values, unit="$").shape == (TOP + _SIDE + 52, 2 * _SIDE + 216, 3)


def _scores_place(x: float, y: float, top: float = 3.0) -> tuple[int, int]:
    low, high = -0.04 * top, 1.04 * top
    return (
        round(TOP + 22 + (high - y) / (high - low) * _SIDE),
        round(_LEFT + (x - low) / (high - low) * _SIDE),
    )


def test_squares_of_the_right_risk_class_are_shaded() -> None:
    pixels = draw_global_scores(np.array([0.1]), np.array([0.1]), highest=3)
    blank = {(x, y): pixels[_scores_place(x, y)].tolist() for x in (0.75, 1.75, 2.75) for y in (0.7, 1.72, 2.72)}
    for (x, y), color in blank.items():
        shaded = (x < 1.3, x > 2.2) == (y < 1.3, y > 2.2)
        assert (color != [255, 255, 255]) == shaded, (x, y)


def test_every_image_is_a_point_as_large_as_the_number_of_its_like() -> None:
    true = np.array([0.5, 2.5, 2.5, 2.5, 2.5, 2.5])
    pixels = draw_global_scores(true, true, highest=3)
    blue = pixels[..., 2].astype(int) - pixels[..., 0] > 80

    def area(x: float) -> int:
        row, column = _scores_place(x, x)
        return int(blue[row - 20 : row + 21, column - 20 : column + 21].sum())

    assert area(2.5) == pytest.approx(5 * area(0.5), rel=0.25)
    assert area(1.0) == 0


def test_images_without_a_predicted_score_are_crosses_at_the_bottom_not_points_at_zero(find: Any) -> None:
    said, true = np.array([1.0, np.nan]), np.array([1.0, 2.0])
    pixels = draw_global_scores(said, true, highest=3)
    orange = find(pixels, SECOND, 60)
    rows, columns = np.nonzero(orange)
    row, column = _scores_place(2.0, -0.12)
    assert abs(rows.mean() - row) < 2
    assert abs(columns.mean() - column) < 2
    # without a true score: not drawn, but one line more of text
    more = draw_global_scores(np.append(said, 1.5), np.append(true, np.nan), highest=3)
    assert more.shape == pixels.shape
    end = TOP + 22 + _SIDE
    np.testing.assert_array_equal(more[TOP:end], pixels[TOP:end])
    assert (more[end:] != pixels[end:]).any()
    sentence = "No image has a true score: every zone is unknown or unlabelled."
    expected = draw_sentence("average score of each image", sentence)
    np.testing.assert_array_equal(draw_global_scores(said, np.full(2, np.nan)), expected)


def test_a_model_that_abstains_everywhere_is_drawn(find: Any) -> None:
    pixels = draw_global_scores(np.full(2, np.nan), np.array([1.0, 2.0]))
    assert find(pixels, SECOND, 60).any()
    assert not (pixels[..., 2].astype(int) - pixels[..., 0] > 80).any()


def test_the_median_of_every_grade_is_a_line_at_its_height(find: Any) -> None:
    # three grades: medians 0.5 and 2.0; nobody has grade 1
    labels = np.array([0.0, 0.0, 0.0, 2.0])
    pixels = draw_grades(np.array([0.1, 0.5, 0.9, 2.0]), labels, ["none", "mild", "severe"])
    orange = find(pixels, SECOND)
    slot, height = 110, pixels.shape[0] - TOP - 76
    columns = np.flatnonzero(orange.any(axis=0))
    starts = columns[np.flatnonzero(np.diff(columns, prepend=-9) > 1)]
    assert starts[1] - starts[0] == pytest.approx(2 * slot, abs=2)  # two of them, two grades apart
    assert len(columns) == pytest.approx(2 * 0.76 * slot, abs=8)
    for start, median in zip(starts, (0.5, 2.0), strict=True):
        row = TOP + (2.3 - median) / 2.6 * height
        assert abs(np.nonzero(orange[:, start : start + slot])[0].mean() - row) <= 2


@pytest.mark.parametrize("classes", [2, 30])
def test_names_of_grades_do_not_touch(classes: int, runs: Any, rng: Any) -> None:
    names = [f"grade {index} of a scale with long names {index}" for index in range(classes)]
    pixels = draw_grades(rng.random(60) * (classes - 1), rng.integers(0, classes, 60).astype(float), names)
    assert runs((pixels < 140).all(axis=-1)[TOP - 4 : -70, 30 : 40 + widest([cut(names[-1], 130)])]) == classes


def test_pictures_are_the_same_every_time(rng: Any) -> None:
    said, labels = rng.random(50) * 2, rng.integers(0, 3, 50).astype(float)
    first, second = (draw_grades(said, labels, ["a", "b", "c"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first[..., 2].astype(int) - first[..., 0] > 80).any()
    assert MAIN != SECOND
