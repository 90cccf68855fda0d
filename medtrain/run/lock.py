"""The lock that lets one process at a time train a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medtrain.run.atomic import atomic_write, disk_errors, process_alive

SILENCE_S = 900.0
"""A process on another machine that has given no sign of life for so long is taken for dead."""

_WRITING_S = 2.0  # a lock that stays unreadable for longer is not being written: its writer died in between


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Args:
        pid: Its id.
        pid_start: When it started in the kernel's ticks, which tells it from a later one with the same id.
        host: Its machine.
        token: Tells two locks of one process apart.
    """

    pid: int
    pid_start: int | None
    host: str
    token: str

    @classmethod
    def this_process(cls) -> Holder:
        """A new lock of this process."""
        pid = os.getpid()
        return cls(pid, process_start(pid), socket.gethostname(), secrets.token_hex(8))

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def is_me(self) -> bool:
        """Whether it is this process."""
        return self.is_here and self.pid == os.getpid() and self.pid_start == process_start(self.pid)


class RunLock:
    """An exclusive lock: a file that is created by whoever gets it and holds the process that has it.

    A lock whose process is dead is taken over. Taking over is itself locked, under the token of the dead one's lock,
    so that of several processes that find it dead only one replaces it, and none replaces the winner's.

    Args:
        path: The lock file; its folder must exist.
        silent: Whether the holder has given no sign of life for `SILENCE_S`. Asked once the lock is as old, for holders
            on other machines, of which nothing else can be known.
    """

    def __init__(self, path: Path, *, silent: Callable[[], bool]) -> None:
        self.path = path
        self._silent = silent
        self._mine: Holder | None = None

    def acquire(self) -> Holder | None:
        """Take the lock, unless a living process other than this one holds it; that one is returned then.

        Raises:
            MedtrainError: The folder cannot be written to.
        """
        mine = Holder.this_process()
        with disk_errors(self.path):
            while not self._create(mine):
                try:
                    other = self._read()
                    if other is not None and not other.is_me and self._lives(other):
                        return other
                except FileNotFoundError:  # just released
                    continue
                claim = RunLock(self._claim_path(other), silent=self._silent)
                faster = claim.acquire()
                if faster is not None:
                    return faster
                try:
                    if self._replace(other, mine):
                        break
                finally:
                    claim.release()
        self._mine = mine
        return None

    def release(self) -> None:
        """Give the lock back, if this object has it; harmless otherwise."""
        mine, self._mine = self._mine, None
        with contextlib.suppress(FileNotFoundError):
            if mine is not None and self._read() == mine:
                self.path.unlink()

    def _create(self, mine: Holder) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, _encode(mine))
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def _read(self) -> Holder | None:
        """Who holds the lock; None if its writer died before it could say."""
        deadline = time.monotonic() + _WRITING_S
        while True:
            try:
                return Holder(**json.loads(self.path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.02)

    def _lives(self, holder: Holder) -> bool:
        if holder.is_here:
            return same_process_lives(holder.pid, holder.pid_start)
        return time.time() - self.path.stat().st_mtime < SILENCE_S or not self._silent()

    def _claim_path(self, dead: Holder | None) -> Path:
        return self.path.with_name(f"{self.path.name}.{dead.token if dead else 'unreadable'}")

    def _replace(self, dead: Holder | None, mine: Holder) -> bool:
        """Put this process in the place of a dead one, unless the lock has changed since."""
        try:
            if self._read() != dead:
                return False
        except FileNotFoundError:
            return False
        atomic_write(self.path, _encode(mine), sync=False)
        return True


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); None where there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def same_process_lives(pid: int, start: int | None) -> bool:
    """Whether a process of this machine runs and is not a later one with the same id."""
    return (start is None or start == process_start(pid)) and process_alive(pid)


def _encode(holder: Holder) -> bytes:
    return (json.dumps(dataclasses.asdict(holder)) + "\n").encode()
