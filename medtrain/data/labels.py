"""What label values mean: from the numbers in files to class indices, classes joined on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medtrain.data.case import Dataset
from medtrain.errors import ConfigError, Problem
from medtrain.registry import closest

_KEY = "data.merge_labels"


@dataclass(frozen=True)
class LabelMap:
    """The one place where label values become class indices.

    Args:
        class_names: Name of each class; class 0 is the background.
        label_values: Value that stands for each class when a prediction is written.
        value_to_class: Every declared value of the label files, with its class index.
        ignore_value: Value in the files of voxels without annotation, or None.
    """

    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    value_to_class: tuple[tuple[int, int], ...]
    ignore_value: int | None = None

    @classmethod
    def from_dataset(cls, dataset: Dataset, merge_labels: Mapping[str, Sequence[str]] | None = None) -> LabelMap:
        """The classes of a data set, joined as `merge_labels` says.

        A joined class stands where its first member stood, and is written with the value of the class that has its
        name, else with its first member's.

        Args:
            dataset: Declares names and values.
            merge_labels: New name: [names].

        Raises:
            ConfigError: A name is unknown, joined twice, or taken by a class that is not joined.
        """
        labels = dataset.labels
        groups = {name: list(members) for name, members in (merge_labels or {}).items()}
        problems = _problems(labels, groups)
        if problems:
            raise ConfigError(problems)
        owner = {member: name for name, members in groups.items() for member in members}
        names: list[str] = []
        for label in labels:
            name = owner.get(label, label)
            if name not in names:
                names.append(name)
        values = tuple(
            labels[name] if name in labels else next(labels[label] for label in labels if owner.get(label) == name)
            for name in names
        )
        table = tuple((value, names.index(owner.get(label, label))) for label, value in labels.items())
        return cls(tuple(names), values, table, dataset.ignore_value)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included, ignore excluded."""
        return len(self.class_names)

    @property
    def ignore_index(self) -> int | None:
        """Class index of voxels without annotation: one after the last class."""
        return None if self.ignore_value is None else self.num_classes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of class indices: uint8, or int16 above 255 of them."""
        return np.dtype(np.uint8 if self.num_classes < 255 else np.int16)

    @property
    def _is_identity(self) -> bool:
        """Whether values 0, 1, 2, ... are the class indices; with uint8 there is nothing below to look for."""
        plain = tuple((index, index) for index in range(self.num_classes))
        return self.value_to_class == plain and self.dtype == np.uint8

    def to_classes(self, label: np.ndarray) -> np.ndarray:
        """Turn label values of any shape into class indices (ignore = num_classes); the input itself if it holds them.

        Raises:
            ValueError: The label holds undeclared values; says which and how many voxels.
        """
        if label.size == 0:
            return label.astype(self.dtype)
        pairs = list(self.value_to_class)
        if self.ignore_value is not None and self.ignore_index is not None:
            pairs.append((self.ignore_value, self.ignore_index))
        if self._is_identity and label.dtype == self.dtype and label.max() < self.num_classes:
            return label
        low = min(int(label.min()), *(value for value, _ in pairs))
        high = max(int(label.max()), *(value for value, _ in pairs))
        if high - low > 1 << 20:
            raise ValueError(f"values from {label.min()} to {label.max()} are no label")
        table = np.full(high - low + 1, -1, dtype=np.int16)
        for value, index in pairs:
            table[value - low] = index
        classes = table[label.astype(np.int64) - low] if low < 0 else table[label - label.dtype.type(low)]
        if (table < 0).any() and (classes < 0).any():
            raise ValueError(_unknown_values(label, classes < 0, [value for value, _ in pairs]))
        return classes.astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that identifies the mapping."""
        return {
            "class_names": list(self.class_names),
            "label_values": list(self.label_values),
            "value_to_class": [list(pair) for pair in self.value_to_class],
            "ignore_value": self.ignore_value,
        }


def _problems(labels: Mapping[str, int], groups: Mapping[str, list[str]]) -> list[Problem]:
    problems: list[Problem] = []
    owner: dict[str, str] = {}
    for name, members in groups.items():
        where = f"{_KEY}.{name}"
        if not members:
            problems.append(Problem(where=where, message="names no class to join"))
        for member in members:
            if member not in labels:
                near = closest(member, labels)
                known = ", ".join(labels)
                hint = f"did you mean `{near}`?" if near else None
                problems.append(Problem(where=where, message=f"unknown class `{member}`; known: {known}", hint=hint))
            elif member in owner:
                problems.append(Problem(where=where, message=f"`{member}` is already joined into `{owner[member]}`"))
            owner[member] = name
    for name, members in groups.items():
        if name in labels and name not in members and name not in owner:
            message = f"`{name}` is a class of its own; list it among the joined ones or choose another name"
            problems.append(Problem(where=f"{_KEY}.{name}", message=message))
    return problems


def _unknown_values(label: np.ndarray, unknown: np.ndarray, declared: Sequence[int]) -> str:
    values, counts = np.unique(label[unknown], return_counts=True)
    pairs = list(zip(values, counts))[:5]
    shown = ", ".join(f"{value} ({count} voxel{'s' if count > 1 else ''})" for value, count in pairs)
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return f"undeclared label values {shown}{more}; declared are {', '.join(str(value) for value in sorted(declared))}"
