from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from medtrain.errors import MedtrainError, UsageError
from medtrain.run import folder as folder_module
from medtrain.run.folder import RunFolder, Status, read_status
from medtrain.run.lock import Holder, process_start


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _set_status(folder: RunFolder, **changes: object) -> None:
    path = folder.path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_create_makes_a_new_folder_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(folder_module, "_point_latest", lambda path: None)
    monkeypatch.setattr(folder_module.secrets, "token_hex", lambda n: next(drawn) if n == 2 else "0" * 2 * n)
    names = [RunFolder.create(experiment="liver", root=tmp_path).name for _ in range(2)]
    assert re.fullmatch(r"\d{8}-\d\d-aaaa", names[0])
    assert names[1].endswith("-bbbb")
    assert sorted(p.name for p in (tmp_path / "liver").iterdir()) == sorted(names)


def test_latest_points_to_the_newest(tmp_path: Path) -> None:
    RunFolder.create(experiment="liver", root=tmp_path)
    newest = RunFolder.create(experiment="liver", root=tmp_path)
    assert RunFolder.open(tmp_path / "liver" / "latest").path == newest.path.resolve()
    assert len(list((tmp_path / "liver").iterdir())) == 3


def test_create_at_a_given_path(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert RunFolder.create(experiment="x", path=path).path == path
    with pytest.raises(UsageError, match="already holds a run") as caught:
        RunFolder.create(experiment="x", path=path)
    assert caught.value.hint is not None
    assert f"medtrain resume {path}" in caught.value.hint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        RunFolder.create(experiment="x", path=tmp_path / "mine")
    with pytest.raises(UsageError, match="is not a folder"):
        RunFolder.create(experiment="x", path=tmp_path / "mine" / "thesis.doc")


def test_a_folder_of_a_process_that_died_before_it_began_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = RunFolder.create(experiment="x", path=path)
    _set_status(run, pid=_dead_pid())
    run.config.write_text("seed: 1")
    with pytest.raises(UsageError, match="already holds a run"):  # there is something to resume
        RunFolder.create(experiment="x", path=path)
    run.config.unlink()
    for name in ("plan.json", "overrides.txt", f".env.json.{_dead_pid()}.0123abcd@{socket.gethostname()}.tmp"):
        (path / name).write_text("{}")
    (path / "mine.txt").touch()
    with pytest.raises(UsageError, match="already holds a run"):  # something of the user's
        RunFolder.create(experiment="x", path=path)
    (path / "mine.txt").unlink()
    assert RunFolder.create(experiment="x", path=path).read_status().state == "created"
    assert sorted(entry.name for entry in path.iterdir()) == ["checkpoints", "evaluation", "status.json"]
    with pytest.raises(UsageError, match="already holds a run"):  # of a process that lives
        RunFolder.create(experiment="x", path=path)
    _set_status(run, pid=_dead_pid(), status="running")
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder.create(experiment="x", path=path)


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtrain.run.atomic.os.fsync", full)
    with pytest.raises(MedtrainError, match="the disk is full"):
        RunFolder.create(experiment="x", root=tmp_path)
    assert list((tmp_path / "x").iterdir()) == []


def test_open_names_a_run_nearby(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    assert RunFolder.open(run.path).read_status().state == "created"
    with pytest.raises(UsageError, match="holds no run") as caught:
        RunFolder.open(tmp_path)
    assert run.name in str(caught.value.hint)
    with pytest.raises(UsageError, match="does not exist"):
        RunFolder.open(tmp_path / "nowhere")


def test_status_tells_the_story(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    started = run.read_status().started
    run.start()
    run.heartbeat(10)
    run.heartbeat(20)  # too soon after the last one: not written
    status = run.read_status()
    assert (status.state, status.step, status.pid, status.host) == ("running", 10, os.getpid(), socket.gethostname())
    run.heartbeat(30, best={"metric": "val/dice", "value": 0.5, "step": 30})
    run.finish("stopped", step=31, message="SIGTERM:\n saved")
    status = run.read_status()
    assert (status.state, status.step, status.message) == ("stopped", 31, "SIGTERM: saved")
    assert status.best == {"metric": "val/dice", "value": 0.5, "step": 30}
    run.start(step=31)
    assert (run.read_status().state, run.read_status().message) == ("running", "")
    run.finish("done", step=40)
    assert run.read_status().started == started
    assert run.read_status().best == status.best


def test_a_dead_process_means_killed(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    run.start()
    _set_status(run, pid=_dead_pid())
    assert run.read_status().state == "killed"
    _set_status(run, pid=os.getpid(), pid_start=1)  # the id was given to another process
    assert run.read_status().state == "killed"
    _set_status(run, status="done")
    assert run.read_status().state == "done"


def test_a_run_on_another_machine_is_dead_after_a_long_silence(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    run.start()
    _set_status(run, host="elsewhere")
    assert run.read_status().state == "running"
    _set_status(run, host="elsewhere", updated="2020-01-01T00:00:00+00:00")
    assert run.read_status().state == "killed"


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    run.start()
    run.start()  # the same process may
    _set_status(run, pid=os.getppid(), pid_start=process_start(os.getppid()))
    with pytest.raises(MedtrainError, match=f"is being trained by process {os.getppid()}"):
        run.start()
    _set_status(run, pid=_dead_pid())
    run.start(step=3)
    assert run.read_status().step == 3


def test_starting_is_exclusive_before_the_status_says_so(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    run.finish("stopped", step=7)
    lock = run.path / ".lock"
    holder = dataclasses.replace(Holder.this_process(), pid=os.getppid(), pid_start=process_start(os.getppid()))
    lock.write_text(json.dumps(dataclasses.asdict(holder)))
    with pytest.raises(MedtrainError, match=f"is being trained by process {os.getppid()}"):
        run.start()
    assert (run.read_status().state, run.read_status().step) == ("stopped", 7)
    lock.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(holder, pid=_dead_pid()))))
    run.start()
    assert (run.read_status().state, run.read_status().step) == ("running", 7)
    run.close()
    assert run.read_status().state == "running"
    assert not lock.exists()


@pytest.mark.parametrize("end", ["finish", "restore", "close"])
def test_whatever_ends_a_run_unlocks_it(tmp_path: Path, end: str) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    before = run.read_status()
    run.start()
    assert (run.path / ".lock").exists()
    {
        "finish": lambda: run.finish("done", step=1),
        "restore": lambda: run.restore(before, ""),
        "close": run.close,
    }[end]()
    assert not (run.path / ".lock").exists()


def test_a_resume_that_fails_before_it_trains_leaves_the_status(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    run.start()
    run.heartbeat(20, best={"metric": "val/dice", "value": 0.5, "step": 20})
    _set_status(run, pid=_dead_pid())
    run.close()
    before = run.read_status()
    assert before.state == "killed"
    run.start()
    run.restore(before, "DataError:\n api_key=hunter2 is gone")
    after = run.read_status()
    assert after.state == "killed"
    assert after == dataclasses.replace(before, message=after.message)
    assert after.message.startswith("DataError: ")
    assert "\n" not in after.message
    (run.path / "status.json").write_text("{")
    unreadable = run.read_status()
    run.start()
    run.restore(unreadable, "it was damaged")
    assert (run.read_status().state, run.read_status().message) == ("failed", "it was damaged")


def test_a_run_that_logs_nothing_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(10)
    beaten = threading.Event()

    def now() -> str:
        count = next(times)
        if threading.current_thread().name == "heartbeat":
            beaten.set()
        return f"2026-{count:09d}"

    monkeypatch.setattr(folder_module, "_now", now)
    monkeypatch.setattr(folder_module, "_BEAT_S", 0.001)
    run = RunFolder.create(experiment="liver", root=tmp_path)
    others = set(threading.enumerate())
    run.start(step=4)
    (beating,) = set(threading.enumerate()) - others
    started = run.read_status()
    beaten.clear()  # it may have beaten before that was read
    assert beaten.wait(60)
    run.close()
    beating.join()
    beat = run.read_status()
    assert beat.updated > started.updated
    assert dataclasses.replace(beat, updated=started.updated) == started


def test_a_beat_changes_no_status_but_that_of_this_running_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    looks = iter([False, True])

    class OneBeat(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return next(looks)

    run.finish("stopped", step=3)
    _set_status(run, updated="then")
    run._beat(OneBeat())
    assert run.read_status().updated == "then"
    looks = iter([False, True])
    _set_status(run, status="running", pid=os.getppid())
    run._beat(OneBeat())
    assert run.read_status().updated == "then"
    looks = iter([False, False, True])
    _set_status(run, pid=os.getpid())
    monkeypatch.setattr(folder_module, "atomic_write_json", _full)
    run._beat(OneBeat())  # a full disk now does not end the beating
    assert run.read_status().updated == "then"
    monkeypatch.undo()
    looks = iter([False, True])
    run._beat(OneBeat())
    assert run.read_status().updated > "2026"


def _full(*args: object, **settings: object) -> None:
    raise MedtrainError("the disk is full")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "done", "later_field": 1}'])
def test_broken_and_newer_status_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path).state == ("done" if "done" in text else "unknown")


def test_missing_status_is_unknown(tmp_path: Path) -> None:
    assert isinstance(read_status(tmp_path), Status)
    assert read_status(tmp_path).state == "unknown"


def test_inputs_are_written_without_secrets(tmp_path: Path) -> None:
    run = RunFolder.create(experiment="liver", root=tmp_path)
    config = {"seed": 1, "data": {"patch_size": (32, 32), "root": "/x"}, "a": {"api_key": "hunter2"}}
    argv = ["/home/me/.venv/bin/medtrain", "train", "a.api_key=hunter2", "note=two words"]
    run.write_inputs(config, argv[2:], argv)
    assert yaml.safe_load(run.config.read_text()) == {
        "seed": 1,
        "data": {"patch_size": [32, 32], "root": "/x"},
        "a": {"api_key": "***"},
    }
    assert (run.path / "overrides.txt").read_text() == "a.api_key=***\nnote=two words\n"
    run.add_command(["medtrain", "resume", "x"])
    assert (run.path / "command.txt").read_text().splitlines() == [
        "medtrain train 'a.api_key=***' 'note=two words'",
        "medtrain resume x",
    ]
    assert json.loads((run.path / "env.json").read_text())["packages"]["torch"]
    assert not any("hunter2" in p.read_text() for p in run.path.iterdir() if p.is_file())
