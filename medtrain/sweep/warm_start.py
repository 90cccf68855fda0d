"""The points that a sweep begins with: the configuration as it is, and what earlier sweeps have found."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState, create_trial

from medtrain.config.space import Dimension, Space
from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.registry import closest
from medtrain.sweep.assignment import DUPLICATE, IMPORTED, ORIGIN, READY, SURPLUS, Origin, definition_of
from medtrain.sweep.points import FIXED, canonical, contains, distributions, point_of
from medtrain.sweep.result import Definition
from medtrain.sweep.storage import close_storage, open_storage

log = logging.getLogger(__name__)

MOST_TRIED_AGAIN = 5
"""Points of an earlier sweep that are tried again where its values cannot be taken over."""

_FAR_OUT = 1e9
_KEPT = ("metrics", "message", "failure", "step", "seconds", "overhead_s")


def first_points(definition: Definition) -> list[FrozenTrial]:
    """The trials that a study begins with: those of earlier sweeps that count for this one, then points to try.

    Raises:
        UsageError: A warm start cannot be read, or has a point that does not belong to the space.
    """
    finished: list[FrozenTrial] = []
    planned: list[tuple[Mapping[str, Any], Origin]] = []
    if definition.default is not None and definition.sweep["try_default"]:
        planned.append((definition.default, "default"))
    for source in definition.sweep["warm_start"]:
        path = Path(source).expanduser()
        if path.is_dir():
            taken, again = _from_sweep(path, definition)
            finished += taken
            planned += [(params, "warm_start") for params in again]
        else:
            planned += [(params, "warm_start") for params in _from_list(path, definition.space)]
    trials = [*finished, *(_waiting(_completed(params, definition), origin) for params, origin in planned)]
    return list(_different(trials, definition.space))


def _waiting(params: Mapping[str, Any], origin: Origin) -> FrozenTrial:
    return create_trial(state=TrialState.WAITING, system_attrs={FIXED: dict(params)}, user_attrs={ORIGIN: origin})


def _completed(params: Mapping[str, Any], definition: Definition) -> dict[str, Any]:
    """A point with what it does not say from the configuration as it is; the sampler draws what that does not have."""
    known = {**(definition.default or {}), **params}
    point: dict[str, Any] = {}
    for dimension in definition.space.dimensions:
        value = known.get(dimension.key)
        if value is not None and dimension.is_active(point) and contains(dimension, value):
            point[dimension.key] = canonical(dimension, value)
    return point


def _different(trials: Sequence[FrozenTrial], space: Space) -> Iterator[FrozenTrial]:
    """Trials without those that have a point of an earlier one."""
    seen: set[str] = set()
    for trial in trials:
        point = point_of(space, trial)
        identity = None if point is None else space.identity(point)
        if identity is None or identity not in seen:
            yield trial
        if identity is not None:
            seen.add(identity)


def _from_sweep(folder: Path, definition: Definition) -> tuple[list[FrozenTrial], list[dict[str, Any]]]:
    """Trials of an earlier sweep that count for this one, and else its best points that fit the space."""
    earlier, trials = _read_sweep(folder)
    is_same = (earlier.digest, earlier.split_hash, earlier.objectives) == (
        definition.digest,
        definition.split_hash,
        definition.objectives,
    )
    taken = [_taken_over(trial, folder, definition) for trial in trials] if is_same else []
    finished = [trial for trial in taken if trial is not None]
    if finished:
        log.info("%d trials of %s are taken over", len(finished), folder)
        return finished, []
    points = [_fitting(trial.params, definition.space) for trial in _best_first(trials, earlier, definition)]
    again = [point for point in points if point][:MOST_TRIED_AGAIN]
    if not again:
        log.warning("no trial of %s lies in this space: it is not used", folder)
    return [], again


def _read_sweep(folder: Path) -> tuple[Definition, list[FrozenTrial]]:
    """What an earlier sweep was about, and its trials that have ended.

    Raises:
        UsageError: The folder is no sweep's, or its study cannot be read.
    """
    try:
        section = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["sweep"]
        where, name = section["storage"], section["study"] or folder.absolute().name
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"sweep.warm_start: {folder} is no folder of a sweep", hint="name a folder that `medtrain sweep` has made"
        ) from error
    journal = folder / "journal.log"
    if where is None and not journal.is_file():
        raise UsageError(f"sweep.warm_start: there is no study in {folder}: it has no {journal.name}")
    storage = open_storage(where or str(journal), create=False)
    try:
        study_id = storage.get_study_id_from_name(name)
        attrs = storage.get_study_user_attrs(study_id)
        trials = storage.get_all_trials(study_id)
    except KeyError as error:
        raise UsageError(f"sweep.warm_start: the study {name} of {folder} is no longer in its storage") from error
    finally:
        close_storage(storage)
    if not attrs.get(READY):
        raise UsageError(f"sweep.warm_start: the sweep {folder} has never begun")
    ended = [
        trial for trial in trials if trial.state.is_finished() and not {DUPLICATE, SURPLUS} & trial.user_attrs.keys()
    ]
    return definition_of(attrs), ended


def _taken_over(trial: FrozenTrial, folder: Path, definition: Definition) -> FrozenTrial | None:
    """A trial as one of this study; None if its point is not a whole point of this space, or it has no result."""
    point = _fitting(trial.params, definition.space)
    if trial.state == TrialState.FAIL or point is None or point.keys() != trial.params.keys():
        return None
    if len(definition.space.active(point)) != len(point):
        return None
    metrics = trial.user_attrs.get("metrics", {})
    complete = trial.state == TrialState.COMPLETE
    return create_trial(
        state=trial.state,
        params=point,
        distributions=distributions(definition.space, point),
        values=trial.values,
        intermediate_values=trial.intermediate_values,
        constraints={
            str(constraint): min(constraint.violation(metrics), _FAR_OUT) for constraint in definition.constraints
        }
        if complete
        else None,
        user_attrs={
            ORIGIN: "warm_start",
            IMPORTED: trial.user_attrs.get(IMPORTED, str(folder.absolute())),
            **{key: trial.user_attrs[key] for key in _KEPT if key in trial.user_attrs},
        },
    )


def _best_first(trials: Sequence[FrozenTrial], earlier: Definition, definition: Definition) -> list[FrozenTrial]:
    """Finished trials by this sweep's first objective, or by the earlier one's where they do not have it."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    goal = definition.objectives[0]
    values = [trial.user_attrs.get("metrics", {}).get(goal.metric, math.nan) for trial in complete]
    if not all(map(math.isfinite, values)):
        goal, values = earlier.objectives[0], [trial.values[0] for trial in complete]
    sign = -1.0 if goal.mode == "max" else 1.0
    return [trial for _, trial in sorted(zip(values, complete), key=lambda pair: (sign * pair[0], pair[1].number))]


def _fitting(params: Mapping[str, Any], space: Space) -> dict[str, Any] | None:
    """The part of a point that this space has; None if a value lies outside it, or nothing is left."""
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        if dimension.key in params and dimension.is_active(point):
            value = params[dimension.key]
            if isinstance(value, str) != (dimension.kind == "choice") or not contains(dimension, value):
                return None
            point[dimension.key] = canonical(dimension, value)
    return point or None


def _from_list(path: Path, space: Space) -> list[dict[str, Any]]:
    """The points of a YAML file.

    Raises:
        UsageError: There is no such file, or it is no list of mappings.
        ConfigError: A key is not searched, or a value is not in its range.
    """
    if not path.is_file():
        raise UsageError(f"sweep.warm_start: there is no file or folder {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"sweep.warm_start: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UsageError(
            f"sweep.warm_start: {path} is no list of points", hint="write one per line: - {optimizer.lr: 0.001}"
        )
    problems: list[Problem] = []
    points = []
    for number, item in enumerate(content, 1):
        point, wrong = _read_point({str(key): value for key, value in item.items()}, space)
        problems += [Problem(key, message, hint, f"{path}, point {number}") for key, message, hint in wrong]
        points.append(point)
    if problems:
        raise ConfigError(problems, heading="the points of sweep.warm_start do not fit the space:")
    return points


def _read_point(item: Mapping[str, Any], space: Space) -> tuple[dict[str, Any], list[tuple[str, str, str | None]]]:
    """The typed values of a point, and what is wrong with it: key, message, hint."""
    keys = [dimension.key for dimension in space.dimensions]
    wrong: list[tuple[str, str, str | None]] = []
    for key in item.keys() - set(keys):
        near = closest(key, keys)
        wrong.append(
            (key, f"is not searched; searched are: {', '.join(keys)}", f"did you mean {near}?" if near else None)
        )
    point: dict[str, Any] = {}
    for dimension in space.dimensions:
        if dimension.key not in item:
            continue
        value = _typed(dimension, item[dimension.key])
        missing = {
            key: allowed for key, allowed in dimension.when.items() if key in point and point[key] not in allowed
        }
        if missing:
            condition = " and ".join(f"{key}={' or '.join(allowed)}" for key, allowed in missing.items())
            wrong.append((dimension.key, f"exists only with {condition}", None))
        elif value is None or not contains(dimension, value):
            wrong.append((dimension.key, f"{item[dimension.key]!r} is not {_range(dimension)}", None))
        else:
            point[dimension.key] = value
    return point, wrong


def _typed(dimension: Dimension, value: Any) -> Any:
    """A value from YAML as one of the dimension's; None if it is of another kind."""
    if dimension.kind == "choice":
        same = (choice for choice in dimension.choices if choice == value or _plain(choice) == _plain(value))
        return next(same, None)
    if isinstance(value, str):  # YAML takes 1e-3 for a text
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if dimension.kind == "int":
        return int(value) if value == int(value) else None
    return float(value)


def _plain(value: Any) -> Any:
    """What a choice means: its text read as YAML, so that `null`, `true`, `1e-3` and `[1,2]` are found again."""
    if isinstance(value, str):
        try:
            value = float(value)  # YAML takes 1e-3 for a text
        except ValueError:
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return ("number", float(value)) if is_number else (type(value), value)


def _range(dimension: Dimension) -> str:
    if dimension.kind == "choice":
        return f"one of {', '.join(dimension.choices)}"
    step = f" in steps of {dimension.step:g}" if dimension.step is not None else ""
    whole = "a whole number " if dimension.kind == "int" else ""
    return f"{whole}between {dimension.low:g} and {dimension.high:g}{step}"
