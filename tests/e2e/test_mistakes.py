"""The likeliest mistakes: one clear sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=unett"], ["unknown model `unett`", "did you mean `model=unet`?"]),
        (["modl=unet"], ["modl", "did you mean `model`?"]),
        (["model.chanels=[8,16]"], ["model.chanels: unknown key", "did you mean `model.channels`?"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "'fast'"]),
        (["trainer.max_time=20"], ["trainer.max_time", '"20min"']),
        (["+model.extra=1"], ["model.extra: unknown key"]),
        (["optimizer.lr=1e-3,1e-4"], ["medtrain sweep"]),
        (["inference.keep_largest=[livr]"], ["livr"]),
        (["task.monitor=dise"], ["task.monitor=dise is not a metric", "did you mean task.monitor=dice"]),
        (["data.fold=3"], ["data.fold=3, but there are 3 folds", "0 to 2"]),
        (["data.num_folds=7"], ["6 patients cannot be divided into 7 folds"]),
        (["data.splits=nowhere.json"], ["data.splits: no such file", "nowhere.json"]),
        (["data.group_pattern='(x)'"], ["finds no patient in 6 of 6 case ids"]),
        (["loss=tversky", "loss.alpha=0", "loss.beta=0"], ["loss.alpha and loss.beta are both 0"]),
    ],
)
def test_mistakes_in_the_configuration(
    common: list[str],
    tmp_path: Path,
    medtrain: Command,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: list[str],
) -> None:
    run = tmp_path / "run"
    code = medtrain("train", *common, *words, "trainer.max_steps=1", f"run.dir={run}")
    error = capsys.readouterr().err
    for part in expected:
        assert part in error
    assert "Traceback" not in error
    assert code == 2
    assert not run.exists()


def test_all_problems_come_at_once(medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert medtrain("train", "model.dropuot=0.1", "optimizer.lr=-1", "loss=dic_ce") == 2
    error = capsys.readouterr().err
    for part in ("model.dropuot", "model.dropout", "optimizer.lr", "-1", "dic_ce", "dice_ce"):
        assert part in error


def test_a_missing_data_root(tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert medtrain("train", "data=msd_liver", f"data.root={tmp_path}/nowhere", f"run.dir={run}") == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "medicaldecathlon" in error
    assert not run.exists()


def test_an_empty_folder(tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert medtrain("train", "data=msd", f"data.root={tmp_path}/empty", f"run.dir={tmp_path}/run") == 2
    assert "is an empty folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_cuda(common: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert medtrain("train", *common, "trainer.device=cuda", f"run.dir={tmp_path}/run") == 2
    assert "no CUDA device is available" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _first(root: Path, kind: str) -> Path:
    return sorted((root / kind).glob("*.nii.gz"))[0]


def _rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def _undeclared(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[:2, :2, :2] = 7
    return array


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("undeclared label value", "7"),
        ("shapes differ", "shape"),
        ("truncated", "truncated"),
        ("missing label", "no such file"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_damaged_data(
    broken: Path, tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str],
    damage: str, expected: str, verb: str,
) -> None:  # fmt: skip
    image, label = _first(broken, "imagesTr"), _first(broken, "labelsTr")
    if damage == "undeclared label value":
        _rewrite(label, _undeclared)
    elif damage == "shapes differ":
        _rewrite(label, lambda array: array[:-3])
    elif damage == "truncated":
        image.write_bytes(image.read_bytes()[:3000])
    else:
        label.unlink()
    run, store = tmp_path / "run", tmp_path / "store"
    words = ["data=msd", f"data.root={broken}", f"data.store={store}", "data.num_folds=3"]
    if verb == "train":
        code = medtrain("train", *words, f"run.dir={run}", "trainer.max_steps=1")
    else:
        code = medtrain("data", "check", *words)
    captured = capsys.readouterr()
    assert code == 1
    text = " ".join((captured.out + captured.err).split())
    assert image.name in text or label.name in text
    assert expected in text
    assert "Traceback" not in text
    assert not run.exists() or not list(run.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_while_saving(
    common: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    monkeypatch.setattr("medtrain.engine.checkpoint.torch.save", full)
    assert medtrain("train", *common, "trainer.max_steps=2", "trainer.sanity_check=false", f"run.dir={run}") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    assert not list((run / "checkpoints").glob("*step_*"))


def test_a_folder_that_holds_a_run_already(
    common: list[str], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [*common, "trainer.max_steps=1", "trainer.sanity_check=false", "trainer.final_evaluation=false"]
    assert medtrain("train", *words, f"run.dir={run}") == 0
    before = (run / "metrics.jsonl").read_bytes()
    assert medtrain("train", *words, f"run.dir={run}") == 2
    assert f"medtrain resume {run}" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_resume_of_what_is_no_run(tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert medtrain("resume", tmp_path) == 2
    assert "is not a run" in capsys.readouterr().err
