"""From the command line of `medtrain sweep` to a checked configuration and its search space.

Everything that a sweep would find wrong in its trials is found here, before the first one, and all at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medtrain import registry
from medtrain.config.annotations import describe
from medtrain.config.compose import Composed, Draft, Drafts, apply_values
from medtrain.config.dimensions import NOTHING_VARIES, SpaceBuilder
from medtrain.config.imports import import_modules
from medtrain.config.overrides import Override, Search, plus_problem, read_override
from medtrain.config.paths import ALL_GROUPS, FILE_GROUPS, MULTI_GROUPS
from medtrain.config.render import shell_word, write_override
from medtrain.config.saved import CONFIG_FILE, read_config
from medtrain.config.search import Entry, read_search, read_yaml, why_unreadable
from medtrain.config.sources import COMMAND_LINE, Sources
from medtrain.config.space import Space
from medtrain.config.tree import OriginTree, leaves, lookup, origin_of
from medtrain.config.validate import validate
from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.registry import plain

SPACE = "sweep.space"
MAY_CHANGE = (
    "n_trials",
    "timeout",
    "workers",
    "retries",
    "max_failures",
    "keep_checkpoints",
    "rerun_best",
    "rerun_seeds",
    "rerun_folds",
)
"""Settings that `medtrain resume` may change in a sweep; the others would make its trials incomparable."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A checked sweep.

    Args:
        composed: The whole configuration, that of the sweep included, with nothing varied.
        train: What a trial starts from: the same as `medtrain train` composes it from `overrides`.
        overrides: Of a trial, without what varies; what sweep.yaml and its presets change is written out.
        full_overrides: The same for a run by itself: with the callbacks, loggers and the final evaluation that
            `medtrain train` would have.
        space: What varies.
        is_grid: Whether everything that varies was written as a plain comma list.
        notes: Remarks for the user: entries of a preset that do not apply.
        imports: Modules that register the user's components.
        config_dirs: Folders of the user's configurations, absolute.
    """

    composed: Composed
    train: Composed
    overrides: tuple[str, ...]
    full_overrides: tuple[str, ...]
    space: Space
    is_grid: bool
    notes: tuple[str, ...]
    imports: tuple[str, ...]
    config_dirs: tuple[str, ...]


@dataclass
class _Words:
    """The command line, sorted: what sets a value, what makes one vary, and what is wrong, by key."""

    plain: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def take(self, key: str, found: str | Entry | Problem | None) -> None:
        """Note the last word on a key: a text sets it, an entry lets it vary, None removes it."""
        self.plain.pop(key, None)
        self.entries.pop(key, None)
        self.named.add(key)
        if isinstance(found, str):
            self.plain[key] = found
        elif isinstance(found, Entry):
            self.entries[key] = found
        elif found is not None:
            self.problems.append(found)
            self.lost.add(key)


def load_sweep(
    overrides: Sequence[str] = (), *, config_dirs: Sequence[Path | str] = (), imports: Sequence[str] = ()
) -> SweepConfig:
    """Compose and check a sweep.

    Args:
        overrides: `KEY=VALUE`, `GROUP=OPTION`, and values that vary in Hydra's grammar, as typed.
        config_dirs: Folders laid out as conf/, searched before the built-in one.
        imports: Modules to import first, because they register components.

    Raises:
        ConfigError: Lists every problem.
        UsageError: A folder or module does not exist.
    """
    import_modules(imports)
    sources = Sources(config_dirs)
    drafts = Drafts(sources)
    words = _sort(overrides, sources)
    try:
        first = drafts.make(list(words.plain.values()), "sweep")
        entries = _join(first, words, sources)
        builder = SpaceBuilder(drafts, words.plain, entries, first=first, lost=words.lost)
    except ConfigError as error:  # the files cannot be put together at all
        raise ConfigError([*words.problems, *error.problems]) from error
    composed = builder.build()
    problems = [*words.problems, *_misplaced(first), *builder.problems]
    if not entries and not problems:
        problems = [NOTHING_VARIES]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    assert composed is not None
    varying = {dimension.key for dimension in builder.space.dimensions}
    composed.tree["sweep"]["space"] = {key: entry.written for key, entry in entries.items() if key in varying}
    base = list(builder.base.values())
    base_words = builder.base.items()
    train = [_absolute(key, word) for key, word in base_words if not _is_of_sweep(key) and key != "run.dir"]
    quiet = _spell_out(drafts, train, drafts.make(base, "sweep"))
    loud = _spell_out(drafts, train, drafts.make(base, "sweep", trial=[]))
    run, _ = drafts.make(quiet, "train").check()
    assert run is not None, "the trials' configuration is part of the sweep's, which is checked"
    return SweepConfig(
        composed=replace(composed, overrides=tuple(overrides)),
        train=run,
        overrides=tuple(quiet),
        full_overrides=tuple(loud),
        space=builder.space,
        is_grid=builder.is_grid,
        notes=tuple(builder.notes),
        imports=tuple(imports),
        config_dirs=tuple(str(Path(folder).absolute()) for folder in config_dirs),
    )


def _is_of_sweep(key: str) -> bool:
    return key.split(".", 1)[0] in registry.SWEEP_GROUPS


def _misplaced(first: Draft) -> list[Problem]:
    """Settings of the sweep in files that are read before those of the sweep, which would have no effect."""
    problems: list[Problem] = []
    for layer in first.selection.layers:
        if layer.package.split(".", 1)[0] in registry.SWEEP_GROUPS:
            return problems
        groups = [group for group in registry.SWEEP_GROUPS if not layer.package and group in layer.content]
        hint = "write it in a file of the group sweep: `medtrain sweep sweep=FILE.yaml`"
        problems += [Problem(group, "has no effect in this file", hint, layer.origin) for group in groups]
    return problems


def _sort(overrides: Sequence[str], sources: Sources) -> _Words:
    """Sort what was typed; the last word on a key counts."""
    words = _Words()
    for text in overrides:
        parsed = read_override(text)
        if isinstance(parsed, Problem):
            words.problems.append(parsed)
            continue
        key = parsed.key.removeprefix(f"{SPACE}.")
        if key != parsed.key:
            words.take(key, _from_space_word(key, parsed, sources))
        elif isinstance(parsed, Search):
            words.take(key, _from_search(parsed, sources))
        else:
            reason = None if parsed.readable else why_unreadable(parsed.text)
            unreadable = Problem(text, f"cannot be read: {reason}", None, COMMAND_LINE) if reason else None
            words.take(key, unreadable or text)
    return words


def _from_search(search: Search, sources: Sources) -> Entry | Problem:
    if search.plus:
        return plus_problem(Override(search.key, None, search.text))
    if search.key in MULTI_GROUPS:
        return _one_for_all(search, "all trials have the same ones", takes_list=True)
    group, _, name = search.key.partition(".")
    if group in registry.SWEEP_GROUPS:
        param = registry.get("sweep", "default").params.get(name) if group == "sweep" else None
        takes_list = param is not None and describe(param.type).startswith("list of")
        return _one_for_all(search, "a sweep does not search its own settings", takes_list=takes_list)
    return read_search(search, _options(search.key, sources))


def _one_for_all(search: Search, message: str, *, takes_list: bool) -> Problem:
    """The problem of several values where a sweep has one."""
    hint = f"write a list: `{search.key}=[{search.text}]`" if takes_list and "(" not in search.text else None
    return Problem(f"{search.key}={search.text}", message, hint, COMMAND_LINE)


def _from_space_word(key: str, parsed: Override | Search, sources: Sources) -> Entry | Problem | None:
    """`sweep.space.KEY=...` on the command line says the same as `KEY=...`, and may be null or a mapping."""
    if isinstance(parsed, Search):
        return _from_search(Search(key, parsed.values, parsed.text, parsed.plus), sources)
    return None if parsed.value is None else read_yaml(key, parsed.value, COMMAND_LINE, _options(key, sources))


def _options(key: str, sources: Sources) -> Sequence[str]:
    return sources.options(key) if key in ALL_GROUPS else ()


def _absolute(key: str, word: str) -> str:
    """A file is named so that a trial finds it from any folder."""
    read = read_override(word)
    assert isinstance(read, Override)
    path = Path(str(read.value)).expanduser()
    if key in FILE_GROUPS and path.suffix in (".yaml", ".yml") and path.is_file():
        return f"{key}={write_override(str(path.absolute()))}"
    return word


def _join(first: Draft, words: _Words, sources: Sources) -> dict[str, Entry]:
    """The entries of the files with those of the command line on top."""
    section = first.tree.values.get("sweep")
    space = section.get("space") if isinstance(section, Mapping) else None
    entries: dict[str, Entry] = {}
    for key, written in (space if isinstance(space, Mapping) else {}).items():
        if key in words.named or written is None:
            continue
        origin = origin_of(first.tree.origins, f"{SPACE}.{key}") or SPACE
        found = read_yaml(str(key), written, origin, _options(str(key), sources))
        if isinstance(found, Problem):
            words.problems.append(found)
            words.lost.add(str(key))
        else:
            entries[str(key)] = found
    return entries | words.entries


def _spell_out(drafts: Drafts, words: Sequence[str], target: Draft) -> list[str]:
    """Add to a run's overrides what makes it the sweep's configuration: choices first, then values."""
    result = list(words)
    reached = drafts.make(result, "train").selection
    for group in registry.GROUPS:
        wanted = target.selection.listed[group] if group in MULTI_GROUPS else target.selection.choices[group]
        there = reached.listed[group] if group in MULTI_GROUPS else reached.choices[group]
        if wanted != there:
            result.append(f"{group}={write_override(wanted)}")
    tree = drafts.make(result, "train").tree.values
    for key, value in leaves({key: value for key, value in target.tree.values.items() if not _is_of_sweep(key)}):
        try:
            same = lookup(tree, key) == value
        except KeyError:
            same = False
        if not same and key not in ("run.dir", *MULTI_GROUPS):
            result.append(f"{key}={write_override(value)}")
    return result


def load_saved_sweep(folder: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Read and check how a sweep searches, from its folder, with the changes that are allowed.

    Args:
        folder: The sweep's folder.
        overrides: `sweep.KEY=VALUE`; only those of `MAY_CHANGE` can change something.

    Returns:
        The checked sections `sweep`, `sampler` and `pruner`.

    Raises:
        UsageError: The folder is not a sweep.
        ConfigError: Lists every problem.
    """
    file = Path(folder) / CONFIG_FILE
    content = read_config(file)
    missing = [group for group in registry.SWEEP_GROUPS if group not in content]
    if missing:
        raise UsageError(f"{folder} is not a sweep: {file} has no `{missing[0]}`", hint="`medtrain runs` lists runs")
    tree = OriginTree()
    tree.merge({group: content[group] for group in registry.SWEEP_GROUPS}, str(file))
    before = copy.deepcopy(tree)
    problems: list[Problem] = []
    for text in overrides:
        read = read_override(text)
        if isinstance(read, Search):
            found = _from_search(read, Sources())
            space = Problem(read.key, "the space of a sweep cannot be changed", _BEGIN_ANEW, COMMAND_LINE)
            problems.append(found if isinstance(found, Problem) else space)
        elif isinstance(read, Problem):
            problems.append(read)
        else:
            problems += _change(read, tree)
    checked, invalid = validate(tree.values, tree.origins, groups=registry.SWEEP_GROUPS)
    problems += invalid
    problems += _refused(tree, before) if not invalid else []
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return {group: checked[group] for group in registry.SWEEP_GROUPS}


_BEGIN_ANEW = "begin a new sweep; `sweep.warm_start=[FOLDER]` takes over what this one has learned"


def _change(word: Override, tree: OriginTree) -> list[Problem]:
    """Set a value of a continued sweep; what it may be is checked later."""
    group, _, key = word.key.partition(".")
    if group not in registry.SWEEP_GROUPS or not key:
        message = "cannot be changed: the trials of a sweep share their configuration"
        return [Problem(word.key, message, _BEGIN_ANEW, COMMAND_LINE)]
    return apply_values([word], tree, frozenset())


def _refused(tree: OriginTree, before: OriginTree) -> Iterator[Problem]:
    """What was changed and must not be."""
    old, new = (validate(t.values, t.origins, groups=registry.SWEEP_GROUPS)[0] for t in (before, tree))
    for group in registry.SWEEP_GROUPS:
        for key, value in new[group].items():
            if value != old[group].get(key) and not (group == "sweep" and key in MAY_CHANGE):
                where = f"{group}.{key}"
                is_now, wanted = (shell_word(where, plain(each)) for each in (old[group].get(key), value))
                yield Problem(where, f"cannot be changed: it is `{is_now}`, not `{wanted}`", _BEGIN_ANEW, COMMAND_LINE)
