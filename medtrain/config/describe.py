"""Explain components and keys to people, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain import registry
from medtrain.config.annotations import describe, show
from medtrain.config.catalog import parameters, require_group
from medtrain.config.overrides import parse
from medtrain.config.paths import ALL_GROUPS, MULTI_GROUPS, PRESET_GROUPS
from medtrain.config.schema import ROOT
from medtrain.config.sources import Sources
from medtrain.config.tree import OriginTree, leaves, origin_of
from medtrain.errors import ConfigError, UsageError
from medtrain.registry import Component, Param, closest, plain

_MISSING = object()


def describe_target(target: str, *, config_dirs: Sequence[Path | str] = (), width: int = 100) -> str:
    """Describe `GROUP=OPTION`, `GROUP` (its default option), a dotted key, or a component's bare name.

    Args:
        target: What to describe.
        config_dirs: Folders searched before the built-in configs.
        width: Columns of the text.

    Raises:
        UsageError: There is nothing of this name.
        ConfigError: The option does not exist.
    """
    sources = Sources(config_dirs)
    if target in ROOT:
        return "\n".join(_describe_param(target, ROOT[target], _MISSING, None, width)) + "\n"
    group, equal, option = target.partition("=")
    if not equal and "." not in target and target not in ALL_GROUPS:
        group, option = _find_option(target, sources)
    key = ""
    if not equal and "." in target:
        group, _, key = target.partition(".")
    require_group(group)
    if group in MULTI_GROUPS and key:
        option, _, key = key.partition(".")
    if group in PRESET_GROUPS:
        return _describe_preset(group, option, sources)
    tree = _compose(group, option, sources)
    section = tree.values[group]
    if group in MULTI_GROUPS:
        if not option:
            raise UsageError(f"say which {group}, e.g. `{group}={next(iter(section))}`")
        section = next(iter(section.values()))
    component = registry.get(group, section["name"])
    if key:
        return _describe_key(component, key, section, width)
    return _describe_component(component, option or section["name"], section, tree.origins, width)


def _find_option(name: str, sources: Sources) -> tuple[str, str]:
    known = {group: sources.options(group) for group in ALL_GROUPS}
    found = [group for group in ALL_GROUPS if name in known[group]]
    if len(found) == 1:
        return found[0], name
    if found:
        raise UsageError(f"`{name}` is an option of several groups: {', '.join(f'{g}={name}' for g in found)}")
    near = closest(name, [*ALL_GROUPS, *ROOT, *(option for options in known.values() for option in options)])
    hint = f"did you mean `{near}`?" if near else "`medtrain list` shows what there is"
    raise UsageError(f"there is nothing called `{name}`", hint=hint)


def _compose(group: str, option: str, sources: Sources) -> OriginTree:
    """The section of a group as the option's files make it."""
    config_name = _primary(group)
    request = parse([f"{group}={option}"] if option else [], sources, config_name)
    if request.problems:
        raise ConfigError(request.problems)
    tree = OriginTree()
    for layer in sources.select(config_name, request.chosen, only=group).layers:
        tree.merge(layer.content, layer.origin, layer.package)
    return tree


def _primary(group: str) -> str:
    return "sweep" if group in registry.SWEEP_GROUPS else "train"


def _describe_preset(group: str, option: str, sources: Sources) -> str:
    request = parse([f"{group}={option}"], sources)
    if request.problems:
        raise ConfigError(request.problems)
    selection = sources.select("train", request.chosen, only=group)
    lines = [f"{group}={option}", ""]
    usual = sources.select("train", {}, only=group).choices
    for name, choice in selection.choices.items():
        if choice != usual[name] and name != group:
            lines.append(f"  {name}={choice}")
    for layer in selection.layers:
        lines += [f"  {key}={show(value)}" for key, value in leaves(layer.content)]
    return "\n".join(lines) + "\n"


def _describe_component(
    component: Component, option: str, section: Mapping[str, Any], origins: Mapping[str, str], width: int
) -> str:
    title = f"{component.group}={option}"
    source = component.origin if option == component.name else f"{component.group}={component.name}, {component.origin}"
    lines = [f"{title}  ({source})", ""]
    for paragraph in _prose(component):
        lines += [*textwrap.wrap(paragraph, width), ""]
    if component.tags:
        lines += [f"Tags: {', '.join(component.tags)}", ""]
    if component.runtime:
        lines += [f"Supplied by the run: {', '.join(component.runtime)}", ""]
    for param in component.params.values():
        key = f"{_prefix(component)}.{param.name}"
        lines += _describe_param(key, param, section.get(param.name, _MISSING), origin_of(origins, key), width)
    if not component.params:
        lines.append("There is nothing to set.")
    return "\n".join(lines) + "\n"


def _prefix(component: Component) -> str:
    """Where the section of a component lies in the config."""
    return f"{component.group}.{component.name}" if component.group in MULTI_GROUPS else component.group


def _prose(component: Component) -> Iterator[str]:
    """The paragraphs of the docstring before `Args:`, unwrapped."""
    text = (inspect.getdoc(component.target) or "").split("\nArgs:", 1)[0]
    for paragraph in text.split("\n\n"):
        if paragraph.strip() and not paragraph.startswith(("Raises:", "Returns:", "Example")):
            yield " ".join(paragraph.split())


def _describe_key(component: Component, key: str, section: Mapping[str, Any], width: int) -> str:
    name = key.split(".", 1)[0]
    prefix = _prefix(component)
    if name not in component.params:
        near = closest(name, component.params)
        owners = [o for o in registry.names(component.group) if name in parameters(component.group, o)]
        hint = f"did you mean `{prefix}.{near}`?" if near else None
        if owners:
            hint = f"it belongs to `{component.group}={owners[0]}`: `medtrain describe {component.group}={owners[0]}`"
        known = ", ".join(component.params) or "none"
        raise UsageError(f"{component.group}={component.name} has no key `{name}`; its keys are: {known}", hint=hint)
    return (
        "\n".join(_describe_param(f"{prefix}.{key}", component.params[name], section.get(name, _MISSING), None, width))
        + "\n"
    )


def _describe_param(key: str, param: Param, value: Any, origin: str | None, width: int) -> Iterator[str]:
    default = "required" if param.required else f"default {show(plain(param.default))}"
    yield f"  {key}"
    yield f"      {describe(param.type)}; {default}"
    if value is not _MISSING and not param.required and plain(value) != plain(param.default):
        if isinstance(value, Mapping) and len(value) > 1:
            yield f"      in {origin}:" if origin else "      here:"
            yield from (f"          {name}: {show(item)}" for name, item in value.items())
        else:
            yield f"      {show(value)} in {origin}" if origin else f"      here {show(value)}"
    if param.doc:
        yield from textwrap.wrap(param.doc, width, initial_indent="      ", subsequent_indent="      ")
    yield ""
