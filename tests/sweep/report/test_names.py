from __future__ import annotations

import math

import pytest

from medtrain.sweep.report.names import (
    elide,
    elide_all,
    format_duration,
    format_number,
    format_params,
    format_score,
    format_spread,
    format_value,
    short_names,
)


def test_a_key_is_as_short_as_it_can_be_without_another_ending_alike() -> None:
    keys = ["optimizer.lr", "loss", "loss.gamma", "augment.rotation.p", "augment.noise.p", "model.p"]
    assert short_names(keys) == {
        "optimizer.lr": "lr",
        "loss": "loss",
        "loss.gamma": "gamma",
        "augment.rotation.p": "rotation.p",
        "augment.noise.p": "noise.p",
        "model.p": "model.p",
    }
    assert short_names(["augment.rotation.p"]) == {"augment.rotation.p": "rotation.p"}  # `p` says nothing
    assert short_names(["a.lr", "b.a.lr"]) == {"a.lr": "a.lr", "b.a.lr": "b.a.lr"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00032, "0.00032"),
        (3.2e-5, "3.2e-5"),
        (1e-12, "1e-12"),
        (12000, "12000"),
        (5e6, "5e6"),
        (0.1 + 0.2, "0.3"),
        (-0.0123456, "-0.01235"),
        (math.nan, "-"),
        (math.inf, "inf"),
        (3_000_000, "3e6"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_scores_stand_below_each_other() -> None:
    assert [format_score(x) for x in (0.935, 0.93623, 25.657, 4.1e6, 0.00012, -0.02, 0.0, math.nan)] == [
        "0.9350",
        "0.9362",
        "25.66",
        "4.1e6",
        "0.00012",
        "-0.0200",
        "0.0000",
        "-",
    ]


def test_spreads_have_the_decimals_of_scores() -> None:
    assert [format_spread(x) for x in (0.00694, 0.0117, -0.0421, 2e-5, 25.0)] == [
        "0.0069",
        "0.0117",
        "-0.0421",
        "2e-5",
        "25",
    ]


def test_a_point_is_one_line() -> None:
    params = {"optimizer.lr": 0.00316227, "loss": "dice_ce", "data.batch_size": 4, "x": "a\nb", "deep": "true"}
    short = short_names(params)
    assert format_params(params, short) == "lr 0.00316, loss dice_ce, batch_size 4, x a b, deep true"
    assert format_value(True) == "True"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3900, "1 h 05 min"),
        (86400 * 2 + 3600 * 3 + 59, "2 d 3 h"),
        (-3, "0.0 s"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("width", [5, 8, 13, 14])
def test_the_middle_is_cut_out(width: int) -> None:
    text = "[32, 64, 128, 256]"
    cut = elide(text, width)
    assert len(cut) == width
    head, _, tail = cut.partition("..")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert elide(text, 18) == text
    assert elide("a \n b", 18) == "a b"


def test_texts_that_are_cut_alike_stay_apart() -> None:
    texts = [f"{{name: something, width: {index}, norm: batch}}" for index in range(12)]
    cut = elide_all([*texts, "short"], 14)
    assert len(set(cut)) == 13
    assert max(map(len, cut)) <= 14
    assert cut[-1] == "short"
    assert cut[0].endswith(" #1")
