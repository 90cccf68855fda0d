"""From the command line's overrides to one checked config.

The steps: import the user's components; sort the overrides into choices and values; let Hydra's defaults list select
the files; merge them, then the values; resolve interpolations; check every value against the signatures of the
components. Every problem met on the way is collected, and all are raised together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.config.annotations import accepts_text, is_list_of_texts, split_texts
from medtrain.config.imports import import_modules
from medtrain.config.interpolate import resolve
from medtrain.config.overrides import Override, Request, parse, plus_problem
from medtrain.config.paths import COMPONENT_GROUPS, MULTI_GROUPS, groups_of
from medtrain.config.schema import annotation_at, component_defaults, section_defaults
from medtrain.config.sources import COMMAND_LINE, Selection, Sources
from medtrain.config.tree import OriginTree
from medtrain.config.validate import validate
from medtrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class Composed:
    """A checked config and how it came about.

    Args:
        tree: Plain values, coerced to the declared types; a section is `{"name": component, parameter: value, ...}`.
        unresolved: The same before interpolations were resolved, as in the files.
        origins: Where each value came from, by dotted path.
        overrides: As typed.
        choices: Option of each group: a name, a list for callbacks and logger, or None.
        sources: Where it was composed from.
        config_name: The primary config.
    """

    tree: dict[str, Any]
    unresolved: dict[str, Any]
    origins: dict[str, str]
    overrides: tuple[str, ...]
    choices: dict[str, str | list[str] | None]
    sources: Sources
    config_name: str

    @functools.cached_property
    def defaults_tree(self) -> dict[str, Any]:
        """What the config is compared with: the primary config where nothing is chosen or set.

        A component that it does not choose is compared with the defaults of its signature.
        """
        untouched = OriginTree()
        for layer in self.sources.select(self.config_name, {}).layers:
            untouched.merge(layer.content, layer.origin, layer.package)
        defaults = section_defaults(self.tree)
        for group, section in resolve(untouched.values, untouched.origins)[0].items():
            if group not in groups_of(self.config_name):
                defaults[group] = section
            elif group in MULTI_GROUPS:
                defaults[group] = {key: {**component_defaults(group, s["name"]), **s} for key, s in section.items()}
            elif section["name"] == self.tree[group]["name"]:
                defaults[group] |= section
            else:
                defaults[group]["name"] = section["name"]
        return defaults


def load_config(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "train",
    config_dirs: Sequence[Path | str] = (),
    imports: Sequence[str] = (),
) -> Composed:
    """Compose, override, resolve and check a config.

    Args:
        overrides: `GROUP=OPTION` and `KEY=VALUE`, as typed.
        config_name: Primary config.
        config_dirs: Folders laid out as conf/, searched before the built-in one.
        imports: Modules to import first, because they register components.

    Raises:
        ConfigError: Lists every problem.
        UsageError: A folder or module does not exist.
    """
    import_modules(imports)
    composed, problems = draft(overrides, Sources(config_dirs), config_name).check()
    if problems:
        raise ConfigError(problems)
    assert composed is not None
    return composed


@dataclass(frozen=True)
class Draft:
    """A config that is put together but not checked.

    Args:
        tree: Its values.
        request: What was typed.
        selection: The files it is made of.
        problems: Met so far.
        overrides: As typed.
        sources: Where it was composed from.
        config_name: The primary config.
    """

    tree: OriginTree
    request: Request
    selection: Selection
    problems: tuple[Problem, ...]
    overrides: tuple[str, ...]
    sources: Sources
    config_name: str

    @property
    def broken(self) -> frozenset[str]:
        """Groups whose option is unknown; their values cannot be checked."""
        return self.request.broken | self.selection.broken

    def check(self) -> tuple[Composed | None, list[Problem]]:
        """Resolve and check it; return the config, None when something is wrong with it, and every problem."""
        tree = self.tree
        resolved, unresolvable = resolve(tree.values, tree.origins)
        skip = self.broken | {problem.where for problem in unresolvable}
        groups = groups_of(self.config_name)
        checked, invalid = validate(resolved, tree.origins, skip=skip, groups=groups)
        problems = [*self.problems, *unresolvable, *invalid]
        if problems:
            return None, problems
        composed = Composed(
            tree=checked,
            unresolved={key: tree.values.get(key, {}) for key in checked},
            origins={**tree.origins, **_name_origins(checked, self.selection)},
            overrides=self.overrides,
            choices=_choices(checked, self.selection),
            sources=self.sources,
            config_name=self.config_name,
        )
        return composed, []


class Drafts:
    """Puts configs together, each only once.

    Args:
        sources: Where to compose from; components must be registered.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._made: dict[Any, Draft] = {}

    def make(self, overrides: Sequence[str], config_name: str, **extra: list[str]) -> Draft:
        """The same as `draft`, which must not be changed."""
        key = (config_name, *overrides, *((group, *options) for group, options in extra.items()))
        if key not in self._made:
            self._made[key] = draft(overrides, self.sources, config_name, extra=extra)
        return self._made[key]


def draft(
    overrides: Sequence[str], sources: Sources, config_name: str, *, extra: Mapping[str, str | list[str]] | None = None
) -> Draft:
    """Put a config together: files, choices and values.

    Args:
        overrides: As typed.
        sources: Where to compose from; components must be registered.
        config_name: Primary config.
        extra: Options of groups that a user cannot choose.

    Raises:
        ConfigError: The files cannot be put together at all.
    """
    request = parse(overrides, sources, config_name)
    try:
        selection = sources.select(config_name, {**request.chosen, **(extra or {})})
    except ConfigError as error:
        raise ConfigError([*request.problems, *error.problems]) from error
    tree = OriginTree()
    for layer in selection.layers:
        tree.merge(layer.content, layer.origin, layer.package)
    broken = request.broken | selection.broken
    problems = (*request.problems, *selection.problems, *apply_values(request.values, tree, broken))
    return Draft(tree, request, selection, problems, tuple(overrides), sources, config_name)


def apply_values(values: Sequence[Override], tree: OriginTree, broken: frozenset[str]) -> list[Problem]:
    """Set overrides in a tree; return those that cannot be set. Whether a key exists is for the check to say.

    Args:
        values: In the order typed.
        tree: Changed in place.
        broken: Groups to leave alone, because their option is unknown.
    """
    problems = []
    for override in values:
        if override.key.split(".", 1)[0] in broken:
            continue
        value = override.value
        annotation = annotation_at(tree.values, override.key)
        if override.plus and annotation is not None:
            problems.append(plus_problem(override))
            continue
        if annotation is not None and accepts_text(annotation) and isinstance(value, bool | float):
            value = override.text  # run.note=1e3 means the text
        if annotation is not None and is_list_of_texts(annotation) and isinstance(value, str):
            texts = split_texts(value)  # sweep.constraints=[parameters <= 2e6], or one without brackets
            value = value if texts is None else texts
        reason = tree.set(override.key, value, COMMAND_LINE)
        if reason:
            problems.append(Problem(override.key, reason, None, COMMAND_LINE))
    return problems


def _name_origins(tree: Mapping[str, Any], selection: Selection) -> dict[str, str]:
    """Where each component was chosen, which says more than that its name comes from its schema."""
    found = {}
    for group in (group for group in COMPONENT_GROUPS if group in tree):
        for key in [f"{group}.{name}" for name in tree[group]] if group in MULTI_GROUPS else [group]:
            found[f"{key}.name"] = selection.chosen_by[group]
    return found


def _choices(tree: Mapping[str, Any], selection: Selection) -> dict[str, str | list[str] | None]:
    return {
        group: list(tree[group]) if group in MULTI_GROUPS else option for group, option in selection.choices.items()
    }
