"""Processes that train trials on this machine: where each runs, what it says, and how it is stopped.

A trial is forked from a server that has imported torch and medtrain once, so that it starts at once, has a device of
its own to itself, and takes nobody with it when it dies. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from medtrain.run.atomic import atomic_write_json
from medtrain.run.forkserver import hear_signals, start_forkserver
from medtrain.sweep.folder import RESULT

GRACE_S = 60.0
"""What a trial has to save a checkpoint once its sweep is gone."""

_PRELOAD = ("medtrain.sweep.trial", "torch._dynamo")  # torch imports the second, for seconds, when an optimizer is made


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a trial process is asked to do.

    Args:
        run_dir: Folder of the trial.
        overrides: Of its configuration.
        imports: Modules that register the user's components.
        config_dirs: Folders of the user's configurations.
        config: Folder whose saved configuration the overrides are put on; None composes them anew.
        folds: Folds to train in turn; empty is the one of the configuration.
        watch: Metric reported after each evaluation; None to report none.
        latency: Whether to measure the time of a forward pass at the end.
        split_hashes: The split that every trial must have, for each fold in turn.
        facts: Kept with the result.
        started: `time.monotonic()` when the trial was handed out.
    """

    run_dir: str
    overrides: tuple[str, ...]
    imports: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    config: str | None = None
    folds: tuple[int, ...] = ()
    watch: str | None = None
    latency: bool = False
    split_hashes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Place:
    """Where a trial runs.

    Args:
        index: Number of the place, from 0.
        cores: Cores of the machine it may use; empty is all of them.
        gpu: Its GPU as in CUDA_VISIBLE_DEVICES; None leaves the variable alone.
    """

    index: int
    cores: tuple[int, ...] = ()
    gpu: str | None = None


@dataclass(frozen=True)
class Progress:
    """A trial is so far (percent of its budget), with its newest training numbers."""

    key: int
    percent: float
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """A trial has evaluated and waits for `TrialPool.answer`.

    Args:
        key: The trial.
        step: What the value is reported at: percent of the budget, or the fold's index.
        value: Of the watched metric.
        intermediate: Whether training goes on, so that an answer can end it.
    """

    key: int
    step: int
    value: float
    intermediate: bool


@dataclass(frozen=True)
class Ended:
    """The process of a trial is gone, with this exit code (negative: killed by that signal)."""

    key: int
    exit_code: int


Event = Progress | Evaluated | Ended


class TrialChannel:
    """The trial's end of the line to the sweep.

    Args:
        connection: The line.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def progress(self, percent: float, numbers: Mapping[str, float]) -> None:
        """Say how far the trial is."""
        self._send(("progress", percent, dict(numbers)))

    def evaluated(self, step: int, value: float, *, intermediate: bool) -> bool:
        """Report a value and hear whether the trial should end here."""
        self._send(("evaluated", step, value, intermediate))
        try:
            return bool(self._connection.recv())
        except (EOFError, OSError):
            _stop_here()
            return False

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self._connection.send(message)
        except OSError:
            _stop_here()


def _stop_here() -> None:
    """Save and end this process: the sweep no longer listens, and will have the trial continued."""
    os.kill(os.getpid(), signal.SIGTERM)


class TrialPool:
    """Trials that run at the same time on this machine.

    Args:
        places: Where; as many trials run at once.
        preload: Modules that every trial needs, imported once.
    """

    def __init__(self, places: Sequence[Place], *, preload: Sequence[str] = ()) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOAD, *preload])
        self._free = list(reversed(places))
        self._running: dict[int, tuple[BaseProcess, Connection, Place]] = {}
        self._kill_at = math.inf
        start_forkserver()

    @property
    def running(self) -> list[int]:
        """Keys of the trials that run."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether a place is free."""
        return bool(self._free)

    def start(self, key: int, task: TrialTask, *, log: Path | None) -> None:
        """Start a trial in a free place.

        Args:
            key: Name of the trial in events.
            task: What to do.
            log: File that its output is appended to; None leaves it on this console.
        """
        self._launch(key, _train, (task,), log)

    def _launch(self, key: int, work: Callable[..., None], arguments: tuple[Any, ...], log: Path | None) -> None:
        start_forkserver()  # again, should it have died
        self._kill_at = math.inf
        place = self._free.pop()
        here, there = self._context.Pipe()
        process = self._context.Process(target=_enter, args=(work, arguments, place, there, log), name=f"trial-{key}")
        try:
            process.start()
        except BaseException:
            self._free.append(place)
            here.close()
            raise
        finally:
            there.close()
        self._running[key] = (process, here, place)

    def call(self, function: str, *arguments: Any) -> Any:
        """Run a function in a process of its own and return its result, which must be picklable.

        What it logs goes to this console. Errors for the user are raised here again.

        Args:
            function: `MODULE:NAME`, imported there and not here.
            arguments: Its positional arguments.
        """
        key = -1
        self._launch(key, _call, (function, arguments), None)
        process, connection, _ = self._running[key]
        try:
            outcome = connection.recv()
            process.join()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process ended with code {process.exitcode}") from None
        except BaseException:
            process.kill()
            process.join()
            raise
        finally:
            self._forget(key)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def wait(self, timeout: float) -> list[Event]:
        """Wait for news of the trials, at most `timeout` seconds; end those that do not stop as they were asked to."""
        if time.monotonic() > self._kill_at:
            for process, _, _ in self._running.values():
                process.kill()
        lines = {connection: key for key, (_, connection, _) in self._running.items()}
        ends = {process.sentinel: key for key, (process, _, _) in self._running.items()}
        if not lines:
            time.sleep(timeout)
            return []
        ready = wait([*lines, *ends], timeout)
        events: list[Event] = []
        for line in ready:
            if isinstance(line, Connection):
                events.extend(self._read(lines[line], line))
        for sentinel in ready:
            if isinstance(sentinel, int):
                key = ends[sentinel]
                process, connection, _ = self._running[key]
                events.extend(self._read(key, connection))
                process.join()
                assert process.exitcode is not None
                self._forget(key)
                events.append(Ended(key, process.exitcode))
        return events

    def answer(self, key: int, *, prune: bool) -> None:
        """Answer a trial that has evaluated."""
        if key in self._running:
            with contextlib.suppress(OSError):
                self._running[key][1].send(prune)

    def stop(self) -> None:
        """Ask every trial to save a checkpoint and end; `wait` ends those that take too long."""
        self._kill_at = time.monotonic() + GRACE_S
        for process, _, _ in self._running.values():
            process.terminate()

    def drop(self, key: int) -> None:
        """End a trial at once, without an event."""
        process, _, _ = self._running[key]
        process.kill()
        process.join()
        self._forget(key)

    def kill(self) -> None:
        """End every trial at once, without events."""
        for key in self.running:
            self.drop(key)

    def _read(self, key: int, connection: Connection) -> Iterator[Event]:
        with contextlib.suppress(EOFError, OSError):
            while connection.poll():
                kind, *rest = connection.recv()
                yield Progress(key, *rest) if kind == "progress" else Evaluated(key, *rest)

    def _forget(self, key: int) -> None:
        _, connection, place = self._running.pop(key)
        connection.close()
        self._free.append(place)


def divide(workers: int, gpus: Sequence[str]) -> list[Place]:
    """Places for `workers` trials that share this machine's cores and GPUs evenly.

    Args:
        workers: How many trials run at the same time.
        gpus: The GPUs as in CUDA_VISIBLE_DEVICES; empty leaves them alone.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = []
    for index in range(workers):
        mine: tuple[int, ...] = ()
        if cores:
            first, last = (len(cores) * i // workers for i in (index, index + 1))
            mine = tuple(cores[first:last]) or (cores[index % len(cores)],)
        places.append(Place(index, mine, gpus[index % len(gpus)] if gpus else None))
    return places


# ------------------------------------------------------------------------------------------------ in the trial


def _enter(
    work: Callable[..., None], arguments: tuple[Any, ...], place: Place, connection: Connection, log: Path | None
) -> None:
    """Set up a trial process and do its work."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the sweep, which then stops its trials in order
    hear_signals()
    threading.Thread(target=_end_with_sweep, name="sweep-watch", daemon=True).start()
    if place.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cores)
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    if log is not None:
        _redirect(log)
    work(*arguments, connection)


def _train(task: TrialTask, connection: Connection) -> None:
    from medtrain.sweep.trial import run_trial

    try:
        result = run_trial(task, TrialChannel(connection))
        atomic_write_json(Path(task.run_dir) / RESULT, {**task.facts, **result.to_json()})
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _call(function: str, arguments: tuple[Any, ...], connection: Connection) -> None:
    module, _, name = function.partition(":")
    try:
        outcome = getattr(importlib.import_module(module), name)(*arguments)
    except BaseException as error:
        outcome = error
    try:
        connection.send(outcome)
    except Exception:
        connection.send(RuntimeError(f"{type(outcome).__name__}: {outcome}"))


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _end_with_sweep() -> None:
    """Save and end when the sweep is gone, however that happened: whoever resumes it starts this trial again."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    _stop_here()
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
