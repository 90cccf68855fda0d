from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from medtrain.metrics.bootstrap import Interval
from medtrain.pictures.bars import draw_class_metrics
from medtrain.pictures.figure import EMPTY, MAIN, TOP, draw_sentence

_BAR = "#a6cbe3"
_ROW, _WIDTH = 26, 110


def _middle(row: int) -> int:
    """The line of pixels of a class just inside the upper edge of its bars."""
    return TOP + 26 + row * _ROW + 7


def test_a_bar_is_as_long_as_its_value(find: Any) -> None:
    values = {"recall/a": 0.5, "recall/b": 1.0, "recall/c": 0.0, "recall/d": math.nan}
    pixels = draw_class_metrics(values, ["a", "b", "c", "d"], ["recall"])
    bar, empty = find(pixels, _BAR), find(pixels, EMPTY)
    assert [int(bar[_middle(row)].sum()) for row in range(4)] == pytest.approx([55, 110, 0, 0], abs=1)
    assert [int(empty[_middle(row)].sum()) for row in range(4)] == pytest.approx([55, 0, 110, 110], abs=1)


def test_the_interval_reaches_from_end_to_end(find: Any) -> None:
    values = {"recall/a": Interval(0.5, 0.25, 0.75, 1000, 0), "recall/b": Interval(0.5, math.nan, math.nan, 0, 0)}
    pixels = draw_class_metrics(values, ["a", "b"], ["recall"])
    start = int(np.flatnonzero(find(pixels, _BAR)[_middle(0)])[0])
    line = find(pixels, MAIN, 60)
    columns = np.flatnonzero(line[TOP + 26 + _ROW // 2]) - start
    assert (columns.min(), columns.max()) == pytest.approx((0.25 * _WIDTH, 0.75 * _WIDTH), abs=2)
    assert not line[TOP + 26 + _ROW :].any()


def test_every_metric_is_a_column_and_the_average_a_last_row(find: Any) -> None:
    values = {"f1/a": 1.0, "auroc/a": 0.5, "f1_macro": 0.25}
    pixels = draw_class_metrics(values, ["a"], ["f1", "auroc"], support=[3])
    bar = find(pixels, _BAR)
    assert int(bar[_middle(0)].sum()) == pytest.approx(165, abs=2)
    last = bar[_middle(1) + 8]
    assert int(last.sum()) == pytest.approx(27.5, abs=1)
    assert draw_class_metrics({"f1/a": 1.0}, ["a"], ["f1"]).shape[0] == pixels.shape[0] - _ROW - 8


@pytest.mark.parametrize("classes", [2, 30])
def test_rows_do_not_touch(classes: int, runs: Any) -> None:
    names = [f"class {index} of very many classes with long names {index}" for index in range(classes)]
    pixels = draw_class_metrics({f"f1/{name}": 0.5 for name in names}, names, ["f1"])
    left = int(np.flatnonzero((pixels[_middle(0)] == (166, 203, 227)).all(axis=-1))[0])
    assert runs((pixels < 140).all(axis=-1)[TOP + 26 :, : left - 4]) == classes
    assert (pixels[:, :8] == 255).all()  # nothing is cut off


def test_without_a_defined_metric_there_is_a_sentence() -> None:
    expected = draw_sentence("metrics of each class", "No metric is defined for any class.")
    np.testing.assert_array_equal(draw_class_metrics({"f1/a": math.nan}, ["a"], ["f1"]), expected)
