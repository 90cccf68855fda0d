"""Draw the next point, and never one that was tried already."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from medtrain.config.space import Dimension
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.points import FIXED, canonical, distribution, identities, point_of, points
from medtrain.sweep.samplers import MOST_POINTS, Random, Sampler

_RANDOM_TRIES = 100


class Drawer:
    """Asks a sampler for points.

    The sampler is made anew for each draw, seeded by the number of the trial: a sweep that was killed and continued
    draws what it would have drawn, and does not repeat the draws of its first part.

    Args:
        study: Optuna's study.
        sampler: The sampler's settings.
        plan: The sweep; may be replaced while it goes.
        seed: Of the sweep.
    """

    def __init__(self, study: optuna.Study, sampler: Sampler, plan: SearchPlan, *, seed: int) -> None:
        self.plan = plan
        self._study = study
        self._sampler = sampler
        self._seed = seed

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every point of the space was tried or is about to be."""
        size = self.plan.space.size
        return size is not None and len(identities(self.plan.space, trials)) >= size

    def draw(self, trial: FrozenTrial, others: Sequence[FrozenTrial]) -> dict[str, Any]:
        """The point of a trial: what is fixed of it, and the rest from the sampler.

        Args:
            trial: A running trial.
            others: All other trials.
        """
        known = point_of(self.plan.space, trial)
        if known is not None:
            return known
        tried = identities(self.plan.space, others)
        point: dict[str, Any] = {}
        for attempt in range(self._sampler.redraws + 1):
            point = self._propose(self._build(trial, attempt), trial)
            if self.plan.space.identity(point) not in tried:
                return point
        return self._random_point(trial, tried) or point

    def end(self, trial: FrozenTrial, state: optuna.trial.TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler that a trial ends."""
        sampler = self._build(trial, 0)
        sampler.after_trial(self._fresh(sampler), trial, state, values)

    def _build(self, trial: FrozenTrial, attempt: int, sampler: Sampler | None = None) -> BaseSampler:
        text = f"{self._seed}:{trial.number}:{attempt}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return (sampler or self._sampler).build(self.plan, seed=seed, scramble_seed=self._seed)

    def _fresh(self, sampler: BaseSampler) -> optuna.Study:
        """The study without what it remembers of the trials since the last draw."""
        study = copy.copy(self._study)
        study.sampler = sampler
        return study

    def _propose(self, sampler: BaseSampler, trial: FrozenTrial) -> dict[str, Any]:
        """Do what `optuna.Trial` does, without writing the values down: they may have been tried."""
        study = self._fresh(sampler)
        fixed = {**trial.system_attrs.get(FIXED, {}), **trial.params}
        sampler.before_trial(study, trial)
        relative_space = sampler.infer_relative_search_space(study, trial)
        relative = sampler.sample_relative(study, trial, relative_space)
        point: dict[str, Any] = {}
        for dimension in self.plan.space.dimensions:
            if dimension.is_active(point):
                # drawn in any case, so that the others are what they would have been if this one were not known yet
                value = self._value(dimension, relative, sampler, study, trial)
                point[dimension.key] = fixed.get(dimension.key, canonical(dimension, value))
        return point

    def _value(
        self,
        dimension: Dimension,
        relative: Mapping[str, Any],
        sampler: BaseSampler,
        study: optuna.Study,
        trial: FrozenTrial,
    ) -> Any:
        known = distribution(dimension)
        if known.single():
            return dimension.choices[0] if dimension.kind == "choice" else dimension.low
        if dimension.key in relative:
            value = relative[dimension.key]
            if known._contains(known.to_internal_repr(value)):
                return value
        return sampler.sample_independent(study, trial, dimension.key, known)

    def _random_point(self, trial: FrozenTrial, tried: Mapping[str, FrozenTrial]) -> dict[str, Any] | None:
        """A point that was not tried; None where none is left that agrees with what is fixed."""
        space = self.plan.space
        size = space.size
        if size is not None and size <= MOST_POINTS:
            fixed = {**trial.system_attrs.get(FIXED, {}), **trial.params}.items()
            left = [point for point in points(space) if space.identity(point) not in tried and fixed <= point.items()]
            return random.Random(f"{self._seed}:{trial.number}").choice(left) if left else None
        for attempt in range(_RANDOM_TRIES):
            point = self._propose(self._build(trial, attempt, Random()), trial)
            if space.identity(point) not in tried:
                return point
        return None
