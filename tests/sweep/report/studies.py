"""Made-up studies that look like real ones: a search that closes in, pruning, conditions, failures, several workers."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from medtrain.config.space import Dimension, Space
from medtrain.sweep.result import Definition, Objective
from tests.sweep import searches

LR = Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1, log=True)
LOSS = Dimension(key="loss", kind="choice", choices=("dice_ce", "focal", "tversky"))
GAMMA = Dimension(key="loss.gamma", kind="float", low=0.5, high=5.0, when={"loss": ("focal", "tversky")})
DROPOUT = Dimension(key="model.dropout", kind="float", low=0.0, high=0.5)
BATCH = Dimension(key="data.batch_size", kind="int", low=2, high=8, step=2)
MORE = (
    Dimension(key="optimizer.weight_decay", kind="float", low=1e-6, high=1e-2, log=True),
    Dimension(
        key="model.channels", kind="choice", choices=("[16,32,64,128]", "[32,64,128,256]", "[32,64,128,256,320]")
    ),
    Dimension(key="model.norm", kind="choice", choices=("instance", "batch")),
    Dimension(key="model.depth", kind="int", low=3, high=6),
    Dimension(key="augment.rotation.p", kind="float", low=0.0, high=1.0, step=0.1),
    Dimension(key="augment.noise.p", kind="float", low=0.0, high=1.0),
    Dimension(key="scheduler", kind="choice", choices=("poly", "cosine", "constant")),
)
FIVE = (LR, LOSS, GAMMA, DROPOUT, BATCH)
TWELVE = (*FIVE, *MORE)
DEFAULT: dict[str, Any] = {
    "optimizer.lr": 1e-2,
    "loss": "dice_ce",
    "model.dropout": 0.0,
    "data.batch_size": 2,
    "optimizer.weight_decay": 1e-5,
    "model.channels": "[32,64,128,256]",
    "model.norm": "instance",
    "model.depth": 4,
    "augment.rotation.p": 0.2,
    "augment.noise.p": 0.15,
    "scheduler": "poly",
}
STARTED = datetime.datetime(2026, 11, 20, 9, 0, 0)
DICE = Objective("val/dice", "max")
LATENCY = Objective("latency_ms", "min")
PARAMETERS = Objective("parameters", "min")


def distribution(dimension: Dimension) -> BaseDistribution:
    """As the study keeps a dimension."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.kind == "int":
        return IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def define(
    folder: Path,
    dimensions: Sequence[Dimension] = FIVE,
    *,
    objectives: Sequence[Objective] = (DICE,),
    constraints: Sequence[str] = (),
    default: Mapping[str, Any] | None = None,
    **sweep: Any,
) -> Definition:
    """A definition; further arguments are settings of the sweep."""
    definition = searches.define(
        dimensions,
        folder=folder,
        objectives=objectives,
        constraints=constraints,
        sampler="tpe",
        pruner="median",
        default=default,
        **{"n_trials": 20, **sweep},
    )
    return dataclasses.replace(definition, overrides=("model=unet", "data=msd", "data.root=/data/Task04 Hippocampus"))


@dataclass
class FakeStudy:
    """Trials made by hand, behind the part of the study that a report uses."""

    definition: Definition
    frozen: list[FrozenTrial] = field(default_factory=list)

    def trials(self) -> list[FrozenTrial]:
        return list(self.frozen)

    def best(self, k: int) -> list[FrozenTrial]:
        sign = -1 if self.definition.objectives[0].mode == "max" else 1
        return sorted(self._candidates(), key=lambda trial: sign * trial.values[0])[:k]

    def pareto(self) -> list[FrozenTrial]:
        signs = [-1 if objective.mode == "max" else 1 for objective in self.definition.objectives]
        costs = [tuple(sign * value for sign, value in zip(signs, trial.values)) for trial in self._candidates()]
        return [
            trial
            for trial, mine in zip(self._candidates(), costs)
            if not any(all(a <= b for a, b in zip(other, mine)) and other != mine for other in costs)
        ]

    def add(
        self,
        state: TrialState,
        params: Mapping[str, Any] | None = None,
        *,
        values: Sequence[float] | None = None,
        curve: Mapping[int, float] | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
        **attrs: Any,
    ) -> FrozenTrial:
        """Add a trial; `attrs` become its user attributes."""
        known = {dimension.key: dimension for dimension in self.definition.space.dimensions}
        end = STARTED + datetime.timedelta(seconds=start_s + 60 if end_s is None else end_s)
        trial = FrozenTrial(
            number=len(self.frozen),
            state=state,
            value=None,
            values=values,
            datetime_start=None if state == TrialState.WAITING else STARTED + datetime.timedelta(seconds=start_s),
            datetime_complete=end if state.is_finished() else None,
            params=dict(params or {}),
            distributions={key: distribution(known[key]) for key in params or {}},
            user_attrs=attrs,
            system_attrs={},
            intermediate_values=dict(curve or {}),
            trial_id=len(self.frozen),
        )
        self.frozen.append(trial)
        return trial

    def _candidates(self) -> list[FrozenTrial]:
        limits = self.definition.constraints
        return [
            trial
            for trial in self.frozen
            if trial.state == TrialState.COMPLETE
            if all(limit.violation(trial.user_attrs.get("metrics", {})) <= 0 for limit in limits)
        ]


def quality(params: Mapping[str, Any]) -> float:
    """The Dice a configuration would reach: the learning rate matters most, then the loss, then the dropout."""
    value = 0.905 - 0.035 * (math.log10(params.get("optimizer.lr", 1e-2)) + 2.2) ** 2
    value -= {"dice_ce": 0.0, "focal": 0.02, "tversky": 0.008}[params.get("loss", "dice_ce")]
    value -= 0.004 * (params.get("loss.gamma", 2.0) - 2.0) ** 2
    value -= 0.25 * (params.get("model.dropout", 0.1) - 0.1) ** 2
    value += 0.002 * params.get("data.batch_size", 4)
    value += {"[16,32,64,128]": -0.012, "[32,64,128,256,320]": 0.004}.get(params.get("model.channels", ""), 0.0)
    value += 0.004 * (params.get("model.depth", 4) - 4)
    return max(value, 0.02)


def cost(params: Mapping[str, Any]) -> tuple[float, float]:
    """Parameters and latency in ms."""
    size = {"[16,32,64,128]": 1.0, "[32,64,128,256]": 4.0, "[32,64,128,256,320]": 7.0}
    millions = size[params.get("model.channels", "[32,64,128,256]")] * (params.get("model.depth", 4) / 4) ** 1.5
    return millions * 1e6, 6.0 + 5.0 * millions**0.7


def search(
    folder: Path,
    count: int,
    *,
    dimensions: Sequence[Dimension] = FIVE,
    seed: int = 0,
    workers: int = 2,
    prune: bool = True,
    failures: bool = True,
    running: int = 0,
    **definition: Any,
) -> FakeStudy:
    """A search that closes in on what was best, some of it pruned or failed.

    Args:
        folder: The sweep's folder.
        count: Trials that have ended.
        dimensions: What varies.
        seed: Of everything random.
        workers: Trials at the same time.
        prune: End trials whose curve is below the median.
        failures: Let large batches run out of memory and large learning rates diverge; some crash.
        running: Trials that still run.
        definition: As for `define`.
    """
    rng = np.random.default_rng(seed)
    default = {key: value for key, value in DEFAULT.items() if key in {dimension.key for dimension in dimensions}}
    study = FakeStudy(define(folder, dimensions, default=default, **definition))
    free = [0.0] * workers
    tried: list[tuple[float, dict[str, Any]]] = []
    for number in range(count + running):
        slot = int(np.argmin(free))
        params = default if number == 0 else _draw(study.definition.space, rng, tried, number / max(count, 20))
        value = quality(params) + 0.004 * rng.standard_normal()
        _run(study, params, value, rng, slot, free, prune=prune, failures=failures, ended=number < count)
        tried.append((value, params))
    return study


def _draw(
    space: Space, rng: np.random.Generator, tried: list[tuple[float, dict[str, Any]]], progress: float
) -> dict[str, Any]:
    guide = max(tried, key=lambda pair: pair[0])[1] if rng.random() < 1.2 * progress else {}
    params: dict[str, Any] = {}
    for dimension in space.dimensions:
        if not dimension.is_active(params):
            continue
        near = guide.get(dimension.key) if rng.random() < 0.9 else None
        if dimension.kind == "choice":
            params[dimension.key] = near or str(rng.choice(dimension.choices))
            continue
        assert dimension.low is not None
        assert dimension.high is not None
        low, high = (math.log(x) if dimension.log else x for x in (dimension.low, dimension.high))
        drawn = rng.uniform(low, high)
        if near is not None:
            drawn = float(
                np.clip(rng.normal(math.log(near) if dimension.log else near, 0.15 * (high - low)), low, high)
            )
        value = dimension.nearest(
            float(np.clip(math.exp(drawn) if dimension.log else drawn, dimension.low, dimension.high))
        )
        params[dimension.key] = value
    return params


def _run(
    study: FakeStudy,
    params: dict[str, Any],
    value: float,
    rng: np.random.Generator,
    slot: int,
    free: list[float],
    *,
    prune: bool,
    failures: bool,
    ended: bool,
) -> None:
    start, full = free[slot] + rng.uniform(1, 4), rng.uniform(280, 340)
    curve = {
        step: float(value * (1 - 0.9 * math.exp(-step / 18)) + 0.006 * rng.standard_normal())
        for step in range(5, 101, 5)
    }
    parameters, latency = cost(params)
    worker = {"host": "node1", "pid": 4100, "pid_start": 1, "token": "a"}
    attrs: dict[str, Any] = {"overhead_s": float(rng.uniform(1.5, 3.0)), "worker": worker, "message": ""}
    many = len(study.definition.objectives) > 1
    stop = _pruned_at(study, curve) if prune and not many else None
    if not ended:
        study.add(
            TrialState.RUNNING,
            params,
            curve={} if many else {s: v for s, v in curve.items() if s <= 40},
            start_s=start,
            worker=worker,
        )
        free[slot] = start + 0.4 * full
        return
    kind = rng.random() if failures else 1.0
    if kind < 0.04 or (failures and params.get("data.batch_size", 0) == 8 and kind < 0.2):
        end = start + 6.0
        message = f"out of memory: tried to allocate {rng.integers(100, 999)} MiB (GPU 0)"
        state, curve, attrs = (
            TrialState.FAIL if many else TrialState.PRUNED,
            {},
            {**attrs, "failure": "oom", "message": message},
        )
        study.add(state, params, curve=curve, start_s=start, end_s=end, seconds=6.0, step=0, **attrs)
    elif kind < 0.06:
        end = start + 0.3 * full
        study.add(
            TrialState.FAIL,
            params,
            curve={} if many else {5: curve[5]},
            start_s=start,
            end_s=end,
            seconds=end - start,
            step=60,
            failure="crash",
            message="killed by signal 9 (out of memory of the machine?)",
            **{k: v for k, v in attrs.items() if k != "message"},
        )
    elif stop is not None:
        end = start + full * stop / 100
        attrs["message"] = f"pruned by the sweep at {stop} % of its budget"
        study.add(
            TrialState.PRUNED,
            params,
            curve={s: v for s, v in curve.items() if s <= stop},
            start_s=start,
            end_s=end,
            seconds=end - start,
            step=10 * stop,
            **attrs,
        )
    else:
        end = start + full
        metrics = {
            "val/dice": value,
            "val/dice/anterior": value + 0.01,
            "val/hd95_mm": 3.0 / max(value, 0.1),
            "parameters": parameters,
            "latency_ms": latency,
            "train_s": full,
        }
        values = [metrics[objective.metric] for objective in study.definition.objectives]
        study.add(
            TrialState.COMPLETE,
            params,
            values=values,
            curve={} if many else curve,
            start_s=start,
            end_s=end,
            seconds=full,
            step=1000,
            metrics=metrics,
            **attrs,
        )
    free[slot] = end


def _pruned_at(study: FakeStudy, curve: Mapping[int, float]) -> int | None:
    """Where the median rule ends a trial."""
    done = [trial for trial in study.frozen if trial.state == TrialState.COMPLETE]
    if len(done) < 5:
        return None
    for step in range(25, 100, 5):
        best = max(value for at, value in curve.items() if at <= step)
        if best < np.quantile([trial.intermediate_values[step] for trial in done], 0.12):
            return step
    return None
