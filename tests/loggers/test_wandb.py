from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtrain.errors import MedtrainError, UsageError
from medtrain.loggers.base import RunInfo
from medtrain.loggers.wandb import WandbLogger

_INFO = RunInfo(run_name="20261120-09-abcd", experiment="liver", config={"seed": 1}, note="hi", tags=("a",))


class _FakeRun:
    dir = "/somewhere/offline-run-1/files"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[Any, ...]] = []
        self.finished = False

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics.append((name, options))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


class _FakeWandb(types.ModuleType):
    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run = _FakeRun()
        self.calls: list[dict[str, Any]] = []
        self.setups: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    def setup(self, settings: dict[str, Any]) -> None:
        self.setups.append(settings)

    def init(self, **options: Any) -> _FakeRun:
        if self.failure is not None:
            raise self.failure
        self.calls.append(options)
        return self.run

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802 - W&B's name
        return options

    def Image(self, image: np.ndarray) -> tuple[str, tuple[int, ...]]:  # noqa: N802
        return ("image", image.shape)

    def Html(self, text: str) -> tuple[str, str]:  # noqa: N802
        return ("html", text)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _FakeWandb:
    module = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return module


def test_offline_without_a_key(fake: _FakeWandb, tmp_path: Path) -> None:
    WandbLogger(run_dir=tmp_path, run_info=_INFO)
    options = fake.calls[0]
    assert options["mode"] == "offline"
    assert (options["group"], options["name"], options["dir"]) == ("liver", "20261120-09-abcd", str(tmp_path))
    assert (options["config"], options["notes"], options["tags"]) == ({"seed": 1}, "hi", ["a"])


@pytest.mark.parametrize(
    ("env", "netrc", "expected"),
    [
        ({"WANDB_API_KEY": "k"}, "", "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "", "disabled"),
        ({"WANDB_MODE": "online"}, "", "offline"),
        ({}, "machine api.wandb.ai\n  login user\n  password k\n", "online"),
        ({}, "machine github.com\n  login user\n  password k\n", "offline"),
        ({"WANDB_BASE_URL": "https://w.lab.example:8080"}, "machine w.lab.example login user password k", "online"),
        ({"WANDB_BASE_URL": "https://w.lab.example:8080"}, "machine w.lab.example:8080 login u password k", "online"),
        ({"WANDB_BASE_URL": "https://w.lab.example"}, "machine api.wandb.ai login user password k", "offline"),
        ({"WANDB_BASE_URL": "https://api.wandb.ai"}, "machine api.forge.coreweave.com login u password k", "online"),
        # the host that `wandb login` writes since the public server moved
        ({}, "machine api.forge.coreweave.com\n  login user\n  password k\n", "online"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/run/token"}, "", "online"),
        ({}, "machine", "offline"),
    ],
)
def test_mode_follows_the_key(
    fake: _FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], netrc: str, expected: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if netrc:
        file = tmp_path / "home" / ".netrc"
        file.write_text(netrc)
        file.chmod(0o600)
    WandbLogger(run_dir=tmp_path, run_info=_INFO)
    assert fake.calls[0]["mode"] == expected


@pytest.mark.parametrize(
    ("place", "group", "name"),
    [
        ("outputs/liver/20261120-09-abcd", None, "20261120-09-abcd"),
        ("outputs/sweeps/s1/trials/0007", "s1", "0007"),
        ("outputs/sweeps/s1/trials/0007/fold0", "s1", "0007/fold0"),
        ("outputs/s1/s1/rerun/0003-seed1", "s1", "rerun/0003-seed1"),
        ("outputs/sweeps/s1/trials/0007", "another", "20261120-09-abcd"),
        ("outputs/liver/s1", "s1", "20261120-09-abcd"),
        ("outputs/s1/s1", "s1", "s1"),
    ],
)
def test_the_runs_of_a_group_can_be_told_apart(
    fake: _FakeWandb, tmp_path: Path, place: str, group: str | None, name: str
) -> None:
    run_dir = tmp_path / place
    run_dir.mkdir(parents=True)
    WandbLogger(run_dir=run_dir, run_info=_INFO, group=group)
    assert (fake.calls[0]["name"], fake.calls[0]["group"]) == (name, group or "liver")


def test_a_trial_of_a_wandb_sweep_is_the_run_that_wandb_made(fake: _FakeWandb, tmp_path: Path) -> None:
    settings = {"sweep_id": "swp1", "run_id": "run1", "project": "p", "sweep_param_path": "/params.yaml"}
    job = tmp_path / "job.json"
    job.write_text(json.dumps(settings))
    WandbLogger(run_dir=tmp_path, run_info=_INFO, project="other", group="g", job=str(job))
    assert fake.setups == [settings]
    assert not {"id", "project", "entity", "name"} & fake.calls[0].keys()
    assert (fake.calls[0]["group"], fake.calls[0]["resume"]) == ("g", "allow")
    assert not (tmp_path / "wandb_id.txt").exists()


@pytest.mark.parametrize("content", [None, "{"])
def test_a_job_that_cannot_be_read(fake: _FakeWandb, tmp_path: Path, content: str | None) -> None:
    job = tmp_path / "job.json"
    if content is not None:
        job.write_text(content)
    with pytest.raises(MedtrainError, match=r"logger\.wandb\.job=.*job\.json cannot be read"):
        WandbLogger(run_dir=tmp_path, run_info=_INFO, job=str(job))
    assert fake.calls == []


def test_online_without_a_key_is_an_error_and_does_not_ask(fake: _FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a W&B key"):
        WandbLogger(run_dir=tmp_path, run_info=_INFO, mode="online")
    assert fake.calls == []


def test_a_service_that_refuses_is_an_error_at_the_start(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.failure = fake.Error("permission denied")
    with pytest.raises(MedtrainError, match="W&B cannot start: permission denied"):
        WandbLogger(run_dir=tmp_path, run_info=_INFO)


def test_a_resumed_run_has_the_same_id(fake: _FakeWandb, tmp_path: Path) -> None:
    WandbLogger(run_dir=tmp_path, run_info=_INFO).close()
    WandbLogger(run_dir=tmp_path, run_info=_INFO)
    assert fake.calls[0]["id"] == fake.calls[1]["id"]
    assert fake.calls[1]["resume"] == "allow"
    assert fake.run.finished


def test_what_is_sent(fake: _FakeWandb, tmp_path: Path) -> None:
    logger = WandbLogger(run_dir=tmp_path, run_info=_INFO)
    logger.log_scalars(7, 1, {"train/loss": 0.5})
    logger.log_image(7, "worst", np.zeros((2, 3, 3), np.uint8))
    logger.log_text(7, "note", "a < b")
    assert fake.run.logged == [
        {"step": 7, "epoch": 1, "train/loss": 0.5},
        {"step": 7, "worst": ("image", (2, 3, 3))},
        {"step": 7, "note": ("html", "<pre>a &lt; b</pre>")},
    ]
    assert ("*", {"step_metric": "step"}) in fake.run.metrics


_SCRIPT = """
import socket, sys
from pathlib import Path
import numpy as np
from medtrain.loggers.base import RunInfo
from medtrain.loggers.wandb import WandbLogger

def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"the network was used: {address}")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse
for first in (1, 3):
    logger = WandbLogger(run_dir=Path(sys.argv[1]), run_info=RunInfo(run_name="r", experiment="e", config={"seed": 1}))
    logger.resume(first - 1)
    for step in (first, first + 1):
        logger.log_scalars(step, 0, {"train/loss": 1 / step})
    logger.log_image(step, "worst", np.zeros((4, 4, 3), np.uint8))
    logger.log_text(step, "note", "hello")
    logger.flush()
    logger.close()
"""


def test_the_real_package_offline(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    run_id = (tmp_path / "wandb_id.txt").read_text()
    assert runs
    assert all(run_id in run.name for run in runs)  # a second run within the same second gets a number behind it
    assert sum(f.stat().st_size for run in runs for f in run.glob("*.wandb")) > 500
    assert json.dumps(done.stderr).count("Traceback") == 0
