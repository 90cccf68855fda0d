"""Completion of the KEY=VALUE arguments: groups, their options, keys and their choices.

Runs at every press of TAB, so it imports nothing but the catalog.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.config import catalog
from medtrain.config.paths import (
    ALL_GROUPS,
    COMPONENT_GROUPS,
    MULTI_GROUPS,
    PRESET_GROUPS,
    ROOT_KEYS,
    default_choices,
    groups_of,
)

_SEARCH = re.compile(r"^['\"]?choice\((.*)\)['\"]?$")


def complete_override(params: Mapping[str, Any], incomplete: str, *, config_name: str = "train") -> list[str]:
    """Complete one override.

    Args:
        params: Of the command line so far: `overrides` (those before) and `config_dirs`.
        incomplete: The word under the cursor as the shell splits it.
        config_name: The primary config, which has these groups or not.
    """
    split, text = _join_split_word(incomplete)
    before = _join_split_words(params.get("overrides") or ())
    folders = [Path(folder) for folder in params.get("config_dirs") or () if Path(folder).is_dir()]
    groups = (*groups_of(config_name), *PRESET_GROUPS)
    chosen = default_choices(config_name) | _chosen(before)
    found = sorted(set(_candidates(text, chosen, folders, groups)))
    if len(found) == 1 and found[0].endswith("=") and found[0] != text:
        found = sorted(set(_candidates(found[0], chosen, folders, groups))) or found
    return [candidate.removeprefix(split) for candidate in found]


def complete_group(incomplete: str) -> list[str]:
    """Complete the name of a group."""
    return [group for group in ALL_GROUPS if group.startswith(incomplete)]


def complete_option(params: Mapping[str, Any], incomplete: str) -> list[str]:
    """Complete GROUP=OPTION alone, for `medtrain describe`."""
    split, text = _join_split_word(incomplete)
    folders = [Path(folder) for folder in params.get("config_dirs") or () if Path(folder).is_dir()]
    group, equal, start = text.partition("=")
    if not equal:
        groups = complete_group(group)
        if len(groups) != 1:
            return [f"{name}=" for name in groups]
        group = groups[0]
    found = [f"{group}={option}" for option in catalog.options(group, folders) if option.startswith(start)]
    return [candidate.removeprefix(split) for candidate in found]


def _join_split_word(incomplete: str) -> tuple[str, str]:
    """Undo bash's splitting of `model=un` into `model`, `=`, `un`.

    Returns:
        The part the shell does not want back (`model=`; empty in other shells), and the whole word.
    """
    if "COMP_WORDS" not in os.environ:
        return "", incomplete
    words = os.environ["COMP_WORDS"].split()
    at = int(os.environ.get("COMP_CWORD", "0"))
    if at < len(words) and words[at] == "=" and at > 0:
        return f"{words[at - 1]}=", f"{words[at - 1]}="
    if at > 1 and words[at - 1 : at] == ["="]:
        return f"{words[at - 2]}=", f"{words[at - 2]}={incomplete}"
    return "", incomplete


def _join_split_words(words: Sequence[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _chosen(before: Sequence[str]) -> dict[str, str]:
    """The option of each group that the words before choose."""
    words = (word.partition("=") for word in before)
    return {group: option for group, equal, option in words if equal and group in ALL_GROUPS}


def _candidates(text: str, chosen: Mapping[str, str], folders: Sequence[Path], groups: Sequence[str]) -> Iterator[str]:
    key, equal, value = text.partition("=")
    if key.split(".", 1)[0] in ALL_GROUPS and key.split(".", 1)[0] not in groups:
        return
    if equal:
        yield from (f"{key}={item}" for item in _values(key, value, chosen, folders))
    elif "." not in key:
        for group in groups:
            if group.startswith(key):
                yield f"{group}="
                if group == key and group not in PRESET_GROUPS:
                    yield f"{group}."
        yield from (f"{name}=" for name in ROOT_KEYS if name.startswith(key))
    else:
        yield from (f"{known}=" for known in _keys(key.split(".", 1)[0], chosen, folders) if known.startswith(key))


def _keys(group: str, chosen: Mapping[str, str], folders: Sequence[Path]) -> Iterator[str]:
    for prefix, component in _sections(group, chosen, folders):
        yield from (f"{prefix}.{name}" for name in catalog.parameters(group, component))


def _sections(group: str, chosen: Mapping[str, str], folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield (dotted path of a section, its component); several where a sweep searches the group."""
    if group not in COMPONENT_GROUPS:
        return
    if group in MULTI_GROUPS:
        names = chosen.get(group, "").strip("[]").split(",")
        yield from ((f"{group}.{name.strip()}", name.strip()) for name in names if name.strip())
    else:
        options = _SEARCH.sub(r"\1", chosen.get(group, "")).strip("'\"").split(",")
        yield from ((group, catalog.component_of(group, option.strip(), folders)) for option in options)


def _values(key: str, start: str, chosen: Mapping[str, str], folders: Sequence[Path]) -> Iterator[str]:
    if key in ALL_GROUPS:
        known = catalog.options(key, folders)
        listed = start.startswith("[") and key in MULTI_GROUPS
        done = start[: max(start.rfind(","), start.rfind("[")) + 1] if listed else ""
        if not listed and key not in MULTI_GROUPS and ("," in start or "(" in start):  # a sweep: `loss=dice_ce,fo`
            done = start[: max(start.rfind(","), start.rfind("(")) + 1]
            known = [option for option in known if option not in done.strip("'\"").replace("(", ",").split(",")]
        yield from (f"{done}{option}" for option in known if f"{done}{option}".startswith(start))
        return
    for prefix, component in _sections(key.split(".", 1)[0], chosen, folders):
        parameter = catalog.parameters(key.split(".", 1)[0], component).get(key.removeprefix(f"{prefix}."))
        if parameter is None or not key.startswith(f"{prefix}."):
            continue
        values = parameter.choices
        if values in ((), ("null",)):  # nothing to choose from: offer the default to start from
            values = (parameter.default,) if parameter.default not in (None, "null") else ()
        yield from (value for value in values if value.startswith(start))
