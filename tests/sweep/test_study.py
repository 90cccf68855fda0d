"""The study: which trial comes next, what becomes of each, and what survives a kill."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from medtrain.errors import UsageError
from medtrain.run.lock import Holder
from medtrain.sweep import study as module
from medtrain.sweep.assignment import Assignment
from medtrain.sweep.plan import DEFAULT_TRIALS
from medtrain.sweep.result import TrialResult
from medtrain.sweep.study import StudyNotFoundError, SweepStudy
from tests.sweep.searches import (
    BATCH,
    DICE,
    DROPOUT,
    FINITE,
    GAMMA,
    LOSS,
    LR,
    MIXED,
    SIZE,
    complete,
    create,
    create_quick,
    define,
    failed,
    load,
    quality,
    search,
)

DEFAULT = {"optimizer.lr": 1e-2, "model.dropout": 0.0}
STOPPED = TrialResult(state="stopped")
PRUNED = TrialResult(state="pruned", message="pruned")


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def bury(study: SweepStudy, pid: int) -> None:
    """Make the worker of a study one whose process is dead."""
    crew = study._crew
    crew.me = dataclasses.replace(crew.me, pid=pid, pid_start=None)
    for trial in study.trials():
        if crew.owns(trial):
            crew._storage.set_trial_user_attr(trial._trial_id, "worker", crew.record())
    crew.beat()


def take(study: SweepStudy) -> Assignment:
    assignment = study.next()
    assert assignment is not None
    return assignment


class TestNext:
    """Which point comes next."""

    def test_the_configuration_as_it_is_comes_first(self) -> None:
        study = create_quick(define(default=DEFAULT))
        first, second = take(study), take(study)
        assert (first.number, first.params, first.origin, first.attempt) == (0, DEFAULT, "default", 0)
        assert (second.number, second.origin) == (1, "sampler")
        assert second.params != DEFAULT

    def test_unless_that_is_not_wanted(self) -> None:
        assert take(create_quick(define(default=DEFAULT, try_default=False))).origin == "sampler"

    def test_a_default_without_some_values_gets_them_from_the_sampler(self) -> None:
        first = take(create_quick(define(MIXED, default={"loss": "focal", "optimizer.lr": 1e-3})))
        assert (first.params["loss"], first.params["optimizer.lr"], first.origin) == ("focal", 1e-3, "default")
        assert 0.5 <= first.params["loss.gamma"] <= 5.0
        assert first.params["data.batch_size"] in (2, 4, 6, 8)

    def test_there_are_as_many_as_were_asked_for(self) -> None:
        assert len(search(create_quick(define(n_trials=7)))) == 7
        assert create_quick(define()).limit == DEFAULT_TRIALS == 20

    def test_running_ones_count(self) -> None:
        study = create_quick(define(n_trials=2))
        first, _ = take(study), take(study)
        assert study.next() is None
        study.finish(first, failed("error"))
        assert study.next() is None
        assert (study.counts().failed, study.counts().running, study.counts().finished) == (1, 1, 1)

    def test_more_can_be_asked_for_later_and_every_worker_sees_it(self) -> None:
        storage = InMemoryStorage()
        study = create_quick(define(n_trials=2), storage)
        other = SweepStudy.load(storage, "study")
        assert len(search(study)) == 2
        other.update_sweep({**study.definition.sweep, "n_trials": 5})
        assert len(search(study)) == 3
        assert SweepStudy.load(storage, "study").definition.sweep["n_trials"] == 5
        assert study.limit == 5

    def test_fewer_leave_those_that_wait_alone(self) -> None:
        study = create_quick(define(n_trials=4))
        begun = [take(study) for _ in range(3)]
        for assignment in begun:
            study.release(assignment)
        study.update_sweep({**study.definition.sweep, "n_trials": 1})
        assert take(study).number == 0
        assert study.next() is None
        assert study.counts().waiting == 2

    def test_no_fewer_than_are_finished(self) -> None:
        study = create_quick(define(n_trials=4))
        search(study)
        with pytest.raises(UsageError, match=r"sweep\.n_trials=2, and 4 trials are finished already"):
            study.update_sweep({**study.definition.sweep, "n_trials": 2})
        assert study.definition.sweep["n_trials"] == 4
        for same in (4, 5, 4, None):  # a change of something else must not fail; neither may as many as there are
            study.update_sweep({**study.definition.sweep, "n_trials": same, "workers": 2})
        assert study.definition.sweep["workers"] == 2

    def test_no_more_than_there_are_points_once_all_were_tried(self) -> None:
        study = create_quick(define(FINITE, sampler="grid", is_grid=True))
        last = search(study, most=5)[-1]
        study.update_sweep({**study.definition.sweep, "n_trials": 9})  # one is left
        assert search(study) != [last]
        with pytest.raises(UsageError, match=r"sweep\.n_trials=12, and every one of the 6 points .* was tried"):
            study.update_sweep({**study.definition.sweep, "n_trials": 12})

    def test_a_released_trial_goes_on_before_anything_new(self) -> None:
        study = create_quick(define(n_trials=9))
        first, second = take(study), take(study)
        study.release(first)
        again = take(study)
        assert (again.number, again.params, again.attempt, again.origin) == (0, first.params, 0, "again")
        assert take(study).number == 2
        assert second.number == 1

    def test_a_space_that_is_used_up_ends_the_search(self) -> None:
        study = create_quick(define(FINITE, n_trials=50))
        assert len(search(study)) == 6
        assert study.next() is None

    def test_a_failed_point_is_not_tried_again(self) -> None:
        study = create_quick(define(FINITE, n_trials=50, sampler="grid"))
        tried = search(study, outcome=lambda _: failed("error"))
        assert len({str(point) for point in tried}) == 6
        assert study.counts().failed == 6

    def test_two_that_drew_the_same_point_at_once_train_it_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The later one gives way, and does not count."""
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=4), storage)
        second = SweepStudy.load(storage, "study")
        mine = take(first)
        draw, draws = second._drawer.draw, []

        def blind(trial: Any, others: Any) -> Any:
            draws.append(trial.number)
            return dict(mine.params) if len(draws) == 1 else draw(trial, others)

        monkeypatch.setattr(second._drawer, "draw", blind)
        theirs = take(second)
        assert (draws, theirs.number) == ([1, 2], 2)
        assert theirs.params != mine.params
        twin = storage.get_all_trials(second._id)[1]
        assert (twin.state, twin.user_attrs["duplicate_of"]) == (TrialState.FAIL, 0)
        assert [trial.number for trial in second.trials()] == [0, 2]
        search(second)
        second.finish(theirs, complete())
        first.finish(mine, complete())
        assert first.counts().complete == 4

    def test_two_that_begin_the_last_trial_at_once_do_not_both_train(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=1), storage)
        second = SweepStudy.load(storage, "study")
        make, made = second._new, []

        def first_is_faster() -> Any:
            if not made:
                made.append(take(first))
            return make()

        monkeypatch.setattr(second, "_new", first_is_faster)
        assert second.next() is None
        assert storage.get_all_trials(second._id)[1].user_attrs["surplus"]
        assert [trial.number for trial in first.trials()] == [0]

    def test_workers_draw_in_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = InMemoryStorage()
        first = create_quick(define(FINITE, n_trials=6, sampler="grid"), storage)
        turns = []
        turn = first._crew.turn
        monkeypatch.setattr(first._crew, "turn", lambda: turns.append(1) or turn())
        take(first)
        assert turns == []
        take(SweepStudy.load(storage, "study"))
        take(first)
        assert turns == [1]


class TestFinish:
    """What becomes of a trial."""

    def test_a_complete_one_has_its_values_and_all_that_is_known(self) -> None:
        study = create_quick(define(objectives=(DICE, SIZE)))
        result = TrialResult(
            state="complete",
            metrics={"val/dice": 0.7, "parameters": 100.0, "val/hd95_mm": 3.0},
            step=50,
            seconds=9.0,
            overhead_s=1.5,
        )
        assert study.finish(take(study), result) == "complete"
        trial = study.trials()[0]
        assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.7, 100.0])
        known = {
            key: trial.user_attrs[key] for key in ("metrics", "step", "seconds", "overhead_s", "failure", "message")
        }
        assert known == {
            "metrics": dict(result.metrics),
            "step": 50,
            "seconds": 9.0,
            "overhead_s": 1.5,
            "failure": None,
            "message": "",
        }
        assert study.study.metric_names == ["val/dice", "parameters"]

    @pytest.mark.parametrize("metrics", [{}, {"val/dice": math.nan}, {"val/dice": math.inf}])
    def test_one_without_a_value_has_failed(self, metrics: dict[str, float]) -> None:
        study = create_quick(define())
        assert study.finish(take(study), TrialResult(state="complete", metrics=metrics)) == "failed"
        trial = study.trials()[0]
        assert (trial.state, trial.values) == (TrialState.FAIL, None)
        assert trial.user_attrs["message"] == "finished without a value of val/dice"

    @pytest.mark.parametrize("failure", ["oom", "nonfinite"])
    @pytest.mark.parametrize("objectives", [(DICE,), (DICE, SIZE)])
    def test_out_of_memory_and_divergence_are_bad_places_without_a_value(
        self, failure: str, objectives: tuple[Any, ...]
    ) -> None:
        study = create_quick(define(objectives=objectives, sampler="tpe", n_trials=12))
        assignment = take(study)
        study.report(assignment, 50, 0.99)
        assert study.finish(assignment, failed(failure, "too large")) == "pruned"
        trial = study.trials()[0]
        assert (trial.state, trial.values) == (TrialState.PRUNED, None)
        assert (trial.user_attrs["failure"], trial.user_attrs["message"]) == (failure, "too large")
        search(study)  # the sampler can live with it
        assert study.counts().complete == 11

    def test_an_error_is_final(self) -> None:
        study = create_quick(define(retries=3))
        assert study.finish(take(study), failed("error")) == "failed"
        assert study.trials()[0].state == TrialState.FAIL

    @pytest.mark.parametrize("failure", ["crash", "killed"])
    def test_a_crash_is_tried_again_as_often_as_asked_for(self, failure: str) -> None:
        study = create_quick(define(retries=2, n_trials=5))
        points = []
        for attempt in range(3):
            assignment = take(study)
            assert (assignment.number, assignment.attempt) == (0, attempt)
            assert assignment.origin == ("sampler" if attempt == 0 else "again")
            points.append(assignment.params)
            outcome = study.finish(assignment, failed(failure, "signal 9"))
            assert outcome == ("failed" if attempt == 2 else "again")
        assert points[0] == points[1] == points[2]
        assert study.trials()[0].user_attrs["message"] == "signal 9"
        assert take(study).number == 1

    def test_a_trial_that_is_complete_at_last_shows_nothing_of_its_crash(self) -> None:
        study = create_quick(define())
        study.finish(take(study), failed("crash"))
        study.finish(take(study), complete())
        attrs = study.trials()[0].user_attrs
        assert (attrs["failure"], attrs["message"], attrs["attempt"]) == (None, "", 1)

    def test_a_stopped_one_is_put_back(self) -> None:
        study = create_quick(define(retries=0))
        assert study.finish(take(study), STOPPED) == "again"
        assert take(study).attempt == 0

    def test_pruned_without_any_value_has_none(self) -> None:
        study = create_quick(define())
        assert study.finish(take(study), PRUNED) == "pruned"
        assert study.trials()[0].values is None

    def test_constraints_are_kept_and_who_breaks_one_does_not_win(self) -> None:
        study = create_quick(define(constraints=["parameters <= 100", "val/dice/tumour >= 0.4"], n_trials=9))
        for dice, size, tumour in ((0.9, 101, 0.5), (0.8, 100, 0.4), (0.95, 50, 0.39), (0.7, 50, 0.5)):
            metrics = {"val/dice": dice, "parameters": float(size), "val/dice/tumour": tumour}
            study.finish(take(study), TrialResult(state="complete", metrics=metrics))
        study.finish(take(study), TrialResult(state="complete", metrics={"val/dice": 0.99}))
        assert [trial.number for trial in study.best(9)] == [1, 3]
        assert study.trials()[0].constraints == {
            "parameters <= 100": 1.0,
            "val/dice/tumour >= 0.4": pytest.approx(-0.1),
        }
        assert all(math.isfinite(value) and value > 0 for value in study.trials()[4].constraints.values())
        assert study.study.best_trial.number == 1  # Optuna, and so its dashboard, says the same


class TestBest:
    """Who has won."""

    def test_the_best_come_first_and_of_equals_the_earlier(self) -> None:
        for objective, order in ((DICE, [2, 0, 3]), (dataclasses.replace(DICE, mode="min"), [1, 0, 3])):
            study = create_quick(define(objectives=(objective,), n_trials=9))
            assert study.best(3) == []
            for dice in (0.5, 0.2, 0.9, 0.5):
                study.finish(take(study), complete(val__dice=dice))
            study.finish(take(study), failed("oom"))
            assert [trial.number for trial in study.best(3)] == order
            assert len(study.best(99)) == 4

    def test_without_one_the_constraint_that_was_missed_is_named_with_what_was_reached(self) -> None:
        limits = ["parameters <= 1000", "val/dice/tumour >= 0.4", "latency_ms <= 5", "train_s <= 60"]
        study = create_quick(define(constraints=limits, n_trials=9))
        for size, tumour in ((19_000.0, 0.35), (25_000.0, 0.3)):
            metrics = {"val/dice": 0.9, "parameters": size, "val/dice/tumour": tumour, "train_s": 50.0}
            study.finish(take(study), TrialResult(state="complete", metrics=metrics))
        study.finish(take(study), failed("error", "boom"))
        assert study.why_none() == (
            "parameters <= 1000: the smallest was 1.9e4; val/dice/tumour >= 0.4: the largest was 0.35; "
            "latency_ms <= 5: no trial has a value of it"
        )

    def test_constraints_that_are_met_one_at_a_time(self) -> None:
        study = create_quick(define(constraints=["parameters <= 10", "val/dice >= 0.5"], n_trials=9))
        for size, dice in ((10.0, 0.4), (11.0, 0.6)):
            study.finish(take(study), complete(val__dice=dice, parameters=size))
        assert (
            study.why_none() == "each is met by some trial, but no trial meets all: parameters <= 10, val/dice >= 0.5"
        )

    def test_without_one_the_last_failure_is_named(self) -> None:
        study = create_quick(define(n_trials=9))
        assert study.why_none() == "none has ended"
        study.finish(take(study), PRUNED)
        assert study.why_none() == "every trial was pruned"
        study.finish(take(study), failed("error", "no such file"))
        study.finish(take(study), failed("oom", "out of memory"))
        study.finish(take(study), PRUNED)
        assert study.why_none() == "the last that failed: out of memory"
        study.finish(take(study), complete())
        assert study.why_none() == ""

    def test_a_front_is_who_is_beaten_by_nobody(self) -> None:
        study = create_quick(define(objectives=(DICE, SIZE), n_trials=9))
        for dice, size in ((0.5, 10.0), (0.6, 20.0), (0.4, 20.0), (0.5, 10.0), (0.7, 30.0), (0.7, 31.0)):
            study.finish(take(study), complete(val__dice=dice, parameters=size))
        assert [trial.number for trial in study.pareto()] == [4, 1, 0, 3]  # the best Dice first
        assert {trial.number for trial in study.pareto()} == {trial.number for trial in study.study.best_trials}
        assert [trial.number for trial in study.best(2)] == [4, 1]


class TestWorkers:
    """Trials of several workers."""

    def test_trials_of_a_dead_worker_go_on_under_another(self, dead_pid: int) -> None:
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=3), storage)
        begun = [take(first), take(first)]
        second = SweepStudy.load(storage, "study")
        assert second.recover() == []
        bury(first, dead_pid)
        assert second.recover() == [0, 1]
        assert second.recover() == []
        again = [take(second), take(second)]
        assert [(a.number, a.params, a.origin) for a in again] == [(b.number, b.params, "again") for b in begun]
        assert [a.attempt for a in again] == [0, 0]

    def test_a_result_that_comes_too_late_is_dropped(self, dead_pid: int) -> None:
        """A machine that had fallen asleep was taken for dead."""
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=3), storage)
        late = take(first)
        bury(first, dead_pid)
        second = SweepStudy.load(storage, "study")
        second.recover()
        assert first.beat([late]) == [late]
        assert first.report(late, 50, 0.5) is True
        assert first.finish(late, complete(val__dice=0.1)) == "lost"
        first.release(late)
        mine = take(second)
        assert second.beat([mine]) == []
        assert first.finish(late, complete(val__dice=0.1)) == "lost"
        assert second.finish(mine, complete(val__dice=0.8)) == "complete"
        assert [trial.value for trial in second.trials()] == [0.8]

    def test_a_trial_that_was_being_given_up_by_its_worker_is_ended(self, dead_pid: int) -> None:
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=3), storage)
        trial = take(first)
        bury(first, dead_pid)
        storage.set_trial_user_attr(trial.trial_id, "surplus", True)
        assert SweepStudy.load(storage, "study").recover() == []
        assert storage.get_trial(trial.trial_id).state == TrialState.FAIL

    def test_while_another_puts_trials_back_nobody_else_does(self, dead_pid: int) -> None:
        storage = InMemoryStorage()
        first = create_quick(define(n_trials=3), storage)
        take(first)
        bury(first, dead_pid)
        second, third = (SweepStudy.load(storage, "study") for _ in range(2))
        with second._crew.alone() as granted:
            assert granted
            assert third.recover() == []
        assert third.recover() == [0]


class TestOpening:
    """Making and finding studies."""

    def test_the_definition_is_kept(self) -> None:
        storage = InMemoryStorage()
        definition = define(
            MIXED, constraints=["parameters <= 3"], default={"loss": "focal"}, is_grid=True, folds=[0, 1]
        )
        create_quick(definition, storage)
        assert SweepStudy.load(storage, "study").definition == definition

    def test_a_second_one_of_the_same_name_is_refused(self) -> None:
        storage = InMemoryStorage()
        create_quick(define(), storage)
        with pytest.raises(UsageError, match="there is a study study in this storage already") as caught:
            create_quick(define(), storage)
        assert "medtrain resume" in (caught.value.hint or "")

    def test_an_unknown_one_is_answered_with_those_that_are_there(self) -> None:
        storage = InMemoryStorage()
        with pytest.raises(StudyNotFoundError, match="there is no study unet, nor any other"):
            SweepStudy.load(storage, "unet")
        create_quick(define(), storage, "liver_unet")
        create_quick(define(), storage, "spleen")
        storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "liver_unet (lock 0)")
        assert issubclass(StudyNotFoundError, UsageError)
        with pytest.raises(StudyNotFoundError, match=r"there are: liver_unet, spleen$") as caught:
            SweepStudy.load(storage, "liver-unet")
        assert caught.value.hint == "did you mean liver_unet?"

    def test_one_that_was_never_set_up_is_not_found_but_can_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_SET_UP_S", 0.0)
        storage = InMemoryStorage()
        storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "study")
        with pytest.raises(StudyNotFoundError, match="was never set up"):
            SweepStudy.load(storage, "study")
        assert take(create_quick(define(default=DEFAULT), storage)).params == DEFAULT

    def test_optuna_says_nothing(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        search(create(tmp_path, define(n_trials=3)))
        load(tmp_path)
        assert capfd.readouterr() == ("", "")


class Killed(BaseException):
    """What happens to the process."""


class Dying(BaseStorage):
    """A storage whose user is killed before its nth write, which leaves what being killed after the one before does.

    Args:
        inner: The storage.
        at: Number of the write; None never.
    """

    def __init__(self, inner: BaseStorage, at: int | None = None) -> None:
        self.inner, self.at, self.writes = inner, at, 0

    def write(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.at is not None and self.writes >= self.at:
            raise Killed
        self.writes += 1
        return call(*args, **kwargs)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Dying, *args: Any, **kwargs: Any) -> Any:
        call = getattr(self.inner, name)
        return (
            self.write(call, *args, **kwargs) if name.startswith(("set", "create", "delete")) else call(*args, **kwargs)
        )

    return method


for _name in [key for key in vars(BaseStorage) if not key.startswith("_")]:
    setattr(Dying, _name, _passed_on(_name))
Dying.__abstractmethods__ = frozenset()


class TestKilledAnywhere:
    """A whole search, killed at every write to the storage in turn, ends as if nothing had happened."""

    definition = define(
        (LR, LOSS, GAMMA, BATCH),
        sampler={"name": "tpe", "n_startup_trials": 2},
        pruner={"name": "median", "n_startup_trials": 2},
        n_trials=6,
        retries=2,
        constraints=["parameters <= 1.9e6"],
        default={"optimizer.lr": 1e-2, "loss": "dice_ce", "data.batch_size": 2},
    )

    def session(self, storage: BaseStorage) -> Iterator[tuple[int, str]]:
        """One session of a coordinator; what it was told the study has taken note of."""
        try:
            study = SweepStudy.load(storage, "study")
        except StudyNotFoundError:
            study = SweepStudy.create(storage, "study", self.definition)
        study.recover()
        while (assignment := study.next()) is not None:
            yield from self.train(study, assignment)

    def train(self, study: SweepStudy, assignment: Assignment) -> Iterator[tuple[int, str]]:
        number, value = assignment.number, quality(assignment.params)
        metrics = {"val/dice": value, "parameters": 1e6 * (1 + value)}
        if number == 1 and assignment.attempt == 0:
            result = failed("crash")
        elif number == 2 and assignment.origin != "again":
            study.release(assignment)
            return
        elif number == 3:
            result = failed("oom")
        else:
            given_up = [study.report(assignment, step, value * step / 100) for step in (30, 60, 90)]
            result = PRUNED if any(given_up) else TrialResult(state="complete", metrics=metrics)
        yield number, study.finish(assignment, result)

    def ended(self, storage: BaseStorage) -> list[Any]:
        """What the study says in the end."""
        study = SweepStudy.load(storage, "study")
        counts = study.counts()
        assert (counts.finished, counts.running, counts.waiting) == (6, 0, 0)
        assert [study.study.study_name] == [known.study_name for known in storage.get_all_studies()]
        return [(trial.number, trial.state, trial.values, trial.params, trial.constraints) for trial in study.trials()]

    def test(self, monkeypatch: pytest.MonkeyPatch, dead_pid: int) -> None:
        monkeypatch.setattr(module, "_SET_UP_S", 0.0)
        undisturbed = Dying(InMemoryStorage())
        list(self.session(undisturbed))
        expected = self.ended(undisturbed.inner)
        assert len(expected) == 6
        assert undisturbed.writes > 80
        for at in range(undisturbed.writes):
            storage = InMemoryStorage()
            self.killed_session(Dying(storage, at), monkeypatch, dead_pid)
            before = storage.get_all_trials(0) if storage.get_all_studies() else []
            list(self.session(storage))
            assert self.ended(storage) == expected, at
            for trial in before:
                if trial.state.is_finished():
                    assert storage.get_all_trials(0)[trial.number] == trial

    def killed_session(self, storage: Dying, patch: pytest.MonkeyPatch, dead_pid: int) -> None:
        alive = Holder.this_process
        with patch.context() as inside:
            inside.setattr(Holder, "this_process", lambda: dataclasses.replace(alive(), pid=dead_pid, pid_start=None))
            with pytest.raises(Killed):
                list(self.session(storage))


SESSION = """
import sys, time
from pathlib import Path
from tests.sweep.searches import complete, create, define, load, quality, LR, DROPOUT
from medtrain.sweep.study import StudyNotFoundError
path = Path(sys.argv[1])
try:
    study = load(path)
except StudyNotFoundError:
    study = create(path, define((LR, DROPOUT), sampler="tpe", n_trials=25, seed=3))
print("ready", flush=True)
study.recover()
while (assignment := study.next()) is not None:
    study.report(assignment, 50, quality(assignment.params))
    study.finish(assignment, complete(val__dice=quality(assignment.params)))
    print(assignment.number, flush=True)
"""


@pytest.mark.slow
def test_a_search_that_is_killed_ten_times_is_the_same(tmp_path: Path) -> None:
    """Real processes, a real journal, and signal 9."""
    (tmp_path / "whole").mkdir()
    search(create(tmp_path / "whole", define((LR, DROPOUT), sampler="tpe", n_trials=25, seed=3)))
    killed = 0
    for delay in (0.0, 0.01, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, None):
        process = subprocess.Popen(
            [sys.executable, "-c", SESSION, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if delay is not None:
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    ended, whole = load(tmp_path), load(tmp_path / "whole")
    assert killed == 10
    assert [trial.params for trial in ended.trials()] == [trial.params for trial in whole.trials()]
    assert [trial.values for trial in ended.trials()] == [trial.values for trial in whole.trials()]
    assert ended.counts().complete == 25


def test_processes_share_a_search(tmp_path: Path) -> None:
    """Each trial is trained once, and all together train as many as were asked for."""
    create(tmp_path, define((LR, DROPOUT), sampler="tpe", n_trials=25, seed=3))
    command = [sys.executable, "-c", SESSION, str(tmp_path)]
    root = Path(__file__).parents[2]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    trained = [int(line) for worker in workers for line in worker.communicate()[0].splitlines()[1:]]
    study = load(tmp_path)
    assert sorted(trained) == [trial.number for trial in study.trials()]
    assert (len(trained), study.counts().complete) == (25, 25)
    assert len({str(trial.params) for trial in study.trials()}) == 25
