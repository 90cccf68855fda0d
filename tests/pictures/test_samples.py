from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medtrain.pictures.figure import draw_sentence
from medtrain.pictures.samples import (
    Sample,
    attention_shares,
    describe,
    draw_samples,
    top_instances,
)
from medtrain.pictures.thumbnails import BACKGROUND, RIGHT, TEXT, WRONG, absent, captioned, thumbnail, write

_RED = (250, 0, 0)


def _flat(color: tuple[int, int, int], size: int = 20) -> np.ndarray:
    """A picture of one colour [3, H, W]."""
    return np.broadcast_to(np.array(color, np.uint8)[:, None, None], (3, size, size)).copy()


def test_colour_pictures_are_shown_in_their_colours_and_others_in_grey() -> None:
    pixels = thumbnail(_flat((200, 100, 50)), 64)
    assert pixels.shape == (64, 64, 3)
    assert (pixels == (200, 100, 50)).all()
    ramp = np.linspace(0, 60000, 64).astype(np.uint16)[None, None].repeat(64, axis=1)  # 16 bit [1, 64, 64]
    grey = thumbnail(ramp, 64)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert grey[32, 1, 0] < 10
    assert grey[32, -2, 0] > 245


def test_pictures_keep_their_aspect_in_the_middle_of_the_square() -> None:
    image = _flat((200, 100, 50))[:, :10]  # twice as wide as high
    pixels = thumbnail(image, 40)
    assert (pixels[:9] == BACKGROUND).all()
    assert (pixels[10:30] == (200, 100, 50)).all()
    assert (pixels[31:] == BACKGROUND).all()


def test_of_a_volume_the_middle_slice_is_shown_with_the_front_on_top() -> None:
    volume = np.zeros((1, 5, 8, 8), np.float32)
    volume[0, 2, 6:] = 1.0  # posterior to anterior: the front of the body
    volume[0, 4] = 1.0
    pixels = thumbnail(volume, 64)
    assert (pixels[:12] > 250).all()
    assert (pixels[24:] < 5).all()
    assert (thumbnail(volume, 64, index=4) > 250).all()
    two = np.concatenate([np.zeros_like(volume), volume])
    np.testing.assert_array_equal(thumbnail(two, 64, channel=1), pixels)


def test_text_below_a_picture_stays_inside_its_width() -> None:
    picture = np.zeros((30, 80, 3), np.uint8)
    pixels = captioned(picture, [("a name that is much too long for this", TEXT)], longest=3)
    assert pixels.shape == (30 + 4 + 3 * 19, 80, 3)
    assert (pixels[30:, 78:] == BACKGROUND).all()
    assert (pixels[30 + 4 + 19 :] == BACKGROUND).all()
    assert (write([("x", WRONG)], 50, 30) != write([("x", RIGHT)], 50, 30)).any()


def test_truth_and_prediction_are_told_with_their_probabilities() -> None:
    wrong = Sample("scan 7", None, "mild", "severe", False, 0.0412, 0.9)
    assert describe(wrong)[1][0] == "truth: mild (4%)"
    assert describe(wrong)[2] == ("said: severe (90%)", WRONG)
    assert describe(Sample("a", None, "1.5", "2.0"))[2] == ("said: 2.0", TEXT)
    assert describe(Sample("a", None, "b", "b", True))[2][1] == RIGHT


def test_samples_stand_side_by_side_in_rows_of_their_sections(find: Any) -> None:
    samples = [Sample(f"scan {index}", _flat(_RED), "a", "b", False) for index in range(5)]
    pixels = draw_samples({"worst": samples, "uncertain": samples[:1]}, title="t", columns=3, panel_size=60)
    red = find(pixels, _RED)
    assert red.sum() == 6 * 60 * 60
    rows, columns = (np.flatnonzero(np.diff(red.any(axis=axis).astype(int), prepend=0) == 1) for axis in (1, 0))
    assert len(rows) == 3  # three and two of the worst, one uncertain
    assert len(columns) == 3
    # the captions: the wrong prediction is orange under each picture and right of none
    orange = find(pixels, WRONG, 40)
    assert all(orange[row + 60 : row + 60 + 65, column : column + 60].any() for row, column in [(rows[0], columns[2])])
    assert not orange[rows[1] :, columns[2] :].any()


def test_a_sample_without_an_image_says_so() -> None:
    pixels = draw_samples({"worst": [Sample("a", None, "x", "y")]}, title="t", panel_size=80)
    expected = absent(80, "no image")
    found = [
        (row, column)
        for row in range(pixels.shape[0] - 79)
        for column in range(20, 50)
        if column + 80 <= pixels.shape[1] and (pixels[row, column : column + 80] == expected[0]).all()
    ]
    row, column = found[0]
    np.testing.assert_array_equal(pixels[row : row + 80, column : column + 80], expected)


def _bag(attention: np.ndarray | None, present: list[bool]) -> Sample:
    shades = [(10 * (index + 1), 0, 0) for index in range(len(present))]
    image = np.stack([_flat(shade) for shade in shades])
    return Sample("bag", image, "a", "a", True, present=np.array(present), attention=attention)


def test_of_a_bag_the_instances_with_the_most_attention_are_shown_and_padding_never(find: Any) -> None:
    bag = _bag(np.array([0.1, 0.3, 0.2, 9.0]), [True, True, True, False])
    assert top_instances(bag, 2) == [1, 2]
    assert top_instances(_bag(None, [False, True, True]), 5) == [1, 2]
    shares = attention_shares(bag)
    assert shares is not None
    np.testing.assert_allclose(shares, [1 / 6, 1 / 2, 1 / 3, 0])
    pixels = draw_samples({"worst": [bag]}, title="t", columns=2, panel_size=60)
    seen = {shade: int(find(pixels, (shade, 0, 0), 0).sum()) for shade in (10, 20, 30, 40)}
    assert seen == {10: 0, 20: 3600, 30: 3600, 40: 0}
    first, second = (int(np.nonzero(find(pixels, (shade, 0, 0), 0))[1].min()) for shade in (20, 30))
    assert first < second  # the most attention first


def test_named_views_are_columns_and_missing_ones_keep_their_place(find: Any) -> None:
    whole, part = _bag(None, [True, True, True]), _bag(None, [True, False, True])
    pixels = draw_samples({"worst": [whole, part]}, title="t", panel_size=60, view_names=["CC", "MLO", "US"])
    columns = [np.flatnonzero(find(pixels, (shade, 0, 0), 0).any(axis=0)) for shade in (10, 20, 30)]
    assert columns[0].max() < columns[1].min() < columns[1].max() < columns[2].min()
    assert [int(find(pixels, (shade, 0, 0), 0).sum()) for shade in (10, 20, 30)] == [7200, 3600, 7200]
    assert find(pixels, (48, 48, 52), 0)[:, columns[1]].sum() > 3000


def test_without_samples_there_is_a_sentence_and_mixtures_are_refused() -> None:
    expected = draw_sentence("worst", "There is no sample to show.")
    np.testing.assert_array_equal(draw_samples({"worst": [], "uncertain": []}, title="worst"), expected)
    with pytest.raises(AssertionError, match="with and without views"):
        draw_samples({"worst": [_bag(None, [True]), Sample("a", _flat(_RED), "x", "y")]}, title="t")
