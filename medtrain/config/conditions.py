"""When a dimension exists: the conditions that were written, and those that follow from what the options have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from medtrain.config.contexts import Contexts
from medtrain.config.paths import ALL_GROUPS
from medtrain.config.search import Entry
from medtrain.config.sources import COMMAND_LINE
from medtrain.config.space import Dimension
from medtrain.errors import Problem
from medtrain.registry import closest

When = dict[str, tuple[str, ...]]


def resolve_when(
    entry: Entry,
    entries: Mapping[str, Entry],
    contexts: Contexts,
    plain: Collection[str],
    dropped: Collection[str],
    lost: Collection[str],
) -> When | str | Problem:
    """The condition of an entry.

    Args:
        entry: What varies.
        entries: Everything that varies.
        contexts: The configurations that the searched groups make.
        plain: Keys that were set on the command line.
        dropped: Keys of entries that were left out.
        lost: Keys of entries that are wrong.

    Returns:
        The condition; or why an entry of a file is left out, because the command line has set what it depends on; or
        what is wrong with it.
    """
    when: When = {}
    for key, allowed in entry.when.items():
        if key in lost:
            continue
        found = _resolve_one(entry, key, allowed, entries, contexts, plain, dropped)
        if isinstance(found, str | Problem):
            return found
        if found:
            when[key] = found
    if entry.key in ALL_GROUPS:
        return when
    existence = contexts.find(entry.key)
    head = entry.key.split(".", 1)[0]
    if not existence.contexts and not entry.is_typed and head not in contexts.base.draft.broken:
        if head in plain:
            return f"{head}={contexts.base.value(head)} has no such key"
        if head in entries and entries[head].is_typed:
            return f"none of {head}={entries[head].text} has such a key"
    for group, options in existence.when.items():
        without = [option for option in when.get(group, ()) if option not in options]
        if without:
            return entry.problem(f"does not exist for {group}={without[0]}", f"write `when: {{{group}: {options[0]}}}`")
        when.setdefault(group, options)
    return when


def _resolve_one(
    entry: Entry,
    key: str,
    allowed: Sequence[str],
    entries: Mapping[str, Entry],
    contexts: Contexts,
    plain: Collection[str],
    dropped: Collection[str],
) -> tuple[str, ...] | str | Problem:
    """One key of a condition; empty when it always holds."""
    other = entries.get(key)
    if other is not None and key not in dropped:
        if other.is_range:
            return entry.problem(f"a condition names choices, and `{key}` varies over numbers")
        kept = tuple(text for text in allowed if text in other.choices)
        missing = [text for text in allowed if text not in other.choices]
        if missing and (entry.is_typed or not other.is_typed):
            near = closest(missing[0], other.choices)
            message = f"its condition can never hold: `{key}` has the choices {', '.join(other.choices)}"
            return entry.problem(f"{message}, not {missing[0]}", f"did you mean `{near}`?" if near else None)
        return kept or f"{key} varies over {other.text}"
    value = contexts.base.value(key)
    if value is None:
        near = closest(key, entries)
        hint = f"did you mean `{near}`?" if near else None
        return entry.problem(f"its condition names the unknown key `{key}`", hint)
    if value in allowed:
        return ()
    if key in dropped or (key in plain and not entry.is_typed):
        return f"{key} is {value}"
    hint = f"let it vary: `{key}={allowed[0]},...`"
    return Problem(entry.key, f"its condition can never hold: {key} is {value}", hint, entry.origin or COMMAND_LINE)


def in_order(dimensions: Sequence[Dimension]) -> list[Dimension] | Problem:
    """Put those that others depend on first: groups, then values, otherwise as they were written."""
    waiting = sorted(dimensions, key=lambda dimension: dimension.key not in ALL_GROUPS)
    result: list[Dimension] = []
    while waiting:
        placed = {dimension.key for dimension in result}
        missing = {dimension.key for dimension in waiting}
        ready = next((d for d in waiting if not (set(d.when) & missing - placed)), None)
        if ready is None:
            return Problem("sweep.space", f"the conditions of {', '.join(sorted(missing))} depend on one another")
        waiting.remove(ready)
        result.append(ready)
    return result
