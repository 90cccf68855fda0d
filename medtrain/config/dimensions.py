"""From entries to a search space, checked against the parameters that it varies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medtrain.config.annotations import accepts_text, check, describe, number_kind, show
from medtrain.config.compose import Composed, Draft, Drafts
from medtrain.config.conditions import in_order, resolve_when
from medtrain.config.contexts import Contexts, Existence
from medtrain.config.corners import check_corners
from medtrain.config.overrides import Override, read_override
from medtrain.config.paths import ALL_GROUPS, FILE_GROUPS, PRESET_GROUPS
from medtrain.config.search import Entry
from medtrain.config.searchable import why_not
from medtrain.config.sources import COMMAND_LINE, Sources, unknown_option
from medtrain.config.space import Dimension, Space
from medtrain.errors import Problem

NOTHING_VARIES = Problem(
    "sweep.space",
    "nothing varies",
    "let a value vary, e.g. `optimizer.lr='tag(log, interval(1e-4,1e-1))'` or `loss=dice_ce,focal`, or choose a space "
    "that `medtrain list sweep` shows",
)


class SpaceBuilder:
    """Builds the space of a sweep and collects everything that is wrong with it.

    Args:
        drafts: Puts configurations together.
        plain: What was set on the command line, `KEY=VALUE` by key.
        entries: What varies, by key.
        first: The configuration as it is typed, with nothing varied.
        lost: Keys of entries that cannot be read.
    """

    def __init__(
        self,
        drafts: Drafts,
        plain: Mapping[str, str],
        entries: Mapping[str, Entry],
        *,
        first: Draft,
        lost: Collection[str] = (),
    ) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.is_grid = bool(entries) and all(entry.is_list for entry in entries.values())
        self.space = Space(())
        self._plain = plain
        self._entries = dict(entries)
        self._lost = set(lost)
        self._values: dict[str, tuple[Any, Any]] = {}  # first and last value of each dimension
        self._refuse(first)
        self._contexts = Contexts(drafts, plain, self._read_groups(drafts.sources))

    @property
    def base(self) -> dict[str, str]:
        """What the base is composed from, `KEY=VALUE` by key."""
        return self._contexts.words

    def build(self) -> Composed | None:
        """Build the space and check it; return the base, or None when something is wrong."""
        dimensions: list[Dimension] = []
        dropped: set[str] = set()
        unsaid = len(self.problems)
        for key, entry in self._entries.items():
            when = resolve_when(entry, self._entries, self._contexts, self._plain, dropped, self._lost)
            if isinstance(when, Problem):
                self.problems.append(when)
            elif isinstance(when, str):
                dropped.add(key)
                self.notes.append(f"{key} of {entry.origin} is left out: {when}")
            elif key in ALL_GROUPS:
                dimensions.append(Dimension(key=key, kind="choice", choices=entry.choices, when=when))
            elif (dimension := self._build(entry, when)) is not None:
                dimensions.append(dimension)
        dimensions += self._constants()
        ordered = in_order(dimensions)
        if isinstance(ordered, Problem):
            self.problems.append(ordered)
            return None
        self.space = Space(tuple(ordered))
        composed, problems = check_corners(self._contexts, self.space, self._values, self._entries)
        known = {problem.where for problem in self.problems}
        self.problems += [problem for problem in problems if problem.where not in known]
        # what belongs to a group whose options cannot be read is not blamed as well
        later = [problem for problem in self.problems[unsaid:] if problem.where.split(".", 1)[0] not in self._lost]
        self.problems[unsaid:] = later
        return composed if not self.problems else None

    def _refuse(self, first: Draft) -> None:
        """Drop what cannot be searched at all."""
        sweep, trainer = (first.tree.values.get(group) or {} for group in ("sweep", "trainer"))
        objectives = sweep.get("objectives")
        objectives = objectives if isinstance(objectives, list) else []
        final_evaluation = trainer.get("final_evaluation") is True
        for key, entry in list(self._entries.items()):
            reason = why_not(key, is_grid=self.is_grid, objectives=objectives, final_evaluation=final_evaluation)
            outer = [other for other in self._entries if key.startswith(f"{other}.") and other not in ALL_GROUPS]
            if reason is not None:
                self.problems.append(entry.problem(f"cannot be searched: {reason[0]}", reason[1]))
            elif outer:
                self.problems.append(entry.problem(f"lies in `{outer[0]}`, which varies as a whole"))
            else:
                continue
            self._lose(key)

    def _lose(self, key: str) -> None:
        """Leave out an entry that is wrong, and remember it: what depends on it is not wrong by itself."""
        del self._entries[key]
        self._lost.add(key)

    def _read_groups(self, sources: Sources) -> dict[str, Entry]:
        """The searched groups, with the options that exist."""
        groups = {}
        for group, entry in [(key, entry) for key, entry in self._entries.items() if key in ALL_GROUPS]:
            known = sources.options(group)
            options: list[str | None] = []
            for value in entry.values:
                path = Path(str(value)).expanduser()
                if (isinstance(value, str) and value in known) or (value is None and group in PRESET_GROUPS):
                    options.append(value)
                elif group in FILE_GROUPS and path.suffix in (".yaml", ".yml") and path.is_file():
                    options.append(str(path.absolute()))
                else:
                    problem = unknown_option(group, show(value), known)
                    if group in FILE_GROUPS and path.suffix in (".yaml", ".yml"):
                        problem = Problem(f"{group}={value}", "there is no such file")
                    self.problems.append(replace(problem, origin=entry.origin))
                    self._lost.add(group)
            if entry.is_range:
                hint = f"write `{group}={','.join(known[:2])}`"
                self.problems.append(entry.problem("is a group: its options have no range", hint))
            if options:
                groups[group] = self._entries[group] = replace(entry, values=tuple(options))
            else:
                self._lose(group)
        return groups

    def _build(self, entry: Entry, when: Mapping[str, tuple[str, ...]]) -> Dimension | None:
        """The dimension of a value; None when something is wrong with it, or with the group it belongs to."""
        if entry.key.split(".", 1)[0] in self._contexts.base.draft.broken:
            return None  # the option of its group is unknown, which is said already
        found = self._contexts.find(entry.key)
        if not found.contexts:
            self.problems += self._unknown(entry)
            return None
        if not entry.is_range:
            problems = _beside(found, lambda annotation: _check_choices(entry, annotation))
            self.problems += problems
            self._values[entry.key] = (entry.values[0], entry.values[-1])
            return None if problems else Dimension(key=entry.key, kind="choice", choices=entry.choices, when=when)
        problems = _beside(found, lambda annotation: _check_range(entry, annotation))
        self.problems += problems
        if problems:
            return None
        whole = entry.whole or any(number_kind(annotation) == "int" for annotation in found.annotations)
        dimension = _number(entry, whole=whole, when=when)
        self._values[entry.key] = (dimension.low, dimension.high)
        return dimension

    def _unknown(self, entry: Entry) -> list[Problem]:
        """The problem of a key that no configuration has: the one that `train` would find, the nearest name in it."""
        head = entry.key.split(".", 1)[0]
        contexts = list(self._contexts.options.get(head, {}).values()) or [self._contexts.base]
        found: list[Problem] = []
        for context in contexts:
            value = entry.values[0] if entry.values else entry.low
            problems = context.with_values({entry.key: value}).check()[1]
            found += [replace(p, origin=entry.origin) for p in problems if _covers(p.where, entry.key)]
        found.sort(key=lambda problem: not (problem.hint or "").startswith("did you mean"))
        if not found:
            return [entry.problem("unknown key")]
        if len(contexts) > 1:
            options = ", ".join(context.option for context in contexts)
            return [replace(found[0], message=f"{found[0].message} of every {head} that is searched ({options})")]
        return found[:1]

    def _constants(self) -> Iterator[Dimension]:
        """What was set for a key that exists for some options of a searched group: one value, there."""
        for key, word in self._contexts.held.items():
            read = read_override(word)
            assert isinstance(read, Override)
            found = self._contexts.find(key)
            entry = Entry(key=key, origin=COMMAND_LINE, written=read.text, values=(read.value,))
            problems = _beside(found, lambda annotation, entry=entry: _check_choices(entry, annotation))  # type: ignore[misc]
            self.problems += problems
            if not problems:
                self._values[key] = (read.value, read.value)
                yield Dimension(key=key, kind="choice", choices=(read.text,), when=found.when)


def _covers(where: str, key: str) -> bool:
    """Whether a problem is about a key or about something in it."""
    return where == key or where.startswith((f"{key}.", f"{key}["))


def _beside(found: Existence, check_one: Callable[[Any], Iterable[Problem]]) -> list[Problem]:
    """The problems with each annotation that a key has, with the options beside which it has it if they differ."""
    problems: list[Problem] = []
    for annotation, options in found.annotations.items():
        for problem in check_one(annotation):
            message = f"{problem.message}, with {', '.join(options)}" if len(found.annotations) > 1 else problem.message
            problems.append(replace(problem, message=message))
    return list(dict.fromkeys(problems))


def _check_choices(entry: Entry, annotation: Any) -> Iterator[Problem]:
    """Check every choice against a parameter."""
    seen: list[Any] = []
    for value, text in zip(entry.values, entry.choices, strict=True):
        if accepts_text(annotation) and isinstance(value, bool | float):
            value = text
        coerced, issues = check(annotation, value, entry.key)
        for issue in issues:
            message = issue.message if len(entry.values) == 1 else f"{issue.message} in `{entry.text}`"
            yield Problem(issue.path, message, issue.hint, entry.origin)
        if not issues and coerced in seen:
            yield entry.problem(f"`{entry.text}` names {show(coerced)} twice")
        seen.append(coerced)


def _check_range(entry: Entry, annotation: Any) -> Iterator[Problem]:
    """Check the ends of a range, and that a parameter takes numbers."""
    kind = number_kind(annotation)
    if kind is None:
        hint = f"list the choices: `{entry.key}='choice(...)'`"
        yield entry.problem(f"takes {describe(annotation)}, which has no range", hint)
        return
    for name in ("low", "high", "step"):
        value = getattr(entry, name)
        if value is None:
            continue
        if (kind == "int" or entry.whole) and not float(value).is_integer():
            yield entry.problem(f"takes whole numbers, `{entry.text}` has {show(value)}")
            return
        issues = check(annotation, int(value) if kind == "int" else value, entry.key)[1] if name != "step" else []
        for issue in issues:
            yield Problem(issue.path, f"{issue.message} in `{entry.text}`", issue.hint, entry.origin)


def _number(entry: Entry, *, whole: bool, when: Mapping[str, tuple[str, ...]]) -> Dimension:
    kind = int if whole else float
    assert entry.low is not None
    assert entry.high is not None
    return Dimension(
        key=entry.key,
        kind="int" if whole else "float",
        low=kind(entry.low),
        high=kind(entry.high),
        step=None if entry.step is None or (whole and entry.step == 1) else kind(entry.step),
        log=entry.log,
        when=when,
    )
