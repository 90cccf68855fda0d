"""Write a config as YAML, as JSON, or as one override per line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from hydra._internal.grammar.utils import escape_special_characters
from hydra.core.override_parser.types import Quote, QuotedString

from medtrain.config.compose import Composed, draft
from medtrain.config.interpolate import resolve
from medtrain.config.paths import COMPONENT_GROUPS, MULTI_GROUPS
from medtrain.config.sources import Sources
from medtrain.config.tree import leaves, lookup
from medtrain.registry import GROUPS, plain

Comment = Callable[[str], str | None]
_BARE = re.compile(r"^[\w/.$*@?|%+:-]+$", re.ASCII)
_NUMBER_LIKE = re.compile(r"^[-+]?[\d._]+([eE][-+]?\d+)?$|^[-+]?(nan|inf)$|^(null|true|false)$", re.IGNORECASE)


_STYLE: dict[str, Any] = {"width": 10**9, "sort_keys": False, "allow_unicode": True}


class _FlowDumper(yaml.SafeDumper):
    """Lists of lists and mappings on one line, never with anchors; texts that OmegaConf takes for numbers in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write `&id001`."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _NUMBER_LIKE.match(text) else None)


_FlowDumper.add_representer(str, _represent_text)


def to_yaml(tree: Mapping[str, Any], comment: Comment = lambda key: None) -> str:
    """Write a tree as YAML, mappings as blocks and lists on one line.

    Args:
        tree: Plain values.
        comment: Gives the text after a value, by its dotted path, or None.
    """
    return "".join(f"{line}\n" for line in _yaml_lines(plain(dict(tree)), "", "", comment))


def _yaml_lines(tree: Mapping[str, Any], indent: str, path: str, comment: Comment) -> Iterator[str]:
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_flow(key)}:"
            yield from _yaml_lines(value, f"{indent}  ", where, comment)
        else:
            note = comment(where)
            yield f"{indent}{_flow(key)}: {_flow(value)}" + (f"  # {note}" if note else "")


def _flow(value: Any) -> str:
    if not isinstance(value, list | Mapping):
        text = yaml.dump(value, Dumper=_FlowDumper, width=10**9, allow_unicode=True)
        return text.removesuffix("...\n").strip()
    text = yaml.dump(
        [value], Dumper=_FlowDumper, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True
    )
    return text.strip()[1:-1]


def to_json(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> str:
    """Write a tree as JSON; with origins, as a flat mapping of keys to their value and origin."""
    data = plain(dict(tree))
    if origins is not None:
        data = {key: {"value": value, "origin": origins.get(key)} for key, value in leaves(data)}
    return json.dumps(data, indent=2) + "\n"


def to_flat(tree: Mapping[str, Any], comment: Comment = lambda key: None) -> str:
    """Write a tree as overrides, one per line: typed after `medtrain train` they give the same config."""
    lines = []
    data = plain(dict(tree))
    for group in (group for group in COMPONENT_GROUPS if group in data):
        if group in MULTI_GROUPS:
            lines.append(_with_comment(f"{group}=[{','.join(data[group])}]", None))
        elif "name" in data[group]:
            lines.append(_with_comment(f"{group}={data[group]['name']}", comment(f"{group}.name")))
    for key, value in leaves(data):
        group = key.split(".", 1)[0]
        if (group in COMPONENT_GROUPS and key.endswith(".name")) or (value == {} and group in MULTI_GROUPS):
            continue
        lines.append(_with_comment(f"{key}={write_override(value)}", comment(key)))
    return "".join(f"{line}\n" for line in lines)


def _with_comment(line: str, note: str | None) -> str:
    return f"{line}  # {note}" if note else line


def shell_word(key: str, value: Any) -> str:
    """Write `KEY=VALUE` as it is typed in a shell."""
    return shlex.quote(f"{key}={write_override(value, quote=Quote.double)}")


def write_override(value: Any, *, quote: Quote = Quote.single) -> str:
    """Write a value in the grammar of overrides.

    Args:
        value: Plain data.
        quote: What texts are put in where they need it.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(write_override(item, quote=quote) for item in value)}]"
    if isinstance(value, Mapping):
        items = (f"{escape_special_characters(key)}:{write_override(item, quote=quote)}" for key, item in value.items())
        return f"{{{','.join(items)}}}"
    if _BARE.match(value) and not _NUMBER_LIKE.match(value):
        return str(value)
    return QuotedString(text=value, quote=quote).with_quotes()


def difference(composed: Composed) -> dict[str, Any]:
    """The part of a config that differs from its defaults: chosen components and changed values."""
    result: dict[str, Any] = {}
    for key, value in leaves(composed.tree):
        try:
            same = plain(lookup(composed.defaults_tree, key)) == plain(value)
        except KeyError:
            same = False
        if not same:
            _put(result, key, value)
    for group in MULTI_GROUPS:
        if set(composed.tree[group]) != set(composed.defaults_tree[group]):
            result.setdefault(group, {})
            for name, section in composed.tree[group].items():
                _put(result, f"{group}.{name}.name", section["name"])
    return result


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def experiment_yaml(composed: Composed, *, comment: str, notes: Comment = lambda key: None) -> str:
    """Write the config of a run as an experiment file that gives it again by itself.

    The file names the components that `medtrain train` would not choose, and every value that it would not set. It
    needs none of the files the config was composed from, and means the same beside them.

    Args:
        composed: As `medtrain train` composes it.
        comment: What the file is, for its head.
        notes: Gives the text after a value, by its dotted path, or None.
    """
    shipped = Sources()
    sources = (shipped,) if composed.sources.is_shipped else (shipped, composed.sources)
    options = _portable_options(composed, shipped)
    usual = [draft([], source, "train").selection for source in sources]
    chosen = {
        group: option
        for group, option in options.items()
        if any(option != (other.listed[group] if group in MULTI_GROUPS else other.choices[group]) for other in usual)
    }
    wanted = plain(composed.tree)
    missing: set[str] = set()
    for source in sources:
        there = draft(_words(chosen), source, "train").tree
        given = resolve(there.values, there.origins)[0]
        missing |= {key for key, value in leaves(wanted) if not _is_at(given, key, value)}
    missing -= {"run.dir", *MULTI_GROUPS}
    lines = ["# @package _global_", *(f"# {line}".rstrip() for line in comment.splitlines())]
    if chosen:
        lines += ["defaults:", *(f"  - override /{group}: {_flow(option)}" for group, option in chosen.items()), ""]
    tree: dict[str, Any] = {}
    for key, value in leaves(wanted):
        if key in missing:
            _put(tree, key, value)
    return "".join(f"{line}\n" for line in lines) + to_yaml(tree, notes)


def _words(options: Mapping[str, str | list[str]]) -> list[str]:
    return [f"{group}={write_override(option)}" for group, option in options.items()]


def _portable_options(composed: Composed, shipped: Sources) -> dict[str, str | list[str]]:
    """The options that anybody has: shipped ones, or components by their names."""
    options: dict[str, str | list[str]] = {}
    for group in (group for group in GROUPS if group not in MULTI_GROUPS):
        name, option = str(composed.tree[group]["name"]), str(composed.choices[group])
        options[group] = option if option in shipped.options(group) else name
    there = draft(_words(options), shipped, "train").tree.values
    names = {group: str(composed.tree[group]["name"]) for group in options}
    options = {
        group: option if there[group]["name"] == names[group] else names[group] for group, option in options.items()
    }
    for group in MULTI_GROUPS:
        options[group] = [key for key, section in composed.tree[group].items() if section["name"] == key]
    return {group: options[group] for group in GROUPS}


def _is_at(tree: Mapping[str, Any], key: str, value: Any) -> bool:
    try:
        return bool(plain(lookup(tree, key)) == value)
    except KeyError:
        return False
