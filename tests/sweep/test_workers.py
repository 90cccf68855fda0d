"""Workers of one study: who lives, who has which trial, and one at a time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from medtrain.run.lock import process_start
from medtrain.sweep import workers
from medtrain.sweep.storage import open_storage
from medtrain.sweep.workers import OWNER, Crew, is_lock, lock_name


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(study_name="s", storage=InMemoryStorage())


def crew(study: optuna.Study, **who: Any) -> Crew:
    """Another worker of this study; `who` makes it another process or machine."""
    made = Crew(optuna.load_study(study_name=study.study_name, storage=study._storage))
    made.me = dataclasses.replace(made.me, **who)
    return made


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def waiting(study: optuna.Study) -> FrozenTrial:
    study.add_trial(create_trial(state=TrialState.WAITING))
    return study.trials[-1]


def running(study: optuna.Study, owner: Crew) -> FrozenTrial:
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={OWNER: owner.record()}))
    return study.trials[-1]


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def test_a_waiting_trial_is_won_by_one_worker(study: optuna.Study) -> None:
    trial, first, second = waiting(study), crew(study), crew(study)
    assert first.claim(trial)
    assert not second.claim(trial)
    assert first.owns(study.trials[0])
    assert not second.owns(study.trials[0])
    assert {record["claims"] for record in first._records().values()} == {None}


def test_a_finished_trial_is_won_by_nobody(study: optuna.Study) -> None:
    trial = waiting(study)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert not crew(study).claim(trial)


def test_orphans_are_trials_of_processes_that_are_gone(study: optuna.Study) -> None:
    me = crew(study)
    running(study, me)  # 0: mine, in hand
    running(study, me)  # 1: mine, but not in hand: I was interrupted while I took it
    running(study, crew(study, token="other"))  # 2: another one of this process
    running(study, crew(study, token="dead", pid=dead_pid()))  # 3
    running(study, crew(study, token="reused", pid_start=1))  # 4: its id belongs to a later process
    study.add_trial(create_trial(state=TrialState.RUNNING))  # 5: nobody's
    waiting(study)
    assert numbers(me.orphans(study.trials, {0})) == [1, 3, 4, 5]


def test_workers_of_other_machines_live_as_long_as_they_say_so(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, far = crew(study), crew(study, token="far", host="node2", pid=1)
    running(study, far)
    assert numbers(me.orphans(study.trials, set())) == [0]  # it has never given a sign of life
    far.beat()
    assert me.orphans(study.trials, set()) == []
    assert me.others()
    now = time.time()
    monkeypatch.setattr(workers.time, "time", lambda: now + workers.DEAD_AFTER_S - 5)
    assert me.orphans(study.trials, set()) == []
    monkeypatch.setattr(workers.time, "time", lambda: now + workers.DEAD_AFTER_S + 5)
    assert numbers(me.orphans(study.trials, set())) == [0]
    assert not me.others()


def test_a_trial_that_a_living_worker_is_taking_is_no_orphan(study: optuna.Study) -> None:
    """It was put back and is taken again: until the new owner has said so, the trial names the dead one."""
    me, new = crew(study), crew(study, token="new")
    trial = running(study, crew(study, token="dead", pid=dead_pid()))
    assert numbers(me.orphans(study.trials, set())) == [0]
    new.beat(claims=trial._trial_id)
    assert me.orphans(study.trials, set()) == []
    lost = crew(study, token="new", pid=dead_pid())  # the new one dies before it has said so
    lost.beat(claims=trial._trial_id)
    assert numbers(me.orphans(study.trials, set())) == [0]


def test_a_trial_that_gets_its_owner_while_one_looks_is_no_orphan(study: optuna.Study) -> None:
    me, new = crew(study), crew(study, token="new")
    trial = running(study, crew(study, token="dead", pid=dead_pid()))
    seen = study.trials
    study._storage.set_trial_user_attr(trial._trial_id, OWNER, new.record())
    assert me.orphans(seen, set()) == []


class TestAlone:
    """One at a time, whoever dies."""

    def test_the_second_is_refused_until_the_first_is_out(self, study: optuna.Study) -> None:
        first, second = crew(study), crew(study, token="second")
        with first.alone() as granted, second.alone() as refused:
            assert (granted, refused) == (True, False)
        with second.alone() as granted:
            assert granted
        assert study._storage.get_all_studies()[0].study_name == "s"
        assert len(study._storage.get_all_studies()) == 1

    def test_the_locks_of_other_studies_do_not_matter(self, study: optuna.Study) -> None:
        study._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], lock_name("s (lock 3)", 0))
        study._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], lock_name("ss", 0))
        with crew(study).alone() as granted:
            assert granted
        assert is_lock("s (lock 0)")
        assert not is_lock("s (block 0)")

    @pytest.mark.parametrize("named", [True, False])
    def test_the_lock_of_a_dead_worker_is_passed(self, named: bool, study: optuna.Study) -> None:
        """Also when it died before it had said whose the lock is."""
        dead = crew(study, token="dead", pid=dead_pid())
        study._storage.set_study_user_attr(study._study_id, "locks:dead", dead.record())
        lock = study._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], lock_name("s", 0))
        if named:
            study._storage.set_study_user_attr(lock, OWNER, dead.record())
        with crew(study).alone() as granted:
            assert granted
        assert len(study._storage.get_all_studies()) == 1

    def test_a_lock_without_a_name_is_kept_while_one_who_may_have_made_it_lives(self, study: optuna.Study) -> None:
        maker = crew(study, token="maker")
        study._storage.set_study_user_attr(study._study_id, "locks:maker", maker.record())
        study._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], lock_name("s", 0))
        with crew(study, token="me").alone() as granted:
            assert not granted

    @pytest.mark.parametrize("call", ["create_new_study", "set_study_user_attr", "delete_study"])
    def test_an_error_inside_frees_it(self, call: str, study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
        first = crew(study)

        def fail(*_: Any) -> None:
            raise ConnectionError("gone")

        def enter() -> bool:
            with first.alone() as granted:
                return granted

        with monkeypatch.context() as patch:
            patch.setattr(first._storage, call, fail)
            with pytest.raises(ConnectionError):
                enter()
        assert enter()
        with crew(study, token="second").alone() as granted:
            assert granted

    @pytest.mark.parametrize("storage", ["memory", "x.log", "x.db"])
    def test_of_many_at_once_one_is_in(self, storage: str, tmp_path: Path) -> None:
        def opened() -> BaseStorage:
            return shared or open_storage(str(tmp_path / storage))

        shared = InMemoryStorage() if storage == "memory" else None
        study = optuna.create_study(study_name="s", storage=opened())
        inside, most, turns = [0], [0], [0]

        def work() -> None:
            mine = crew(study) if shared else Crew(optuna.load_study(study_name="s", storage=opened()))
            for _ in range(3):
                with mine.turn():
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    turns[0] += 1
                    time.sleep(0.002)
                    inside[0] -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (most, turns) == ([1], [12])

    def test_a_turn_is_given_after_a_while_even_so(self, study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "_TURN_S", 0.0)
        taken = False
        with crew(study).alone(), crew(study, token="second").turn():
            taken = True
        assert taken


def test_a_worker_says_which_process_it_is(study: optuna.Study) -> None:
    me = crew(study)
    me.beat()
    record = me._records()[me.me.token]
    assert (record["pid"], record["pid_start"]) == (os.getpid(), process_start(os.getpid()))
    assert abs(record["seen"] - time.time()) < 60
    assert not me.others()
