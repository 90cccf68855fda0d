"""Durations with units, and when something is due.

A duration is written as `"500step"` (optimizer steps), `"10ep"` (epochs), `"90s"`, `"20min"`, `"2h"`
(wall-clock time) or `"5%"` (of the planned run).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["step", "epoch", "second", "percent"]

_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|ep|epochs?|s|sec|min|h|hours?|d|%)\s*$")
_UNITS: dict[str, tuple[Unit, float]] = {
    "step": ("step", 1),
    "steps": ("step", 1),
    "ep": ("epoch", 1),
    "epoch": ("epoch", 1),
    "epochs": ("epoch", 1),
    "s": ("second", 1),
    "sec": ("second", 1),
    "min": ("second", 60),
    "h": ("second", 3600),
    "hour": ("second", 3600),
    "hours": ("second", 3600),
    "d": ("second", 86400),
    "%": ("percent", 1),
}


@dataclass(frozen=True)
class Duration:
    """A length of training: a positive value and its unit (seconds for every unit of time)."""

    value: float
    unit: Unit

    def in_steps(self, *, steps_per_epoch: int, total_steps: int) -> int:
        """The duration in whole optimizer steps, at least 1; not defined for wall-clock durations."""
        assert self.unit != "second"
        scale = {"step": 1.0, "epoch": float(steps_per_epoch), "percent": total_steps / 100.0}[self.unit]
        return max(1, round(self.value * scale))


def parse_duration(text: str) -> Duration:
    """Parse `"500step"`, `"10ep"`, `"90s"`, `"20min"`, `"2h"` or `"5%"`.

    Raises:
        ValueError: The text is not a positive number followed by a unit.
    """
    match = _PATTERN.match(text)
    if match is None or float(match[1]) <= 0:
        raise ValueError("expected a positive number with a unit: step, ep, s, min, h or %")
    unit, scale = _UNITS[match[2]]
    return Duration(float(match[1]) * scale, unit)


def parse_time(text: str) -> float:
    """Parse a wall-clock duration into seconds.

    Raises:
        ValueError: The text is not a positive number followed by s, min, h or d.
    """
    match = _PATTERN.match(text)
    if match is None or _UNITS[match[2]][0] != "second" or float(match[1]) <= 0:
        raise ValueError("expected a positive number with a unit of time: s, min, h or d")
    return parse_duration(text).value


class Cadence:
    """Says after each step whether something is due, for any unit and any planned length.

    Step-like durations are due at the multiples of their length, so that they depend on the step alone. Wall-clock
    durations are due when that much time has passed since they were last due. Percentages follow the progress, which
    for a time-bounded run is the share of the time used.

    Args:
        duration: How often; None is never due.
        steps_per_epoch: Optimizer steps of an epoch.
    """

    def __init__(self, duration: Duration | None, *, steps_per_epoch: int) -> None:
        self.duration = duration
        self.steps_per_epoch = steps_per_epoch
        self._last_time = 0.0
        self._last_percent = 0

    def due(self, *, step: int, total_steps: int | None, progress: float, elapsed: float) -> bool:
        """Whether it is due now, after `step` completed steps.

        Args:
            step: Completed optimizer steps, >= 1.
            total_steps: Planned steps of a step-bounded run; None for a time-bounded run.
            progress: Share of the run that is done, in [0, 1].
            elapsed: Seconds of training so far, over all sessions.
        """
        if self.duration is None:
            return False
        if self.duration.unit == "second":
            if elapsed - self._last_time >= self.duration.value:
                self._last_time = elapsed
                return True
            return False
        if self.duration.unit == "percent":
            if total_steps is not None:
                return self._passed(step, total_steps) > self._passed(step - 1, total_steps)
            mark = math.floor(100 * progress / self.duration.value + 1e-9)
            crossed = mark > self._last_percent
            self._last_percent = max(mark, self._last_percent)
            return crossed
        return self._passed(step, total_steps or 0) > self._passed(step - 1, total_steps or 0)

    def count_left(self, *, step: int, total_steps: int, seconds: float) -> int:
        """How often it will be due until the last step, which counts even where it is not due.

        Args:
            step: Completed optimizer steps.
            total_steps: Planned steps.
            seconds: That the steps to come will take.
        """
        if self.duration is None or step >= total_steps:
            return int(step < total_steps)
        if self.duration.unit == "second":
            return math.ceil(seconds / self.duration.value)
        passed = self._passed(total_steps, total_steps)
        last_is_due = passed > self._passed(total_steps - 1, total_steps)
        return passed - self._passed(step, total_steps) + (0 if last_is_due else 1)

    def _passed(self, step: int, total_steps: int) -> int:
        """How often it was due until a step; the duration is no time."""
        assert self.duration is not None
        if self.duration.unit == "percent":
            # rounded multiples of the exact length: evenly spaced, and the last one is the last step
            every = self.duration.value * total_steps / 100
            return step if every <= 1 else math.floor(step / every + 1e-9)
        return step // self.duration.in_steps(steps_per_epoch=self.steps_per_epoch, total_steps=total_steps)

    def restart(self, *, progress: float, elapsed: float) -> None:
        """Count from now: what was due while an evaluation took its time is not made up for.

        Args:
            progress: Share of the run that is done, in [0, 1].
            elapsed: Seconds of training so far.
        """
        if self.duration is not None and self.duration.unit == "second":
            self._last_time = elapsed
        if self.duration is not None and self.duration.unit == "percent":
            self._last_percent = max(self._last_percent, math.floor(100 * progress / self.duration.value + 1e-9))

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"last_time": self._last_time, "last_percent": float(self._last_percent)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where `state_dict` was taken."""
        self._last_time = state["last_time"]
        self._last_percent = int(state["last_percent"])


@dataclass(frozen=True)
class Cadences:
    """When to log, evaluate, save and keep."""

    log: Cadence
    evaluate: Cadence
    checkpoint: Cadence
    keep: Cadence
