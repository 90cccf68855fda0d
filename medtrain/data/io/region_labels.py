"""nnU-Net's region-based `labels` of a `dataset.json`: {"background": 0, "whole": [1, 2, 3], "core": [2, 3], ...}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.errors import Problem

IGNORE = "ignore"
"""The label name that nnU-Net reserves for voxels nobody annotated."""

_BACKGROUND = "background"
_ORDER = "regions_class_order"


def has_regions(content: Mapping[str, Any]) -> bool:
    """Whether some label is a list of values."""
    labels = content.get("labels")
    return isinstance(labels, dict) and any(isinstance(value, list) for value in labels.values())


def read_regions(path: Path, content: Mapping[str, Any], problems: list[Problem]) -> dict[str, tuple[int, ...]]:
    """Name -> values of every region in the order of painting, the value that it is painted with first.

    Args:
        path: The file, for problems.
        content: What it holds; some label is a list.
        problems: Receives what is wrong.
    """

    def wrong(message: str, hint: str | None = None) -> dict[str, tuple[int, ...]]:
        problems.append(Problem(where=str(path), message=message, hint=hint))
        return {}

    entries = content["labels"]
    found: dict[str, tuple[int, ...]] = {}
    for name, value in entries.items():
        values = value if isinstance(value, list) else [value]
        if not values or any(isinstance(number, bool) or not isinstance(number, int) for number in values):
            return wrong(f"label {name!r} must be a whole number or a list of them, got {value!r}")
        if name == IGNORE:
            if len(values) != 1:
                return wrong(f"`{IGNORE}` must be one value, got {value!r}")
        elif values != [0]:
            found[name] = tuple(values)
    background = entries.get(_BACKGROUND)
    if background not in (0, [0]):
        return wrong(f"regions need `{_BACKGROUND}` with the value 0 among `labels`")
    if any(number <= 0 for values in found.values() for number in values):
        return wrong("the values of a region must be above 0, which is the background")
    ignored = entries.get(IGNORE)
    if any(number in values for values in found.values() for number in _values(ignored)):
        return wrong(f"`{IGNORE}` is part of a region")
    order = content.get(_ORDER)
    example = f'such as "{_ORDER}": {[values[0] for values in found.values()]}'
    if not isinstance(order, list) or len(order) != len(found):
        return wrong(f"regions need `{_ORDER}`: the value that each of {', '.join(found)} is painted with", example)
    for (name, members), painted in zip(found.items(), order):
        if painted not in members:
            return wrong(f"`{_ORDER}` paints {name!r} with {painted!r}, which is none of its values {list(members)}")
    return {
        name: (painted, *(number for number in values if number != painted))
        for (name, values), painted in zip(found.items(), order)
    }


def region_labels(entries: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Names of the values that regions are made of: of a region that is one value its own, else `label_<value>`.

    Args:
        entries: The `labels` of the file.
        regions: Of `read_regions`.

    Returns:
        Name -> value, ascending, with background and the ignore label.
    """
    single = {values[0]: name for name, values in regions.items() if len(values) == 1}
    labels = {_BACKGROUND: 0}
    for value in sorted({value for values in regions.values() for value in values}):
        labels[single.get(value, f"label_{value}")] = value
    if IGNORE in entries:
        labels[IGNORE] = _values(entries[IGNORE])[0]
    return labels


def _values(entry: Any) -> list[int]:
    return [] if entry is None else entry if isinstance(entry, list) else [entry]
