"""Several processes of one command: small stand-ins for training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medtrain.cli import _processes
from medtrain.cli._processes import relaunch, run_processes
from medtrain.errors import UsageError

_COMMON = """
import os, signal, sys
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
signal.alarm(60)  # never outlives a test that fails

def received(*numbers):
    return signal.Signals(signal.sigwait(numbers)).name

def meet():
    # both processes are here: a pipe opens when it has both ends
    open(folder / "pipe", "r" if rank == 0 else "w").close()
"""


def _run(folder: Path, code: str, *, processes: int = 2, settle_s: float = 0.0, grace_s: float = 60.0) -> int:
    os.mkfifo(folder / "pipe")
    command = [sys.executable, "-c", _COMMON + code, str(folder)]
    return run_processes(command, processes, settle_s=settle_s, grace_s=grace_s)


def test_every_process_knows_its_place_and_only_the_first_prints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
(folder / f"rank{rank}").write_text(" ".join(os.environ.get(name, "-") for name in names))
print("result of", rank)
print("remark of", rank, file=sys.stderr)
"""
    assert _run(tmp_path, code, processes=3) == 0
    places = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(3)]
    assert [place[:5] for place in places] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({place[5] for place in places}) == 1
    assert 0 < int(places[0][5]) < 2**16
    assert {place[6] for place in places} == {"-"}  # the engine divides the cores
    out, err = capfd.readouterr()
    assert out == "result of 0\n"
    assert sorted(err.splitlines()) == ["remark of 0", "remark of 1", "remark of 2"]


def test_every_process_knows_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/medtrain", "train", "--nproc", "2", "note=two words"])
    code = """
from medtrain.run.provenance import command_line, typed_command
(folder / f"rank{rank}").write_text("|".join(typed_command(command_line())))
"""
    assert _run(tmp_path, code) == 0
    told = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert told == ["medtrain|train|--nproc|2|note=two words"] * 2


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((75, 3), 3), ((2, 0), 2)])
def test_exit_code(tmp_path: Path, codes: tuple[int, int], expected: int) -> None:
    assert _run(tmp_path, f"sys.exit({codes}[rank])", settle_s=60.0) == expected


@contextmanager
def _disposition(name: str, handler: signal.Handlers) -> Iterator[signal.Signals]:
    """Begin with what a signal is to do here, whatever the tests were started with."""
    number = signal.Signals[name]
    inherited = signal.signal(number, handler)
    try:
        yield number
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, inherited)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_reaches_every_process(tmp_path: Path, name: str) -> None:
    code = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])
meet()
if rank == 0:
    os.kill(os.getppid(), signal.{name})
(folder / f"rank{{rank}}").write_text(received(signal.{name}))
sys.exit(75)
"""
    with _disposition(name, signal.SIG_DFL):
        assert _run(tmp_path, code) == 75
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == [name, name]


def test_the_terminal_may_go_under_nohup(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGUSR1])
meet()
if rank == 0:
    os.kill(os.getppid(), signal.SIGHUP)
    os.kill(os.getppid(), signal.SIGUSR1)
(folder / f"rank{rank}").write_text(received(signal.SIGHUP, signal.SIGUSR1))  # the lower number before the higher one
"""
    with _disposition("SIGHUP", signal.SIG_IGN):
        assert _run(tmp_path, code) == 0
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1", "SIGUSR1"]


def test_a_second_ctrl_c_reaches_them_too(tmp_path: Path) -> None:
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
for _ in range(2):
    meet()
    if rank == 0:
        os.kill(os.getppid(), signal.SIGINT)
    received(signal.SIGINT)
sys.exit(130)
"""
    assert _run(tmp_path, code, settle_s=60.0) == 130


def test_the_terminal_reaches_them_only_through_the_launcher(tmp_path: Path) -> None:
    assert _run(tmp_path, "sys.exit(0 if os.getpgrp() == os.getsid(0) == os.getpid() else 1)") == 0


def test_when_one_fails_the_others_are_asked_to_end(tmp_path: Path) -> None:
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
meet()
if rank == 1:
    sys.exit(3)
(folder / "told").write_text(received(signal.SIGTERM))
sys.exit(75)
"""
    assert _run(tmp_path, code) == 3
    assert (tmp_path / "told").read_text() == "SIGTERM"


def test_others_that_do_not_end_are_killed(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
meet()
if rank == 0:
    sys.exit(1)
received(signal.SIGUSR2)
"""
    assert _run(tmp_path, code, grace_s=0.0) == 1


def test_others_have_time_to_end_by_themselves(tmp_path: Path) -> None:
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
pipe = open(folder / "pipe", "r" if rank == 0 else "w")
if rank == 0:
    pipe.read()  # until the other one has ended
    (folder / "told").write_text(str(signal.SIGTERM in signal.sigpending()))
sys.exit(3)
"""
    assert _run(tmp_path, code, settle_s=60.0) == 3
    assert (tmp_path / "told").read_text() == "False"


def test_a_killed_process_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nreceived(signal.SIGUSR2)") == 137
    assert capfd.readouterr().err.splitlines() == [
        "error: process 1 of 2 was killed by signal 9 (Killed)",
        "hint: the machine may have run out of memory",
    ]


def test_nothing_stays_when_a_process_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = _processes._start

    def fail_at_the_second(*arguments: object) -> subprocess.Popen[bytes]:
        if started:
            raise OSError("no more processes")
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[0]

    monkeypatch.setattr(_processes, "_start", fail_at_the_second)
    with pytest.raises(OSError, match="no more processes"):
        _run(tmp_path, "received(signal.SIGUSR2)")
    assert started[0].returncode == -signal.SIGKILL


def test_processes_stop_as_on_a_signal_when_the_launcher_is_killed(tmp_path: Path) -> None:
    code = """
from medtrain.cli._processes import stop_with_launcher
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
stop_with_launcher()
meet()
if rank == 0:
    os.kill(os.getppid(), signal.SIGKILL)
(folder / f"rank{rank}").write_text(received(signal.SIGTERM))
"""
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", _COMMON + code, str(tmp_path)]
    launcher = f"from medtrain.cli._processes import run_processes\nrun_processes({command!r}, 2)"
    # the output ends when every process that could write to it has
    done = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    assert done.stderr.count("the process that started this one has ended") == 2


def test_who_was_not_started_by_the_launcher_watches_nobody(tmp_path: Path) -> None:
    code = "from medtrain.cli._processes import stop_with_launcher\nstop_with_launcher()\nimport threading\n"
    code += "print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout == b"1\n"


def test_relaunch_runs_the_same_command_without_nproc(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], int]] = []

    def run(command: list[str], processes: int) -> int:
        calls.append((command, processes))
        return 75

    monkeypatch.setattr(_processes, "run_processes", run)
    for words in (["--nproc", "2", "a=1"], ["a=1", "--nproc=2"]):
        monkeypatch.setattr(sys, "argv", ["/bin/medtrain", "train", *words])
        assert relaunch(2) == 75
    assert calls == [([sys.executable, "-m", "medtrain", "train", "a=1"], 2)] * 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a launcher has already started"):
        relaunch(2)
