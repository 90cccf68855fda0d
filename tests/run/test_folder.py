from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medtrain.errors import MedtrainError
from medtrain.run import folder as folder_module
from medtrain.run.folder import RunFolder, Status, read_status


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
    with pytest.raises(MedtrainError, match="already holds a run") as caught:
        RunFolder.create(experiment="x", path=path)
    assert caught.value.hint is not None
    assert f"medtrain resume {path}" in caught.value.hint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("")
    with pytest.raises(MedtrainError, match="is not empty"):
        RunFolder.create(experiment="x", path=tmp_path / "mine")
    with pytest.raises(MedtrainError, match="is not a folder"):
        RunFolder.create(experiment="x", path=tmp_path / "mine" / "thesis.doc")


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
    with pytest.raises(MedtrainError, match="holds no run") as caught:
        RunFolder.open(tmp_path)
    assert run.name in str(caught.value.hint)
    with pytest.raises(MedtrainError, match="does not exist"):
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
    _set_status(run, pid=os.getppid(), pid_start=folder_module._process_start(os.getppid()))
    with pytest.raises(MedtrainError, match=f"is being trained by process {os.getppid()}"):
        run.start()
    _set_status(run, pid=_dead_pid())
    run.start(step=3)
    assert run.read_status().step == 3


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
