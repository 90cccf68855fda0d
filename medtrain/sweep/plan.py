"""What a sampler and a pruner need to know about a sweep. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medtrain.config.space import Space

if TYPE_CHECKING:
    from medtrain.sweep.result import Definition

DEFAULT_TRIALS = 20
"""Trials of a sweep that does not say how many and is no grid."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The outline of a sweep.

    Args:
        space: What varies.
        objectives: How many objectives there are.
        constraints: How many constraints there are.
        n_trials: Trials asked for; None is not said.
        folds: Folds that each trial is trained on; 0 is the one fold of the configuration.
        is_grid: Whether every dimension was typed as a plain list of values.
    """

    space: Space
    objectives: int = 1
    constraints: int = 0
    n_trials: int | None = None
    folds: int = 0
    is_grid: bool = False

    @classmethod
    def of(cls, definition: Definition) -> SearchPlan:
        """The plan of a study."""
        return cls(
            space=definition.space,
            objectives=len(definition.objectives),
            constraints=len(definition.constraints),
            n_trials=definition.sweep.get("n_trials"),
            folds=len(definition.sweep.get("folds") or ()),
            is_grid=definition.is_grid,
        )

    @property
    def expected_trials(self) -> int:
        """Trials asked for, or as many as there are by default."""
        return self.n_trials or DEFAULT_TRIALS
