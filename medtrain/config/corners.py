"""Compose the ends of a search space, so that what a trial would complain of is found before the first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from medtrain.config.compose import Composed
from medtrain.config.contexts import Context, Contexts
from medtrain.config.paths import ALL_GROUPS
from medtrain.config.render import write_override
from medtrain.config.search import Entry
from medtrain.config.searchable import SHARED
from medtrain.config.sources import COMMAND_LINE
from medtrain.config.space import Space
from medtrain.config.tree import lookup
from medtrain.errors import Problem

_NOT_SET = "???"


def check_corners(
    contexts: Contexts, space: Space, ends: Mapping[str, tuple[Any, Any]], entries: Mapping[str, Entry]
) -> tuple[Composed | None, list[Problem]]:
    """Check the base, and every option with the first and the last value of everything that exists beside it.

    What the base requires and only the space gives is set to its first value in `contexts.words`.

    Args:
        contexts: The base and the options.
        space: What varies.
        ends: First and last value of each dimension that is no group.
        entries: What varies, as it was written.

    Returns:
        The base, None when something is wrong with it, and every problem.
    """
    base = contexts.base
    for key, value in _point(contexts, base, space, ends, 0).items():
        if base.value(key) == write_override(_NOT_SET):
            contexts.words[key] = f"{key}={write_override(value)}"
    composed, problems = contexts.drafts.make(list(contexts.words.values()), "sweep").check()
    wrong = {(problem.where, problem.message) for problem in problems}
    for context in (base, *contexts.others()):
        problems += _changes(context, base, entries)
        for end in (0, 1):
            for problem in context.with_values(_point(contexts, context, space, ends, end)).check()[1]:
                if (problem.where, problem.message) not in wrong:
                    wrong.add((problem.where, problem.message))
                    problems.append(_explain(problem, context, entries))
    return composed, problems


def _point(
    contexts: Contexts, context: Context, space: Space, ends: Mapping[str, tuple[Any, Any]], end: int
) -> dict[str, Any]:
    """The values at one end of everything that exists with the options of a configuration."""
    params: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for dimension in space.dimensions:
        key = dimension.key
        if not dimension.is_active(params):
            continue
        if key in ALL_GROUPS:
            params[key] = context.option if key == context.group else contexts.base_option(key)
        else:
            values[key] = ends[key][end]
            params[key] = dimension.choices[-end] if dimension.kind == "choice" else values[key]
    return values


def _changes(context: Context, base: Context, entries: Mapping[str, Entry]) -> Iterator[Problem]:
    """What an option changes that all trials share."""
    for key, (reason, _) in SHARED.items():
        if key in entries or key.endswith("*") or not context.group:
            continue
        if _shared(context, key) != _shared(base, key):
            message = f"sets {key} to {context.value(key)}: {reason}"
            yield Problem(f"{context.group}={context.option}", message, None, entries[context.group].origin)
            return


def _shared(context: Context, key: str) -> Any:
    if key in ALL_GROUPS:
        return context.draft.selection.choices.get(key)
    try:
        return lookup(context.draft.tree.values, key)
    except KeyError:
        return None


def _explain(problem: Problem, context: Context, entries: Mapping[str, Entry]) -> Problem:
    """Say with which option a problem occurs, and where the value was written."""
    entry = entries.get(problem.where.split("[", 1)[0])
    origin = entry.origin if entry is not None and problem.origin == COMMAND_LINE else problem.origin
    if context.group:
        beside = f"with {context.group}={context.option}"
        origin = f"{origin}, {beside}" if origin else beside
    return replace(problem, origin=origin)
