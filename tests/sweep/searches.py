"""Small searches with an objective that is a formula, so that a trial takes no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from medtrain.config.space import Dimension, Space
from medtrain.sweep.result import Constraint, Definition, Objective, TrialResult
from medtrain.sweep.settings import SweepSettings
from medtrain.sweep.storage import open_storage
from medtrain.sweep.study import Assignment, SweepStudy

LR = Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1, log=True)
DROPOUT = Dimension(key="model.dropout", kind="float", low=0.0, high=0.5)
BATCH = Dimension(key="data.batch_size", kind="int", low=2, high=9, step=2)
LOSS = Dimension(key="loss", kind="choice", choices=("dice_ce", "focal"))
GAMMA = Dimension(key="loss.gamma", kind="float", low=0.5, high=5.0, when={"loss": ("focal",)})
NORM = Dimension(key="model.norm", kind="choice", choices=("instance", "batch", "null"))
NUMBERS = (LR, DROPOUT)
MIXED = (LR, LOSS, GAMMA, BATCH)
FINITE = (LOSS, NORM)
DICE = Objective("val/dice", "max")
SIZE = Objective("parameters", "min")


def define(
    dimensions: Sequence[Dimension] = NUMBERS,
    *,
    folder: Path | str = "/nowhere",
    objectives: Sequence[Objective] = (DICE,),
    constraints: Sequence[str] = (),
    sampler: Mapping[str, Any] | str = "random",
    pruner: Mapping[str, Any] | str = "none",
    default: Mapping[str, Any] | None = None,
    digest: str = "0123",
    split_hash: str = "abcd",
    is_grid: bool = False,
    **sweep: Any,
) -> Definition:
    """A definition; further arguments are settings of the sweep."""
    settings = SweepSettings(**sweep)
    return Definition(
        overrides=("model=unet", "data=phantom"),
        imports=(),
        config_dirs=(),
        digest=digest,
        space=Space(tuple(dimensions)),
        objectives=tuple(objectives),
        constraints=tuple(map(Constraint.parse, constraints)),
        sweep=dict(vars(settings)),
        sampler={"name": sampler} if isinstance(sampler, str) else sampler,
        pruner={"name": pruner} if isinstance(pruner, str) else pruner,
        folder=str(folder),
        split_hash=split_hash,
        default=default,
        is_grid=is_grid,
    )


def create(path: Path, definition: Definition, name: str = "study") -> SweepStudy:
    """A study in a journal."""
    return SweepStudy.create(open_storage(str(path / "journal.log")), name, definition)


def create_quick(definition: Definition, storage: BaseStorage | None = None, name: str = "study") -> SweepStudy:
    """A study in memory."""
    return SweepStudy.create(storage or InMemoryStorage(), name, definition)


def load(path: Path, name: str = "study") -> SweepStudy:
    """The same study as another worker sees it."""
    return SweepStudy.load(open_storage(str(path / "journal.log")), name)


def quality(params: Mapping[str, Any]) -> float:
    """What a configuration reaches: best at a learning rate of 1e-2, with `focal` at 2 and without dropout."""
    value = 0.9 - 0.05 * (math.log10(params.get("optimizer.lr", 1e-2)) + 2) ** 2
    value -= 0.2 * params.get("model.dropout", 0.0)
    value += 0.001 * params.get("data.batch_size", 0)
    if params.get("loss") == "focal":
        value += 0.02 - 0.01 * (params.get("loss.gamma", 2.0) - 2.0) ** 2
    return value


def complete(**metrics: float) -> TrialResult:
    """A trial that has finished; without metrics a Dice of 0.5."""
    named = {key.replace("__", "/"): value for key, value in metrics.items()} or {"val/dice": 0.5}
    return TrialResult(state="complete", metrics=named, step=100, seconds=2.0)


def failed(failure: Any, message: str = "boom") -> TrialResult:
    return TrialResult(state="failed", failure=failure, message=message)


def search(
    study: SweepStudy,
    *,
    most: int = 10_000,
    outcome: Callable[[Assignment], TrialResult] | None = None,
) -> list[dict[str, Any]]:
    """Train trials until there is no more; return their points in the order in which they came."""
    tried = []
    while len(tried) < most and (assignment := study.next()) is not None:
        tried.append(dict(assignment.params))
        value = quality(assignment.params)
        result = outcome(assignment) if outcome else complete(val__dice=value, parameters=1e6 * (1 + value))
        study.finish(assignment, result)
    return tried
