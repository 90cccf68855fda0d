"""How a key varies, as a user writes it: Hydra's grammar on the command line, and a little more in YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException

from medtrain.config.annotations import range_words, show
from medtrain.config.overrides import Search, grammar
from medtrain.config.paths import ALL_GROUPS
from medtrain.config.render import write_override
from medtrain.config.sources import COMMAND_LINE
from medtrain.errors import Problem
from medtrain.registry import closest

FUNCTIONS = ("choice", "range", "interval", "tag", "int", "float", "str", "bool", "sort", "shuffle", "glob")
"""The functions of Hydra's grammar."""

_MAPPING_KEYS = ("low", "high", "step", "log", "type", "choices", "when")
_EXAMPLE = "write for example `interval(0, 0.5)`, `tag(log, interval(1e-4, 1e-1))`, `choice(a, b)` or `range(2, 9, 2)`"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key that varies, as it was written.

    Args:
        key: Dotted config key, or a group.
        origin: Where it was written.
        written: Text of the command line, or YAML data.
        values: The choices; empty for a range.
        low: Smallest number of a range.
        high: Largest number, included.
        step: Distance of the numbers.
        log: Whether the scale is logarithmic.
        whole: Whether whole numbers were asked for.
        when: Choices of other keys under which this one exists, as texts.
        is_list: Whether it is a plain comma list.
    """

    key: str
    origin: str
    written: Any
    values: tuple[Any, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    whole: bool = False
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_list: bool = False

    @property
    def is_range(self) -> bool:
        """Whether it is a range of numbers."""
        return self.low is not None

    @property
    def is_typed(self) -> bool:
        """Whether it was typed on the command line."""
        return self.origin == COMMAND_LINE

    @property
    def text(self) -> str:
        """What the user wrote, for a message."""
        return self.written if isinstance(self.written, str) else show(self.written)

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices as they would be typed."""
        return tuple(write_override(value) for value in self.values)

    def problem(self, message: str, hint: str | None = None) -> Problem:
        """A problem of this entry."""
        return Problem(self.key, message, hint, self.origin)


class _WrongError(ValueError):
    """What is wrong with an entry, and what to write."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def read_search(search: Search, options: Sequence[str]) -> Entry | Problem:
    """Read what was typed.

    Args:
        search: As Hydra's grammar reads it.
        options: Of the group, for `glob()`; empty when the key is none.
    """
    entry = Entry(key=search.key, origin=COMMAND_LINE, written=search.text)
    return _finish(entry, lambda: _from_sweep(entry, search.values, search.text, options))


def read_yaml(key: str, written: Any, origin: str, options: Sequence[str]) -> Entry | Problem:
    """Read an entry of `sweep.space`.

    Args:
        key: Dotted config key, or a group.
        written: A text in Hydra's grammar, a list of choices, or a mapping.
        origin: The file.
        options: Of the group, for `glob()`; empty when the key is none.
    """
    entry = Entry(key=key, origin=origin, written=written)
    if isinstance(written, str):
        return _finish(entry, lambda: _from_text(entry, written, options))
    if isinstance(written, list):
        return _finish(entry, lambda: _with_choices(entry, written))
    if isinstance(written, Mapping):
        return _finish(entry, lambda: _from_mapping(entry, written))
    return _finish(entry, lambda: _with_choices(entry, [written]))


def why_unreadable(text: str) -> str | None:
    """Why Hydra's grammar cannot read a text that calls one of its functions; None for any other text."""
    name, paren, _ = text.partition("(")
    if not paren or name.strip() not in FUNCTIONS:
        return None
    try:
        grammar().parse_override(f"value={text}")
    except HydraException as error:
        return _reason(error)
    return None


def _reason(error: HydraException) -> str:
    return next(line.strip() for line in str(error).splitlines() if line.strip())


def _finish(entry: Entry, read: Any) -> Entry | Problem:
    try:
        found: Entry = read()
        _check(found)
    except _WrongError as error:
        return entry.problem(error.message, error.hint)
    return found


def _from_text(entry: Entry, text: str, options: Sequence[str]) -> Entry:
    try:
        parsed = grammar().parse_override(f"value={text}")
    except HydraException as error:
        words = range_words(text)
        if words:
            raise _WrongError(f"`{text}` cannot be read", f"write `{words}`") from error
        raise _WrongError(f"`{text}` cannot be read: {_reason(error)}", _EXAMPLE) from error
    if not parsed.is_sweep_override():
        return _with_choices(entry, [parsed.value()])
    return _from_sweep(entry, parsed.value(), text, options)


def _from_sweep(entry: Entry, sweep: Any, text: str, options: Sequence[str]) -> Entry:
    if isinstance(sweep, Glob):
        return _from_glob(entry, sweep, options)
    if getattr(sweep, "shuffle", False):
        raise _WrongError("shuffle() has no effect: the sampler decides the order", "leave it out")
    unknown = sorted(sweep.tags - {"log"})
    if unknown:
        raise _WrongError(f"the tag `{unknown[0]}` means nothing; the only one is `log`")
    log = "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        if log:
            raise _WrongError("choices have no scale: `log` goes with interval() and range()")
        found = _with_choices(entry, [HydraOverride._convert_value(item) for item in sweep.list])
        return replace(found, is_list=sweep.simple_form)
    if "tag" in text and not log:  # Hydra's casts of a range forget its tags
        raise _WrongError("the tag is lost", "write the tag outermost: `tag(log, int(range(1, 100)))`")
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        return replace(entry, low=low, high=high, log=log, whole=isinstance(low, int))
    assert isinstance(sweep, RangeSweep)
    if "sort" in text:  # Hydra turns 9, 7, 5, 3 into 4, 6, 8, 10
        raise _WrongError("a range has no order to sort", f"leave sort() out of `{text}`")
    return _from_range(entry, sweep, log)


def _from_glob(entry: Entry, glob: Glob, options: Sequence[str]) -> Entry:
    if entry.key not in ALL_GROUPS:
        raise _WrongError("glob() goes with a group, not with a value", _EXAMPLE)
    found = glob.filter(list(options))
    if not found:
        raise _WrongError(f"`{entry.text}` matches no option; available: {', '.join(options)}")
    return _with_choices(entry, found)


def _from_range(entry: Entry, sweep: RangeSweep, log: bool) -> Entry:
    """A range without its end, as in Python and in Hydra."""
    numbers = (sweep.start, sweep.stop, sweep.step)
    whole = all(isinstance(number, int) for number in numbers)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise _WrongError(f"`{entry.text}` must have finite numbers")
    start, stop, step = (Decimal(repr(number)) for number in numbers)
    if step == 0:
        raise _WrongError(f"`{entry.text}` has the step 0")
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise _WrongError(f"`{entry.text}` is empty: it ends before {sweep.stop}")
    last = start + (count - 1) * step
    low, high, distance = min(start, last), max(start, last), abs(step)
    if log and not (whole and distance == 1):
        raise _WrongError("a logarithmic scale has no steps", "write `tag(log, interval(...))`")
    kind = int if whole else float
    return replace(entry, low=kind(low), high=kind(high), step=None if log else kind(distance), log=log, whole=whole)


def _with_choices(entry: Entry, values: Sequence[Any]) -> Entry:
    for value in values:
        if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
            raise _WrongError(f"{show(value)} is not a value: the keys of a mapping are texts")
    return replace(entry, values=tuple(values))


def _from_mapping(entry: Entry, written: Mapping[str, Any]) -> Entry:
    unknown = [str(key) for key in written if key not in _MAPPING_KEYS]
    if unknown and entry.key in ALL_GROUPS and not set(written) & set(_MAPPING_KEYS):
        key = f"{entry.key}.{unknown[0]}"
        raise _WrongError("the keys of a space are written in full", f"write `{key}: {show(written[unknown[0]])}`")
    if unknown:
        near = closest(unknown[0], _MAPPING_KEYS)
        hint = f"did you mean `{near}`?" if near else f"known keys: {', '.join(_MAPPING_KEYS)}"
        raise _WrongError(f"unknown key `{unknown[0]}` in {show(written)}", hint)
    entry = replace(entry, when=_read_when(written.get("when")))
    ranged = [key for key in ("low", "high", "step", "log", "type") if written.get(key) is not None]
    if "choices" in written:
        if ranged:
            raise _WrongError(f"`choices` and `{ranged[0]}` exclude each other")
        if not isinstance(written["choices"], list):
            raise _WrongError("`choices` is a list", "write `choices: [a, b]`")
        return _with_choices(entry, written["choices"])
    return _ranged(entry, written)


def _ranged(entry: Entry, written: Mapping[str, Any]) -> Entry:
    missing = [key for key in ("low", "high") if written.get(key) is None]
    if missing:
        raise _WrongError(f"`{missing[0]}` is missing: a range has `low` and `high`, anything else has `choices`")
    low, high, step = (_number(key, written.get(key)) for key in ("low", "high", "step"))
    kind, log = written.get("type"), written.get("log", False)
    if kind not in (None, "int", "float"):
        raise _WrongError(f"`type` must be one of int, float, got {show(kind)}")
    if not isinstance(log, bool):
        raise _WrongError(f"`log` must be true or false, got {show(log)}")
    if step is not None and step <= 0:
        raise _WrongError(f"`step` must be > 0, got {show(step)}")
    if step is not None and log:
        raise _WrongError("a logarithmic scale has no steps: leave `step` or `log` out")
    assert low is not None
    assert high is not None
    if step is not None and low <= high:
        count = math.floor((Decimal(repr(high)) - Decimal(repr(low))) / Decimal(repr(step)))
        last = Decimal(repr(low)) + count * Decimal(repr(step))
        high = int(last) if isinstance(low, int) and isinstance(step, int) else float(last)
    return replace(entry, low=low, high=high, step=step, log=log, whole=kind == "int")


def _number(key: str, value: Any) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, str):  # YAML 1.1 takes 1e-3 for a text
        try:
            value = float(value)
        except ValueError:
            raise _WrongError(f"`{key}` must be a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _WrongError(f"`{key}` must be a number, got {show(value)}")
    return value


def _read_when(written: Any) -> dict[str, tuple[str, ...]]:
    if written is None:
        return {}
    if not isinstance(written, Mapping) or not written:
        raise _WrongError("`when` is a mapping of keys to their choices", "write `when: {loss: focal}`")
    found: dict[str, tuple[str, ...]] = {}
    for key, allowed in written.items():
        items = allowed if isinstance(allowed, list) else [allowed]
        found[str(key)] = tuple(write_override(item) for item in items)
    return found


def _check(entry: Entry) -> None:
    """What is wrong whatever the key is."""
    if entry.low is not None and entry.high is not None:
        low, high = entry.low, entry.high
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _WrongError(f"the ends of `{entry.text}` must be finite numbers")
        if low > high:
            raise _WrongError(f"`{entry.text}` begins above its end: {show(low)} > {show(high)}")
        if entry.log and low <= 0:
            raise _WrongError(f"a logarithmic scale begins above 0, `{entry.text}` at {show(low)}")
        if low == high:
            _refuse_single(entry, write_override(low))
        return
    texts = entry.choices
    if not texts:
        raise _WrongError("has no choices", "write `choices: [a, b]`")
    twice = next((text for index, text in enumerate(texts) if text in texts[:index]), None)
    if twice is not None:
        raise _WrongError(f"`{entry.text}` names {twice} twice")
    if len(texts) == 1:
        _refuse_single(entry, texts[0])


def _refuse_single(entry: Entry, text: str) -> None:
    hint = f"to set it: `{entry.key}={text}`"
    raise _WrongError(f"`{entry.text}` is one value only, which searches nothing", hint)
