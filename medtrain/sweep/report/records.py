"""What a sweep has come to so far, as plain data: tables and pictures are made from this, not from the study."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from optuna.trial import FrozenTrial, TrialState

from medtrain.config.space import Dimension
from medtrain.sweep.result import Definition
from medtrain.sweep.workers import OWNER

RecordState = Literal["complete", "pruned", "failed", "running", "waiting"]

_STATES: dict[TrialState, RecordState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
NUM_BEST = 10


class StudyLike(Protocol):
    """What a report asks of a study."""

    @property
    def definition(self) -> Definition:
        """What the study is about."""

    def trials(self) -> Sequence[FrozenTrial]:
        """The trials that count."""

    def best(self, k: int) -> Sequence[FrozenTrial]:
        """The best complete trials that meet the constraints, the best first."""

    def pareto(self) -> Sequence[FrozenTrial]:
        """The trials that no other one beats in every objective."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial.

    Args:
        number: Its number.
        state: How it stands.
        params: Its point; empty while it waits.
        values: One per objective; NaN where there is none.
        curve: What it reported, by percent of its budget or by fold; finite.
        metrics: Everything that was measured.
        seconds: Wall-clock time over all its sessions; NaN when unknown.
        overhead_s: Part of it before the first optimizer step; NaN when unknown.
        step: Optimizer steps done.
        failure: Why it failed, in one word; empty otherwise.
        message: The reason in one line.
        machine: Where it ran; empty when unknown.
        started: When it was first started.
        ended: When it was finished.
        violated: The constraints it misses.
        is_default: Whether it is the point that stands for the configuration as it is, or is nearest to it.
    """

    number: int
    state: RecordState
    params: Mapping[str, Any]
    values: tuple[float, ...]
    curve: tuple[tuple[int, float], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    overhead_s: float = math.nan
    step: int = 0
    failure: str = ""
    message: str = ""
    machine: str = ""
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    violated: tuple[str, ...] = ()
    is_default: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, however."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def is_candidate(self) -> bool:
        """Whether it may win."""
        return self.state == "complete" and not self.violated and not any(map(math.isnan, self.values))

    @property
    def was_stopped_early(self) -> bool:
        """Whether the pruner ended it, rather than a lack of memory or a divergence that is told as pruned."""
        return self.state == "pruned" and not self.failure

    @property
    def folder(self) -> str:
        """Its run folder, below the sweep's."""
        return f"trials/{self.number:04d}"

    def by_class(self, metric: str) -> dict[str, float]:
        """The values of a metric for each class, named `METRIC/CLASS`, in the order in which they were told.

        Args:
            metric: Its name.
        """
        start = f"{metric}/"
        named = {name.removeprefix(start): value for name, value in self.metrics.items() if name.startswith(start)}
        return {name: value for name, value in named.items() if name and "/" not in name}


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """A sweep as it stands.

    Args:
        folder: Its folder.
        definition: What it is about.
        records: The trials that count, by number.
        best: The best of them first, for one objective; the Pareto front for several, sorted by the first objective.
    """

    folder: Path
    definition: Definition
    records: tuple[Record, ...]
    best: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Experiment and sweep, as its folder is called."""
        return f"{self.folder.parent.name} / {self.folder.name}"

    @property
    def is_multi(self) -> bool:
        """Whether there are several objectives."""
        return len(self.definition.objectives) > 1

    @property
    def num_folds(self) -> int:
        """Folds of every trial; 0 when each is one run."""
        return len(self.definition.sweep.get("folds") or ())

    @property
    def is_default_near(self) -> bool:
        """Whether the configuration as it is lies outside of the space, so that the default is only near it."""
        return bool(self.definition.default_moved)

    @cached_property
    def counts(self) -> dict[RecordState, int]:
        """How many trials are in each state."""
        return {state: sum(record.state == state for record in self.records) for state in _STATES.values()}

    @property
    def num_finished(self) -> int:
        """Trials that have ended, however."""
        return sum(record.is_finished for record in self.records)

    @property
    def default(self) -> Record | None:
        """The configuration as it is, if it lies in the space and was tried to the end."""
        if self.is_default_near:
            return None
        return next((record for record in self.records if record.is_default and record.state == "complete"), None)

    def dimension(self, key: str) -> Dimension:
        """The dimension of the space with this key."""
        return next(dimension for dimension in self.definition.space.dimensions if dimension.key == key)

    def select(self, *states: RecordState) -> list[Record]:
        """The trials in one of these states."""
        return [record for record in self.records if record.state in states]

    def spent(self, record: Record) -> float:
        """The part of its budget that a trial has used, in [0, 1]; NaN when it reported nothing."""
        if record.state == "complete":
            return 1.0
        if not record.curve:
            return math.nan
        last = record.curve[-1][0]
        # a fold is reported when it is done
        return min((last + 1) / self.num_folds if self.num_folds else last / 100, 1.0)


def read_sweep(folder: Path, study: StudyLike) -> SweepState:
    """Read a study once.

    Args:
        folder: The sweep's folder.
        study: The study.
    """
    definition = study.definition
    records = sorted((_record(trial, definition) for trial in study.trials()), key=lambda record: record.number)
    best = study.pareto() if len(definition.objectives) > 1 else study.best(NUM_BEST)
    winners = [_record(trial, definition) for trial in best]
    if len(definition.objectives) > 1:
        reverse = definition.objectives[0].mode == "max"
        winners.sort(key=lambda record: record.values, reverse=reverse)
    return SweepState(folder=folder.resolve(), definition=definition, records=tuple(records), best=tuple(winners))


def _record(trial: FrozenTrial, definition: Definition) -> Record:
    attrs = trial.user_attrs
    state = _STATES[trial.state]
    metrics = {str(key): _number(value) for key, value in (attrs.get("metrics") or {}).items()}
    complete = state == "complete" and trial.values is not None
    if complete:
        values = tuple(float(value) for value in trial.values)
    else:
        values = tuple(metrics.get(objective.metric, math.nan) for objective in definition.objectives)
    missed = [str(limit) for limit in definition.constraints if limit.violation(metrics) > 0]
    return Record(
        number=trial.number,
        state=state,
        params=dict(trial.params),
        values=values,
        curve=tuple((step, value) for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)),
        metrics=metrics,
        seconds=_seconds(trial),
        overhead_s=_number(attrs.get("overhead_s")),
        step=int(attrs.get("step") or 0),
        failure=str(attrs.get("failure") or ""),
        message=" ".join(str(attrs.get("message") or "").split()),
        machine=_machine(attrs.get(OWNER)),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        violated=tuple(missed) if complete else (),
        is_default=_is_default(trial.params, definition),
    )


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _seconds(trial: FrozenTrial) -> float:
    """As the trial itself counted them, or else between its start and its end."""
    seconds = _number(trial.user_attrs.get("seconds"))
    if math.isnan(seconds) and trial.datetime_start is not None and trial.datetime_complete is not None:
        return (trial.datetime_complete - trial.datetime_start).total_seconds()
    return seconds


def _machine(owner: Any) -> str:
    """Not the process: a sweep that is resumed has a new one."""
    return str(owner.get("host", "")) if isinstance(owner, Mapping) else ""


def _is_default(params: Mapping[str, Any], definition: Definition) -> bool:
    space, default = definition.space, definition.default
    if default is None or not params:  # a trial that waits has no point yet
        return False
    keys = [dimension.key for dimension in space.active(params)]
    return all(key in params and key in default and params[key] == default[key] for key in keys)
