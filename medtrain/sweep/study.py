"""The study of a sweep: which point comes next, when a trial is given up, and what came of each.

It is Optuna's study with what a sweep of long trainings needs around it: a trial that was interrupted goes on under its
own number, no point is trained twice, the number of trials is kept among several workers, and a process may be killed
between any two writes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from medtrain.errors import UsageError
from medtrain.registry import closest
from medtrain.sweep.assignment import (
    ATTEMPT,
    DEFINITION,
    DUPLICATE,
    ORIGIN,
    READY,
    SURPLUS,
    SWEEP,
    Assignment,
    Counts,
    Outcome,
    counts,
    definition_of,
)
from medtrain.sweep.draw import Drawer
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.points import distribution, identities, point_of
from medtrain.sweep.pruners import make_pruner
from medtrain.sweep.result import Definition, TrialResult
from medtrain.sweep.samplers import make_sampler
from medtrain.sweep.storage import silence_optuna
from medtrain.sweep.verdict import check_number, why_none
from medtrain.sweep.workers import OWNER, Crew, is_lock

log = logging.getLogger(__name__)

_METRIC_NAMES = "study:metric_names"
_FAR_OUT = 1e9  # the violation of a constraint that has no value: finite, as samplers reckon with it
_SET_UP_S = 20.0
__all__ = ["Assignment", "Counts", "StudyNotFoundError", "SweepStudy"]

_OUTCOMES: dict[TrialState, Outcome] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class StudyNotFoundError(UsageError):
    """There is no such study, or its creator died before it was set up."""


class SweepStudy:
    """A study, as one worker sees it. Made by `create` or `load`; to be used from one thread.

    Args:
        study: Optuna's study.
        definition: What it is about.
    """

    def __init__(self, study: optuna.Study, definition: Definition) -> None:
        self.study = study
        self.name: str = study.study_name
        self.definition = definition
        self._storage: BaseStorage = study._storage
        self._id: int = study._study_id
        self._crew = Crew(study)
        self._mine: set[int] = set()
        self._plan = SearchPlan.of(definition)
        self._sampler = make_sampler(dict(definition.sampler), self._plan)
        self._drawer = Drawer(study, self._sampler, self._plan, seed=definition.sweep["seed"])
        self._pruner = make_pruner(dict(definition.pruner), self._plan).build(self._plan)
        study.pruner = self._pruner

    @classmethod
    def create(cls, storage: BaseStorage, name: str, definition: Definition) -> SweepStudy:
        """Make a study, with the points that are tried first.

        A study whose creator was killed before it was set up is completed.

        Args:
            storage: Where to keep it.
            name: Its name.
            definition: What it is about.

        Raises:
            UsageError: There is such a study already; the sampler or the pruner cannot serve the sweep; a warm start
                cannot be read.
        """
        from medtrain.sweep.warm_start import first_points

        silence_optuna()
        plan = SearchPlan.of(definition)
        make_sampler(dict(definition.sampler), plan)
        make_pruner(dict(definition.pruner), plan)
        first = first_points(definition)
        directions = [
            StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE
            for objective in definition.objectives
        ]
        try:
            study_id = storage.create_new_study(directions, name)
        except DuplicatedStudyError:
            study_id = storage.get_study_id_from_name(name)
            if storage.get_study_user_attrs(study_id).get(READY):
                raise UsageError(
                    f"there is a study {name} in this storage already",
                    hint="continue it with `medtrain resume`, join it with `medtrain sweep --worker`, or choose "
                    "another name with sweep.study",
                ) from None
        storage.set_study_user_attr(study_id, DEFINITION, definition.to_json())
        storage.set_study_system_attr(study_id, _METRIC_NAMES, [goal.metric for goal in definition.objectives])
        made = cls(_open(storage, name), definition)
        with made._crew.turn():
            if not storage.get_study_user_attrs(study_id).get(READY):
                there = len(made._all())
                for trial in first[there:]:
                    storage.create_new_trial(study_id, trial)
                storage.set_study_user_attr(study_id, READY, True)
        return made

    @classmethod
    def load(cls, storage: BaseStorage, name: str) -> SweepStudy:
        """Open a study that was created before, here or elsewhere.

        Raises:
            StudyNotFoundError: There is none of this name; the others are listed.
        """
        silence_optuna()
        deadline = time.monotonic() + _SET_UP_S
        while True:
            try:
                attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
            except KeyError:
                raise _not_found(storage, name) from None
            if attrs.get(READY):
                return cls(_open(storage, name), definition_of(attrs))
            if time.monotonic() > deadline:
                raise StudyNotFoundError(
                    f"the study {name} was never set up: its creator has ended before",
                    hint="start the sweep again",
                )
            time.sleep(0.1)

    @property
    def limit(self) -> int:
        """Trials to finish."""
        if self._plan.n_trials is not None:
            return self._plan.n_trials
        size = self.definition.space.size if self._sampler.tries_all else None
        return size if size is not None else self._plan.expected_trials

    def update_sweep(self, section: Mapping[str, Any]) -> None:
        """Change the section `sweep`, for all workers: they see it before their next trial.

        Args:
            section: The checked section.

        Raises:
            UsageError: Another number of trials is asked for, and more are finished, or every point was tried.
        """
        if section["n_trials"] != self.definition.sweep["n_trials"]:
            exhausted, size = self._drawer.is_exhausted(self._all()), self.definition.space.size
            check_number(section["n_trials"], self.counts(), size=size, exhausted=exhausted)
        self._storage.set_study_user_attr(self._id, SWEEP, dict(section))
        self._refresh()

    def next(self) -> Assignment | None:
        """The next trial to train: one that waits, else a new point.

        None when enough trials are finished or running, or every point of the space was tried.
        """
        self._refresh()
        while True:
            trials = [trial for trial in self._all() if counts(trial)]
            # Trials count by their numbers: the first `limit` of them are trained, whoever looks, and whatever other
            # workers do at the same time.
            waiting = [trial for trial in trials[: self.limit] if trial.state == TrialState.WAITING]
            taken = next((trial for trial in waiting if self._crew.claim(trial)), None)
            if taken is None and (len(trials) >= self.limit or self._drawer.is_exhausted(self._all())):
                return None
            assignment = self._take(taken) if taken is not None else self._new()
            if assignment is not None:
                return assignment

    def report(self, assignment: Assignment, step: int, value: float) -> bool:
        """Keep the value of an evaluation and say whether the trial should be given up.

        Args:
            assignment: The trial.
            step: Percent of its budget, or the fold's index; one that was reported before is kept as it was.
            value: The first objective; several objectives are not pruned and keep none.
        """
        if len(self.definition.objectives) > 1:
            return False
        trial = self._get(assignment)
        if not self._crew.owns(trial):
            return True
        if step not in trial.intermediate_values:
            self._storage.set_trial_intermediate_value(trial._trial_id, step, float(value))
            trial = self._get(assignment)
        elif step != trial.last_step:
            return False
        with warnings.catch_warnings():
            for category in (UserWarning, RuntimeWarning):  # what Optuna and NumPy say when all values are NaN
                warnings.simplefilter("ignore", category)
            return bool(self._pruner.prune(copy.copy(self.study), trial))

    def finish(self, assignment: Assignment, result: TrialResult) -> Outcome:
        """Tell what became of a trial.

        Args:
            assignment: The trial.
            result: `stopped` puts it back like `release`.
        """
        trial = self._get(assignment)
        self._mine.discard(assignment.trial_id)
        if not self._crew.owns(trial):
            return "lost"
        values = [result.metrics.get(objective.metric, math.nan) for objective in self.definition.objectives]
        failure, message = result.failure, result.message
        if result.state == "complete" and not all(map(math.isfinite, values)):
            missing = [
                goal.metric for goal, value in zip(self.definition.objectives, values) if not math.isfinite(value)
            ]
            failure, message = "error", f"finished without a value of {', '.join(missing)}"
        again = failure in ("crash", "killed") and assignment.attempt < self.definition.sweep["retries"]
        kept = {
            "metrics": dict(result.metrics),
            "message": message,
            "failure": failure,
            "step": result.step,
            "seconds": result.seconds,
            "overhead_s": result.overhead_s,
        }
        for key, value in kept.items():
            self._storage.set_trial_user_attr(trial._trial_id, key, value)
        if again:
            self._storage.set_trial_user_attr(trial._trial_id, ATTEMPT, assignment.attempt + 1)
        if again or result.state == "stopped":
            self._put_back(trial._trial_id)
            return "again"
        if result.state == "complete" and failure is None:
            for constraint in self.definition.constraints:
                violation = min(constraint.violation(result.metrics), _FAR_OUT)
                self._storage.set_trial_system_attr(trial._trial_id, f"constraints:{constraint}", violation)
            return self._end(trial, TrialState.COMPLETE, values)
        if result.state == "pruned":
            last = trial.last_step
            value = math.nan if last is None else trial.intermediate_values[last]
            return self._end(trial, TrialState.PRUNED, [value] if math.isfinite(value) else None)
        if failure in ("oom", "nonfinite"):
            return self._end(trial, TrialState.PRUNED, None)
        return self._end(trial, TrialState.FAIL, None)

    def release(self, assignment: Assignment) -> None:
        """Put a trial back that was stopped, to be continued later by whoever comes."""
        self._mine.discard(assignment.trial_id)
        if self._crew.owns(self._get(assignment)):
            self._put_back(assignment.trial_id)

    def recover(self) -> list[int]:
        """Put back the trials whose workers are dead; return their numbers."""
        if not self._crew.orphans(self._running(), self._mine) and not self._crew.is_locked():
            return []
        with self._crew.alone() as granted:
            if not granted:
                return []
            orphans = self._crew.orphans(self._running(), self._mine)
            for trial in orphans:
                if counts(trial):
                    self._put_back(trial._trial_id)
                else:  # its worker died while it gave way
                    self._end(trial, TrialState.FAIL, None)
        return [trial.number for trial in orphans if counts(trial)]

    def beat(self, assignments: Iterable[Assignment] = ()) -> list[Assignment]:
        """Give a sign of life, at least once a minute; return the trials that another worker has taken over.

        Args:
            assignments: The trials in hand.
        """
        self._crew.beat()
        return [assignment for assignment in assignments if not self._crew.owns(self._get(assignment))]

    def counts(self) -> Counts:
        """How many of the trials that count are in which state."""
        states = [trial.state for trial in self.trials()]
        return Counts(
            complete=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
            running=states.count(TrialState.RUNNING),
            waiting=states.count(TrialState.WAITING),
        )

    def trials(self) -> list[FrozenTrial]:
        """The trials of this sweep, by number: without those taken over from others, and without duplicates."""
        return [trial for trial in self._all() if counts(trial)]

    def best(self, k: int) -> list[FrozenTrial]:
        """The best trials of one objective that meet the constraints, the best first; of equal ones, the earlier.

        Args:
            k: At most so many.
        """
        if len(self.definition.objectives) > 1:
            return self.pareto()[:k]
        sign = -1.0 if self.definition.objectives[0].mode == "max" else 1.0
        return sorted(self._feasible(), key=lambda trial: sign * trial.values[0])[:k]

    def pareto(self) -> list[FrozenTrial]:
        """The trials that meet the constraints and that no other one beats in every objective.

        The best in the first objective comes first.
        """
        signs = [-1.0 if objective.mode == "max" else 1.0 for objective in self.definition.objectives]
        trials = self._feasible()
        costs = [tuple(sign * value for sign, value in zip(signs, trial.values)) for trial in trials]
        front = [
            (mine, trial) for trial, mine in zip(trials, costs) if not any(_dominates(other, mine) for other in costs)
        ]
        return [trial for _, trial in sorted(front, key=lambda item: (item[0], item[1].number))]

    def why_none(self) -> str:
        """Why no trial can be used, in one line with the facts; empty when one can."""
        return "" if self._feasible() else why_none(self.trials(), self.definition.constraints)

    def _feasible(self) -> list[FrozenTrial]:
        return [
            trial
            for trial in self.trials()
            if trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
        ]

    def _new(self) -> Assignment | None:
        """A new trial at a new point; None if another worker was faster."""
        if not self._crew.others():
            return self._draw_new()
        with self._crew.turn():
            return self._draw_new()

    def _draw_new(self) -> Assignment | None:
        self._crew.beat()
        mark = {ORIGIN: "sampler", OWNER: self._crew.record()}
        template = create_trial(state=TrialState.RUNNING, user_attrs=mark)
        trial = self._storage.get_trial(self._storage.create_new_trial(self._id, template))
        before = [other for other in self.trials() if other.number < trial.number]
        if len(before) >= self.limit:
            self._drop(trial, SURPLUS, True)
            return None
        return self._take(trial)

    def _take(self, trial: FrozenTrial) -> Assignment | None:
        """Complete the point of a trial that is this worker's now; None if an earlier one has the same point."""
        trial = self._storage.get_trial(trial._trial_id)
        space = self.definition.space
        begun = point_of(space, trial, drawn_only=True) is not None
        others = [other for other in self._all() if other.number != trial.number]
        point = self._drawer.draw(trial, others)
        for dimension in space.active(point):
            if dimension.key not in trial.params:
                known = distribution(dimension)
                value = known.to_internal_repr(point[dimension.key])
                self._storage.set_trial_param(trial._trial_id, dimension.key, value, known)
        twin = identities(space, self._all()).get(space.identity(point))
        if twin is not None and twin.number < trial.number and not begun:
            self._drop(trial, DUPLICATE, twin.number)
            return None
        self._mine.add(trial._trial_id)
        return Assignment(
            trial_id=trial._trial_id,
            number=trial.number,
            params=point,
            attempt=trial.user_attrs.get(ATTEMPT, 0),
            origin="again" if begun else trial.user_attrs[ORIGIN],
        )

    def _drop(self, trial: FrozenTrial, mark: str, value: Any) -> None:
        """End a trial that is not trained; it does not count."""
        self._storage.set_trial_user_attr(trial._trial_id, mark, value)
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _end(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> Outcome:
        self._drawer.end(trial, state, values)
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, state, values)
        return _OUTCOMES[state]

    def _put_back(self, trial_id: int) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _refresh(self) -> None:
        """Take note of changes that other workers made to the section `sweep`."""
        section = self._storage.get_study_user_attrs(self._id).get(SWEEP)
        if section is not None and section != self.definition.sweep:
            self.definition = dataclasses.replace(self.definition, sweep=section)
            self._plan = self._drawer.plan = SearchPlan.of(self.definition)

    def _get(self, assignment: Assignment) -> FrozenTrial:
        return self._storage.get_trial(assignment.trial_id)

    def _all(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._all() if trial.state == TrialState.RUNNING]


def _open(storage: BaseStorage, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage)


def _not_found(storage: BaseStorage, name: str) -> StudyNotFoundError:
    names = [study.study_name for study in storage.get_all_studies() if not is_lock(study.study_name)]
    if not names:
        return StudyNotFoundError(f"there is no study {name}, nor any other, in this storage")
    near = closest(name, names)
    return StudyNotFoundError(
        f"there is no study {name} in this storage; there are: {', '.join(names)}",
        hint=f"did you mean {near}?" if near else None,
    )


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other)) and any(a < b for a, b in zip(one, other))
