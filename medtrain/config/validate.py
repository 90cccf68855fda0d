"""Check a resolved tree against the signatures of its components, and say everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from medtrain import registry
from medtrain.config.annotations import Issue, check_params
from medtrain.config.families import family_issues
from medtrain.config.paths import MULTI_GROUPS, PRESET_GROUPS
from medtrain.config.schema import ROOT, component_of
from medtrain.config.tree import origin_of
from medtrain.errors import Problem

BELONGS_TO_SWEEP = "belongs to `medtrain sweep`"
"""What is said of a sweep's group in the config of a run."""


def validate(
    tree: Mapping[str, Any],
    origins: Mapping[str, str],
    *,
    skip: Collection[str] = (),
    groups: Sequence[str] = registry.GROUPS,
) -> tuple[dict[str, Any], list[Problem]]:
    """Check every value; return the coerced tree and all problems.

    Args:
        tree: Plain data without interpolations.
        origins: Where each value came from.
        skip: Groups and keys whose problems are known already.
        groups: The groups that the config has.
    """
    result: dict[str, Any] = {}
    issues: list[Issue] = list(_unknown_sections(tree, groups))
    values, found = check_params(ROOT, {key: tree[key] for key in ROOT if key in tree}, "")
    result.update(values)
    issues += found
    for group in groups:
        if group in skip:
            continue
        check_section = _check_many if group in MULTI_GROUPS else _check_one
        result[group], found = check_section(group, tree.get(group), origins)
        issues += found
    issues += family_issues(tree)
    problems = [
        Problem(
            issue.path,
            issue.message,
            issue.hint,
            origin_of(origins, issue.path) if issue.kind != "missing" else None,
        )
        for issue in issues
        if issue.path not in skip
    ]
    return result, problems


def _unknown_sections(tree: Mapping[str, Any], groups: Sequence[str]) -> Iterator[Issue]:
    known = [*ROOT, *groups]
    for key, value in tree.items():
        if key in known:
            continue
        if key in registry.SWEEP_GROUPS:
            yield Issue(_deepest(str(key), value), BELONGS_TO_SWEEP)
            continue
        hint = f"known keys: {', '.join(known)}"
        near = registry.closest(str(key), [*known, *PRESET_GROUPS])
        if key == "hydra":
            hint = "Hydra's own settings do not apply here: the run folder is set with `run.dir`"
        elif key in PRESET_GROUPS:
            hint = "begin the file with the line `# @package _global_`"
        elif near:
            hint = f"did you mean `{near}`?"
        yield Issue(_deepest(str(key), value), "unknown key", hint)


def _deepest(path: str, value: Any) -> str:
    """`modl.channels` rather than `modl`, as long as there is only one key."""
    while isinstance(value, Mapping) and len(value) == 1:
        key, value = next(iter(value.items()))
        path = f"{path}.{key}"
    return path


def _check_one(group: str, section: Any, origins: Mapping[str, str]) -> tuple[Any, list[Issue]]:
    if section is None:
        options = ", ".join(registry.names(group))
        return None, [Issue(group, f"required, not chosen; available: {options}", f"add `{group}=...`", "missing")]
    return _check_component(group, section, group, origins)


def _check_many(group: str, section: Any, origins: Mapping[str, str]) -> tuple[dict[str, Any], list[Issue]]:
    result: dict[str, Any] = {}
    issues: list[Issue] = []
    if section is None:
        return result, issues
    if not isinstance(section, Mapping):
        return result, [Issue(group, "must be a mapping with one key for each component")]
    for key, value in section.items():
        path = f"{group}.{key}"
        if isinstance(value, Mapping) and "name" not in value:
            issues += _not_chosen(group, str(key), value, list(section))
            continue
        result[key], found = _check_component(group, value, path, origins)
        issues += found
    return result, issues


def _not_chosen(group: str, key: str, value: Mapping[str, Any], present: list[str]) -> Iterator[Issue]:
    """A value for a callback or logger that is not in the list."""
    chosen = [name for name in present if name != key]
    known = registry.names(group)
    if key in known:
        message = f"{key} is not chosen"
        hint = f"choose it with `{group}=[{','.join([*chosen, key])}]`"
    else:
        near = registry.closest(key, known)
        message = "unknown key"
        hint = f"did you mean `{group}.{near}`?" if near else f"known keys: {', '.join(chosen)}"
    for parameter in value or {"": None}:
        yield Issue(f"{group}.{key}.{parameter}".removesuffix("."), message, hint)


def _check_component(group: str, section: Any, path: str, origins: Mapping[str, str]) -> tuple[Any, list[Issue]]:
    if not isinstance(section, Mapping):
        return None, [Issue(path, f"must be a mapping; choose a component with `{group}=NAME`")]
    name = section.get("name")
    if _is_renamed(name, group, path, origins):
        hint = f"choose the component with `{group}={name}`, or `override /{group}:` in a defaults list"
        return None, [Issue(f"{path}.name", "the name of a component is not set as a value", hint)]
    component = component_of(section, group)
    if component is None:
        options = registry.names(group)
        near = registry.closest(str(name), options)
        message = f"unknown {group} `{name}`; available: {', '.join(options)}"
        return None, [Issue(f"{path}.name", message, f"did you mean `{near}`?" if near else None)]
    values, issues = check_params(component.params, {k: v for k, v in section.items() if k != "name"}, path)
    return {"name": component.name, **values}, issues


def _is_renamed(name: Any, group: str, path: str, origins: Mapping[str, str]) -> bool:
    """Whether the values of a section come from another component's schema than its name says."""
    own, mark = f"default of {group}={name}", f"default of {group}="
    if origins.get(f"{path}.name") == own:
        return False
    return any(
        origin.startswith(mark) and origin != own for key, origin in origins.items() if key.startswith(f"{path}.")
    )
