"""Every point of a finite space, once."""

from __future__ import annotations

import random
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from medtrain.config.space import Space
from medtrain.sweep.points import FIXED, distributions, identities, points


class Exhaustive(BaseSampler):
    """Proposes the first point that no trial has.

    Optuna's own grid and brute-force samplers end the study from within `tell`, which is not possible when points are
    asked for one by one, try the points in an arbitrary order, and repeat those of enqueued trials.

    Args:
        space: A finite space.
        shuffle_seed: Go through the points in this random order; None is the order in which they were typed.
    """

    def __init__(self, space: Space, *, shuffle_seed: int | None = None) -> None:
        self._space = space
        self._shuffle_seed = shuffle_seed
        self._points: list[dict[str, Any]] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See the base class."""
        return distributions(self._space, self._next_point(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See the base class."""
        return self._next_point(study, trial)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See the base class."""
        raise AssertionError(f"every point has all values, and still {param_name} is asked for")

    def _next_point(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The first point that agrees with what is fixed and was not tried; if all were, the first that agrees."""
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        tried = identities(self._space, others)
        if self._points is None:
            self._points = list(points(self._space))
            if self._shuffle_seed is not None:
                random.Random(self._shuffle_seed).shuffle(self._points)
        fixed = trial.system_attrs.get(FIXED, {}) | trial.params
        agreeing = [point for point in self._points if fixed.items() <= point.items()]
        return next((point for point in agreeing if self._space.identity(point) not in tried), agreeing[0])
