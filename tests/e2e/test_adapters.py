"""A frozen network with adapters through the command line: small checkpoints that need the file they were made with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., int]

SMALL = [
    "data=phantom_images", "data.num_samples=24", "data.phantom_size=32", "data.image_size=32", "data.batch_size=4",
    "data.channels=3",
    "model.arch=test_vit", "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_threads=1", "logger=[jsonl]",
    "callbacks=[]", "trainer.eval_every=2step", "trainer.checkpoint_every=1step", "trainer.log_every=1step",
    "task.report.resamples=20",
]  # fmt: skip


def write_weights(path: Path, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    source: Any = timm.create_model("test_vit", num_classes=0, img_size=32)
    save_file(source.state_dict(), path)
    return path


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*SMALL, f"data.root={tmp_path / 'data'}", f"data.store={tmp_path / 'store'}"]


def test_a_run_with_adapters_needs_its_base_and_leaves_what_it_learned(
    words: list[str],
    tmp_path: Path,
    medtrain: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    run, moved = tmp_path / "run", tmp_path / "elsewhere.safetensors"
    base = write_weights(tmp_path / "base.safetensors")
    monkeypatch.chdir(tmp_path)
    arguments = [*words, "model=vit_lora", "model.weights=base.safetensors", "trainer.max_steps=4"]
    assert medtrain("train", *arguments, f"run.dir={run}") == 0
    log = (run / "log.txt").read_text()
    assert "trainable" in log
    assert "frozen" in log

    saved = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert all(".lora_" in name or name.startswith("head.") for name in saved), list(saved)
    assert sum(path.stat().st_size for path in (run / "adapter").iterdir()) < base.stat().st_size / 4
    network: Any = timm.create_model("test_vit", num_classes=0, img_size=32)
    network.load_state_dict(load_file(base))
    peft.PeftModel.from_pretrained(network, str(run / "adapter"))
    assert "adapter_model.safetensors" in (run / "report.md").read_text()

    capsys.readouterr()
    shutil.move(base, moved)
    assert medtrain("evaluate", run) != 0
    assert f"there are no weights at {base}" in capsys.readouterr().err
    assert medtrain("evaluate", run, "model.weights=elsewhere.safetensors") == 0
    write_weights(base, seed=4)
    assert medtrain("evaluate", run) != 0
    assert "not those that the run was trained with" in capsys.readouterr().err

    assert medtrain("resume", run, "model.weights=elsewhere.safetensors", "trainer.max_steps=5") == 0
    assert (run / "checkpoints" / "step_00000005" / "model.safetensors").stat().st_size < moved.stat().st_size / 4
    assert str(moved) in (run / "config.yaml").read_text()  # the next resume finds it from any folder


def test_a_run_that_learned_everything_needs_no_file(
    words: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "run", write_weights(tmp_path / "base.safetensors")
    assert (
        medtrain("train", *words, "model=timm", f"model.weights={base}", "trainer.max_steps=2", f"run.dir={run}") == 0
    )
    assert not (run / "adapter").exists()
    base.unlink()
    assert medtrain("evaluate", run) == 0
    assert medtrain("resume", run, "trainer.max_steps=3") == 0

    other, moved = write_weights(tmp_path / "other.safetensors", seed=4), write_weights(tmp_path / "moved.safetensors")
    capsys.readouterr()
    for command in ("resume", "evaluate"):
        limit = ["trainer.max_steps=4"] if command == "resume" else []
        assert medtrain(command, run, f"model.weights={other}", *limit) == 2
        assert "cannot become" in capsys.readouterr().err
    assert medtrain("resume", run, "model.weights=null", "trainer.max_steps=4") == 2
    assert medtrain("resume", run, f"model.weights={moved}", "trainer.max_steps=4") == 0
