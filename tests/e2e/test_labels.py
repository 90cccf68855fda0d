"""Several channels, regions, ignored voxels and partly annotated cases through the command line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from tests.e2e.brain import REGIONS, TINY, make_brains
from tests.e2e.conftest import read_rows

Command = Callable[..., int]


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_brains(tmp_path_factory.mktemp("brains") / "Task01_Brain")


def words(root: Path, tmp_path: Path, *more: str) -> list[str]:
    run = f"run.dir={tmp_path / 'run'}"
    return ["data=msd", f"data.root={root}", f"data.store={root.parent / 'store'}", run, *TINY, *more]


def table(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation" / "cases.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_four_channels_in_one_file(brains: Path, tmp_path: Path, medtrain: Command) -> None:
    assert medtrain("train", *words(brains, tmp_path)) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["in_channels"] == 4
    assert plan["channel_names"] == ["FLAIR", "T1w", "t1gd", "CT"]
    # each channel by its own scheme and numbers: the last is called CT
    assert [channel["scheme"] for channel in plan["normalization"]] == ["zscore"] * 3 + ["ct"]
    assert 100 < plan["normalization"][3]["mean"] < 250
    out = tmp_path / "predicted"
    assert medtrain("predict", tmp_path / "run", brains / "imagesTr" / "brain_0.nii.gz", out) == 0
    values = np.asarray(nib.load(out / "brain_0.nii.gz").dataobj)
    assert values.shape == (22, 20, 18)
    assert set(np.unique(values)) <= {0, 1, 2, 3}


def test_regions_are_trained_judged_and_predicted(brains: Path, tmp_path: Path, medtrain: Command) -> None:
    assert medtrain("train", *words(brains, tmp_path, REGIONS, "loss=dice_bce", "task.monitor=dice/tumour_core")) == 0
    run = tmp_path / "run"
    plan = json.loads((run / "plan.json").read_text())
    assert plan["regions"] == [[1, 2, 3], [2, 3], [3]]
    assert plan["class_names"] == ["background", "edema", "core", "enhancing"]
    last = [row for row in read_rows(run) if "val/dice" in row][-1]
    assert {"val/dice/whole", "val/dice/tumour_core", "val/dice/active"} <= last.keys()
    assert "val/dice/edema" not in last
    judged = {key.partition("/")[2] for key in table(run)[0] if "/" in key}
    assert judged == {"whole", "tumour_core", "active"}

    assert medtrain("predict", run, brains / "imagesTr" / "brain_0.nii.gz", tmp_path / "predicted") == 0
    assert set(np.unique(np.asarray(nib.load(tmp_path / "predicted" / "brain_0.nii.gz").dataobj))) <= {0, 1, 2, 3}
    assert medtrain("evaluate", run) == 0
    # the order of painting survives: a fold of a cross-validation plans with what was saved
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert list(saved["data"]["regions"]) == ["whole", "tumour_core", "active"]
    assert list(saved) == sorted(saved)


def test_a_softmax_is_refused_before_anything_is_made(
    brains: Path, tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert medtrain("train", *words(brains, tmp_path, REGIONS)) == 2
    assert "loss=dice_bce" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert medtrain("train", *words(brains, tmp_path, "loss=dice_bce")) == 2
    assert "data.regions" in capsys.readouterr().err


def test_regions_of_dataset_json(tmp_path: Path, medtrain: Command) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "inner": [2, 3], "ignore": 4}
    root = make_brains(tmp_path / "Dataset001_Brain", ignore=True, labels=labels, regions_class_order=[1, 3])
    assert medtrain("train", *words(root, tmp_path, "loss=tversky")) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["regions"] == [[1, 2, 3], [3, 2]]
    assert plan["region_names"] == ["whole", "inner"]
    assert plan["ignore_index"] == 4
    assert all(math.isfinite(row["train/loss"]) for row in read_rows(tmp_path / "run") if "train/loss" in row)


def test_partly_annotated_cases(brains: Path, tmp_path: Path, medtrain: Command) -> None:
    known = tmp_path / "annotated.json"
    known.write_text(json.dumps({f"brain_{index}": ["core"] for index in range(6)} | {"brain_3": []}))
    assert medtrain("train", *words(brains, tmp_path, f"data.annotated={known}")) == 0
    rows = table(tmp_path / "run")
    assert "brain_3" in [row["case_id"] for row in rows]  # of which nothing can be judged
    for row in rows:
        assert math.isnan(float(row["dice/edema"]))
        assert math.isnan(float(row["dice/core"])) == (row["case_id"] == "brain_3")
    losses = [row["train/loss"] for row in read_rows(tmp_path / "run") if "train/loss" in row]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
