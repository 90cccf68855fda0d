"""A sweep in the words of Weights & Biases: its space as W&B's sweep configuration, and W&B's draws as points of it.

W&B has neither conditions between parameters nor several objectives, and three ways to search. What a sweep asks for
beyond that is refused here rather than left out. The format: https://docs.wandb.ai/models/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medtrain import registry
from medtrain.config.space import Dimension, Space
from medtrain.engine.cadence import parse_duration
from medtrain.errors import ConfigError, MedtrainError, Problem
from medtrain.sweep.plan import DEFAULT_TRIALS
from medtrain.sweep.result import EXTRA_OBJECTIVES, Definition
from medtrain.sweep.settings import SweepSettings

DEFINITION = "MEDTRAIN_WANDB_SWEEP"
"""Environment variable of an agent's command that holds the definition of the sweep, so that an id is all one needs."""

_METHODS = {"gp": "bayes", "random": "random", "grid": "grid", "brute_force": "grid"}
_GOALS = {"min": "minimize", "max": "maximize"}
_HALVING = ("hyperband", "successive_halving")
_ETA = 3
_FIRST_BAND = 0.2  # of the evaluations: before that, values say little
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ABSENT = {
    "constraints": "W&B has none: drop them, and judge the runs yourself",
    "warm_start": "`wandb sweep --prior_run RUN wandb-sweep.yaml` takes over runs that W&B has",
    "seed": "W&B draws with its own",
    "timeout": "stop the agents when you like: the sweep waits in W&B",
    "workers": "start `medtrain sweep --wandb-agent ID` as often as you want trials at the same time",
    "retries": "a trial that crashes is a failed run in W&B",
    "keep_checkpoints": "delete what you do not need from the trials' folders",
    "storage": "W&B keeps the sweep",
    "study": "W&B names the sweep",
    "rerun_best": "train the best ones again yourself, with other values of `seed`",
    "rerun_seeds": "it belongs to sweep.rerun_best",
    "rerun_folds": "it belongs to sweep.rerun_best",
}


def sweep_config(
    definition: Definition, *, project: str, entity: str | None = None, evaluations: int | None = None
) -> dict[str, Any]:
    """The sweep in W&B's format.

    Every parameter has its dotted key as its name, a group that of its choice (`loss.choice`). Those that exist only
    beside some choices are drawn for every run, since W&B knows no conditions, and ignored where they do not exist.

    Args:
        definition: The sweep.
        project: W&B project.
        entity: W&B user or team; None is the key's own.
        evaluations: How many evaluations a trial has, if that is known beforehand; W&B stops trials by them.

    Raises:
        ConfigError: Lists everything that the sweep asks for and W&B cannot do.
    """
    problems = _problems(definition)
    method = _method(definition, problems)
    stopping = _early_terminate(definition, evaluations, problems)
    if problems:
        raise ConfigError(problems)
    objective = definition.objectives[0]
    trials = definition.sweep["n_trials"]
    if trials is None and method != "grid":
        trials = DEFAULT_TRIALS
    parameters = {
        parameter_name(dimension.key): _parameter(dimension, grid=method == "grid")
        for dimension in definition.space.dimensions
    }
    config = {
        "name": definition.folder.rstrip("/").rpartition("/")[2],
        "description": _description(definition.space),
        "project": project,
        "entity": entity,
        "program": "medtrain",
        "command": _command(definition),
        "method": method,
        "metric": {"name": objective.metric, "goal": _GOALS[objective.mode]},
        "run_cap": trials,
        "early_terminate": stopping,
        "parameters": parameters,
    }
    return {key: value for key, value in config.items() if value is not None}


def definition_of(config: Mapping[str, Any]) -> Definition:
    """The definition that `sweep_config` put into a sweep of W&B.

    Args:
        config: W&B's configuration of the sweep.

    Raises:
        MedtrainError: The sweep was made by something else.
    """
    words = config.get("command") or []
    found = [str(word).partition("=")[2] for word in words if str(word).startswith(f"{DEFINITION}=")]
    if not found:
        raise MedtrainError(
            "this W&B sweep was not made by medtrain", hint="make one with `medtrain sweep --wandb-init ...`"
        )
    return parse_definition(found[0])


def parse_definition(text: str) -> Definition:
    """A definition from its text in an agent's command.

    Raises:
        MedtrainError: Another version of medtrain wrote it.
    """
    try:
        return Definition.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise MedtrainError(
            f"the definition in this W&B sweep cannot be read ({type(error).__name__}: {error})",
            hint="it was made by another version of medtrain: use that one, or make a new sweep",
        ) from error


def parameter_name(key: str) -> str:
    """The name in W&B of a key: a group must differ from the section of the same name in the run's configuration."""
    return f"{key}.choice" if key in registry.GROUPS else key


def read_params(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The point of the space that W&B drew; what does not exist beside its choices is left out.

    Args:
        space: The space of the sweep.
        drawn: Values by W&B's names.

    Raises:
        MedtrainError: W&B drew something that is not in the space, or not everything.
    """
    known = {parameter_name(dimension.key) for dimension in space.dimensions}
    strange = sorted(set(drawn) - known)
    if strange:
        raise _not_ours(f"W&B draws {', '.join(strange)}, which the space of this sweep does not have")
    params: dict[str, Any] = {}
    for dimension in space.dimensions:
        if not dimension.is_active(params):
            continue
        name = parameter_name(dimension.key)
        if name not in drawn:
            raise _not_ours(f"W&B drew no {name}")
        value = _choice(dimension, drawn[name]) if dimension.kind == "choice" else _within(dimension, drawn[name])
        if value is None:
            raise _not_ours(f"W&B drew {name}={drawn[name]!r}, which the space of this sweep does not have")
        params[dimension.key] = value
    return params


def count_evaluations(trainer: Mapping[str, Any]) -> int | None:
    """How many evaluations a run has; None when that depends on the data or the machine.

    Args:
        trainer: The checked section `trainer`.
    """
    every = parse_duration(trainer["eval_every"] or "10%")  # what follows from the data is that, or less often
    whole = {"percent": 100, "step": trainer["max_steps"], "epoch": trainer["max_epochs"]}.get(every.unit)
    return None if whole is None else max(1, int(whole / every.value + 1e-9))


# ------------------------------------------------------------------------------------------------- to W&B


def _problems(definition: Definition) -> list[Problem]:
    """What W&B has no word for."""
    problems = []
    if len(definition.objectives) > 1:
        names = ", ".join(objective.metric for objective in definition.objectives)
        hint = f"choose one: sweep.objectives=[{definition.objectives[0].metric}]"
        problems.append(Problem("sweep.objectives", f"W&B optimizes one metric, not {names}", hint))
    usual = SweepSettings()
    for key, hint in _ABSENT.items():
        if key in definition.sweep and definition.sweep[key] != registry.plain(getattr(usual, key)):
            problems.append(Problem(f"sweep.{key}", "has no effect in a W&B sweep", hint))
    return problems


def _method(definition: Definition, problems: list[Problem]) -> str | None:
    """W&B's way to search that is the sampler's."""
    section, space = definition.sampler, definition.space
    name = section["name"]
    if name == "auto":
        return "grid" if definition.is_grid and not space.is_conditional else "bayes"
    if name not in _METHODS:
        hint = "choose sampler=auto, gp (W&B's bayes), random or grid"
        problems.append(Problem("sampler", f"W&B cannot search like {name}", hint))
        return None
    problems.extend(_changed("sampler", section, ()))
    if _METHODS[name] == "grid":
        if space.is_conditional:
            problem = "W&B's grid would train the same point again for every value of a key that does not exist there"
            problems.append(Problem("sampler", problem, "choose sampler=random or gp"))
        problems.extend(
            Problem(dimension.key, "has no end of values, and a grid takes each", "give it a step, or choices")
            for dimension in space.dimensions
            if dimension.kind == "float" and dimension.values() is None
        )
    return _METHODS[name]


def _early_terminate(definition: Definition, evaluations: int | None, problems: list[Problem]) -> dict[str, Any] | None:
    """W&B's only pruner, which halves by the number of evaluations a trial has reported."""
    section = definition.pruner
    name = section["name"]
    if name == "none":
        return None
    blind = ""
    if definition.objectives[0].metric in EXTRA_OBJECTIVES:
        blind = f"{definition.objectives[0].metric} is known only at the end of a trial"
    elif len(definition.sweep["folds"]) > 1:
        blind = "W&B cannot look into trials of several folds"
    if name == "auto":
        first = 2 if evaluations is None else math.ceil(_FIRST_BAND * evaluations)
        if blind or definition.is_grid or (evaluations is not None and first >= evaluations):
            return None  # a grid, as without W&B: whoever lists the values wants to see all of them
        return _hyperband(first, _ETA)
    if name not in _HALVING:
        hint = "choose pruner=auto, hyperband or none"
        problems.append(Problem("pruner", f"W&B cannot prune like {name}", hint))
        return None
    if blind:
        problems.append(Problem("pruner", blind, "choose pruner=none"))
        return None
    problems.extend(_changed("pruner", section, ("min_resource", "reduction_factor")))
    if evaluations is None:
        hint = "give trainer.eval_every in percent, or in the unit of the limit"
        problems.append(Problem("pruner", "W&B prunes by evaluations, whose number is not known beforehand", hint))
        return None
    first = math.ceil(section["min_resource"] / 100 * evaluations - 1e-9)
    return _hyperband(first, section["reduction_factor"])


def _hyperband(first: int, eta: float) -> dict[str, Any]:
    # strict: beyond each band go the best 1/eta only, as in the paper and in Optuna
    return {"type": "hyperband", "min_iter": max(1, first), "eta": eta, "strict": True}


def _changed(group: str, section: Mapping[str, Any], understood: Sequence[str]) -> list[Problem]:
    """Settings of a sampler or pruner that W&B does not have and the user has changed."""
    others = set(section) - {"name", *understood}
    if not others:
        return []
    defaults = registry.get(group, section["name"]).defaults()
    return [
        Problem(f"{group}.{key}", "has no effect in a W&B sweep", f"drop {group}.{key}={section[key]}")
        for key in sorted(others)
        if section[key] != defaults[key]
    ]


def _parameter(dimension: Dimension, *, grid: bool) -> dict[str, Any]:
    if dimension.kind == "choice":
        return {"values": _typed(dimension.choices)}
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None
    assert high is not None
    whole = dimension.kind == "int"
    stepped = step is not None and not (whole and step == 1)
    known = dimension.values() if stepped or grid or low == high else None
    if known is not None and len(known) == 1:
        return {"value": known[0]}
    if known is not None and (grid or dimension.log or not _is_multiple(low, step)):
        return {"values": known}
    if known is not None:  # W&B draws multiples of q, whatever the minimum is
        return {"distribution": "q_uniform", "min": low, "max": known[-1], "q": step}
    if dimension.log:
        more = {"q": 1} if whole else {}
        distribution = "q_log_uniform_values" if whole else "log_uniform_values"
        return {"distribution": distribution, "min": low, "max": high, **more}
    return {"distribution": "int_uniform" if whole else "uniform", "min": low, "max": high}


def _is_multiple(low: float, step: float | None) -> bool:
    return step is not None and abs(low / step - round(low / step)) < 1e-9


def _typed(choices: Sequence[str]) -> list[Any]:
    """Choices as numbers where all are numbers, so that W&B can draw them on an axis."""
    numbers = [_number(text) for text in choices]
    return list(choices) if None in numbers else numbers


def _number(text: str) -> int | float | None:
    if _NUMBER.fullmatch(text) is None:
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _description(space: Space) -> str:
    text = "Made by `medtrain sweep --wandb-init`; `medtrain sweep --wandb-agent ID` runs its trials."
    bound = [parameter_name(dimension.key) for dimension in space.dimensions if dimension.when]
    if bound:
        text += f" W&B knows no conditions: it draws for every run, also where it is not used, {', '.join(bound)}."
    return text


def _command(definition: Definition) -> list[str]:
    """What `wandb agent` runs for each trial; the definition travels in it."""
    text = json.dumps(definition.to_json(), separators=(",", ":"))
    return ["${env}", f"{DEFINITION}={text}", "medtrain", "sweep", "--wandb-agent", "${envvar:WANDB_SWEEP_ID}"]


# ----------------------------------------------------------------------------------------------- from W&B


def _choice(dimension: Dimension, drawn: Any) -> str | None:
    """The choice that W&B means; it may have made a number of a text, or the other way round."""
    if drawn in dimension.choices:
        return str(drawn)
    if drawn is None or isinstance(drawn, bool):
        wanted = "null" if drawn is None else str(drawn).lower()
        return next((text for text in dimension.choices if text.lower() == wanted), None)
    number = _number(drawn) if isinstance(drawn, str) else drawn
    if not isinstance(number, int | float):
        return None
    return next((text for text in dimension.choices if _number(text) == number), None)


def _within(dimension: Dimension, drawn: Any) -> float | int | None:
    """A number of the range, made exact; None when it is not one."""
    number = _number(drawn) if isinstance(drawn, str) else drawn
    near = dimension.nearest(number)
    assert dimension.low is not None
    assert dimension.high is not None
    slack = 1e-6 * max(abs(dimension.low), abs(dimension.high))
    if near is None or abs(near - number) > slack:
        return None
    return int(near) if dimension.kind == "int" else float(near)


def _not_ours(message: str) -> MedtrainError:
    return MedtrainError(message, hint="was the sweep edited? Make a new one with `medtrain sweep --wandb-init ...`")
