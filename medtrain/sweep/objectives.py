"""What a sweep optimizes, under which conditions, and where it begins: settings checked against the task."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from medtrain.config.space import Dimension, Space
from medtrain.errors import ConfigError, Problem
from medtrain.registry import closest
from medtrain.sweep.result import EXTRA_OBJECTIVES, Constraint, Objective

if TYPE_CHECKING:
    from medtrain.sweep.trial import Probe

log = logging.getLogger(__name__)

_APART = ("run", "logger", "callbacks")  # of no consequence for what is learned


def choose_objectives(section: Mapping[str, Any], facts: Probe) -> tuple[tuple[Objective, ...], tuple[Constraint, ...]]:
    """The objectives and constraints of a sweep.

    Args:
        section: The checked section `sweep`.
        facts: What the task measures.

    Raises:
        ConfigError: Names a metric that there is not, or one twice.
    """
    known = {**facts.metrics, **EXTRA_OBJECTIVES}
    wanted = list(section["objectives"]) or [facts.monitor]
    constraints = tuple(Constraint.parse(text) for text in section["constraints"])
    named = [("sweep.objectives", name) for name in wanted]
    named += [("sweep.constraints", constraint.metric) for constraint in constraints]
    problems = [_unknown(where, name, known) for where, name in named if name not in known]
    if len(set(wanted)) < len(wanted):
        problems.append(Problem("sweep.objectives", "names a metric twice"))
    if problems:
        raise ConfigError(problems)
    return tuple(Objective(name, known[name]) for name in wanted), constraints  # type: ignore[arg-type]


def _unknown(where: str, name: str, known: Mapping[str, str]) -> Problem:
    near = closest(name, known) or next((other for other in known if other.endswith(f"/{name}")), None)
    message = f"{name} is not a metric of this task; available: {', '.join(known)}"
    return Problem(where, message, f"did you mean {near}?" if near else None)


def default_point(space: Space, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The point of the space that is the configuration as it is, or nearest to it, and what had to be moved.

    Args:
        space: What varies.
        config: The configuration with every derived value.

    Returns:
        The point, and the configuration's own values at the keys where it lies outside of the space.
    """
    point: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for dimension in space.dimensions:
        if not dimension.is_active(point):
            continue
        value = _look_up(config, dimension.key)
        found = _choice(dimension, value) if dimension.kind == "choice" else dimension.nearest(value)
        if found is None:
            found = dimension.choices[0] if dimension.kind == "choice" else dimension.low
        same = _choice(dimension, value) is not None if dimension.kind == "choice" else found == value
        if not same:
            moved[dimension.key] = _short(value)
            log.info("%s=%s is not in the space: the first trial takes %s", dimension.key, _short(value), found)
        point[dimension.key] = found
    return point, moved


def digest(config: Mapping[str, Any]) -> str:
    """Identifies the configuration that a sweep varies, without what does not change what is learned."""
    kept = {key: value for key, value in config.items() if key not in _APART}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    """A value by its dotted key; of a group, the name of its component; None where there is none."""
    value: Any = config
    for part in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value.get("name") if isinstance(value, Mapping) and "name" in value else value


def _choice(dimension: Dimension, value: Any) -> str | None:
    """The text of the choice that stands for a value."""
    for text in dimension.choices:
        try:
            meant = yaml.safe_load(text)
        except yaml.YAMLError:
            meant = text
        if text == value or (type(meant), meant) == (type(value), value) or _number(text) == value is not None:
            return text
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)  # YAML takes 1e-3 for a text
    except ValueError:
        return None


def _short(value: Any) -> str:
    return str(value.get("name", "...")) if isinstance(value, Mapping) else str(value)
