from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medtrain.run.provenance import (
    TYPED,
    command_line,
    environment,
    git_state,
    mask_command,
    mask_secrets,
    package_versions,
)

_WANDB = "0123456789abcdef0123456789abcdef01234567"
_HF = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("api_key", "abc", "***"),
        ("apiKey", "abc", "***"),
        ("token", "abc", "***"),
        ("hf_token", "abc", "***"),
        ("password", "a b", "***"),
        ("db-password", "x", "***"),
        ("client_secret", "x", "***"),
        ("deploy_key", "a1B2c3D4e5F6g7H8", "***"),
        ("label_key", "diagnosis", "diagnosis"),
        ("tokenizer", "word_piece", "word_piece"),
        ("keypoints", "left_eye", "left_eye"),
        ("num_tokens", 128, 128),
        ("token", None, None),
        ("note", f"uses {_HF} here", "uses *** here"),
        ("note", f"key {_WANDB}", "key ***"),
        ("git_commit", _WANDB, _WANDB),
        ("storage", "postgresql://me:pw@host/db", "postgresql://***@host/db"),
        ("root", "/data/Task04", "/data/Task04"),
    ],
)
def test_mask_secrets(key: str, value: object, expected: object) -> None:
    assert mask_secrets({"a": [{key: value}]}) == {"a": [{key: expected}]}


def test_mask_command() -> None:
    argv = ["medtrain", "train", "logger.wandb.api_key=abc", "--token", "abc", "--password=x", "note=token", "seed=1"]
    assert mask_command(argv) == [
        *("medtrain", "train", "logger.wandb.api_key=***", "--token", "***", "--password=***", "note=token", "seed=1")
    ]


def test_environment_is_json_and_holds_no_secret() -> None:
    env = environment(["medtrain", "train", f"logger.wandb.api_key={_WANDB}"])
    text = json.dumps(env)
    assert _WANDB not in text
    assert json.loads(text) == env
    assert env["packages"]["torch"].count(".") >= 2
    assert env["cpu"]["cores"] >= 1
    assert env["cpu"]["memory_gib"] > 0.1
    assert env["command"][1] == "train"
    assert env["processes"] == 1


def test_what_was_typed_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/medtrain", "train", "a=1"])
    assert command_line() == ["/bin/medtrain", "train", "a=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(TYPED, json.dumps(["/bin/medtrain", "train", "--nproc", "2", "a=1"]))
    env = environment(command_line())
    assert env["command"] == ["medtrain", "train", "--nproc", "2", "a=1"]
    assert env["processes"] == 2


def test_package_versions_are_of_the_dependencies() -> None:
    versions = package_versions()
    assert {"torch", "numpy", "nibabel", "hydra-core"} <= set(versions)
    assert "medtrain" not in versions
    assert "pytest" in versions  # extras that are installed count


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-m", "one")
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["branch"], state["dirty"]) == (40, "main", False)
    (tmp_path / "new.txt").write_text("untracked files are not changes")
    assert git_state(tmp_path) == state
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_no_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path.cwd()) is None
