"""What became of a trial, and what a sweep is about: plain data that is kept with the trial and with the study."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medtrain.config.space import Space

State = Literal["complete", "pruned", "failed", "stopped"]
"""`stopped`: by a signal or the time limit, with a checkpoint to continue from."""

Failure = Literal["oom", "nonfinite", "error", "crash", "killed", "machine"]
"""`machine` says nothing about the trial: a full disk, data that cannot be read, a device that is gone. `error` is one
sentence for the user (a setting that contradicts the data); it and the first two would come again."""

EXTRA_OBJECTIVES = {"parameters": "min", "latency_ms": "min", "train_s": "min"}
"""What every trial reports besides the task's metrics, and which way is better."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended.

    Args:
        state: What became of it.
        metrics: Every metric at the best evaluation, by name (`val/dice`), and those of `EXTRA_OBJECTIVES`; of the
            evaluations so far when the trial was pruned.
        failure: Why it failed; None when it did not.
        message: The reason in one line; empty when it is complete.
        step: Optimizer steps done.
        seconds: Wall-clock time of the trial, over all its sessions.
        overhead_s: Part of it before the first optimizer step, of the first session.
        overhead: What that is made of, in seconds, by name.
    """

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    message: str = ""
    step: int = 0
    seconds: float = 0.0
    overhead_s: float = 0.0
    overhead: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether trying once more would end the same way."""
        return self.state in ("complete", "pruned") or self.failure in ("oom", "nonfinite", "error")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialResult:
        """The result that `to_json` wrote; other keys are left out."""
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclass(frozen=True)
class Objective:
    """Something to optimize.

    Args:
        metric: Its name among a trial's metrics.
        mode: Which way is better.
    """

    metric: str
    mode: Literal["min", "max"]


@dataclass(frozen=True)
class Constraint:
    """A condition that a trial must meet to win.

    Args:
        metric: Name of a metric.
        sign: Which side is allowed.
        bound: The limit.
    """

    metric: str
    sign: Literal["<=", ">="]
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read `METRIC <= NUMBER` or `METRIC >= NUMBER`.

        Raises:
            ValueError: The text is something else.
        """
        match = re.fullmatch(r"\s*(\S+?)\s*(<=|>=)\s*(\S+)\s*", text)
        if match is None:
            raise ValueError("expected METRIC <= NUMBER or METRIC >= NUMBER")
        try:
            bound = float(match[3])
        except ValueError as error:
            raise ValueError(f"{match[3]} is not a number") from error
        return cls(match[1], match[2], bound)  # type: ignore[arg-type]

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far a trial is on the wrong side; zero or less when it is allowed, infinite when there is no value."""
        value = metrics.get(self.metric)
        if value is None or value != value:
            return float("inf")
        return value - self.bound if self.sign == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a study is about, kept in its storage: all that a worker on another machine needs.

    Args:
        overrides: Of the configuration that is varied, as typed, without what is searched.
        imports: Modules that register the user's components.
        config_dirs: Folders of the user's configurations.
        digest: Of that configuration; a worker that composes another one must not join.
        space: What varies.
        objectives: What for.
        constraints: Conditions.
        sweep: The checked section `sweep`.
        sampler: The checked section `sampler`.
        pruner: The checked section `pruner`.
        folder: The sweep's folder, absolute.
        split_hash: Of the split that all trials share.
        default: The point of the space that is the configuration as it is.
        full_overrides: The same as `overrides` for a run by itself, with the callbacks, loggers and the final
            evaluation that trials do without.
        default_moved: Keys at which the configuration itself lies outside of the space, with its values there:
            `default` is only near it.
        token: Tells this sweep from others of the same name.
        is_grid: Whether every dimension was typed as a plain list, so that every point is to be tried.
    """

    overrides: tuple[str, ...]
    imports: tuple[str, ...]
    config_dirs: tuple[str, ...]
    digest: str
    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sweep: Mapping[str, Any]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    folder: str
    split_hash: str
    default: Mapping[str, Any] | None
    full_overrides: tuple[str, ...] = ()
    default_moved: Mapping[str, Any] = field(default_factory=dict)
    token: str = ""
    is_grid: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "space": self.space.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Definition:
        """The definition that `to_json` wrote."""
        return cls(
            **{
                **data,
                **{key: tuple(data[key]) for key in ("overrides", "full_overrides", "imports", "config_dirs")},
                "space": Space.from_json(data["space"]),
                "objectives": tuple(Objective(**item) for item in data["objectives"]),
                "constraints": tuple(Constraint(**item) for item in data["constraints"]),
            }
        )
