"""`medtrain plan`: what is printed, and that a saved plan trains exactly as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medtrain.registry import build

Command = Callable[..., int]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("plan")
    root = place / "phantom"
    build("data", {"name": "phantom", "root": str(root), "num_cases": 4, "num_test_cases": 0}).discover()
    return [
        "data=msd", f"data.root={root}", f"data.store={place / 'store'}", "data.num_folds=2", "data.spacing=[9,9,9]",
        "model.channels=[4,8,16]", "trainer.precision=fp32", "trainer.num_threads=1", "trainer.device=cpu",
    ]  # fmt: skip


def test_a_saved_plan_is_trained_exactly(
    words: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.yaml"
    assert medtrain("plan", *words, "--out", file) == 0
    shown = capsys.readouterr()
    text = shown.out
    for title in ("data\n", "fingerprint of the training part\n", "plan\n", "network\n", "cost\n"):
        assert title in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["data.spacing"].split(maxsplit=4)[-1] == "given"
    assert "median case" in lines["data.patch_size"]
    assert "measured: " in lines["step"]
    assert "2 train, 2 val" in lines["cases"]
    assert lines["memory"].split()[2] == "GiB"
    assert file.read_text().splitlines()[0] == "# @package _global_"
    assert "the median case" in file.read_text()

    quick = ["trainer.max_steps=1", "trainer.final_evaluation=false", "trainer.sanity_check=false",
             "task.surface_metrics=never", "logger=[]", "callbacks=[]"]  # fmt: skip
    straight, planned = tmp_path / "straight", tmp_path / "planned"
    assert medtrain("train", *words, *quick, f"run.dir={straight}") == 0
    assert medtrain("train", f"experiment={file}", *quick, f"run.dir={planned}") == 0
    one, other = (json.loads((run / "plan.json").read_text()) for run in (straight, planned))
    assert one.pop("reasons") != other.pop("reasons")  # there it follows, here it is given
    assert one == other

    capsys.readouterr()
    # edited by hand to what does not fit, or overridden: the same checks as of anything typed
    file.write_text(file.read_text().replace("batch_size: 2", "batch_size: 3"))
    assert medtrain("plan", f"experiment={file}", "data.patch_size=[16,16]") == 2
    assert "data.patch_size: 2 values where 3 are needed" in capsys.readouterr().err
    assert medtrain("show", f"experiment={file}", "--origin", "--format", "flat") == 0
    origin = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("data.batch_size="))
    assert origin.startswith("data.batch_size=3  # ")
    assert str(file) in origin


def test_an_edited_value_keeps_no_reason_of_another(
    words: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    file, again = tmp_path / "plan.yaml", tmp_path / "again.yaml"
    assert medtrain("plan", *words, "--out", file) == 0
    (before,) = (line for line in file.read_text().splitlines() if line.startswith("  batch_size: 2"))
    assert before.startswith("  batch_size: 2  # planned 2: ")  # whatever is written before it, this stays true
    reason = before.partition("planned 2: ")[2]
    assert "  spacing: [9.0, 9.0, 9.0]  # given" in file.read_text()
    file.write_text(file.read_text().replace("  batch_size: 2  #", "  batch_size: 3  #"))
    capsys.readouterr()
    assert medtrain("plan", f"experiment={file}", "--out", again) == 0
    (shown,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  data.batch_size"))
    assert shown.split() == ["data.batch_size", "3", "given"]
    assert "  batch_size: 3  # given\n" in again.read_text()
    assert reason not in again.read_text()


def test_images_have_a_plan_too(tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=phantom_images", f"data.root={tmp_path / 'p'}", "data.num_samples=40", "model=cnn",
             f"data.store={tmp_path / 'store'}", "trainer.device=cpu"]  # fmt: skip
    assert medtrain("plan", *words) == 0
    text = capsys.readouterr().out
    assert "data.image_size" in text
    assert "parameters" in text
    assert "fingerprint" not in text


def test_a_plan_is_saved_as_yaml(words: list[str], medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert medtrain("plan", *words, "--out", "plan.json") == 2
    assert "hint: --out plan.yaml" in capsys.readouterr().err


def test_a_gpu_that_is_not_here_can_be_planned_for(
    words: list[str],
    tmp_path: Path,
    medtrain: Command,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "plan.yaml"
    words = [
        *[word for word in words if not word.startswith(("model.", "trainer.p", "data.spacing"))],
        "data.patch_size=null",
    ]
    assert medtrain("plan", *words, "--gpu", 24, "--out", file) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "a GPU with 24 GiB, as --gpu says" in lines["device"]
    assert "not measured" in lines["step"]
    assert float(lines["memory"].split()[1]) > 0
    assert "channels: [32, 64" in file.read_text()  # a CPU gets 16

    assert medtrain("plan", *words, "--gpu", 24, "--out", file) == 2
    assert "it exists, and may have been edited" in capsys.readouterr().err
    assert medtrain("plan", *words, "--gpu", 24, "--measure") == 2

    assert medtrain("plan", *words, "data.memory_gib=24") == 0
    assert "data.memory_gib is of a GPU, and a CPU trains" in caplog.text
