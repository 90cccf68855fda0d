"""Start a command again as several processes, which end when the one that started them does."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from medtrain.cli._run import EXIT_STOPPED
from medtrain.errors import UsageError
from medtrain.run.provenance import TYPED

log = logging.getLogger(__name__)

_FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_IN_ORDER = (0, EXIT_STOPPED)
_POLL_S = 0.1
_SETTLE_S = 3.0  # what fails in one process usually fails in all, and each says so in its own files
_GRACE_S = 10.0
_LAUNCHED = "MEDTRAIN_LAUNCHED"  # set where stdin is a pipe that the launcher holds open


def relaunch(processes: int, *, typed: Path | None = None, meant: Path | None = None) -> int:
    """Run this command line as several processes of this machine, without its `--nproc`, and return the exit code.

    Args:
        processes: How many.
        typed: A path among its words that each process would look up for itself, such as `EXPERIMENT/latest`.
        meant: What was found there.

    Raises:
        UsageError: A launcher has started several processes already.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError("--nproc is given, but a launcher has already started these processes", hint="drop --nproc")
    words = _without_nproc(sys.argv[1:])
    if typed != meant:
        words = [str(meant) if Path(word) == typed else word for word in words]
    return run_processes([sys.executable, "-m", "medtrain", *words], processes)


def run_processes(
    command: Sequence[str], processes: int, *, settle_s: float = _SETTLE_S, grace_s: float = _GRACE_S
) -> int:
    """Run a command as the ranks of a distributed job and wait for all of them.

    Signals that stop a run are passed on to every process, each time they come. Only process 0 writes to stdout. Their
    stdin is the end of a pipe that nothing is written to: it closes when this process ends, however that happens, and
    `stop_with_launcher` waits for that.

    Args:
        command: Program and arguments; the place of each process is in its environment, as under torchrun.
        processes: How many.
        settle_s: Time that is left to the others to end by themselves when a process has failed.
        grace_s: Time between SIGTERM and SIGKILL after that.

    Returns:
        The code of the first process that failed (128 + the signal's number if one killed it), else the largest:
        75 if the processes were stopped, 0 if all are done.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    theirs, ours = os.pipe()  # ours is not inherited
    with _collect_signals() as received:
        try:
            port = _free_port()
            for rank in range(processes):
                ranks.append(_start(command, rank, processes, port, theirs))
            return _wait(ranks, received, settle_s, grace_s)
        finally:
            for process in ranks:
                process.kill()  # does nothing to one that has ended
                process.wait()
            os.close(theirs)
            os.close(ours)


def stop_with_launcher() -> None:
    """Stop this process as SIGTERM does once the launcher that started it has been killed.

    Does nothing in a process that was not started by `run_processes`.
    """
    if os.environ.pop(_LAUNCHED, None):  # what this process starts has another stdin
        threading.Thread(target=_wait_for_launcher, name="launcher", daemon=True).start()


def _wait_for_launcher() -> None:
    while os.read(0, 1):  # returns when the launcher's end of the pipe is closed
        pass
    log.warning("the process that started this one has ended: stopping")
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(ranks: list[subprocess.Popen[bytes]], received: list[int], settle_s: float, grace_s: float) -> int:
    """Pass signals on until all processes have ended; once one has failed, see to it that the others do."""
    failure: int | None = None
    measures: list[tuple[float, int]] = []
    while True:
        while received:
            _send(ranks, received.pop(0))
        codes = [process.poll() for process in ranks]
        if failure is None:
            failed = [(rank, code) for rank, code in enumerate(codes) if code is not None and code not in _IN_ORDER]
            if failed:
                failure = _explain(*failed[0], len(ranks))
                now = time.monotonic()
                measures = [(now + settle_s, signal.SIGTERM), (now + settle_s + grace_s, signal.SIGKILL)]
        if None not in codes:
            return failure if failure is not None else max(code or 0 for code in codes)
        if measures and time.monotonic() >= measures[0][0]:
            _send(ranks, measures.pop(0)[1])
        time.sleep(_POLL_S)


def _explain(rank: int, code: int, processes: int) -> int:
    """Exit code of a process that failed; say so if a signal killed it, since it could not."""
    if code > 0:
        return code
    print(
        f"error: process {rank} of {processes} was killed by signal {-code} ({signal.strsignal(-code)})",
        file=sys.stderr,
    )
    if -code == signal.SIGKILL:
        print("hint: the machine may have run out of memory", file=sys.stderr)
    return 128 - code


def _start(command: Sequence[str], rank: int, processes: int, port: int, stdin: int) -> subprocess.Popen[bytes]:
    place = {
        _LAUNCHED: 1,
        TYPED: json.dumps(sys.argv),
        "WORLD_SIZE": processes,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return subprocess.Popen(
        command,
        env={**os.environ, **{name: str(value) for name, value in place.items()}},
        stdin=stdin,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C of the terminal reaches them once, through us
    )


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        process.send_signal(number)  # does nothing to one that has ended


@contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Note signals instead of ending by them; the previous handlers come back on exit."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {}
    for name in _FORWARDED:
        number = getattr(signal, name, None)
        # under nohup the terminal may go
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _without_nproc(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--nproc="):
            skip = False
        elif word == "--nproc":
            skip = True
        else:
            kept.append(word)
    return kept
