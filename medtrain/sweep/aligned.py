"""Compare a trial with others that were not evaluated at exactly the same points."""

from __future__ import annotations

import copy
from collections.abc import Container

from optuna.pruners import BasePruner, PercentilePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Aligned(BasePruner):
    """Lets a pruner that looks other trials up by step see the value each of them had reached by then.

    Optuna compares a trial only with those that reported under exactly the same step. Ours report percents of a budget
    at whole evaluations, which fall on different percents when, say, the batch size is searched; then no trial would
    ever be pruned, and nobody told.

    Args:
        pruner: A pruner that uses nothing of the study but its trials and its direction.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """See the base class."""
        if trial.last_step is None:
            return False
        return self.pruner.prune(_View(study, trial.last_step), trial)  # type: ignore[arg-type]


class Gradual(BasePruner):
    """Compares with the others more strictly the more of the budget is spent.

    Args:
        first: Percent of the others' values that are good enough at the beginning.
        last: The same at the end; linear in between.
        last_step: The step at the end.
        n_startup_trials: Finished trials before any is given up.
        n_warmup_steps: The first step at which a trial may be given up.
    """

    def __init__(
        self, *, first: float, last: float, last_step: int, n_startup_trials: int, n_warmup_steps: int
    ) -> None:
        self._first, self._last, self._last_step = first, last, last_step
        self._options = {"n_startup_trials": n_startup_trials, "n_warmup_steps": n_warmup_steps}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """See the base class."""
        if trial.last_step is None:
            return False
        share = self._first + (self._last - self._first) * min(1.0, trial.last_step / self._last_step)
        return Aligned(PercentilePruner(share, **self._options)).prune(study, trial)


class _View:
    """The part of a study that a pruner looks at, with every trial's last value at or before a step filled in."""

    def __init__(self, study: Study, step: int) -> None:
        self._study = study
        self._step = step

    @property
    def direction(self) -> StudyDirection:
        return self._study.direction

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [self._filled(trial) for trial in self._study.get_trials(deepcopy=deepcopy, states=states)]

    def _filled(self, trial: FrozenTrial) -> FrozenTrial:
        before = [step for step in trial.intermediate_values if step <= self._step]
        if not before or self._step in before:
            return trial
        filled = copy.copy(trial)
        filled.intermediate_values = {
            **trial.intermediate_values,
            self._step: trial.intermediate_values[max(before)],
        }
        return filled
