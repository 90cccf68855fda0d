"""The configurations that the searched groups make: which keys exist in them, and for which options.

Every option of every searched group is composed once, beside the base options of the other groups: as many
compositions as there are options, not as there are combinations of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medtrain.config.compose import Draft, Drafts, apply_values
from medtrain.config.overrides import Override, read_override
from medtrain.config.paths import ALL_GROUPS, PRESET_GROUPS
from medtrain.config.render import write_override
from medtrain.config.schema import annotation_at
from medtrain.config.search import Entry
from medtrain.config.tree import lookup


@dataclass(frozen=True)
class Context:
    """The configuration with one option of one searched group, or the base.

    Args:
        group: The searched group; empty for the base.
        option: Its option.
        draft: The configuration.
    """

    group: str
    option: str
    draft: Draft

    def annotation(self, key: str) -> Any | None:
        """The annotation of a key here; None when there is no such key."""
        return annotation_at(self.draft.tree.values, key)

    def value(self, key: str) -> str | None:
        """What a key or group is set to here, as it would be typed; None when there is no such thing."""
        if key in ALL_GROUPS:
            return self.draft.selection.choices.get(key)
        try:
            return write_override(lookup(self.draft.tree.values, key))
        except KeyError:
            return None

    def with_values(self, values: Mapping[str, Any]) -> Draft:
        """The configuration with some values set."""
        return self._with([Override(key, value, write_override(value)) for key, value in values.items()])

    def with_words(self, words: Sequence[str]) -> Context:
        """The same with more of the command line."""
        read = [read_override(word) for word in words]
        return replace(self, draft=self._with([word for word in read if isinstance(word, Override)]))

    def _with(self, words: Sequence[Override]) -> Draft:
        tree = copy.deepcopy(self.draft.tree)
        problems = apply_values(words, tree, self.draft.broken)
        return replace(self.draft, tree=tree, problems=(*self.draft.problems, *problems))


@dataclass(frozen=True)
class Existence:
    """Where a key exists.

    Args:
        contexts: The configurations that have it.
        annotations: What it may be there, with the options beside which it is that.
        when: The options it needs; empty when it always exists.
    """

    contexts: tuple[Context, ...]
    annotations: Mapping[Any, tuple[str, ...]]
    when: Mapping[str, tuple[str, ...]]


class Contexts:
    """The base, and the configuration of every option of every searched group.

    Args:
        drafts: Puts configurations together.
        plain: What was set on the command line, `KEY=VALUE` by key.
        groups: The searched groups, with options that exist.
    """

    def __init__(self, drafts: Drafts, plain: Mapping[str, str], groups: Mapping[str, Entry]) -> None:
        self.drafts = drafts
        self._groups = groups
        held = {key: word for key, word in plain.items() if key not in groups and key.split(".", 1)[0] in groups}
        self.words = {key: word for key, word in plain.items() if key not in held}
        """What the base is composed from, by key."""
        for group in sorted(groups, key=lambda group: group not in PRESET_GROUPS):  # a preset may choose the others
            reached = drafts.make(list(self.words.values()), "sweep").selection.choices
            if reached.get(group) not in groups[group].values:
                self.words[group] = f"{group}={groups[group].choices[0]}"
        self.base = Context("", "", drafts.make(list(self.words.values()), "sweep"))
        self.options: dict[str, dict[str, Context]] = {}
        """The configuration of every option, by group."""
        chosen = {group: f"{group}={self.base_option(group)}" for group in groups}
        for group, entry in groups.items():
            made = self.options[group] = {}
            for text in entry.choices:
                if text == self.base_option(group):
                    made[text] = Context(group, text, self.base.draft)
                    continue
                words = {**self.words, **chosen, group: f"{group}={text}"}
                made[text] = Context(group, text, drafts.make(list(words.values()), "sweep"))
        self.held = self._hold(held)
        """What was set for a key that exists for some options only: `KEY=VALUE` by key."""

    def base_option(self, group: str) -> str:
        """The option of a searched group in the base."""
        entry = self._groups[group]
        word = self.words.get(group)
        found = next((text for text in entry.choices if word == f"{group}={text}"), None)
        return found or write_override(self.base.draft.selection.choices[group])

    def _hold(self, held: Mapping[str, str]) -> dict[str, str]:
        """Set what can be set whatever is chosen; keep the rest."""
        apart = {key: word for key, word in held.items() if self.find(key).when}
        shared = {key: word for key, word in held.items() if key not in apart}
        if shared:
            self.words |= shared
            words = list(shared.values())
            self.base = self.base.with_words(words)
            self.options = {
                group: {text: context.with_words(words) for text, context in made.items()}
                for group, made in self.options.items()
            }
        return apart

    def find(self, key: str) -> Existence:
        """Where a key exists."""
        head = key.split(".", 1)[0]
        deciding = [head] if head in self._groups else list(self._groups)
        contexts = [self.base] if head not in self._groups and self.base.annotation(key) is not None else []
        when: dict[str, tuple[str, ...]] = {}
        for group in deciding:
            made = self.options[group]
            there = [context for context in made.values() if context.annotation(key) is not None]
            contexts += there
            if there and len(there) < len(made):
                when[group] = tuple(context.option for context in there)
        annotations: dict[Any, tuple[str, ...]] = {}
        for context in contexts:
            annotation = context.annotation(key)
            beside = (f"{context.group}={context.option}",) if context.group else ()
            annotations[annotation] = annotations.get(annotation, ()) + beside
        return Existence(tuple(contexts), annotations, when)

    def others(self) -> list[Context]:
        """The configurations that differ from the base."""
        return [
            context
            for group, made in self.options.items()
            for text, context in made.items()
            if text != self.base_option(group)
        ]
