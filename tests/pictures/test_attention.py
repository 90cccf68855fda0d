from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.pictures.attention import draw_attention
from medtrain.pictures.figure import draw_sentence
from medtrain.pictures.samples import Sample

_TOP_BAR, _BAR = "#e69f00", "#56b4e9"


def _bag(weights: list[float], present: list[bool] | None = None) -> Sample:
    images = np.stack([np.full((3, 8, 8), 5 + index, np.uint8) for index in range(len(weights))])
    there = np.ones(len(weights), bool) if present is None else np.array(present)
    return Sample("bag", images, "a", "a", True, present=there, attention=np.array(weights))


def _bars(mask: np.ndarray) -> list[tuple[int, int]]:
    """First column and height of every bar."""
    columns = np.flatnonzero(np.diff(mask.any(axis=0).astype(int), prepend=0) == 1)
    return [(int(column), int(mask[:, column + 2].sum())) for column in columns]


def test_bars_are_as_high_as_the_shares_and_the_shown_ones_orange(find: Any) -> None:
    pixels = draw_attention(_bag([1.0, 4.0, 2.0, 1.0]), top=2, panel_size=90)[:270]
    orange, blue = _bars(find(pixels, _TOP_BAR)), _bars(find(pixels, _BAR))
    assert [height / orange[0][1] for _, height in orange] == pytest.approx([1, 0.5], abs=0.03)
    assert [height / orange[0][1] for _, height in blue] == pytest.approx([0.25, 0.25], abs=0.03)
    assert blue[0][0] < orange[0][0] < orange[1][0] < blue[1][0]  # in the order of the instances


def test_the_shown_instances_stand_below_the_bars_most_attention_first(find: Any) -> None:
    pixels = draw_attention(_bag([1.0, 4.0, 2.0, 1.0]), top=2, panel_size=90)
    places = [np.nonzero(find(pixels, (5 + index,) * 3, 0)) for index in range(4)]
    assert [len(rows) >= 8100 for rows, _ in places] == [False, True, True, False]
    assert places[1][1].min() < places[2][1].min()


def test_padding_gets_no_bar_and_no_share(find: Any) -> None:
    padded = draw_attention(_bag([1.0, 4.0, 9.0], [True, True, False]), panel_size=90)
    np.testing.assert_array_equal(padded, draw_attention(_bag([1.0, 4.0]), panel_size=90))


def test_known_instances_are_marked_above_their_bars(find: Any) -> None:
    bag = _bag([0.2, 0.3, 0.5])
    plain, marked = draw_attention(bag), draw_attention(bag, marked=np.array([False, False, True]))
    height = 270
    changed = np.nonzero((plain[:height] != marked[:height]).any(axis=-1))[1]
    start = _bars(find(plain[:height], _TOP_BAR))[2][0]
    assert changed.min() > start
    assert len(np.unique(changed)) < 20


@pytest.mark.parametrize("count", [5, 200])
def test_numbers_of_instances_do_not_touch(count: int, rng: Any) -> None:
    pixels = draw_attention(_bag(rng.dirichlet(np.ones(count)).tolist()), panel_size=180)
    axis = (pixels[243:258] > 200).all(axis=-1).any(axis=0)
    gaps = np.flatnonzero(np.diff(axis[62:].astype(int)))
    ends, starts = gaps[1:-1:2], gaps[2::2]
    assert len(starts) >= 4
    assert sum(starts - ends > 8) >= 4


def test_without_attention_or_instances_there_is_a_sentence() -> None:
    none = Sample("bag", None, "a", "a", present=np.ones(2, bool))
    np.testing.assert_array_equal(
        draw_attention(none), draw_sentence("attention", "The model gave no attention over instances.")
    )
    empty = _bag([0.5, 0.5], [False, False])
    expected = draw_sentence("attention", "bag has no instance: there is nothing to look at.")
    np.testing.assert_array_equal(draw_attention(empty), expected)
