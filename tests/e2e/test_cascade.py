"""Two resolutions: a first stage that sees all of a case coarsely, and a second one that sees its label maps, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.e2e.brain import TINY, make_brains
from tests.e2e.conftest import read_rows

Command = Callable[..., int]
SMALL = [word for word in TINY if not word.startswith("data.patch_size")]


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_brains(tmp_path_factory.mktemp("brains") / "Task01_Brain", cases=3)


def words(root: Path, run: Path, *more: str) -> list[str]:
    return ["data=msd", f"data.root={root}", f"data.store={root.parent / 'store'}", f"run.dir={run}", *SMALL, *more]


LOW = ("data.resolution=low", "data.patch_size=[8,8,8]")


@pytest.fixture(scope="module")
def low(brains: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished first stage."""
    from medtrain.config.compose import load_config
    from medtrain.engine.launch import start_run

    run = tmp_path_factory.mktemp("low") / "run"
    composed = load_config(words(brains, run, *LOW))
    assert start_run(composed.tree, overrides=composed.overrides).exit_code == 0
    return run


def test_a_low_resolution_is_trained_and_predicts_at_full_resolution(low: Path, brains: Path, tmp_path: Path) -> None:
    plan = json.loads((low / "plan.json").read_text())
    assert plan["spacing"][0] > 1.25  # a quarter of 8^3 / (18 x 20 x 22) of the voxels
    assert np.prod(plan["patch_size"]) >= 0.25 * np.prod(plan["median_shape"])


def test_a_second_stage_is_trained_resumed_judged_and_applied(
    low: Path, brains: Path, tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run, behind = tmp_path / "run", f"data.cascade_from={low}"
    assert medtrain("train", *words(brains, run, "data.patch_size=[16,16,16]", behind)) == 0
    log = (run / "log.txt").read_text()
    assert "the first stage segments 3 of 3 cases" in log
    assert log.count("was trained on 2 of 3 cases") == 1
    plan = json.loads((run / "plan.json").read_text())
    assert plan["in_channels"] == 4
    assert plan["cascade"]["structures"] == [[1], [2], [3]]
    assert plan["spacing"] == [1.0, 1.0, 1.0]
    assert len(list((brains.parent / "store" / "cases").glob("*/hints_*.b2nd"))) == 3

    assert medtrain("resume", run, "trainer.max_steps=4") == 0
    assert max(row["step"] for row in read_rows(run)) == 4
    assert "the first stage segments" not in (run / "log.txt").read_text().split("resumed at")[-1]
    assert medtrain("evaluate", run) == 0
    assert medtrain("predict", run, brains / "imagesTr", tmp_path / "predicted") == 0
    values = np.asarray(nib.load(tmp_path / "predicted" / "brain_0.nii.gz").dataobj)
    assert values.shape == (22, 20, 18)

    assert medtrain("export", run, "--format", "torchscript", "--out", tmp_path / "exported") == 0
    assert (tmp_path / "exported" / "first_stage_0" / "model.torchscript.pt").is_file()
    assert "with it goes the first stage: run at step" in capsys.readouterr().err


def test_a_prediction_of_a_scan_is_that_of_the_evaluation(
    low: Path, brains: Path, tmp_path: Path, medtrain: Command
) -> None:
    run = tmp_path / "run"
    more = ["data.patch_size=[16,16,16]", f"data.cascade_from={low}", "trainer.save_predictions=true"]
    assert medtrain("train", *words(brains, run, *more)) == 0
    assert medtrain("predict", run, brains / "imagesTr", tmp_path / "predicted") == 0
    (judged,) = list(run.rglob("brain_*.nii.gz"))
    one, other = (np.asarray(nib.load(path).dataobj) for path in (judged, tmp_path / "predicted" / judged.name))
    np.testing.assert_array_equal(one, other)


def test_a_first_stage_that_is_gone_is_told(
    low: Path, brains: Path, tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    shutil.copytree(low, first)
    more = ["data.patch_size=[16,16,16]", f"data.cascade_from={first}", "trainer.max_steps=1"]
    assert medtrain("train", *words(brains, run, *more)) == 0
    first.rename(tmp_path / "moved")
    assert medtrain("predict", run, brains / "imagesTr", tmp_path / "predicted") != 0
    error = capsys.readouterr().err
    assert "this network needs the one it was trained behind, and that is missing" in error
    assert "data.cascade_from=FOLDER" in error
    moved = f"data.cascade_from={tmp_path / 'moved'}"
    assert medtrain("predict", run, brains / "imagesTr", tmp_path / "predicted", moved) == 0


def test_a_cross_validated_first_stage_predicts_out_of_fold(brains: Path, tmp_path: Path, medtrain: Command) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    assert medtrain("crossval", *words(brains, first, *LOW, "trainer.max_steps=1")) == 0
    more = ["data.patch_size=[16,16,16]", f"data.cascade_from={first}", "trainer.max_steps=1"]
    assert medtrain("train", *words(brains, run, *more)) == 0
    log = (run / "log.txt").read_text()
    assert "the first stage segments 3 of 3 cases" in log
    assert "was trained on" not in log
    assert len(json.loads((run / "plan.json").read_text())["cascade"]["members"]) == 3
    assert medtrain("predict", run, brains / "imagesTr", tmp_path / "predicted") == 0
