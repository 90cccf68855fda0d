"""The planned length of a run, by steps or by time, and how far along it is."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from medtrain.engine.cadence import Cadence
from medtrain.errors import MedtrainError

log = logging.getLogger(__name__)

_LARGEST_RESERVE = 0.25
"""Share of the time between start-up and the limit that is kept for evaluations at the end, at most."""

_LARGEST_SHARE = 0.2
"""Share of the time of training that evaluations in between may take, at most, where the time is bounded."""

_LITTLE = 1 / 3
"""Share of a time limit that went to training, below which a run says where the rest went."""


@dataclass(frozen=True)
class Limit:
    """When a run ends: after `max_steps`, after `max_seconds`, or whichever comes first.

    Args:
        max_steps: Optimizer steps; None for a run bounded by time alone.
        max_seconds: Wall-clock seconds over all sessions, evaluations included; None for a run bounded by steps.
    """

    max_steps: int | None
    max_seconds: float | None

    def __post_init__(self) -> None:
        assert self.max_steps is not None or self.max_seconds is not None


class RunClock:
    """Measures the session and fits the planned number of steps to a time limit.

    Args:
        limit: The limit.
        final_evaluation_cost: Cost of the final evaluation as a multiple of one during training; that much time is
            kept free at the end of a time-bounded run.
        evaluation_steps: What an evaluation is expected to cost in steps, until one has been measured.
        started: `time.monotonic()` when the command began, so that preparing the data counts towards `max_seconds`.
    """

    def __init__(
        self,
        limit: Limit,
        *,
        final_evaluation_cost: float = 0.0,
        evaluation_steps: float = 0.0,
        started: float | None = None,
    ) -> None:
        self.limit = limit
        self.final_evaluation_cost = final_evaluation_cost
        self.evaluation_steps = evaluation_steps
        self._started = time.monotonic() if started is None else started
        self._before = 0.0
        self.now = 0.0
        self._startup_seconds = 0.0
        self._train_seconds = 0.0
        self._timed_steps = 0
        self._evaluation_seconds = 0.0
        self._last_evaluation_seconds = 0.0
        self._session = (0, 0.0)  # steps and seconds of training when it began
        self._told = False

    def measured(self) -> float:
        """Seconds of this run until this moment, over all sessions, by this process's own clock."""
        return self._before + time.monotonic() - self._started

    def elapsed(self) -> float:
        """Seconds of this run as last agreed among the processes (`now`): what every decision is based on."""
        return self.now

    def add_step(self, seconds: float) -> None:
        """Record the duration of a step."""
        self._train_seconds += seconds
        self._timed_steps += 1

    def add_wait(self, seconds: float) -> None:
        """Record a wait for a device that makes its steps later than they are given to it."""
        self._train_seconds += seconds

    def add_evaluation(self, seconds: float) -> None:
        """Record the duration of an evaluation."""
        self._evaluation_seconds += seconds
        self._last_evaluation_seconds = seconds

    def _step_seconds(self) -> float:
        """Mean duration of a step of this session, or of earlier ones; 0 before the first."""
        steps, seconds = self._timed_steps - self._session[0], self._train_seconds - self._session[1]
        if steps == 0:
            steps, seconds = self._timed_steps, self._train_seconds
        return seconds / max(steps, 1)

    def _next_evaluation_seconds(self) -> float:
        """As the last one; before there is one, as many steps as it is expected to cost."""
        return self._last_evaluation_seconds or self.evaluation_steps * self._step_seconds()

    def affords_evaluation(self) -> bool:
        """Whether evaluations, with another one, stay within a fifth of a time that is bounded."""
        if self.limit.max_seconds is None:
            return True
        spent = self._evaluation_seconds + self._next_evaluation_seconds()
        affords = spent <= _LARGEST_SHARE * (spent + self._train_seconds)
        if not affords and not self._told:
            self._told = True
            log.info("evaluations take more than a fifth of the time: there are fewer than trainer.eval_every asks for")
        return affords

    def remaining(self) -> float | None:
        """Seconds left for training, or None without a time limit."""
        if self.limit.max_seconds is None:
            return None
        # the evaluation of the last step and the final one; never more than a quarter, or nothing would be trained
        reserve = self._next_evaluation_seconds() * (1.0 + self.final_evaluation_cost)
        usable = self.limit.max_seconds - self._startup_seconds
        return self.limit.max_seconds - min(reserve, _LARGEST_RESERVE * usable) - self.elapsed()

    def seconds_left(self, step: int, evaluate: Cadence) -> float | None:
        """Seconds until the run ends, evaluations included; None where nothing is known before the first step.

        Args:
            step: Completed optimizer steps.
            evaluate: When evaluations are due.
        """
        left = []
        if self.limit.max_seconds is not None:
            left.append(max(0.0, self.limit.max_seconds - self.elapsed()))
        total = self.limit.max_steps
        if total is not None and self._timed_steps:
            training = (total - step) * self._step_seconds()
            evaluations = evaluate.count_left(step=step, total_steps=total, seconds=training)
            left.append(training + (evaluations + self.final_evaluation_cost) * self._next_evaluation_seconds())
        return min(left, default=None)

    def begin(self, step: int) -> None:
        """Note what start-up took, and refuse to begin a run whose time is used up.

        Args:
            step: Completed optimizer steps.

        Raises:
            MedtrainError: The first step cannot be made.
        """
        if step == 0:
            self._startup_seconds = self.elapsed()
        if step == 0 and self.finished(0):
            raise MedtrainError(
                f"the time limit was used up before the first step: reading and preparing the data, and starting, took "
                f"{self.elapsed():.0f} s",
                hint="give a longer trainer.max_time; the data are prepared now, so the same command starts sooner, "
                "and with trainer.sanity_check=false sooner still",
            )

    def warn_of_use(self, step: int) -> None:
        """Say what a time limit that ended a run was used for, where less than a third of it went into training.

        Args:
            step: Completed optimizer steps.
        """
        limit, elapsed = self.limit.max_seconds, self.measured()
        if self.limit.max_steps is not None and step >= self.limit.max_steps:
            return
        if limit is not None and self._train_seconds < _LITTLE * min(limit, elapsed):
            log.warning(
                "of %.0f s only %.0f s went into training: %.0f s into evaluations, %.0f s into reading and preparing "
                "the data, starting and saving; a longer trainer.max_time helps, and fewer trainer.eval_cases",
                elapsed,
                self._train_seconds,
                self._evaluation_seconds,
                max(0.0, elapsed - self._train_seconds - self._evaluation_seconds),
            )

    def total_steps(self, step: int) -> int:
        """Planned optimizer steps, given `step` completed ones; fitted to the measured step time when bounded by time.

        The share of time spent in evaluations so far is assumed to go on.
        """
        bound = self.limit.max_steps
        remaining = self.remaining()
        if remaining is None:
            assert bound is not None
            return bound
        if self._timed_steps == 0:
            return bound if bound is not None else step + 1000
        busy = self._train_seconds + self._evaluation_seconds
        step_seconds = busy / self._timed_steps
        fitted = step + max(1, round(max(0.0, remaining) / max(step_seconds, 1e-9)))
        return fitted if bound is None else min(bound, fitted)

    def progress(self, step: int) -> float:
        """Share of the run that is done, in [0, 1]."""
        shares = [0.0]
        if self.limit.max_steps is not None:
            shares.append(step / self.limit.max_steps)
        remaining = self.remaining()
        if remaining is not None and self.limit.max_seconds is not None:
            shares.append(self.elapsed() / max(self.elapsed() + remaining, 1e-9))
        return min(1.0, max(shares))

    def finished(self, step: int) -> bool:
        """Whether the limit is reached."""
        if self.limit.max_steps is not None and step >= self.limit.max_steps:
            return True
        remaining = self.remaining()
        return remaining is not None and remaining <= 0

    def state_dict(self) -> dict[str, float]:
        """What a later session needs."""
        return {
            "elapsed": self.measured(),
            "startup_seconds": self._startup_seconds,
            "train_seconds": self._train_seconds,
            "timed_steps": float(self._timed_steps),
            "evaluation_seconds": self._evaluation_seconds,
            "last_evaluation_seconds": self._last_evaluation_seconds,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where `state_dict` was taken; the time in between does not count."""
        self._before = self.now = state["elapsed"]
        self._started = time.monotonic()
        self._startup_seconds = state.get("startup_seconds", 0.0)  # early versions did not note it
        self._train_seconds = state["train_seconds"]
        self._timed_steps = int(state["timed_steps"])
        self._session = (self._timed_steps, self._train_seconds)
        self._evaluation_seconds = state["evaluation_seconds"]
        self._last_evaluation_seconds = state["last_evaluation_seconds"]
