"""Learning-rate schedules as pure functions of the step.

A schedule is not tied to an optimizer and counts nothing itself: the engine asks it for a factor before every update
and sets each group's learning rate to `base_lr * factor`. So resuming needs no schedule state (but for the plateau),
and groups keep their own multipliers.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from medtrain.errors import UsageError
from medtrain.registry import Range, register

Factor = Annotated[float, Range(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of the schedules: a linear warm-up in front of `main`.

    During W warm-up steps the factor is (step + 1) / (W + 1) of the schedule's own. Schedules that span the run
    start after the warm-up and have the remaining steps; those counted in epochs or evaluations keep their count.

    Args:
        warmup_steps: Optimizer steps of linear warm-up.
        warmup_fraction: Warm-up as a share of all steps, instead of warmup_steps.
    """

    interval: ClassVar[Literal["step", "epoch", "metric"]] = "step"
    """What the schedule counts: optimizer steps, epochs, or evaluations (then `observe` must be called)."""
    _spans_the_run: ClassVar[bool] = True

    warmup_steps: Annotated[int, Range(ge=0)] = 0
    warmup_fraction: Annotated[float, Range(ge=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_fraction is not None:
            raise UsageError(
                "scheduler.warmup_steps and scheduler.warmup_fraction are both set",
                hint="set one of them; the other to 0 or null",
            )

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The factor of every group's base learning rate for the update after `step` completed ones.

        Args:
            step: Completed optimizer steps, 0 before the first update.
            total_steps: Optimizer steps of the whole run; may be re-estimated while it goes.
            steps_per_epoch: Optimizer steps of one epoch.
        """
        warmup = self._warmup(total_steps)
        ramp = (step + 1) / (warmup + 1) if step < warmup else 1.0
        if self._spans_the_run:
            step, total_steps = max(0, step - warmup), total_steps - warmup
        return ramp * self.main(step, max(1, total_steps), max(1, steps_per_epoch))

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The factor without warm-up; `step` may exceed `total_steps`."""
        raise NotImplementedError

    def observe(self, value: float, mode: Literal["min", "max"]) -> None:
        """Take note of the monitored metric after an evaluation; only `plateau` acts on it."""

    def state_dict(self) -> dict[str, Any]:
        """State to be kept in a checkpoint: numbers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def _warmup(self, total_steps: int) -> int:
        if self.warmup_fraction is not None:
            return round(self.warmup_fraction * total_steps)
        return self.warmup_steps


@register("scheduler", "constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same learning rate throughout (after the warm-up)."""

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        return 1.0


@register("scheduler", "cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to `min_factor` over the run: m + (1 - m) (1 + cos(pi s / S)) / 2.

    I. Loshchilov and F. Hutter, SGDR, 2017, eq. 5.

    Args:
        min_factor: Share of the learning rate left at the end.
    """

    min_factor: Factor = 0.0

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        wave = (1 + math.cos(math.pi * _progress(step, total_steps))) / 2
        return self.min_factor + (1 - self.min_factor) * wave


@register("scheduler", "poly")
@dataclass(frozen=True, kw_only=True)
class Poly(Schedule):
    """Polynomial decay from 1 to `min_factor` over the run, nnU-Net's schedule: (1 - s / S) ^ power.

    Args:
        power: Exponent.
        min_factor: Share of the learning rate left at the end.
    """

    power: Annotated[float, Range(gt=0)] = 0.9
    min_factor: Factor = 0.0

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        decay = (1 - _progress(step, total_steps)) ** self.power
        return self.min_factor + (1 - self.min_factor) * decay


@register("scheduler", "linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Linear decay from 1 to `min_factor` over the run.

    Args:
        min_factor: Share of the learning rate left at the end.
    """

    min_factor: Factor = 0.0

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        return 1 - (1 - self.min_factor) * _progress(step, total_steps)


@register("scheduler", "step")
@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiply by `gamma` after every `step_epochs` epochs.

    Args:
        step_epochs: Epochs between two reductions.
        gamma: Factor of each reduction.
    """

    interval: ClassVar[Literal["step", "epoch", "metric"]] = "epoch"
    _spans_the_run: ClassVar[bool] = False

    step_epochs: Annotated[int, Range(ge=1)] = 30
    gamma: Annotated[float, Range(gt=0, le=1)] = 0.1

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        return self.gamma ** (step // steps_per_epoch // self.step_epochs)


@register("scheduler", "multistep")
@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """Multiply by `gamma` at each of the given epochs.

    Args:
        milestones: Epochs, increasing, after which the rate is reduced.
        gamma: Factor of each reduction.
    """

    interval: ClassVar[Literal["step", "epoch", "metric"]] = "epoch"
    _spans_the_run: ClassVar[bool] = False

    milestones: tuple[int, ...]
    gamma: Annotated[float, Range(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.milestones or any(b <= a for a, b in zip((0, *self.milestones), self.milestones)):
            raise UsageError(
                f"scheduler.milestones must be positive, increasing epochs, got {list(self.milestones)}",
                hint="e.g. scheduler.milestones=[30,60,90]",
            )

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        return self.gamma ** bisect_right(self.milestones, step // steps_per_epoch)


@register("scheduler", "one_cycle")
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Up to the learning rate and down far below where it began; the learning rate set is the peak.

    L. Smith and N. Topin, Super-Convergence, 2018; PyTorch's two-phase form, learning rate only.

    Args:
        pct_start: Share of the run spent going up.
        anneal: Shape of both parts.
        div_factor: Peak divided by the first learning rate.
        final_div_factor: First learning rate divided by the last.
    """

    pct_start: Annotated[float, Range(gt=0, lt=1)] = 0.3
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: Annotated[float, Range(ge=1)] = 25.0
    final_div_factor: Annotated[float, Range(ge=1)] = 1e4

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        first = 1 / self.div_factor
        peak = max(0.0, self.pct_start * total_steps - 1)
        last = max(peak, total_steps - 1.0)
        step = min(step, total_steps - 1)
        if step <= peak:
            return self._between(first, 1.0, step / peak if peak else 1.0)
        return self._between(1.0, first / self.final_div_factor, (step - peak) / (last - peak))

    def _between(self, start: float, end: float, share: float) -> float:
        if self.anneal == "linear":
            return start + (end - start) * share
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@register("scheduler", "absolute_linear", runtime=("lr",))
@dataclass(frozen=True, kw_only=True)
class AbsoluteLinear(Schedule):
    """A line in absolute learning rates, max(slope x epoch + lr, min_lr), whatever the length of the run.

    The intercept is the optimizer's learning rate; a group's lr_mult multiplies the result.

    Args:
        lr: The optimizer's learning rate.
        slope: Change of the learning rate per epoch; fractions of an epoch count.
        min_lr: Lower bound of the learning rate.
        restart_epochs: Begin anew after so many epochs; null = never.
    """

    _spans_the_run: ClassVar[bool] = False

    lr: float
    slope: float = -8e-6
    min_lr: Annotated[float, Range(ge=0)] = 1e-6
    restart_epochs: Annotated[float, Range(gt=0)] | None = None

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        if self.restart_epochs is not None:
            step = step % max(1, round(self.restart_epochs * steps_per_epoch))
        return max(self.slope * step / steps_per_epoch + self.lr, self.min_lr) / self.lr


@dataclass
class _PlateauState:
    factor: float = 1.0
    best: float | None = None
    bad: int = 0
    cooling: int = 0


@register("scheduler", "plateau")
@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """Multiply by `gamma` when the monitored metric has stopped improving; counts evaluations.

    Args:
        gamma: Factor of each reduction.
        patience: Evaluations without improvement that are tolerated; the next one reduces.
        threshold: Smallest change that counts as improvement.
        threshold_mode: A change relative to the best value, or absolute.
        cooldown: Evaluations after a reduction during which nothing is counted.
        min_factor: The learning rate never falls below this share.
    """

    interval: ClassVar[Literal["step", "epoch", "metric"]] = "metric"
    _spans_the_run: ClassVar[bool] = False

    gamma: Annotated[float, Range(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Range(ge=0)] = 10
    threshold: Annotated[float, Range(ge=0)] = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: Annotated[int, Range(ge=0)] = 0
    min_factor: Factor = 0.0
    _state: _PlateauState = field(init=False, repr=False, compare=False, default_factory=_PlateauState)

    def main(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """See the base class."""
        return self._state.factor

    def observe(self, value: float, mode: Literal["min", "max"]) -> None:
        """Count one evaluation of the monitored metric; NaN is never an improvement."""
        state = self._state
        if self._improves(value, mode):
            state.best, state.bad = value, 0
        else:
            state.bad += 1
        if state.cooling > 0:
            state.cooling -= 1
            state.bad = 0
        if state.bad > self.patience:
            state.factor = max(state.factor * self.gamma, self.min_factor)
            state.cooling, state.bad = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return dict(vars(self._state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        vars(self._state).update(state)

    def _improves(self, value: float, mode: Literal["min", "max"]) -> bool:
        if math.isnan(value):
            return False
        best = self._state.best
        if best is None:
            return True
        margin = self.threshold * (abs(best) if self.threshold_mode == "rel" else 1.0)
        return value < best - margin if mode == "min" else value > best + margin


def _progress(step: int, total_steps: int) -> float:
    return min(1.0, step / total_steps)
