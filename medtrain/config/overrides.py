"""What the user typed: `GROUP=OPTION` and `KEY=VALUE`, parsed one by one so that every mistake is found."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException

from medtrain.config.paths import ALL_GROUPS, FILE_GROUPS, MULTI_GROUPS, PRESET_GROUPS, groups_of
from medtrain.config.sources import COMMAND_LINE, Sources, unknown_option
from medtrain.config.validate import BELONGS_TO_SWEEP
from medtrain.errors import Problem
from medtrain.registry import closest

_OVERRIDE = re.compile(
    r"^(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./\[\]-]*)(?P<package>@[\w.]*)?(?P<equal>=)?(?P<text>.*)$", re.S
)
_INDEX = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Override:
    """One `KEY=VALUE` for a value.

    Args:
        key: Dotted path; list items as `rules.0.lr_mult`.
        value: As read by Hydra's grammar.
        text: As typed.
        readable: Whether Hydra's grammar can read the text; otherwise the value is the text itself, as for `~/scans`.
        plus: Whether it was written with a `+`, which Hydra uses to add keys.
    """

    key: str
    value: Any
    text: str
    readable: bool = True
    plus: bool = False


@dataclass(frozen=True)
class Search:
    """One `KEY=VALUES` that says how a key varies.

    Args:
        key: Dotted path, or a group.
        values: Hydra's sweep: a choice, a range, an interval or a glob.
        text: As typed.
        plus: Whether it was written with a `+`.
    """

    key: str
    values: Any
    text: str
    plus: bool = False


@dataclass(frozen=True)
class Request:
    """Everything the user typed.

    Args:
        chosen: Option of each group that was named.
        values: In the order typed.
        problems: One for each override that cannot be used.
        broken: Groups whose option is unknown; their values cannot be checked.
    """

    chosen: Mapping[str, str | list[str]]
    values: tuple[Override, ...]
    problems: tuple[Problem, ...]
    broken: frozenset[str]


@functools.cache
def grammar() -> OverridesParser:
    """Hydra's parser of overrides, whose `choice()` takes null as well, as its comma lists do."""
    functions = create_functions()
    signature = functions.definitions["choice"]
    parameters = [p.replace(annotation=p.annotation | None) for p in signature.parameters.values()]
    functions.definitions["choice"] = signature.replace(parameters=parameters)
    return OverridesParser(functions)


def is_override(text: str) -> bool:
    """Whether a word reads as KEY=VALUE (with a sign that is refused, perhaps) rather than as the name of a file."""
    match = _OVERRIDE.match(text)
    return match is not None and match["equal"] is not None and not Path(text).exists()


def parse(overrides: Sequence[str], sources: Sources, config_name: str = "train") -> Request:
    """Sort overrides into choices of groups and values of keys, collecting every problem.

    Args:
        overrides: As typed.
        sources: Knows the options of each group.
        config_name: The primary config, which has these groups or not.
    """
    chosen: dict[str, str | list[str]] = {}
    values: list[Override] = []
    problems: list[Problem] = []
    broken: set[str] = set()
    for text in overrides:
        parsed = read_override(text)
        if isinstance(parsed, Search):
            parsed = _several(parsed)
        if isinstance(parsed, Problem):
            problems.append(parsed)
            broken |= {group for group in ALL_GROUPS if text.lstrip("+~").startswith(f"{group}=")}
            continue
        group = parsed.key
        if group not in ALL_GROUPS:
            values.append(parsed)
            continue
        if group not in (*groups_of(config_name), *PRESET_GROUPS):
            problems.append(Problem(f"{group}={parsed.text}", BELONGS_TO_SWEEP, None, COMMAND_LINE))
            continue
        option = _parse_choice(parsed, sources)
        if isinstance(option, Problem):
            problems.append(option)
            broken.add(group)
        elif option is not None:
            chosen[group] = option
        else:
            chosen.pop(group, None)
    return Request(chosen, tuple(values), tuple(problems), frozenset(broken))


def read_override(text: str) -> Override | Search | Problem:
    """Read one override, whatever it says of its key: a value, several values, or nothing that can be used."""
    match = _OVERRIDE.match(text)
    if match is None or match["equal"] is None:
        return _malformed(text, match)
    key = _INDEX.sub(r".\1", match["key"])
    if match["package"]:
        hint = f"write `{match['key']}={match['text']}`"
        return Problem(text, "packages are not used: a group has one fixed place", hint, COMMAND_LINE)
    if match["sign"] == "~":
        return _removal(text, match["key"])
    try:
        parsed = grammar().parse_override(f"value={match['text']}")
    except HydraException:
        return Override(key, match["text"], match["text"], readable=False, plus=bool(match["sign"]))
    if parsed.is_sweep_override():
        return Search(key, parsed.value(), match["text"], plus=bool(match["sign"]))
    return Override(key, parsed.value(), match["text"], plus=bool(match["sign"]))


def _removal(text: str, key: str) -> Problem:
    group = key.split(".", 1)[0]
    hint = f"set `{key}=null` where that is allowed"
    if group in MULTI_GROUPS:
        hint = f"choose the ones you want: `{group}=[...]`"
    return Problem(text, "nothing can be removed: `~` is not used", hint, COMMAND_LINE)


def _malformed(text: str, match: re.Match[str] | None) -> Problem:
    message = "not an override: write KEY=VALUE, e.g. `optimizer.lr=1e-3`, or GROUP=OPTION, e.g. `model=unet`"
    if match and match["sign"] == "~":
        return _removal(text, match["key"])
    near = closest(text, ALL_GROUPS)
    return Problem(text, message, f"did you mean `{near}=...`?" if near else None, COMMAND_LINE)


def _several(search: Search) -> Problem:
    """What is said of several values where one is taken."""
    key, text = search.key, search.text
    hint = f"try them all with `medtrain sweep '{key}={text}'`"
    if "(" not in text and key not in ALL_GROUPS:
        hint += f", or write a list as `{key}=[{text}]`"
    if key in MULTI_GROUPS:
        hint = f"write a list: `{key}=[{text}]`"
    return Problem(f"{key}={text}", "several values are a sweep; a run takes one", hint, COMMAND_LINE)


def _parse_choice(override: Override, sources: Sources) -> str | list[str] | Problem | None:
    """The option of a group; None to choose nothing in a preset group."""
    group, value = override.key, override.value
    if override.plus:
        return plus_problem(override)
    if group in PRESET_GROUPS and value is None:
        return None
    if group in FILE_GROUPS:
        path = Path(str(value)).expanduser()
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                return Problem(f"{group}={override.text}", "there is no such file", None, COMMAND_LINE)
            return sources.add_file(group, path)
    if group in MULTI_GROUPS and value is None:
        return []
    items = value if group in MULTI_GROUPS and isinstance(value, list) else [value]
    known = sources.options(group)
    for item in items:
        if not isinstance(item, str) or not override.readable:
            return _not_an_option(group, override, known)
        if item not in known:
            problem = unknown_option(group, item, known)
            return Problem(problem.where, problem.message, problem.hint, COMMAND_LINE)
    return [str(item) for item in items] if group in MULTI_GROUPS else str(value)


def plus_problem(override: Override) -> Problem:
    """The problem of a `+` before a key that exists."""
    written = f"{override.key}={override.text}"
    return Problem(f"+{written}", "`+` is not used: every key exists already", f"write `{written}`", COMMAND_LINE)


def _not_an_option(group: str, override: Override, known: Sequence[str]) -> Problem:
    message = f"choose one of {', '.join(known)}"
    if group in MULTI_GROUPS:
        message = f"choose any of {', '.join(known)} as a list"
    hint = f"values are set one by one: `{group}.KEY=VALUE`" if isinstance(override.value, dict) else None
    if override.value is None and "none" in known:
        hint = f"did you mean `{group}=none`?"
    return Problem(f"{group}={override.text}", message, hint, COMMAND_LINE)
