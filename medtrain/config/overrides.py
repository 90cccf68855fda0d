"""What the user typed: `GROUP=OPTION` and `KEY=VALUE`, parsed one by one so that every mistake is found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from medtrain.config.paths import MULTI_GROUPS, PRESET_GROUPS
from medtrain.config.sources import Sources, unknown_option
from medtrain.errors import Problem
from medtrain.registry import GROUPS, closest

COMMAND_LINE = "command line"
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
        syntax_error: Why Hydra's grammar cannot read the text; the text itself is then the value of a text key.
    """

    key: str
    value: Any
    text: str
    syntax_error: str | None = None


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


def parse(overrides: Sequence[str], sources: Sources) -> Request:
    """Sort overrides into choices of groups and values of keys, collecting every problem.

    Args:
        overrides: As typed.
        sources: Knows the options of each group.
    """
    chosen: dict[str, str | list[str]] = {}
    values: list[Override] = []
    problems: list[Problem] = []
    broken: set[str] = set()
    for text in overrides:
        parsed = _parse_one(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
            broken |= {group for group in sources.groups() if text.lstrip("+~").startswith(f"{group}=")}
            continue
        group = parsed.key
        if group not in sources.groups():
            values.append(parsed)
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


def _parse_one(text: str) -> Override | Problem:
    match = _OVERRIDE.match(text)
    if match is None or match["equal"] is None:
        return _malformed(text, match)
    key = _INDEX.sub(r".\1", match["key"])
    if match["sign"] or match["package"]:
        mark = match["sign"] or "@"
        reason = {"~": "keys cannot be removed", "@": "packages cannot be given"}.get(mark, "keys cannot be added")
        plain = f"{match['key']}={match['text']}"
        hint = f"write `{plain}`" if mark != "~" else f"choose another option, or set `{match['key']}=null`"
        return Problem(text, f"{reason}: `{mark}` is not used in medtrain", hint, COMMAND_LINE)
    try:
        parsed = OverridesParser.create().parse_override(f"value={match['text']}")
    except HydraException as error:
        return Override(key, match["text"], match["text"], syntax_error=_shorten(str(error)))
    if parsed.is_sweep_override():
        return _sweep(match["key"], match["text"])
    return Override(key, parsed.value(), match["text"])


def _malformed(text: str, match: re.Match[str] | None) -> Problem:
    message = "not an override: write KEY=VALUE, e.g. `optimizer.lr=1e-3`, or GROUP=OPTION, e.g. `model=unet`"
    if match and match["sign"] == "~":
        return Problem(text, "keys cannot be removed: `~` is not used in medtrain", None, COMMAND_LINE)
    near = closest(text, GROUPS)
    return Problem(text, message, f"did you mean `{near}=...`?" if near else None, COMMAND_LINE)


def _sweep(key: str, text: str) -> Problem:
    message = "several values are a sweep; a run takes one"
    hint = f"try them all with `medtrain sweep {key}={text}`, or write a list as `{key}=[{text}]`"
    if "(" in text:
        hint = f"try them with `medtrain sweep '{key}={text}'`"
    return Problem(f"{key}={text}", message, hint, COMMAND_LINE)


def _shorten(error: str) -> str:
    first = " ".join(error.splitlines()[0].split())
    return first if len(first) < 80 else "it cannot be read"


def _parse_choice(override: Override, sources: Sources) -> str | list[str] | Problem | None:
    """The option of a group; None to choose nothing in a preset group."""
    group, value = override.key, override.value
    if group in PRESET_GROUPS:
        if value is None:
            return None
        path = Path(override.text).expanduser()
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                return Problem(f"{group}={override.text}", "there is no such file", None, COMMAND_LINE)
            return sources.add_file(group, path)
    if group in MULTI_GROUPS and value is None:
        return []
    items = value if group in MULTI_GROUPS and isinstance(value, list) else [value]
    known = sources.options(group)
    for item in items:
        if not isinstance(item, str) or override.syntax_error:
            return _not_an_option(group, override, known)
        if item not in known:
            problem = unknown_option(group, item, known)
            return Problem(problem.where, problem.message, problem.hint, COMMAND_LINE)
    return [str(item) for item in items] if group in MULTI_GROUPS else str(value)


def _not_an_option(group: str, override: Override, known: Sequence[str]) -> Problem:
    message = f"choose one of {', '.join(known)}"
    if group in MULTI_GROUPS:
        message = f"choose any of {', '.join(known)} as a list"
    hint = f"values are set one by one: `{group}.KEY=VALUE`" if isinstance(override.value, dict) else None
    if override.value is None and "none" in known:
        hint = f"did you mean `{group}=none`?"
    return Problem(f"{group}={override.text}", message, hint, COMMAND_LINE)
