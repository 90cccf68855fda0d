"""The settings of a sweep: how much, what for, and how it is kept safe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from medtrain.engine.settings import TimeText
from medtrain.registry import Format, Range, register
from medtrain.sweep.result import Constraint

ConstraintText = Annotated[str, Format(Constraint.parse, '"parameters <= 5e6" or "val/dice/tumour >= 0.4"')]


@register("sweep", "default")
@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Settings of a sweep.

    Args:
        space: What varies, by dotted key or group: a text as on the command line (`interval(0, 0.5)`,
            `tag(log, interval(1e-4, 1e-1))`, `choice(a, b)`, `range(2, 9, 2)`), a list of choices, or a mapping of
            `low`, `high`, `step`, `log`, `choices` and `when` (`{loss: focal}`: exists only for this choice). What is
            typed on the command line comes on top.
        n_trials: Trials to finish, failed and pruned ones included; null is every point of a grid, else 20.
        timeout: Stop after this much time: running trials are saved, and `medtrain resume` continues them.
        workers: Trials at the same time on this machine, which share its cores and GPUs; null is one per GPU, and one
            on a CPU.
        objectives: What to optimize: metrics of the task (`val/dice`), `parameters`, `latency_ms` or `train_s`; each
            goes in its own direction. Empty is the task's own monitor. Several give a Pareto front, without pruning.
        constraints: Conditions on metrics, such as `parameters <= 5e6` or `val/dice/tumour >= 0.4`; trials that miss
            one never win.
        folds: Train every trial on each of these folds and take the mean; empty is the one fold of `data.fold`.
        try_default: Try the configuration as it is, without any search, first.
        warm_start: Where to begin: folders of earlier sweeps, or YAML files with a list of points (`- {optimizer.lr:
            1e-3}`). Trials of the same task on the same data are taken over, the best of others are tried again.
        seed: Seed of the sampler.
        retries: How often a trial that crashed or was killed is tried again. One that ran out of memory or diverged is
            not: it is told to the sampler as a bad place.
        max_failures: Stop the sweep after so many failed trials in a row.
        keep_checkpoints: Trials that keep their checkpoints, the best ones; null is all.
        storage: Where the study is kept: null is a journal file in the sweep's folder; else a path of a journal
            (`x.log`) or of SQLite (`x.db`), `postgresql://user@host/db`, or `grpc://host:port`.
        study: Name of the study in its storage; null is the sweep's folder.
        rerun_best: After the search, train this many of the best configurations again, so that the winner is not luck.
        rerun_seeds: Seeds of each of these runs, counted from `seed` + 1.
        rerun_folds: Folds of each of these runs; empty is the fold or folds of the search.
    """

    space: dict[str, Any] = field(default_factory=dict)
    n_trials: Annotated[int, Range(ge=1)] | None = None
    timeout: TimeText | None = None
    workers: Annotated[int, Range(ge=1)] | None = None
    objectives: list[str] = field(default_factory=list)
    constraints: list[ConstraintText] = field(default_factory=list)
    folds: list[Annotated[int, Range(ge=0)]] = field(default_factory=list)
    try_default: bool = True
    warm_start: list[str] = field(default_factory=list)
    seed: Annotated[int, Range(ge=0)] = 0
    retries: Annotated[int, Range(ge=0)] = 1
    max_failures: Annotated[int, Range(ge=1)] = 5
    keep_checkpoints: Annotated[int, Range(ge=1)] | None = None
    storage: str | None = None
    study: str | None = None
    rerun_best: Annotated[int, Range(ge=0)] = 0
    rerun_seeds: Annotated[int, Range(ge=1)] = 3
    rerun_folds: list[Annotated[int, Range(ge=0)]] = field(default_factory=list)
