"""When a trial is given up. Describing them imports no Optuna: that is left to `build`.

Trials report the first objective after each evaluation, under the percent of their budget that is done; with folds,
after each fold, under the fold's index.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from medtrain.errors import UsageError
from medtrain.registry import Range, build, get, register
from medtrain.sweep.plan import SearchPlan

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

Percent = Annotated[float, Range(ge=0, le=100)]
WHOLE_BUDGET = 100
"""The step at which a trial is done, in percent."""


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """Base of the pruners."""

    _name: ClassVar[str] = ""
    _folds: ClassVar[Literal["with", "without", "both"]] = "both"
    """Whether it serves sweeps in which a trial is trained on several folds."""

    def resolve(self, plan: SearchPlan) -> Pruner:
        """The pruner that is meant; only `auto` means another one."""
        return self

    def check(self, plan: SearchPlan) -> None:
        """See that this pruner can serve this sweep.

        Raises:
            UsageError: It cannot.
        """
        if plan.objectives > 1:
            raise UsageError(
                f"pruner={self._name} compares one value, and this sweep has {plan.objectives} objectives",
                hint="choose pruner=none",
            )
        if self._folds == "with" and plan.folds < 2:
            raise UsageError(
                f"pruner={self._name} compares two trials fold by fold, and this sweep trains on one fold",
                hint="set sweep.folds=[0,1,2,3,4], or choose pruner=median",
            )
        if self._folds == "without" and plan.folds > 1:
            raise UsageError(
                f"pruner={self._name} divides the budget of a trial, and with sweep.folds a trial reports whole folds",
                hint="choose pruner=wilcoxon or pruner=median",
            )

    def build(self, plan: SearchPlan) -> BasePruner:
        """Optuna's pruner."""
        raise NotImplementedError


@register("pruner", "auto")
@dataclass(frozen=True, kw_only=True)
class Auto(Pruner):
    """Compare with the other trials: `gradual`, or `wilcoxon` where there are three folds or more.

    A grid is not pruned, as whoever lists the values wants to see all of them, and nor is a Pareto front.
    """

    def resolve(self, plan: SearchPlan) -> Pruner:
        """See the base class."""
        if plan.objectives > 1 or plan.is_grid:
            return NoPruner()
        return Wilcoxon() if plan.folds > 2 else Gradual()

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        return self.resolve(plan).build(plan)


@register("pruner", "none")
@dataclass(frozen=True, kw_only=True)
class NoPruner(Pruner):
    """Let every trial finish."""

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.pruners import NopPruner

        return NopPruner()


@dataclass(frozen=True, kw_only=True)
class _Quantile(Pruner):
    """Base of the pruners that compare with the trials so far.

    Args:
        n_startup_trials: Finished trials before any is pruned.
        warmup: Percent of its budget that every trial is given.
        n_min_trials: Finished trials that must have got as far for a comparison.
    """

    n_startup_trials: Annotated[int, Range(ge=1)] = 5
    warmup: Percent = 20.0
    n_min_trials: Annotated[int, Range(ge=1)] = 1

    def _build(self, plan: SearchPlan, percentile: float) -> BasePruner:
        from optuna.pruners import PercentilePruner

        from medtrain.sweep.aligned import Aligned

        pruner = PercentilePruner(
            percentile,
            n_startup_trials=self.n_startup_trials,
            n_warmup_steps=_first_step(self.warmup, plan),
            n_min_trials=self.n_min_trials,
        )
        return Aligned(pruner)


@register("pruner", "median")
@dataclass(frozen=True, kw_only=True)
class Median(_Quantile):
    """Give up a trial whose best value so far is worse than the median of the others at the same point.

    D. Golovin et al., Google Vizier, 2017.
    """

    _name: ClassVar[str] = "median"

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        return self._build(plan, 50.0)


@register("pruner", "percentile")
@dataclass(frozen=True, kw_only=True)
class Percentile(_Quantile):
    """Give up a trial whose best value so far is not among the best share of the others at the same point.

    Args:
        percentile: The share that goes on, in percent: 25 keeps the best quarter.
    """

    _name: ClassVar[str] = "percentile"

    percentile: Annotated[float, Range(gt=0, lt=100)] = 25.0

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        return self._build(plan, self.percentile)


@register("pruner", "gradual")
@dataclass(frozen=True, kw_only=True)
class Gradual(Pruner):
    """Give up a trial that is not among the best share of the others at the same point; the share shrinks on the way.

    Early values say little, as small learning rates begin slowly: only what is far behind goes. Late values say much,
    and most of the budget is saved by being strict then. On made-up noisy curves it spends about half of the unpruned
    compute, and less than `median`, for the same best value (tests/sweep/test_pruners.py).

    Args:
        first: The share that goes on at the beginning of the budget, in percent.
        last: The share that goes on at its end; linear in between.
        n_startup_trials: Finished trials before any is given up.
        warmup: Percent of its budget that every trial is given.
    """

    _name: ClassVar[str] = "gradual"

    first: Annotated[float, Range(gt=0, lt=100)] = 60.0
    last: Annotated[float, Range(gt=0, lt=100)] = 10.0
    n_startup_trials: Annotated[int, Range(ge=1)] = 3
    warmup: Percent = 10.0

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        super().check(plan)
        if self.last > self.first:
            raise UsageError(
                f"pruner.last={self.last:g} is above pruner.first={self.first:g}: pruner=gradual becomes stricter",
                hint="for the same share throughout choose pruner=percentile",
            )

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from medtrain.sweep import aligned

        return aligned.Gradual(
            first=self.first,
            last=self.last,
            last_step=WHOLE_BUDGET if plan.folds < 2 else plan.folds - 1,
            n_startup_trials=self.n_startup_trials,
            n_warmup_steps=_first_step(self.warmup, plan),
        )


@dataclass(frozen=True, kw_only=True)
class _Halving(Pruner):
    """Cuts at rungs.

    Args:
        min_resource: First rung, of the strictest bracket where there are several, in percent of the budget.
        reduction_factor: Share of the trials that goes on, and distance of the rungs.
        bootstrap: Trials of a first rung that are needed before any goes on.
    """

    _folds: ClassVar[Literal["with", "without", "both"]] = "without"

    min_resource: Annotated[int, Range(ge=1, le=99)] = 10
    reduction_factor: Annotated[int, Range(ge=2)] = 3
    bootstrap: Annotated[int, Range(ge=0)] = 0


@register("pruner", "successive_halving")
@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving(_Halving):
    """Asynchronous successive halving: at each rung only the best 1 / `reduction_factor` go on.

    L. Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020. The rungs are at `min_resource`,
    `min_resource` x `reduction_factor`, and so on.
    """

    _name: ClassVar[str] = "successive_halving"

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.pruners import SuccessiveHalvingPruner

        return SuccessiveHalvingPruner(
            min_resource=self.min_resource, reduction_factor=self.reduction_factor, bootstrap_count=self.bootstrap
        )


@register("pruner", "hyperband")
@dataclass(frozen=True, kw_only=True)
class Hyperband(_Halving):
    """Hyperband: successive halving several times side by side, from early cuts of many trials to late cuts of few.

    L. Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, 2018.
    """

    _name: ClassVar[str] = "hyperband"

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.pruners import HyperbandPruner

        return HyperbandPruner(
            min_resource=self.min_resource,
            max_resource=WHOLE_BUDGET,
            reduction_factor=self.reduction_factor,
            bootstrap_count=self.bootstrap,
        )


@register("pruner", "threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(Pruner):
    """Give up a trial whose value is out of bounds.

    Args:
        lower: Smallest allowed value.
        upper: Largest allowed value.
        warmup: Percent of its budget that every trial is given.
    """

    _name: ClassVar[str] = "threshold"

    lower: float | None = None
    upper: float | None = None
    warmup: Percent = 20.0

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        super().check(plan)
        if self.lower is None and self.upper is None:
            raise UsageError("pruner=threshold has no threshold", hint="set pruner.lower or pruner.upper, or both")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise UsageError(f"pruner.lower={self.lower:g} is above pruner.upper={self.upper:g}")

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.pruners import ThresholdPruner

        return ThresholdPruner(lower=self.lower, upper=self.upper, n_warmup_steps=_first_step(self.warmup, plan))


@register("pruner", "patient")
@dataclass(frozen=True, kw_only=True)
class Patient(Pruner):
    """Another pruner with patience: it is asked only about trials that no longer improve.

    Args:
        wrapped: The other pruner, with its defaults; `none` gives up every trial that no longer improves.
        patience: Evaluations (with folds, folds) without improvement before it is asked.
        min_delta: Least improvement that counts.
    """

    _name: ClassVar[str] = "patient"

    wrapped: Literal["none", "median", "percentile", "gradual", "successive_halving", "hyperband", "wilcoxon"] = (
        "median"
    )
    patience: Annotated[int, Range(ge=0)] = 3
    min_delta: Annotated[float, Range(ge=0)] = 0.0

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        super().check(plan)
        self._inner().check(plan)

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.pruners import PatientPruner

        inner = None if self.wrapped == "none" else self._inner().build(plan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return PatientPruner(inner, patience=self.patience, min_delta=self.min_delta)

    def _inner(self) -> Pruner:
        inner: Pruner = get("pruner", self.wrapped).target()
        return inner


@register("pruner", "wilcoxon")
@dataclass(frozen=True, kw_only=True)
class Wilcoxon(Pruner):
    """Give up a trial that a signed-rank test over the folds finds worse than the best trial.

    F. Wilcoxon, Individual Comparisons by Ranking Methods, 1945.

    Args:
        p_threshold: Probability of error at which a trial is given up.
        n_startup_folds: Folds that every trial is trained on.
    """

    _name: ClassVar[str] = "wilcoxon"
    _folds: ClassVar[Literal["with", "without", "both"]] = "with"

    p_threshold: Annotated[float, Range(gt=0, lt=1)] = 0.3
    n_startup_folds: Annotated[int, Range(ge=2)] = 2

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        super().check(plan)
        least = 0.5 ** (plan.folds - 1)  # of all folds but the last: when every one of them is worse
        if least >= self.p_threshold:
            raise UsageError(
                f"pruner=wilcoxon cannot find a trial worse before its last fold: with {plan.folds} folds the smallest "
                f"probability of error is {least:g}, and pruner.p_threshold is {self.p_threshold:g}",
                hint="set more folds, raise pruner.p_threshold, or choose pruner=median",
            )

    def build(self, plan: SearchPlan) -> BasePruner:
        """See the base class."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.pruners import WilcoxonPruner

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=self.p_threshold, n_startup_steps=self.n_startup_folds)


def make_pruner(section: dict[str, Any], plan: SearchPlan) -> Pruner:
    """The pruner of a checked section `pruner`, resolved and seen to fit.

    Raises:
        UsageError: It cannot serve this sweep.
    """
    settings: Pruner = build("pruner", section)
    pruner = settings.resolve(plan)
    pruner.check(plan)
    return pruner


def _first_step(warmup: float, plan: SearchPlan) -> int:
    """The first step at which a trial may be given up: a percent, or a fold's index (reported once it is trained)."""
    if plan.folds < 2:
        return math.ceil(warmup)
    return max(0, math.ceil(warmup / 100 * plan.folds) - 1)
