"""How a user writes that a key varies: Hydra's grammar and YAML."""

from __future__ import annotations

from typing import Any

import pytest

from medtrain.config.overrides import Search, read_override
from medtrain.config.search import Entry, read_search, read_yaml, why_unreadable
from medtrain.errors import Problem

OPTIONS = ["dice", "dice_ce", "focal"]


def typed(text: str, key: str = "a.b") -> Entry | Problem:
    search = read_override(f"{key}={text}")
    assert isinstance(search, Search)
    return read_search(search, OPTIONS if key == "loss" else [])


def numbers(entry: Entry | Problem) -> tuple[Any, ...]:
    assert isinstance(entry, Entry), entry
    return entry.low, entry.high, entry.step, entry.log, entry.whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0,0.5)", (0.0, 0.5, None, False, False)),
        ("interval(1e-4, 1e-1)", (1e-4, 0.1, None, False, False)),
        ("tag(log, interval(1e-4,1e-1))", (1e-4, 0.1, None, True, False)),
        ("int(interval(2,8))", (2, 8, None, False, True)),
        ("int(tag(log, interval(1,64)))", (1, 64, None, True, True)),
        ("tag(log, int(interval(1,64)))", (1, 64, None, True, True)),
        ("float(interval(1,2))", (1.0, 2.0, None, False, False)),
        ("range(2,9,2)", (2, 8, 2, False, True)),  # 9 is excluded, as in Hydra
        ("range(2,8,2)", (2, 6, 2, False, True)),
        ("range(4)", (0, 3, 1, False, True)),
        ("range(9,2,-2)", (3, 9, 2, False, True)),  # 9, 7, 5, 3
        ("range(0,0.5,0.1)", (0.0, 0.4, 0.1, False, False)),
        ("range(0.1,0.35,0.1)", (0.1, 0.3, 0.1, False, False)),
        ("range(1,3,0.5)", (1.0, 2.5, 0.5, False, False)),
        ("tag(log, range(1,65))", (1, 64, None, True, True)),
    ],
)
def test_ranges(text: str, expected: tuple[Any, ...]) -> None:
    found = numbers(typed(text))
    assert found == expected
    assert [type(a) for a in found] == [type(b) for b in expected]


@pytest.mark.parametrize(
    ("text", "choices", "is_list"),
    [
        ("a,b", ("a", "b"), True),
        ("1e-3,3e-3", ("0.001", "0.003"), True),
        ("choice(a,b)", ("a", "b"), False),
        ("choice(true,null,'x y',1)", ("true", "null", "'x y'", "1"), False),
        ("[8,16],[16,32]", ("[8,16]", "[16,32]"), True),
        ("{a:1},{}", ("{a:1}", "{}"), True),
        ("sort(3,1,2)", ("1", "2", "3"), True),
        ("int(1.0,2.0)", ("1", "2"), True),
    ],
)
def test_choices(text: str, choices: tuple[str, ...], is_list: bool) -> None:
    entry = typed(text)
    assert isinstance(entry, Entry)
    assert (entry.choices, entry.is_list, entry.is_range) == (choices, is_list, False)


@pytest.mark.parametrize(
    ("text", "choices"),
    [("glob(*)", tuple(OPTIONS)), ("glob(dice*)", ("dice", "dice_ce")), ("glob(*,exclude=f*)", ("dice", "dice_ce"))],
)
def test_glob_takes_the_options_of_a_group(text: str, choices: tuple[str, ...]) -> None:
    entry = typed(text, "loss")
    assert isinstance(entry, Entry)
    assert entry.choices == choices


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("shuffle(1,2)", "shuffle() has no effect: the sampler decides the order", "leave it out"),
        ("shuffle(range(1,5))", "shuffle() has no effect: the sampler decides the order", "leave it out"),
        ("tag(lin, interval(0,1))", "the tag `lin` means nothing; the only one is `log`", None),
        ("tag(log, choice(1,2))", "choices have no scale: `log` goes with interval() and range()", None),
        ("int(tag(log, range(1,9)))", "the tag is lost", "write the tag outermost: `tag(log, int(range(1, 100)))`"),
        ("tag(log, range(1,9,2))", "a logarithmic scale has no steps", "write `tag(log, interval(...))`"),
        ("interval(2,1)", "`interval(2,1)` begins above its end: 2.0 > 1.0", None),
        ("interval(1,1)", "`interval(1,1)` is one value only, which searches nothing", "to set it: `a.b=1.0`"),
        ("interval(0,inf)", "the ends of `interval(0,inf)` must be finite numbers", None),
        (
            "tag(log, interval(0,1))",
            "a logarithmic scale begins above 0, `tag(log, interval(0,1))` at 0.0",
            None,
        ),
        ("sort(range(9,2,-2))", "a range has no order to sort", "leave sort() out of `sort(range(9,2,-2))`"),
        ("range(1,1)", "`range(1,1)` is empty: it ends before 1", None),
        ("range(5,1)", "`range(5,1)` is empty: it ends before 1", None),
        ("range(1,5,0)", "`range(1,5,0)` has the step 0", None),
        ("range(1,2)", "`range(1,2)` is one value only, which searches nothing", "to set it: `a.b=1`"),
        ("choice(x)", "`choice(x)` is one value only, which searches nothing", "to set it: `a.b=x`"),
        ("1,2,1", "`1,2,1` names 1 twice", None),
        (
            "glob(*)",
            "glob() goes with a group, not with a value",
            "write for example `interval(0, 0.5)`, `tag(log, interval(1e-4, 1e-1))`, `choice(a, b)` or "
            "`range(2, 9, 2)`",
        ),
    ],
)
def test_what_is_wrong_whatever_the_key(text: str, message: str, hint: str | None) -> None:
    assert typed(text) == Problem("a.b", message, hint, "command line")


def test_a_glob_that_matches_nothing() -> None:
    assert typed("glob(x*)", "loss") == Problem(
        "loss", "`glob(x*)` matches no option; available: dice, dice_ce, focal", None, "command line"
    )


def test_yaml_says_the_same_as_the_command_line() -> None:
    for text in ("tag(log, interval(1e-4,1e-1))", "range(2,9,2)", "choice(a,b)", "a,b"):
        there = read_yaml("a.b", text, "command line", [])
        assert there == typed(text)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"low": 0, "high": 1}, (0, 1, None, False, False)),
        ({"low": "1e-4", "high": 0.1, "log": True}, (1e-4, 0.1, None, True, False)),
        ({"low": 1, "high": 9, "step": 3}, (1, 7, 3, False, False)),  # 1, 4, 7
        ({"low": 0, "high": 0.5, "step": 0.2}, (0, 0.4, 0.2, False, False)),
        ({"low": 0.1, "high": 0.3, "step": 0.1}, (0.1, 0.3, 0.1, False, False)),
        ({"low": 1, "high": 8, "type": "int"}, (1, 8, None, False, True)),
        ({"low": 1, "high": 8, "type": "float", "when": {"loss": "focal"}}, (1, 8, None, False, False)),
    ],
)
def test_mappings(written: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert numbers(read_yaml("a.b", written, "x.yaml", [])) == expected


def test_lists_and_conditions() -> None:
    entry = read_yaml(
        "a.b", {"choices": [True, None, 0.1, [1, 2]], "when": {"loss": ["focal", "dice"], "c": True}}, "x", []
    )
    assert isinstance(entry, Entry)
    assert entry.choices == ("true", "null", "0.1", "[1,2]")
    assert entry.when == {"loss": ("focal", "dice"), "c": ("true",)}
    assert read_yaml("a.b", [1, 2], "x", []) == Entry(key="a.b", origin="x", written=[1, 2], values=(1, 2))


@pytest.mark.parametrize(
    ("key", "written", "message", "hint"),
    [
        ("a.b", 3, "`3` is one value only, which searches nothing", "to set it: `a.b=3`"),
        ("a.b", "x", "`x` is one value only, which searches nothing", "to set it: `a.b=x`"),
        ("a.b", [], "has no choices", "write `choices: [a, b]`"),
        ("a.b", {"low": 1}, "`high` is missing: a range has `low` and `high`, anything else has `choices`", None),
        ("a.b", {"low": 1, "hihg": 2}, "unknown key `hihg` in {low: 1, hihg: 2}", "did you mean `high`?"),
        ("a.b", {"low": 1, "high": 2, "choices": [1, 2]}, "`choices` and `low` exclude each other", None),
        ("a.b", {"choices": "a"}, "`choices` is a list", "write `choices: [a, b]`"),
        ("a.b", {"low": "x", "high": 2}, "`low` must be a number, got 'x'", None),
        ("a.b", {"low": True, "high": 2}, "`low` must be a number, got true", None),
        ("a.b", {"low": 1, "high": 2, "step": 0}, "`step` must be > 0, got 0", None),
        ("a.b", {"low": 1, "high": 2, "step": 5}, "`{low: 1, high: 2, step: 5}` is one value only, which searches "
         "nothing", "to set it: `a.b=1`"),
        ("a.b", {"low": 1, "high": 9, "step": 2, "log": True},
         "a logarithmic scale has no steps: leave `step` or `log` out", None),
        ("a.b", {"low": 1, "high": 2, "log": "yes"}, "`log` must be true or false, got yes", None),
        ("a.b", {"low": 1, "high": 2, "type": "bool"}, "`type` must be one of int, float, got bool", None),
        ("a.b", {"low": 2, "high": 1}, "`{low: 2, high: 1}` begins above its end: 2 > 1", None),
        ("a.b", {"low": 0, "high": 1, "log": True},
         "a logarithmic scale begins above 0, `{low: 0, high: 1, log: true}` at 0", None),
        ("a.b", {"choices": [1, 2], "when": "focal"}, "`when` is a mapping of keys to their choices",
         "write `when: {loss: focal}`"),
        ("optimizer", {"lr": "interval(0,1)"}, "the keys of a space are written in full",
         "write `optimizer.lr: interval(0,1)`"),
        ("a.b", "interval(1", "`interval(1` cannot be read: no viable alternative at input 'interval(1'",
         "write for example `interval(0, 0.5)`, `tag(log, interval(1e-4, 1e-1))`, `choice(a, b)` or `range(2, 9, 2)`"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_yaml(key: str, written: Any, message: str, hint: str | None) -> None:
    assert read_yaml(key, written, "x.yaml", []) == Problem(key, message, hint, "x.yaml")


def test_an_unreadable_call_is_told_from_a_text() -> None:
    assert why_unreadable("interval(1") == "no viable alternative at input 'interval(1'"
    assert "missing a required argument: 'end'" in str(why_unreadable("interval(1)"))
    assert why_unreadable("~/x(1") is None
    assert why_unreadable("a b") is None
