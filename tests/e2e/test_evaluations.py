"""Evaluations keep their tables whatever becomes of the pictures, and single cases get only what says something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medtrain.errors import UsageError
from medtrain.tasks.images import ImageTask
from tests.e2e.test_images import QUICK
from tests.inference.image_runs import picture

Command = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two classes in folders, so that the ids of samples are paths."""
    root = tmp_path_factory.mktemp("classes")
    for place, (part, name) in enumerate((part, name) for part in ("train", "val") for name in ("cat", "dog")):
        for index in range(4):
            picture(root / "images" / part / name / f"{index}.png", 10 * place + index, (16, 16))
    return ["data=image_folder", f"data.root={root / 'images'}", f"data.store={root / 'store'}", "data.image_size=16"]


def _train(data: list[str], run: Path, medtrain: Command) -> int:
    model = ["model=cnn", "model.channels=[4,8]", "callbacks=[]", "task.report.resamples=0"]
    return medtrain("train", *data, *QUICK, *model, "trainer.max_steps=2", "trainer.eval_every=2step", f"run.dir={run}")


def _fails(monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception) -> list[bool]:
    """Make every drawing fail; returns whether the tables in a folder were there by then."""
    there: list[bool] = []

    def pictures(self: ImageTask, records: Any, style: Any) -> Any:
        there.append((folder / "cases.csv").exists() and (folder / "summary.json").exists())
        raise error

    monkeypatch.setattr(ImageTask, "pictures", pictures)
    return there


def test_a_picture_that_fails_costs_neither_the_run_nor_an_evaluation(
    data: list[str],
    tmp_path: Path,
    medtrain: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    there = _fails(monkeypatch, run / "evaluation", ValueError("no room for the legend"))
    assert _train(data, run, medtrain) == 0
    assert there == [True]
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    said = "pictures of the evaluation failed: ValueError: no room for the legend"
    assert said in capsys.readouterr().err

    there = _fails(monkeypatch, run / "evaluation" / "train_step_00000002", ValueError("no room for the legend"))
    assert medtrain("evaluate", run, "--part", "train") == 0
    assert there == [True]
    assert said in capsys.readouterr().err

    # a mistake in the settings is told as one, and the tables stay
    there = _fails(monkeypatch, run / "evaluation" / "val_step_00000002", UsageError("no such channel"))
    assert medtrain("evaluate", run, "--part", "val", "inference.mirror=true") == 2
    assert there == [True]
    assert "no such channel" in capsys.readouterr().err


def test_a_single_case_gets_its_own_pictures_in_one_folder(data: list[str], tmp_path: Path, medtrain: Command) -> None:
    run = tmp_path / "run"
    assert _train(data, run, medtrain) == 0
    assert (run / "evaluation" / "confusion.png").exists()
    assert medtrain("evaluate", run, "--case", "val/cat/1", "--case", "train/dog/0") == 0
    (out,) = (run / "evaluation").glob("cases_val_cat_1_and_1_more_*_step_*")
    assert not [path for path in out.iterdir() if path.is_dir()]
    assert sorted(path.name for path in out.glob("*.png")) == [
        "train_dog_0.png",
        "train_dog_0_explained.png",
        "val_cat_1.png",
        "val_cat_1_explained.png",
    ]
    rows = (out / "cases.csv").read_text().splitlines()
    assert len(rows) == 3
