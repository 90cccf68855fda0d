"""Regions: structures made of several classes, which may lie within each other (whole tumour, its core, ...).

Labels and predictions are maps of classes. A region is predicted by an output of its own and painted into the map
with one of its classes; regions that come later are painted over earlier ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from medtrain.data.case import Dataset
from medtrain.data.labels import LabelMap
from medtrain.errors import ConfigError, Problem
from medtrain.registry import closest

_KEY = "data.regions"
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class RegionMap:
    """What the outputs of a network for regions mean.

    Args:
        region_names: In the order of painting.
        members: Class indices of every region, the one that it is painted with first.
        notes: What the painted map cannot hold.
    """

    region_names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_settings(
        cls, dataset: Dataset, labels: LabelMap, regions: Mapping[str, Sequence[str]] | None
    ) -> RegionMap | None:
        """The regions that the user named, or else those of the data set; None where there are none.

        Args:
            dataset: May define regions by label values.
            labels: The classes, after some were joined.
            regions: Name -> class names in the order of painting; empty for none.

        Raises:
            ConfigError: Names are unknown, or a region cannot be seen in the map; all of it at once.
        """
        if regions is None:
            if dataset.regions is None:
                return None
            where, order = "the regions of dataset.json", dict(labels.value_to_class)
            given = {name: tuple(order[value] for value in values) for name, values in dataset.regions.items()}
            problems = _background_problems(where, given)
        else:
            if not regions:
                return None
            where = _KEY
            given, problems = _look_up(labels, regions)
        # joined classes may come twice
        members = {name: tuple(dict.fromkeys(indices)) for name, indices in given.items()}
        problems = problems or _order_problems(where, members)
        if problems:
            raise ConfigError(problems)
        if where == _KEY:
            members = dict(zip(members, painted_first(list(members.values()))))
        return cls(tuple(members), tuple(members.values()), tuple(_notes(members, labels.class_names)))


def painted_first(regions: Sequence[Sequence[T]]) -> list[tuple[T, ...]]:
    """Put first what a region is painted with: its first class that no later region covers.

    Where later regions cover all of its classes, it is the first one, which shows where none of those is found.

    Args:
        regions: Classes of every region in the order of painting.
    """
    ordered = []
    for index, region in enumerate(regions):
        later = {member for other in regions[index + 1 :] for member in other}
        own = next((member for member in region if member not in later), region[0])
        ordered.append((own, *(member for member in region if member != own)))
    return ordered


def _look_up(
    labels: LabelMap, regions: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[int, ...]], list[Problem]]:
    known = list(labels.class_names[1:])
    problems: list[Problem] = []
    found: dict[str, tuple[int, ...]] = {}
    for name, members in regions.items():
        where = f"{_KEY}.{name}"
        if not members:
            problems.append(Problem(where=where, message=f"names no class; there are {', '.join(known)}"))
        for member in members:
            if member == labels.class_names[0]:
                problems.append(Problem(where=where, message=f"`{member}` is the background, which is no part of it"))
            elif member not in known:
                near = closest(member, known)
                message = f"unknown class `{member}`; known: {', '.join(known)}"
                problems.append(Problem(where=where, message=message, hint=f"did you mean `{near}`?" if near else None))
        found[name] = tuple(known.index(member) + 1 for member in members if member in known)
    return found, problems


def _background_problems(where: str, members: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    message = "holds the background now that data.merge_labels joined classes with it"
    hint = "name the regions that are left in data.regions"
    return [Problem(f"{where}: {name}", message, hint=hint) for name, indices in members.items() if 0 in indices]


def _order_problems(where: str, members: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """Regions that a later one hides wherever they are."""
    problems: list[Problem] = []
    names = list(members)
    for index, name in enumerate(names):
        inner = set(members[name])
        for other in names[index + 1 :]:
            if inner == set(members[other]):
                message = f"has the same classes as `{other}`, so one of them tells nothing"
                problems.append(Problem(f"{where}.{name}", message, hint="name it once"))
            elif inner < set(members[other]):
                message = f"lies within `{other}`, which is painted after it and hides it"
                problems.append(Problem(f"{where}.{name}", message, hint=f"put `{name}` after `{other}`"))
    return problems


def _notes(members: Mapping[str, tuple[int, ...]], class_names: Sequence[str]) -> list[str]:
    """What a map painted from the true regions would not give back."""
    notes = []
    names = list(members)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            one, two = set(members[name]), set(members[other])
            if one & two and not two <= one:
                notes.append(
                    f"`{name}` and `{other}` overlap and neither holds the other: a label map shows `{other}` where "
                    f"both are found, painted as {class_names[members[other][0]]}"
                )
    covered = {index for indices in members.values() for index in indices}
    left = [name for index, name in enumerate(class_names) if index and index not in covered]
    if left:
        notes.append(f"in no region, and so never predicted: {', '.join(left)}")
    painted = {indices[0] for indices in members.values()}
    for index, (name, indices) in enumerate(members.items()):
        inner = {i for other in names[index + 1 :] for i in members[other]}
        hidden = [class_names[i] for i in indices if i not in painted | inner]
        if hidden:
            notes.append(f"`{name}` is written as {class_names[indices[0]]}; no region tells {', '.join(hidden)} apart")
    return notes
