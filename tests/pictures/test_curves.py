from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.metrics.calibration import reliability
from medtrain.pictures.curves import Scores, draw_calibration, draw_precision_recall, draw_roc, scores_of_classes
from medtrain.pictures.figure import MAIN, SECOND, TOP, draw_sentence

# thresholds 0.9 .. 0.6 accept: true, false, true, false
_FOUR = Scores("ill", np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 1.0, 0.0]))


def _place(x: float, y: float) -> tuple[int, int]:
    """Row and column of a point of the square."""
    return round(TOP + (1.02 - y) / 1.04 * 400), round(68 + (x + 0.02) / 1.04 * 400)


def _drawn(mask: np.ndarray, x: float, y: float, reach: int = 2) -> bool:
    row, column = _place(x, y)
    return bool(mask[row - reach : row + reach + 1, column - reach : column + reach + 1].any())


def test_the_roc_curve_goes_through_its_points(find: Any) -> None:
    blue = find(draw_roc([_FOUR]), MAIN)
    # (0, 0) up to (0, 0.5), right to (0.5, 0.5), up to (0.5, 1), right to (1, 1)
    for x, y in ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)):
        assert _drawn(blue, x, y), (x, y)
    for x, y in ((0.25, 0.75), (0.75, 0.5), (0.25, 0.25), (0.5, 0.25)):
        assert not _drawn(blue, x, y), (x, y)


def test_the_precision_recall_curve_is_a_staircase(find: Any) -> None:
    blue = find(draw_precision_recall([_FOUR]), MAIN)
    # precision 1 up to recall 0.5, where it falls to 1/2; 2/3 up to recall 1, where it falls to 1/2
    for x, y in ((0.25, 1), (0.5, 0.8), (0.75, 2 / 3), (1, 0.6)):
        assert _drawn(blue, x, y), (x, y)
    for x, y in ((0.75, 0.8), (0.25, 0.8), (0.5, 0.3)):
        assert not _drawn(blue, x, y), (x, y)


def test_the_chosen_threshold_is_a_dot_where_it_puts_the_model(find: Any) -> None:
    # 0.65 accepts both positives and one of two negatives
    chosen = Scores(_FOUR.name, _FOUR.scores, _FOUR.labels, threshold=0.65)
    for draw, (x, y) in ((draw_roc, (0.5, 1.0)), (draw_precision_recall, (1.0, 2 / 3))):
        row, column = _place(x, y)
        window = np.s_[row - 5 : row + 6, column - 5 : column + 6]
        with_dot, without = find(draw([chosen]), MAIN)[window].sum(), find(draw([_FOUR]), MAIN)[window].sum()
        assert with_dot > without + 20


def test_unlabelled_samples_are_left_out() -> None:
    more = Scores("ill", np.append(_FOUR.scores, [0.99, 0.01]), np.append(_FOUR.labels, [np.nan, np.nan]))
    np.testing.assert_array_equal(draw_roc([more]), draw_roc([_FOUR]))
    np.testing.assert_array_equal(draw_precision_recall([more]), draw_precision_recall([_FOUR]))


@pytest.mark.parametrize("classes", [3, 8, 30])
def test_every_class_has_a_line_of_the_legend_and_its_colour(classes: int, find: Any, runs: Any, rng: Any) -> None:
    labels = np.arange(300.0) % classes
    probs = rng.dirichlet(np.ones(classes), 300) + 0.3 * np.eye(classes)[labels.astype(int)]
    names = [f"class {index} of very many classes with long names {index}" for index in range(classes)]
    pixels = draw_roc(scores_of_classes(probs, labels, names))
    legend = (pixels < 140).all(axis=-1)[TOP:, 68 + 400 + 56 :]
    assert runs(legend) == classes
    assert legend[:, -4:].sum() == 0  # nothing is cut off at the edge
    assert find(pixels, SECOND)[TOP:, 68 + 400 + 18 : 68 + 400 + 52].any()


def test_classes_of_one_kind_of_label_only_are_named_beside_the_others(runs: Any, rng: Any) -> None:
    labels = np.array([0.0, 1.0] * 20)
    probs = rng.dirichlet(np.ones(3), 40)
    pixels = draw_roc(scores_of_classes(probs, labels, ["a", "b", "never"]))
    text = (pixels < 190).all(axis=-1)[TOP:, 68 + 400 + 20 :]
    assert runs(text) == 4  # two classes, "undefined", its name


def test_without_positives_and_negatives_there_is_a_sentence() -> None:
    one = Scores("ill", np.array([0.1, 0.2]), np.zeros(2))
    reason = "needs positive and negative samples: all labelled samples are alike for ill."
    np.testing.assert_array_equal(draw_roc([one]), draw_sentence("ROC curve", f"The ROC curve {reason}"))
    np.testing.assert_array_equal(
        draw_precision_recall([one]), draw_sentence("precision-recall curve", f"The precision-recall curve {reason}")
    )
    empty = Scores("ill", np.empty(0), np.empty(0))
    assert draw_roc([empty]).shape == (130, 560, 3)
    nothing = draw_calibration({"model": reliability(np.empty(0), np.empty(0))})
    expected = "There is no labelled sample: nothing is known of the calibration."
    np.testing.assert_array_equal(nothing, draw_sentence("calibration", expected))


def test_scores_of_two_classes_are_those_of_the_second() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    (only,) = scores_of_classes(probs, np.array([0.0, 1.0, np.nan]), ["normal", "ill"], thresholds={"ill": 0.4})
    assert (only.name, only.threshold) == ("ill", 0.4)
    np.testing.assert_array_equal(only.scores, [0.1, 0.8, 0.5])
    np.testing.assert_array_equal(only.labels, [0, 1, np.nan])
    multilabel = scores_of_classes(probs, np.array([[1, 0], [0, np.nan], [1, 1]]), ["a", "b"])
    assert [one.name for one in multilabel] == ["a", "b"]
    np.testing.assert_array_equal(multilabel[1].labels, [0, np.nan, 1])


def test_calibration_shows_what_was_said_and_what_came_true(find: Any) -> None:
    # 0.25 said, half came true; 0.75 said, all came true: bins of a quarter
    probs, outcomes = np.array([0.25, 0.25, 0.75, 0.75]), np.array([0, 1, 1, 1])
    blue = find(draw_calibration({"model": reliability(probs, outcomes, bins=4)}), MAIN)
    assert _drawn(blue, 0.25, 0.5)
    assert _drawn(blue, 0.75, 1.0)
    assert _drawn(blue, 0.5, 0.75)  # on the line between them
    assert not _drawn(blue, 0.5, 0.5)
    # the histogram has two equal bars, of the bins (0, 1/4] and (1/2, 3/4]
    bars = blue[TOP + 400 + 20 : TOP + 400 + 16 + 88].all(axis=0) | blue[TOP + 400 + 50 : TOP + 400 + 90].all(axis=0)
    inside = [bars[_place(x, 0)[1]] for x in (0.125, 0.375, 0.625, 0.875)]
    assert inside == [True, False, True, False]


def test_several_calibrations_share_a_picture(find: Any, rng: Any) -> None:
    said = rng.random(200)
    came = rng.random(200) < said
    both = {"before": reliability(said, came), "after": reliability(said**2, came)}
    pixels = draw_calibration(both)
    assert pixels.shape[0] > draw_calibration({"before": both["before"]}).shape[0]
    for color in (MAIN, SECOND):
        assert find(pixels, color)[TOP : TOP + 400].any()
        assert find(pixels, color)[TOP + 420 : TOP + 500].any()
