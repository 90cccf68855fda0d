"""Labelled images through the command line, on the engine that segments: every task trains, resumes and is judged."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import read_rows

Command = Callable[..., int]

QUICK = [
    "trainer.device=cpu", "trainer.precision=fp32", "trainer.num_threads=1", "logger=[csv,jsonl]",
    "callbacks=[previews]", "trainer.max_steps=4", "trainer.eval_every=2step", "trainer.checkpoint_every=1step",
    "trainer.log_every=1step", "task.report.resamples=20",
]  # fmt: skip
CNN = ["model=cnn", "model.channels=[4,8]"]

TASKS = {
    "phantom_images": ([*CNN, "data.num_samples=40", "data.phantom_size=16"], "val/f1_macro"),
    "phantom_multilabel": ([*CNN, "data.num_samples=40", "data.phantom_size=16"], "val/auroc"),
    "phantom_grades": ([*CNN, "data.num_samples=40", "data.phantom_size=16"], "val/qwk"),
    "phantom_regression": ([*CNN, "data.num_samples=40", "data.phantom_size=16"], "val/mae"),
    "phantom_survival": ([*CNN, "data.num_samples=40", "data.phantom_size=16"], "val/c_index"),
    "phantom_zones": ([*CNN, "data.num_samples=24", "data.phantom_size=16"], "val/f1_macro"),
    "phantom_bags": (["model.arch=cnn", "data.num_samples=12", "data.max_bag=8", "data.phantom_size=12"], "val/auroc"),
    "phantom_views": (["model.arch=cnn", "data.num_samples=12", "data.image_size=[4,16,16]"], "val/auroc"),
    "phantom_multimodal": (["model.arch=cnn", "data.num_samples=40", "data.phantom_size=16"], "val/auroc"),
}
"""Data -> a small network and little data, and what decides which weights are best unless the user says otherwise."""


@pytest.fixture
def words(tmp_path: Path) -> Callable[[str], list[str]]:
    """What trains on a kind of data in seconds."""

    def of(data: str) -> list[str]:
        return [
            f"data={data}",
            f"data.root={tmp_path / data}",
            f"data.store={tmp_path / 'store'}",
            *QUICK,
            *TASKS[data][0],
        ]

    return of


@pytest.mark.parametrize("data", TASKS)
def test_every_task_trains_and_is_judged(
    data: str, words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command
) -> None:
    run = tmp_path / "run"
    assert medtrain("train", *words(data), f"run.dir={run}") == 0
    monitor = TASKS[data][1]
    rows = {row["step"]: row for row in read_rows(run)}
    assert monitor in rows[4], sorted(rows[4])
    assert all(rows[step]["train/loss"] > 0 for step in rows)
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    with (run / "evaluation" / "cases.csv").open(newline="") as file:
        cases = [row["case_id"] for row in csv.DictReader(file)]
    parts = json.loads((run / "splits.json").read_text())
    assert sorted(cases) == sorted(parts["val"])
    assert summary["num_cases"] == len(parts["val"])
    assert monitor.removeprefix("val/") in summary["intervals"]
    best = json.loads((run / "status.json").read_text())["best"]
    assert best["metric"] == monitor
    assert "Final evaluation" in (run / "report.md").read_text()


def test_resume_after_kill_9_is_bit_identical(
    words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert medtrain("train", *words("phantom_images"), f"run.dir={straight}") == 0
    script = (
        "import os, signal\n"
        "from medtrain.engine.loop import Engine\n"
        "original = Engine.train_step\n"
        "def train_step(self, batches):\n"
        "    if self.step == 3:\n"
        "        next(batches)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(self, batches)\n"
        "Engine.train_step = train_step\n"
        "from medtrain.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "train", *words("phantom_images"), f"run.dir={killed}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert medtrain("resume", killed, "data.num_workers=2") == 0
    for name in ("model", "ema"):
        a, b = (load_file(run / "checkpoints" / "step_00000004" / f"{name}.safetensors") for run in (straight, killed))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    for name in ("metrics.csv", "metrics.jsonl", "evaluation/cases.csv"):
        assert (straight / name).read_bytes() == (killed / name).read_bytes(), name


def test_what_the_validation_part_decides_is_used_on_the_test_part(
    words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command
) -> None:
    run = tmp_path / "run"
    assert medtrain("train", *words("phantom_multimodal"), f"run.dir={run}", "inference.threshold=youden") == 0
    (entry,) = json.loads((run / "decisions.json").read_text()).values()
    assert medtrain("evaluate", run, "--part", "test") == 0
    summary = json.loads((run / "evaluation" / f"test_step_{entry['step']:08d}" / "summary.json").read_text())
    assert summary["part"] == "test"
    assert summary["decision"] == entry["decision"]
    # another setting was never decided on: the validation part is judged first, the test part decides nothing
    assert medtrain("evaluate", run, "--part", "test", "inference.calibrate=true", "inference.threshold=0.5") == 0
    assert [sorted(kept["decision"]) for kept in json.loads((run / "decisions.json").read_text()).values()] == [
        sorted(entry["decision"]),
        ["temperature"],
    ]


def test_time_is_divided_by_the_events_of_the_training_part(
    words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command
) -> None:
    run = tmp_path / "run"
    assert medtrain("train", *words("phantom_survival"), "loss=discrete_survival", f"run.dir={run}") == 0
    times = json.loads((run / "plan.json").read_text())["event_times"]
    assert times == sorted(times)
    assert 5 < len(times) <= 40
    # as many logits as intervals: 10
    assert load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")["head.weight"].shape == (10, 8)
    assert "val/c_index" in read_rows(run)[-1]
    assert medtrain("evaluate", run) == 0


def test_thresholds_in_order_through_the_command_line(
    words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    ordinal = [*words("phantom_grades"), "model.head=ordinal"]
    assert medtrain("train", *ordinal, "loss=ordinal", f"run.dir={run}") == 0
    weights = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert weights["head.score.weight"].shape == (1, 8)
    assert medtrain("train", *ordinal, "loss=ce", f"run.dir={tmp_path / 'refused'}") != 0
    assert "loss.form=cumulative" in capsys.readouterr().err


def test_the_check_names_what_is_wrong_with_a_table(
    tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text("file,grade\na.png,0\nb.png,1\n")
    table = ["data=csv", f"data.path={tmp_path / 'labels.csv'}", "data.images=[file]", "data.targets=[grade]"]
    assert medtrain("data", "check", *table) == 1
    said = capsys.readouterr().out
    assert "a.png" in said
    assert "b.png" in said


def test_a_loss_of_another_kind_is_refused_before_anything_is_made(
    words: Callable[[str], list[str]], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert medtrain("train", *words("phantom_images"), "loss=huber", f"run.dir={run}") == 2
    assert "hint: for classes: task=classification with loss=ce or focal" in capsys.readouterr().err
    assert not run.exists()
