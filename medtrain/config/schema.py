"""The schema of a whole config: the root keys, and one section per component group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from medtrain import registry
from medtrain.config.annotations import step_into
from medtrain.config.paths import COMPONENT_GROUPS, MULTI_GROUPS
from medtrain.errors import MedtrainError
from medtrain.registry import Param, Range

ROOT: Mapping[str, Param] = {
    "seed": Param(
        "seed",
        Annotated[int, Range(ge=0)],
        0,
        "Of every random number of a run: initial weights, data order, augmentation.",
    )
}
"""The keys of a config that belong to no component."""


def component_of(section: Any, group: str) -> registry.Component | None:
    """The component that a section names, or None when it names none that exists."""
    name = section.get("name") if isinstance(section, Mapping) else None
    if not isinstance(name, str):
        return None
    try:
        return registry.get(group, name)
    except MedtrainError:
        return None


def annotation_at(tree: Mapping[str, Any], key: str) -> Any | None:
    """The annotation of the value at a dotted path, or None when the schema has no such value.

    Args:
        tree: Names the component of each section.
        key: e.g. `optimizer.rules.0.lr_mult`.
    """
    head, *rest = key.split(".")
    if head in ROOT:
        return ROOT[head].type if not rest else None
    if head not in COMPONENT_GROUPS:
        return None
    section = tree.get(head)
    if head in MULTI_GROUPS and rest:
        section = section.get(rest.pop(0)) if isinstance(section, Mapping) else None
    component = component_of(section, head)
    if component is None or not rest or rest[0] not in component.params:
        return None
    annotation = component.params[rest[0]].type
    for part in rest[1:]:
        annotation = step_into(annotation, part)
        if annotation is None:
            return None
    return annotation


def section_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with every parameter of its components at the default of the signature.

    Args:
        tree: A checked config.
    """
    result: dict[str, Any] = {key: param.default for key, param in ROOT.items()}
    for group in (group for group in COMPONENT_GROUPS if group in tree):
        section = tree[group]
        if group in MULTI_GROUPS:
            result[group] = {key: component_defaults(group, value["name"]) for key, value in section.items()}
        else:
            result[group] = component_defaults(group, section["name"])
    return result


def component_defaults(group: str, name: str) -> dict[str, Any]:
    """The section of a component whose every parameter is at its default; `"???"` where it is required."""
    return {"name": name, **registry.get(group, name).defaults()}
