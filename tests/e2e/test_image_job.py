"""Images by the commands a user types: train, predict, judge, export."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def test_train_predict_and_export(
    medtrain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "phantom", tmp_path / "run"
    words = ["data=phantom_images", f"data.root={data}", f"data.store={tmp_path / 'store'}", "data.num_samples=24"]
    words += ["data.phantom_size=16", "data.image_size=16", "task=classification", "model=cnn", "data.batch_size=4"]
    words += ["trainer.max_steps=2", "trainer.num_threads=1", "logger=[csv]", "callbacks=[]", f"run.dir={run}"]
    words += ["trainer.precision=fp32", "trainer.device=cpu", "trainer.sanity_check=false"]
    assert medtrain("train", *words) == 0
    judged = _rows(run / "evaluation" / "cases.csv")

    # the validation images alone, in a folder as they were: the same numbers
    for case_id in judged:
        target = tmp_path / "val" / f"{case_id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((data / f"{case_id}.png").read_bytes())
    assert medtrain("predict", run, tmp_path / "val", tmp_path / "out", "--device", "cpu") == 0
    found = _rows(tmp_path / "out" / "predictions.csv")
    assert set(found) == set(judged)
    keys = [key for key in next(iter(judged.values())) if key.startswith("prob/")]
    assert keys
    assert all(found[case_id][key] == judged[case_id][key] for case_id in judged for key in keys)

    # what the validation part has to decide first is said, with what to type
    assert medtrain("predict", run, tmp_path / "val", tmp_path / "calibrated", "inference.calibrate=true") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"medtrain evaluate {run} inference.calibrate=true" in said
    assert not (tmp_path / "calibrated").exists()

    assert medtrain("export", run, "--format", "torch_export") == 0
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    kinds = [entry["kind"] for entry in manifest["files"][0]["parity"]["inputs"]]
    assert kinds[:2] == ["random", "random"]
    assert kinds[2].startswith("case ")
