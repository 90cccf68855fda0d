"""The processes that work on a study: who they are, which of them live, and one thing at a time among them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from medtrain.run.lock import Holder, same_process_lives

DEAD_AFTER_S = 300.0
"""A worker on another machine that has given no sign of life for so long is taken for dead."""

OWNER = "worker"
"""User attribute of a trial: who trains it."""

_REGISTER = "worker:"
_LOCK = re.compile(r"(.*) \(lock (\d+)\)")
_TURN_S = 60.0


class Crew:
    """The workers of a study, as one of them sees it.

    Each keeps a record in the study: its process, when it last gave a sign of life, and the waiting trial that it is
    about to take. All of this is made of what every storage of Optuna can do. Two operations there succeed for exactly
    one process: setting a waiting trial to running, and making a study of a certain name. The first hands out trials;
    the second is the lock under which trials of dead workers are put back.

    Args:
        study: The study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.me = Holder.this_process()
        self._name = study.study_name
        self._id: int = study._study_id
        self._storage: BaseStorage = study._storage

    def beat(self, *, claims: int | None = None) -> None:
        """Give a sign of life.

        Args:
            claims: The waiting trial that is about to be taken.
        """
        record = {**dataclasses.asdict(self.me), "seen": time.time(), "claims": claims}
        self._storage.set_study_user_attr(self._id, _REGISTER + self.me.token, record)

    def claim(self, trial: FrozenTrial) -> bool:
        """Take a trial that waits, unless another worker is faster."""
        self.beat(claims=trial._trial_id)
        won = False
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            won = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        if won:
            self._storage.set_trial_user_attr(trial._trial_id, OWNER, self.record())
        self.beat()
        return won

    def record(self) -> dict[str, Any]:
        """This worker, as a trial names its owner."""
        return dataclasses.asdict(self.me)

    def owns(self, trial: FrozenTrial) -> bool:
        """Whether a trial is still this worker's."""
        owner = trial.user_attrs.get(OWNER)
        return trial.state == TrialState.RUNNING and owner is not None and owner["token"] == self.me.token

    def others(self) -> bool:
        """Whether another worker lives."""
        return any(record["token"] != self.me.token and self._lives(record) for record in self._records().values())

    def orphans(self, trials: list[FrozenTrial], mine: set[int]) -> list[FrozenTrial]:
        """Running trials whose worker is dead.

        Args:
            trials: Of the study.
            mine: Ids of the trials that this worker has in hand.
        """
        records = self._records()
        claimed = {record["claims"] for record in records.values() if self._lives(record)}

        def is_orphan(trial: FrozenTrial) -> bool:
            owner = trial.user_attrs.get(OWNER)
            if trial.state != TrialState.RUNNING or trial._trial_id in mine | claimed:
                return False
            if owner is None or owner["token"] == self.me.token:
                return True
            return not self._lives(records.get(owner["token"], owner))

        # Looked at once more: a worker that takes a trial claims it first, names itself as the owner afterwards and
        # only then gives up the claim, so that one of the two is seen unless the trial really has no one.
        candidates = [trial for trial in trials if is_orphan(trial)]
        return [trial for trial in candidates if is_orphan(self._storage.get_trial(trial._trial_id))]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other worker is in such a block, but not for ever: it is there to spare useless work."""
        deadline, pause = time.monotonic() + _TURN_S, 0.01
        while True:
            with self.alone() as granted:
                if granted or time.monotonic() > deadline:
                    yield
                    return
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Try to be the only worker in such a block; whether it is granted.

        The lock is a study whose name is counted up: whoever makes the next one while the last holder is dead has it.
        A holder says who it is in its lock; as it may die before that, all who try say so in the study beforehand.
        """
        key = f"locks:{self.me.token}"
        self._storage.set_study_user_attr(self._id, key, self.record())
        held: int | None = None
        try:
            held = self._make_lock()
            yield held is not None
        finally:
            if held is not None:
                for _, lock in sorted(self._locks().items()):
                    with contextlib.suppress(KeyError):
                        self._storage.delete_study(lock._study_id)
            self._storage.set_study_user_attr(self._id, key, None)

    def is_locked(self) -> bool:
        """Whether a worker is in such a block, or has died there and left the lock; the next one in removes that."""
        return bool(self._locks())

    def _make_lock(self) -> int | None:
        locks = self._locks()
        last = max(locks, default=-1)
        if locks:
            holder = locks[last].user_attrs.get(OWNER)
            suspects = [holder] if holder is not None else self._lockers()
            if any(self._lives(suspect) for suspect in suspects if suspect["token"] != self.me.token):
                return None  # one of this worker's own is left from a storage that failed
        try:
            name = lock_name(self._name, last + 1)
            made = self._storage.create_new_study([StudyDirection.MINIMIZE], name)
        except DuplicatedStudyError:
            return None
        self._storage.set_study_user_attr(made, OWNER, self.record())
        return last + 1

    def _locks(self) -> dict[int, Any]:
        found = {}
        for study in self._storage.get_all_studies():
            match = _LOCK.fullmatch(study.study_name)
            if match is not None and match[1] == self._name:
                found[int(match[2])] = study
        return found

    def _lockers(self) -> list[dict[str, Any]]:
        attrs = self._storage.get_study_user_attrs(self._id)
        mine = f"locks:{self.me.token}"
        return [value for key, value in attrs.items() if key.startswith("locks:") and key != mine and value is not None]

    def _records(self) -> dict[str, dict[str, Any]]:
        attrs = self._storage.get_study_user_attrs(self._id)
        return {value["token"]: value for key, value in attrs.items() if key.startswith(_REGISTER)}

    def _lives(self, record: Mapping[str, Any]) -> bool:
        if record["token"] == self.me.token:
            return True
        if record["host"] == self.me.host:
            return same_process_lives(record["pid"], record["pid_start"])
        seen = record.get("seen")
        if seen is None:
            seen = self._records().get(record["token"], {}).get("seen", 0.0)
        return time.time() - seen < DEAD_AFTER_S


def lock_name(study: str, count: int) -> str:
    """Name of the study that serves as a lock."""
    return f"{study} (lock {count})"


def is_lock(name: str) -> bool:
    """Whether a study is such a lock."""
    return _LOCK.fullmatch(name) is not None
