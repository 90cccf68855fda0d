"""Optuna's journal in a file, safe against processes that die while they write and disks that are full.

The format is Optuna's: one JSON record per line, appended under a lock file, so that optuna-dashboard reads it. What
differs from `optuna.storages.journal.JournalFileBackend`: a half-written last record is removed before the next one is
appended (there it makes every later start fail), a write that fails leaves nothing behind, and a lock whose process is
dead is taken over at once rather than after half a minute.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from medtrain.errors import MedtrainError
from medtrain.run.atomic import disk_errors
from medtrain.run.lock import Holder, RunLock, same_process_lives

LOCK_SUFFIX = ".lock"
GRACE_S = 10.0
"""A lock of another machine that has not changed for so long is taken over; writing takes milliseconds."""

_PATIENCE_S = 120.0
_TAIL = 1 << 16
_IN_PROCESS: dict[str, threading.Lock] = {}


class Journal(JournalStorage):
    """Optuna's storage over a journal file, in which a trial that waits goes to exactly one worker."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """See the base class.

        Optuna tells whether this process won a waiting trial by asking whether it is the one this thread was given
        last. After a trial was put back, it may be so from before, though another worker has just won it.
        """
        if state == TrialState.RUNNING:
            with self._thread_lock:
                replay = self._replay_result
                replay._worker_id_to_owned_trial_id.pop(replay.worker_id, None)
        return bool(super().set_trial_state_values(trial_id, state, values))


class JournalFile(BaseJournalBackend):
    """The file of a journal.

    Args:
        path: The file; it is made if it is not there, its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ends = [0]  # offset of the byte after each record that was read
        if not path.exists():  # one that is only read may be on a disk that is not writable
            with disk_errors(path):
                path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on; a last one that is not complete is left out.

        Raises:
            MedtrainError: A record that is not the last cannot be read.
        """
        del self._ends[log_number_from + 1 :]
        for number, (record, end) in enumerate(self._read(self._ends[log_number_from]), log_number_from + 1):
            if record is None:
                raise MedtrainError(
                    f"{self.path} is damaged: record {number} cannot be read",
                    hint="restore the file from a copy, or delete the line if it is the only one",
                )
            self._ends.append(end)
            yield record

    def _read(self, start: int) -> list[tuple[dict[str, Any] | None, int]]:
        """The complete records from an offset on, each with the offset of the byte after it; None is a damaged one."""
        records: list[tuple[dict[str, Any] | None, int]] = []
        for _ in range(2):  # a second time in case another process repaired the end of the file in between
            with self.path.open("rb") as file:
                file.seek(start)
                lines = file.read().split(b"\n")[:-1]
            ends = itertools.accumulate((len(line) + 1 for line in lines), initial=start)
            records = list(zip(map(_parse, lines), itertools.islice(ends, 1, None)))
            if all(record is not None for record, _ in records):
                break
        while records and records[-1][0] is None:
            records.pop()
        return records

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records; either all are on the disk afterwards or none.

        Raises:
            MedtrainError: The disk is full or not writable, or another process keeps the lock.
        """
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with disk_errors(self.path), journal_lock(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                end = _repair(descriptor)
                try:
                    _write(descriptor, data, end)
                    os.fsync(descriptor)
                except BaseException:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def journal_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a journal file; Optuna's own processes wait for it, too.

    Raises:
        MedtrainError: A process that lives keeps it for minutes.
    """
    key = os.path.realpath(path)
    with _IN_PROCESS.setdefault(key, threading.Lock()):
        lock = _JournalLock(Path(key + LOCK_SUFFIX), silent=lambda: True)
        deadline, pause = time.monotonic() + _PATIENCE_S, 0.001
        while (holder := lock.acquire()) is not None:
            if time.monotonic() > deadline:
                raise MedtrainError(
                    f"process {holder.pid} on {holder.host} has kept the lock of {path} for {_PATIENCE_S:g} s",
                    hint="is it stopped? Continue or end it",
                )
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 0.05)
        try:
            yield
        finally:
            lock.release()


class _JournalLock(RunLock):
    """A lock that is held for milliseconds: one of another machine is given up after seconds."""

    _seen: tuple[str, float] | None = None

    def _lives(self, holder: Holder) -> bool:
        if holder.is_here:
            return same_process_lives(holder.pid, holder.pid_start)
        if self._seen is None or self._seen[0] != holder.token:
            self._seen = (holder.token, time.monotonic())
        return time.monotonic() - self._seen[1] < GRACE_S


def _repair(descriptor: int) -> int:
    """Cut off what a process that died left of its last record; return the size of the file."""
    size = os.fstat(descriptor).st_size
    while size > 0:
        start, tail = size, b""
        while start > 0 and b"\n" not in tail[:-1]:
            step = min(_TAIL, start)
            start -= step
            tail = os.pread(descriptor, step, start) + tail
        cut = tail.rfind(b"\n", 0, -1) + 1  # the last line begins here
        if tail.endswith(b"\n") and _parse(tail[cut:-1]) is not None:
            break
        size = start + cut
        os.ftruncate(descriptor, size)
    return size


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None
