"""Boxes and points as masks, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medtrain.data.marks import Box, Marks, Point


def test_a_box_is_a_mask_of_its_pixels() -> None:
    mask = Box(1, 0, 3, 2).mask((3, 4), (3, 4))
    assert mask.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert Box(2, 1, 9, 3).mask((3, 4), (3, 4)).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert not Box(4, 0, 6, 2).mask((3, 4), (3, 4)).any()


def test_on_a_coarser_grid_pixels_are_covered_in_part() -> None:
    # columns 1 to 3 of 4 are a half of each of two columns, rows 0 to 2 of 4 the first of two rows
    assert Box(1, 0, 3, 2).mask((4, 4), (2, 2)).tolist() == [[0.5, 0.5], [0, 0]]
    # a box smaller than a pixel of the grid does not vanish
    assert Box(3, 3, 4, 4).mask((8, 8), (2, 2)).tolist() == [[1 / 16, 0], [0, 0]]


def test_a_point_is_a_bump_of_height_one() -> None:
    bump = Point(2, 1, 1.0).mask((3, 4), (3, 4))
    assert bump[1, 2] == 1
    assert bump[0, 2] == pytest.approx(math.exp(-0.5))
    assert bump[2, 0] == pytest.approx(math.exp(-2.5))
    coarse = Point(1.5, 1.5, 2.0).mask((4, 4), (2, 2))  # in the middle, between four cells whose centres are 1 away
    np.testing.assert_allclose(coarse, math.exp(-2 / 8))
    # 20 of 224 pixels where nobody gave a radius
    wide = Point(100, 100).mask((224, 224), (224, 224))
    assert wide[100, 120] == pytest.approx(math.exp(-0.5), rel=0.02)


def test_several_marks_are_where_any_of_them_is() -> None:
    mask = Marks((Box(0, 0, 1, 1), Box(2, 1, 4, 2))).mask((2, 4), (2, 4))
    assert mask.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1]]
    bumps = Marks((Point(0, 0, 1.0), Point(3, 0, 1.0))).mask((1, 4), (1, 4))
    assert bumps[0, 0] == bumps[0, 3] == 1
    assert bumps[0, 1] == pytest.approx(math.exp(-0.5))
