from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medtrain.run import lock as lock_module
from medtrain.run.lock import SILENCE_S, Holder, RunLock, process_start


def _never() -> bool:
    raise AssertionError("nothing is known of processes of this machine only through their silence")


def _lock(folder: Path, *, silent: bool | None = None) -> RunLock:
    return RunLock(folder / ".lock", silent=_never if silent is None else lambda: silent)


def _parent(token: str = "parent") -> Holder:
    """Another process of this machine that lives."""
    return dataclasses.replace(
        Holder.this_process(), pid=os.getppid(), pid_start=process_start(os.getppid()), token=token
    )


def _dead(token: str = "dead") -> Holder:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return dataclasses.replace(Holder.this_process(), pid=process.pid, pid_start=1, token=token)


def _write(folder: Path, holder: Holder, name: str = ".lock") -> None:
    (folder / name).write_text(json.dumps(dataclasses.asdict(holder)))


def _holder(folder: Path) -> Holder:
    return Holder(**json.loads((folder / ".lock").read_text()))


def test_one_process_gets_it_and_gives_it_back(tmp_path: Path) -> None:
    lock = _lock(tmp_path)
    assert lock.acquire() is None
    assert _holder(tmp_path).is_me
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_it(tmp_path: Path) -> None:
    _write(tmp_path, _parent())
    lock = _lock(tmp_path)
    assert lock.acquire() == _parent()
    lock.release()
    assert _holder(tmp_path) == _parent()


def test_the_same_process_may_take_it_again(tmp_path: Path) -> None:
    first, second = _lock(tmp_path), _lock(tmp_path)
    assert first.acquire() is None
    assert second.acquire() is None
    first.release()  # it is the second one's now
    assert _holder(tmp_path).is_me
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    me = Holder.this_process()
    # ended, ended and its id given to this process, killed before it could write its name
    for text in (json.dumps(dataclasses.asdict(holder)) for holder in (_dead(), dataclasses.replace(me, pid_start=1))):
        (tmp_path / ".lock").write_text(text)
        lock = _lock(tmp_path)
        assert lock.acquire() is None
        assert _holder(tmp_path).is_me
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}'])
def test_a_lock_that_stays_unreadable_is_taken_over(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_WRITING_S", -1.0)
    (tmp_path / ".lock").write_text(text)
    assert _lock(tmp_path).acquire() is None
    assert _holder(tmp_path).is_me


def test_a_lock_that_is_being_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").write_text("")
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: _write(tmp_path, _parent()))
    assert _lock(tmp_path).acquire() == _parent()


@pytest.mark.parametrize(
    ("age", "silent", "lives"), [(0.0, True, True), (SILENCE_S + 60, False, True), (SILENCE_S + 60, True, False)]
)
def test_a_process_elsewhere_is_dead_when_neither_lock_nor_status_is_fresh(
    tmp_path: Path, age: float, silent: bool, lives: bool
) -> None:
    holder = dataclasses.replace(_parent(), host="elsewhere")
    _write(tmp_path, holder)
    then = (tmp_path / ".lock").stat().st_mtime - age
    os.utime(tmp_path / ".lock", (then, then))
    assert _lock(tmp_path, silent=silent).acquire() == (holder if lives else None)
    assert _holder(tmp_path).is_me != lives


def test_only_one_takes_over(tmp_path: Path) -> None:
    _write(tmp_path, _dead())
    _write(tmp_path, _parent("other"), ".lock.dead")  # another living process is about to
    assert _lock(tmp_path).acquire() == _parent("other")
    assert _holder(tmp_path).token == "dead"


def test_the_winner_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, _dead())
    claim_path = RunLock._claim_path

    def slow(self: RunLock, dead: Holder | None) -> Path:
        # after the lock was found dead, another process takes it over and is done with that
        _write(tmp_path, _parent("winner"))
        return claim_path(self, dead)

    monkeypatch.setattr(RunLock, "_claim_path", slow)
    assert _lock(tmp_path).acquire() == _parent("winner")
    assert _holder(tmp_path) == _parent("winner")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_released_meanwhile_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, _parent())
    read = RunLock._read

    def late(self: RunLock) -> Holder | None:
        monkeypatch.setattr(RunLock, "_read", read)
        self.path.unlink()
        return read(self)

    monkeypatch.setattr(RunLock, "_read", late)
    assert _lock(tmp_path).acquire() is None


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_processes_that_begin_at_once_one_gets_it(tmp_path: Path, stale: bool) -> None:
    if stale:
        _write(tmp_path, _dead())
    code = (
        "import sys; from pathlib import Path; from medtrain.run.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1]), silent=bool)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print('lost' if lock.acquire() else 'won', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    answers = []
    for question in ("ready", "outcome"):
        for process in processes:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if question == "outcome":
                answers.append(line)
            else:
                assert line == "ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    assert sorted(answers) == ["lost", "lost", "lost", "won"]
