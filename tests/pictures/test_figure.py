from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from medtrain.pictures.figure import (
    cut,
    distinct,
    draw_sentence,
    fit,
    line_style,
    plain,
    text_width,
)


def test_texts_are_shortened_in_the_middle_to_the_width_they_have() -> None:
    name = "left lower lobe, posterior basal segment"
    assert fit(name, 1000) == name
    for width in (60, 100, 150):
        short = cut(name, width)
        assert text_width(short) <= width
        assert short[0] == "l"
        assert short[-1] == "t"
        assert "\u2026" in short


def test_no_sign_of_a_name_is_read_as_mathematics_or_missing() -> None:
    assert fit("stage $x^2$", 500) == r"stage \$x^2\$"
    assert plain("a\n  b\tc") == "a b c"
    assert plain("\u809d\u81df") == "\u25a1\u25a1"  # letters the font lacks
    draw_sentence("$ \u809d $x", "50 % of _ {} \\frac $y$ \u81df")  # a warning would be an error


def test_names_that_would_become_equal_are_numbered() -> None:
    names = ["segment one of the liver", "segment two of the liver", "spleen"]
    short = distinct(names, 110)
    assert short[0].startswith("0: ")
    assert short[1].startswith("1: ")
    assert short[2] == "spleen"
    assert len(set(short)) == 3


def test_forty_lines_look_different() -> None:
    styles = [line_style(index) for index in range(40)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == 40
    assert len({style["color"] for style in styles[:8]}) == 8


def test_colours_differ_in_lightness_or_blueness_for_people_who_cannot_tell_red_from_green() -> None:
    """Seen by a deuteranope (Vienot et al., 1999), no two of the first six colours are alike."""
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    colors = np.array([mpl.colors.to_rgb(line_style(index)["color"]) for index in range(6)])
    seen = np.linalg.inv(to_lms) @ blind @ to_lms @ (colors**2.2).T
    seen = np.clip(seen.T, 0, 1) ** (1 / 2.2)
    distance = np.abs(seen[:, None] - seen[None]).max(-1) + np.eye(6)
    assert distance.min() > 0.1


def test_a_sentence_is_a_picture_of_its_own_and_leaves_nothing_behind() -> None:
    before = dict(mpl.rcParams)
    first, second = draw_sentence("ROC", "Nothing to rank."), draw_sentence("ROC", "Nothing to rank.")
    assert first.shape == (130, 560, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first != draw_sentence("ROC", "Nothing else.")).any()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("words", [3, 30])
def test_long_sentences_break_into_lines_inside_the_picture(words: int) -> None:
    pixels = draw_sentence("title", "word " * words)
    ink = (pixels < 200).any(axis=-1)
    rows = ink[56:].any(axis=1).astype(int)
    assert (np.diff(rows, prepend=0) == 1).sum() == (1 if words == 3 else 3)
    assert not ink[:, -10:].any()
