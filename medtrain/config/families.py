"""Which components fit each other: those for segmentation, and those for tasks on whole images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medtrain import registry
from medtrain.config.annotations import Issue
from medtrain.config.schema import component_of

FAMILIES = {"segmentation": "labelled voxels", "images": "images with a label"}
"""Tag of a component -> what its data are."""

GENERATED = {"segmentation": "phantom", "images": "phantom_images"}
"""Data of each family that every machine has."""

GROUPS = ("task", "model", "loss", "augment", "inference")
"""Groups whose components must fit the data; one that carries no family's tag fits any."""


def family_issues(tree: Mapping[str, Any]) -> Iterator[Issue]:
    """Components that do not fit the data, each with those of its group that do.

    Args:
        tree: Plain data.
    """
    data = component_of(tree.get("data"), "data")
    family = _families(data) if data is not None else set()
    if data is None or len(family) != 1:
        return
    (wanted,) = family
    for group in GROUPS:
        component = component_of(tree.get(group), group)
        if component is None or not _families(component) or wanted in _families(component):
            continue
        (other, *_) = _families(component)
        fitting = [name for name in registry.names(group) if _fits(registry.get(group, name), wanted)]
        yield Issue(
            group,
            f"{group}={component.name} is for {FAMILIES[other]}, but data={data.name} holds {FAMILIES[wanted]}",
            f"choose one of {group}={', '.join(fitting)}",
        )


def _families(component: registry.Component) -> set[str]:
    return FAMILIES.keys() & set(component.tags)


def _fits(component: registry.Component, family: str) -> bool:
    return not _families(component) or family in component.tags
