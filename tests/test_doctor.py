"""The doctor's verdicts on machines that are not this one."""

from __future__ import annotations

import errno
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from medtrain import doctor, registry
from medtrain.cli.doctor import doctor as doctor_command
from medtrain.doctor import Check
from medtrain.errors import MedtrainError

REQUIREMENTS = [
    Requirement(text)
    for text in (
        "torch>=2.9",
        "hydra-core<1.4,>=1.3.2",
        "peft>=0.15; extra == 'lora'",
        "onnx>=1.18; extra == 'export'",
        "onnxruntime>=1.20; extra == 'export'",
    )
]
APP = typer.Typer()
APP.command()(doctor_command)


def _usage(free_gib: float) -> SimpleNamespace:
    return SimpleNamespace(total=100 * 2**30, used=0, free=int(free_gib * 2**30))


@pytest.mark.parametrize(("running", "status"), [("3.10.14", "error"), ("3.11.0", "ok"), ("3.14.0rc1", "ok")])
def test_python(running: str, status: str) -> None:
    check = doctor.check_python(">=3.11", running)
    assert check.status == status
    assert running in check.message
    assert ">=3.11" in check.message


def test_packages_within_their_ranges() -> None:
    versions = {"torch": "2.15.0+cu132", "hydra-core": "1.3.8"}
    (check,) = doctor.check_packages(REQUIREMENTS, versions.get)
    assert check.status == "ok"
    assert check.message.startswith("2 of 2 within their ranges")
    assert check.facts["versions"] == versions


def test_each_missing_or_wrong_package_is_an_error_with_the_command() -> None:
    summary, torch, hydra = doctor.check_packages(REQUIREMENTS, {"hydra-core": "1.4.0"}.get)
    assert summary.message.startswith("0 of 2")
    assert (torch.status, torch.message) == ("error", "torch is not installed")
    assert torch.hint == "pip install 'torch>=2.9'"
    assert (hydra.status, hydra.message) == ("error", "hydra-core 1.4.0 is outside <1.4,>=1.3.2")


def test_extras_are_notes_and_say_how_to_install_them() -> None:
    versions = {"torch": "2.15.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"}
    lora, export = doctor.check_extras(["lora", "export", "dev"], REQUIREMENTS, versions.get)
    assert (lora.topic, lora.status) == ("extra lora", "note")
    assert lora.message == "peft is not installed"
    assert lora.hint == "pip install 'medtrain[lora]'"
    assert (export.topic, export.status) == ("extra export", "ok")
    assert export.message == "onnx 1.23.2, onnxruntime 1.31.1"


def test_a_torch_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file\nmore") if name == "torchvision" else None

    monkeypatch.setattr(importlib, "import_module", lambda name: fail(name) if name == "torchvision" else sys)
    (check,) = doctor.check_torch()
    assert check.status == "error"
    assert check.message == (
        "torchvision is installed and cannot be imported: libcudart.so.13: cannot open shared object file"
    )


def test_a_driver_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (check, *_) = doctor.check_torch()
    assert (check.topic, check.status) == ("cuda", "warning")
    assert "built without CUDA" in check.message

    monkeypatch.setattr(shutil, "which", lambda name: None)
    (check, *_) = doctor.check_torch()
    assert (check.topic, check.status) == ("cuda", "note")


@pytest.mark.parametrize(("free_gib", "status"), [(0.1, "error"), (5.0, "warning"), (50.0, "ok")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or _usage(free_gib))
    check = doctor.check_disk(tmp_path / "not" / "yet" / "there")
    assert check.status == status
    assert asked == [tmp_path]
    assert f"{free_gib:.1f} GiB free" in check.message


def test_a_read_only_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check = doctor.check_disk(tmp_path)
    assert check.status == "error"
    assert "Read-only file system" in check.message


@pytest.mark.parametrize(("free_gib", "status"), [(0.0625, "warning"), (8.0, "ok")])
def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _usage(free_gib))
    (check,) = doctor.check_shared_memory(tmp_path)
    assert check.status == status
    assert doctor.check_shared_memory(tmp_path / "absent") == []


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.engine.device.memory_gib", lambda device: 2.0)
    assert doctor.check_memory().status == "warning"
    monkeypatch.setattr("medtrain.engine.device.memory_gib", lambda device: 64.0)
    assert doctor.check_memory().status == "ok"


def test_wandb_never_shows_the_key(tmp_path: Path) -> None:
    store = tmp_path / "netrc"
    base = {"NETRC": str(store)}
    assert doctor.check_wandb(base).facts["mode"] == "offline"
    store.write_text("machine api.wandb.ai login user password 0123456789abcdef\n")
    store.chmod(0o600)
    check = doctor.check_wandb(base)
    assert check.facts["mode"] == "online"
    assert "0123456789abcdef" not in repr(check)
    assert doctor.check_wandb({**base, "WANDB_BASE_URL": "https://wandb.clinic.example"}).facts["mode"] == "offline"
    check = doctor.check_wandb({"WANDB_API_KEY": "0123456789abcdef"})
    assert check.facts["mode"] == "online"
    assert "0123456789abcdef" not in repr(check)
    assert doctor.check_wandb({"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}).facts["mode"] == "disabled"


def test_a_plugin_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        raise MedtrainError("the plug-in lab (lab.nets) cannot be imported: no module named lab", hint="mend it")

    monkeypatch.setattr(registry, "load_plugins", fail)
    check = doctor.check_plugins()
    assert (check.status, check.hint) == ("error", "mend it")


def test_the_command_prints_a_verdict_and_returns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [Check("python", "ok", "3.12.1"), Check("shm", "warning", "0.06 GiB free", "use --shm-size=8g")]
    monkeypatch.setattr(doctor, "examine", lambda: good)
    result = CliRunner().invoke(APP, [])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "ok       python  3.12.1",
        "warning  shm     0.06 GiB free",
        "                 hint: use --shm-size=8g",
        "",
        "medtrain can train on this machine",
    ]

    monkeypatch.setattr(doctor, "examine", lambda: [*good, Check("disk", "error", "0.1 GiB free", "free some space")])
    result = CliRunner().invoke(APP, ["--json"])
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert report["healthy"] is False
    assert report["checks"][-1] == {
        "topic": "disk",
        "status": "error",
        "message": "0.1 GiB free",
        "hint": "free some space",
        "facts": {},
    }


def test_this_machine_is_examined(in_tmp: Path) -> None:
    checks = doctor.examine()
    topics = {check.topic for check in checks}
    assert {"python", "packages", "cpu", "memory", "disk", "wandb", "components", "plug-ins"} <= topics
    assert json.loads(json.dumps([dict(check.facts) for check in checks]))
    assert list(in_tmp.iterdir()) == []
