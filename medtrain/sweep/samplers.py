"""Which point of the space is tried next. Describing them imports no Optuna: that is left to `build`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from medtrain.config.space import Dimension
from medtrain.errors import UsageError
from medtrain.registry import Range, build, register
from medtrain.sweep.plan import SearchPlan

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

MOST_POINTS = 100_000
"""Points that `grid` and `brute_force` may have: they are listed."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Base of the samplers."""

    tries_all: ClassVar[bool] = False
    """Whether it goes through every point, and the sweep ends when there is none left."""
    redraws: ClassVar[int] = 20
    """How often it is asked again when it proposes a point that was tried already, before one is drawn at random."""

    def resolve(self, plan: SearchPlan) -> Sampler:
        """The sampler that is meant; only `auto` means another one."""
        return self

    def check(self, plan: SearchPlan) -> None:
        """See that this sampler can search this space for these objectives.

        Raises:
            UsageError: It cannot.
        """

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """Optuna's sampler.

        Args:
            plan: The sweep.
            seed: Of this one draw, so that a continued sweep does not repeat the draws of its first part.
            scramble_seed: The same for all draws of a sweep.
        """
        raise NotImplementedError


@register("sampler", "auto")
@dataclass(frozen=True, kw_only=True)
class Auto(Sampler):
    """Every point of a plain grid (`grid`, or `brute_force` where some dimension is conditional); else `tpe`."""

    def resolve(self, plan: SearchPlan) -> Sampler:
        """See the base class."""
        if not plan.is_grid:
            return Tpe()
        return BruteForce() if plan.space.is_conditional else Grid()

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        return self.resolve(plan).build(plan, seed=seed, scramble_seed=scramble_seed)


@register("sampler", "tpe")
@dataclass(frozen=True, kw_only=True)
class Tpe(Sampler):
    """Tree-structured Parzen estimator: draws where good trials are dense and bad ones are rare.

    J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011; with several objectives Y. Ozaki et al.,
    MOTPE, 2022. Serves numbers, choices, conditions, constraints and several objectives.

    Args:
        n_startup_trials: Trials drawn at random before the estimator takes over; null is a quarter of `sweep.n_trials`,
            at least 5 and at most 10.
        n_ei_candidates: Candidates among which the one with the largest expected improvement is taken.
        multivariate: Whether to model the dimensions jointly; null does so for one objective, and wherever a
            dimension is conditional.
        constant_liar: Keep away from the points that other workers are trying at the same time.
    """

    n_startup_trials: Annotated[int, Range(ge=1)] | None = None
    n_ei_candidates: Annotated[int, Range(ge=1)] = 24
    multivariate: bool | None = None
    constant_liar: bool = True

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import TPESampler

        group = plan.space.is_conditional and self.multivariate is not False
        with _experimental():
            return TPESampler(
                n_startup_trials=_startup(self.n_startup_trials, plan),
                n_ei_candidates=self.n_ei_candidates,
                multivariate=True if group else self.multivariate,
                group=group,
                constant_liar=self.constant_liar,
                seed=seed,
            )


@register("sampler", "gp")
@dataclass(frozen=True, kw_only=True)
class Gp(Sampler):
    """Gaussian process with expected improvement: the most from few trials of few dimensions.

    J. Snoek et al., Practical Bayesian Optimization of Machine Learning Algorithms, 2012. Pruned trials teach it
    nothing. Conditional dimensions, which not every trial has, are drawn by `tpe`. It imports torch.

    Args:
        n_startup_trials: Trials drawn at random before the model takes over; null is a quarter of `sweep.n_trials`, at
            least 5 and at most 10.
        deterministic: Take the metrics for exact: equal settings give equal values. Training is noisy.
    """

    redraws: ClassVar[int] = 3

    n_startup_trials: Annotated[int, Range(ge=1)] | None = None
    deterministic: bool = False

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        if not any(not dimension.when for dimension in plan.space.dimensions):
            raise UsageError(
                "sampler=gp models the dimensions that every trial has, and all of these are conditional",
                hint="choose sampler=tpe",
            )

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import GPSampler

        with _experimental():
            return GPSampler(
                seed=seed,
                n_startup_trials=_startup(self.n_startup_trials, plan),
                deterministic_objective=self.deterministic,
                independent_sampler=_for_the_rest(plan, seed),
                warn_independent_sampling=False,
            )


@register("sampler", "cmaes")
@dataclass(frozen=True, kw_only=True)
class Cmaes(Sampler):
    """Covariance matrix adaptation: for many numbers and hundreds of trials, one objective, no constraints.

    N. Hansen, The CMA Evolution Strategy, 2016; with margin for whole numbers and steps, R. Hamano et al., 2022.
    Choices and conditional dimensions are drawn by `tpe`.

    Args:
        population_size: Trials of one generation; null is 4 + 3 ln(dimensions).
        use_separable: Adapt a diagonal matrix only, for a large number of dimensions.
        learn_from_pruned: Tell it the last value of pruned trials as well.
    """

    population_size: Annotated[int, Range(ge=2)] | None = None
    use_separable: bool = False
    learn_from_pruned: bool = False

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        if plan.objectives > 1:
            raise UsageError(
                f"sampler=cmaes knows one objective, and this sweep has {plan.objectives}",
                hint="choose sampler=tpe or sampler=nsga2",
            )
        if plan.constraints:
            raise UsageError("sampler=cmaes does not know constraints", hint="choose sampler=tpe or sampler=gp")
        if not self._numbers(plan):
            raise UsageError(
                "sampler=cmaes searches numbers, and no dimension that every trial has is a range of numbers",
                hint="choose sampler=tpe",
            )

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import CmaEsSampler

        numbers = self._numbers(plan)
        stepped = any(dimension.values() is not None for dimension in numbers)
        separable = self.use_separable and len(numbers) > 1
        with _experimental():
            return CmaEsSampler(
                n_startup_trials=1,
                popsize=self.population_size,
                use_separable_cma=separable,
                with_margin=stepped and not separable,
                consider_pruned_trials=self.learn_from_pruned,
                independent_sampler=_for_the_rest(plan, seed),
                warn_independent_sampling=False,
                seed=seed,
            )

    @staticmethod
    def _numbers(plan: SearchPlan) -> list[Dimension]:
        return [
            dimension
            for dimension in plan.space.dimensions
            if dimension.kind != "choice" and not dimension.when and dimension.low != dimension.high
        ]


@register("sampler", "qmc")
@dataclass(frozen=True, kw_only=True)
class Qmc(Sampler):
    """Quasi-Monte Carlo: covers the space more evenly than random points do.

    J. Bergstra and Y. Bengio, Random Search for Hyper-Parameter Optimization, 2012. Works best with a power of two of
    trials.

    Args:
        sequence: Sobol's or Halton's sequence.
        scramble: Shuffle the sequence by the seed of the sweep, so that two sweeps try different points.
    """

    sequence: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        if plan.space.is_conditional:
            key = next(dimension.key for dimension in plan.space.dimensions if dimension.when)
            raise UsageError(
                f"sampler=qmc covers a space that is the same for every trial, and {key} is conditional",
                hint="choose sampler=random or sampler=tpe",
            )

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import QMCSampler, RandomSampler

        with _experimental():
            return QMCSampler(
                qmc_type=self.sequence,
                scramble=self.scramble,
                seed=scramble_seed,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )


@register("sampler", "random")
@dataclass(frozen=True, kw_only=True)
class Random(Sampler):
    """Independent random points: the baseline, and right for many workers."""

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@register("sampler", "grid")
@dataclass(frozen=True, kw_only=True)
class Grid(Sampler):
    """Every point of a finite space, in the order in which the values were typed."""

    tries_all: ClassVar[bool] = True

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        _check_finite("grid", plan)
        if plan.space.is_conditional:
            key = next(dimension.key for dimension in plan.space.dimensions if dimension.when)
            raise UsageError(
                f"sampler=grid tries each value with each other, and {key} is conditional",
                hint="choose sampler=brute_force, which tries every point of such a space",
            )

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from medtrain.sweep.exhaustive import Exhaustive

        return Exhaustive(plan.space)


@register("sampler", "brute_force")
@dataclass(frozen=True, kw_only=True)
class BruteForce(Sampler):
    """Every point of a finite space, conditional or not, in random order."""

    tries_all: ClassVar[bool] = True

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        _check_finite("brute_force", plan)

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from medtrain.sweep.exhaustive import Exhaustive

        return Exhaustive(plan.space, shuffle_seed=scramble_seed)


@dataclass(frozen=True, kw_only=True)
class _Genetic(Sampler):
    """Base of the genetic algorithms: parents are chosen from the trials so far, crossed and mutated.

    Args:
        population_size: Trials of one generation; null is a fifth of `sweep.n_trials`, at least 4 and at most 50.
        crossover_prob: Probability of crossing two parents rather than copying one.
        swapping_prob: Probability of taking a value from the second parent.
        mutation_prob: Probability of drawing a value anew; null is 1 / dimensions.
    """

    population_size: Annotated[int, Range(ge=2)] | None = None
    crossover_prob: Annotated[float, Range(ge=0, le=1)] = 0.9
    swapping_prob: Annotated[float, Range(ge=0, le=1)] = 0.5
    mutation_prob: Annotated[float, Range(ge=0, le=1)] | None = None

    _name: ClassVar[str] = ""

    def check(self, plan: SearchPlan) -> None:
        """See the base class."""
        size = self.population_size
        if size is not None and size >= plan.expected_trials:
            raise UsageError(
                f"sampler.population_size={size} leaves nothing to {self._name}: the first generation is random, and "
                f"there are {plan.expected_trials} trials",
                hint="lower it (null chooses by itself) or raise sweep.n_trials",
            )

    def _options(self, plan: SearchPlan, seed: int) -> dict[str, Any]:
        return {
            "population_size": self.population_size or min(50, max(4, plan.expected_trials // 5)),
            "crossover_prob": self.crossover_prob,
            "swapping_prob": self.swapping_prob,
            "mutation_prob": self.mutation_prob,
            "seed": seed,
        }


@register("sampler", "nsga2")
@dataclass(frozen=True, kw_only=True)
class Nsga2(_Genetic):
    """NSGA-II: a genetic algorithm for two or three objectives and hundreds of trials.

    K. Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002.
    """

    _name: ClassVar[str] = "nsga2"

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(**self._options(plan, seed))


@register("sampler", "nsga3")
@dataclass(frozen=True, kw_only=True)
class Nsga3(_Genetic):
    """NSGA-III: a genetic algorithm for three or more objectives and hundreds of trials.

    K. Deb and H. Jain, An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
    Sorting Approach, 2014.

    Args:
        dividing_parameter: Density of the reference points on the front.
    """

    _name: ClassVar[str] = "nsga3"

    dividing_parameter: Annotated[int, Range(ge=1)] = 3

    def build(self, plan: SearchPlan, *, seed: int, scramble_seed: int = 0) -> BaseSampler:
        """See the base class."""
        from optuna.samplers import NSGAIIISampler

        with _experimental():
            return NSGAIIISampler(dividing_parameter=self.dividing_parameter, **self._options(plan, seed))


def make_sampler(section: dict[str, Any], plan: SearchPlan) -> Sampler:
    """The sampler of a checked section `sampler`, resolved and seen to fit.

    Raises:
        UsageError: It cannot search this space for these objectives.
    """
    settings: Sampler = build("sampler", section)
    sampler = settings.resolve(plan)
    sampler.check(plan)
    return sampler


def _startup(wanted: int | None, plan: SearchPlan) -> int:
    return wanted if wanted is not None else min(10, max(5, plan.expected_trials // 4))


def _for_the_rest(plan: SearchPlan, seed: int) -> BaseSampler:
    """For the dimensions that a model of numbers, or of what every trial has, leaves out."""
    return Tpe(multivariate=False).build(plan, seed=seed)


def _check_finite(name: str, plan: SearchPlan) -> None:
    for dimension in plan.space.dimensions:
        if dimension.values() is None:
            raise UsageError(
                f"sampler={name} tries every point, and {dimension.key} has infinitely many values",
                hint=f"list them ({dimension.key}=VALUE,VALUE), give the range a step, or choose sampler=tpe",
            )
    size = plan.space.size
    assert size is not None
    if size > MOST_POINTS:
        raise UsageError(
            f"sampler={name} tries every point, and there are {size:,}; at most {MOST_POINTS:,} can be listed",
            hint="search fewer values, or choose sampler=tpe or sampler=random",
        )


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna's notes on its own interface, which is ours to follow, from the user."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
