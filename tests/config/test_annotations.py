"""What an annotation allows, in words and in checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from medtrain.config.annotations import (
    accepts_none,
    accepts_text,
    check,
    choices,
    describe,
    is_list_of_texts,
    split_texts,
    step_into,
)
from medtrain.registry import Format, Range


def _even(text: str) -> int:
    if int(text) % 2:
        raise ValueError("it is odd")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner.

    Args:
        gain: Factor.
        mode: Which.
    """

    gain: Annotated[float, Range(ge=0)] = 1.0
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer.

    Args:
        inner: Nested.
        sizes: Numbers.
        label: Required.
    """

    label: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)


Positive = Annotated[float, Range(gt=0)]
Even = Annotated[str, Format(_even, '"2" or "4"')]


RANGE = "a range, for `medtrain sweep`, is written `'k={}'`"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (bool, "true or false"),
        (str, "text"),
        (Any, "any value"),
        (Positive, "float > 0"),
        (Annotated[int, Range(ge=1, le=9)], "int >= 1 and <= 9"),
        (Literal["a", "b"], "one of a, b"),
        (Literal[2, 3] | None, "one of 2, 3 or null"),
        (None | int, "int or null"),
        (Even, 'text such as "2" or "4"'),
        (tuple[int, ...], "list of int"),
        (tuple[float, float], "list of 2 float"),
        (tuple[int, str], "[int, text]"),
        (list[int | list[int]], "list of (int or list of int)"),
        (Annotated[tuple[int, ...] | None, Range(ge=1)], "list of int >= 1 or null"),
        (dict[str, list[str]], "mapping of names to list of text"),
        (Inner, "mapping with the keys gain, mode"),
    ],
)
def test_describe(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_describe_refuses_what_a_schema_cannot_hold() -> None:
    with pytest.raises(TypeError, match="set"):
        describe(set[int])


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (float, "1e-3", 0.001),
        (int, 1e5, 100_000),
        (str, 2024, "2024"),
        (bool, True, True),
        (int | float, 3, 3),
        (float | int, 3, 3),
        (float | None, 3, 3.0),
        (float | None, None, None),
        (bool | int, True, True),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float], [0, 1], (0.0, 1.0)),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (tuple[tuple[int, ...], ...], [[1], [2, 3]], ((1,), (2, 3))),
        (tuple[int | tuple[int, ...], ...], [1, [2, 3]], (1, (2, 3))),
        (dict[str, list[str]], {"liver": ["a", "b"]}, {"liver": ["a", "b"]}),
        (dict[str, float], {1: 2}, {"1": 2.0}),
        (Literal[2, 3], 2, 2),
        (Literal["auto"] | Positive, "auto", "auto"),
        (Literal["auto"] | Positive, 2, 2.0),
        (Even, "4", "4"),
        (Inner, {"mode": "b"}, {"gain": 1.0, "mode": "b"}),
        (
            Outer,
            {"label": "x", "inner": {"gain": 2}},
            {"label": "x", "inner": {"gain": 2.0, "mode": "a"}, "sizes": (1, 2)},
        ),
        (list[Inner], [{"gain": "5"}], [{"gain": 5.0, "mode": "a"}]),
        (Any, {"x": [1]}, {"x": [1]}),
    ],
)
def test_coerces(annotation: Any, value: Any, expected: Any) -> None:
    coerced, issues = check(annotation, value, "k")
    assert issues == []
    assert coerced == expected
    assert type(coerced) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "messages"),
    [
        (int, "abc", ["k: expected int, got 'abc'"]),
        (int, 1.5, ["k: expected int, got 1.5"]),
        (int, True, ["k: expected int, got true"]),
        (int, "5", ["k: expected int, got '5'"]),
        (int, None, ["k: expected int, got null"]),
        (float, "fast", ["k: expected float, got 'fast'"]),
        (float, False, ["k: expected float, got false"]),
        (bool, "yes", ["k: expected true or false, got 'yes'"]),
        (bool, 1, ["k: expected true or false, got 1"]),
        (str, 1.5, ["k: expected text, got 1.5"]),
        (str, ["a"], ["k: expected text, got [a]"]),
        (Positive, -1, ["k: must be > 0, got -1"]),
        (Positive, float("nan"), ["k: must be a finite number, got nan"]),
        (Positive, float("inf"), ["k: must be a finite number, got inf"]),
        (Positive | None, 0, ["k: must be > 0, got 0"]),
        (Literal["a", "b"], "c", ["k: must be one of a, b, got 'c'"]),
        (Literal[2, 3], "2", ["k: must be one of 2, 3, got '2'"]),
        (Literal[0, 1], True, ["k: must be one of 0, 1, got true"]),
        (Even, "3", ["k: '3' is not valid: it is odd"]),
        (tuple[int, ...], 3, ["k: expected list of int, got 3"]),
        (tuple[int, ...], "12", ["k: expected list of int, got '12'"]),
        (tuple[float, float], [1], ["k: expected list of 2 float, got 1 values"]),
        (
            tuple[Annotated[int, Range(ge=1)], ...],
            ["a", 0, 1],
            ["k[0]: expected int >= 1, got 'a'", "k[1]: must be >= 1, got 0"],
        ),
        (tuple[int, ...] | None, ["a"], ["k[0]: expected int, got 'a'"]),
        (dict[str, int], [1], ["k: expected mapping of names to int, got [1]"]),
        (dict[str, int], {"a": "x"}, ["k.a: expected int, got 'x'"]),
        (int | Literal["auto"], "autto", ["k: expected int or auto, got 'autto'"]),
        (Inner, {"gian": 1}, ["k.gian: unknown key"]),
        (Inner, 3, ["k: expected mapping with the keys gain, mode, got 3"]),
        (
            list[Outer],
            [{"inner": {"gain": -1}}],
            ["k[0].label: required, not set (text)", "k[0].inner.gain: must be >= 0, got -1"],
        ),
        (Outer, {"label": "???"}, ["k.label: required, not set (text)"]),
    ],
)
def test_finds_every_issue(annotation: Any, value: Any, messages: list[str]) -> None:
    _, issues = check(annotation, value, "k")
    assert [f"{issue.path}: {issue.message}" for issue in issues] == messages


@pytest.mark.parametrize(
    ("annotation", "value", "hint"),
    [
        (Literal["instance", "batch"], "instanc", "did you mean `k=instance`?"),
        (int | Literal["auto"], "autto", "did you mean `k=auto`?"),
        (int | None, "None", "did you mean `k=null`?"),
        (tuple[int, ...], 3, "a list is written in brackets: `k=[...]`"),
        (Even, "3", 'write for example "2" or "4"'),
        (list[Even], ["3"], """write for example `'k=["2"]'`"""),
        (list[str], 3, """a list of text is written as `'k=["..."]'`"""),
        (list[Even] | None, 3, """a list of text is written as `'k=["2"]'`"""),
        (Positive, "loguniform(1e-4,1e-1)", RANGE.format("tag(log, interval(1e-4, 1e-1))")),
        (Positive | None, "log(1e-4, 1e-1)", RANGE.format("tag(log, interval(1e-4, 1e-1))")),
        (Positive, "log(interval(1e-4,1e-1))", RANGE.format("tag(log, interval(1e-4, 1e-1))")),
        (float, "uniform(0,0.5)", RANGE.format("interval(0, 0.5)")),
        (float, "uniform(0)", None),
        (Inner, {"gian": 1}, "did you mean `k.gain`?"),
        (Inner, {"zzz": 1}, "known keys: gain, mode"),
        (Outer, {}, "add `k.label=...`"),
        (int, "abc", None),
    ],
)
def test_hints(annotation: Any, value: Any, hint: str | None) -> None:
    _, issues = check(annotation, value, "k")
    assert issues[0].hint == hint


@pytest.mark.parametrize("text", ["loguniform(1,2)", "log(1,2)"])
def test_a_text_that_looks_like_a_range_is_a_text(text: str) -> None:
    assert check(str | None, text, "k") == (text, [])


def test_which_lists_are_of_texts() -> None:
    assert is_list_of_texts(list[str])
    assert is_list_of_texts(tuple[Even, ...] | None)
    for other in (str, list[int], tuple[str, str], Literal["all"] | list[str], str | list[str], dict[str, str]):
        assert not is_list_of_texts(other)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[parameters <= 2e6]", ["parameters <= 2e6"]),
        ("[ parameters <= 2e6, 'a, b' ,~/c]", ["parameters <= 2e6", "a, b", "~/c"]),
        ('["a <= 1", b >= 2,]', ["a <= 1", "b >= 2"]),
        ("[it's, here]", ["it's", "here"]),
        ("[]", []),
        ("parameters <= 2e6", ["parameters <= 2e6"]),
        ("[a,b", None),
        ("{a:b}", None),
        ("${x}", None),
        ("none", None),
        ("???", None),
        ("", None),
    ],
)
def test_a_text_as_a_list_of_texts(text: str, items: list[str] | None) -> None:
    assert split_texts(text) == items


def test_choices() -> None:
    assert choices(bool) == ["true", "false"]
    assert choices(Literal["a", 2] | None) == ["a", "2", "null"]
    assert choices(Positive) == []


def test_what_a_value_may_be() -> None:
    assert accepts_text(str | None)
    assert not accepts_text(list[str])
    assert accepts_none(int | None)
    assert not accepts_none(int)


def test_step_into() -> None:
    assert step_into(Outer, "label") is str
    assert step_into(Outer, "lable") is None
    assert step_into(list[Inner] | None, "0") is Inner
    assert step_into(list[Inner], "first") is None
    assert step_into(dict[str, int], "any") is int
    assert step_into(tuple[int, str], "1") is str
    assert step_into(tuple[int, str], "2") is None
    assert step_into(int, "x") is None
