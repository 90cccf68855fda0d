"""Tables of predictions that several processes write at the same time."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medtrain.errors import MedtrainError
from medtrain.inference import predictions
from medtrain.inference.predictions import CaseReport, PredictionFolder, PredictionTable, read_rows
from medtrain.inference.scans import Scan
from medtrain.run.lock import Holder

MODEL = {"run": "r"}

WORK = """
import sys
from pathlib import Path
from medtrain.inference.predictions import PredictionTable
out, name = Path(sys.argv[1]), sys.argv[2]
table = PredictionTable(out / "t.csv", out / "t.json", {"run": "r"}, columns=["case_id"], overwrite=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    row = {"case_id": f"{name}{number}", "status": "done"}
    table.enter(row["case_id"], row, at_once=True)
"""


def scan(name: str) -> Scan:
    return Scan(name, (Path(f"/scans/{name}.nii.gz"),))


def folder(out: Path, name: str, *, overwrite: bool = False, model: Any = None) -> PredictionFolder:
    return PredictionFolder(out, model or MODEL, [scan(name)], ["liver"], overwrite=overwrite)


def enter(into: PredictionFolder, name: str, status: Any = "done", voxels: int = 3) -> None:
    into.record(scan(name), CaseReport(name, status, voxels={"liver": voxels}, volume_ml={"liver": 1.0}))


def found(out: Path) -> dict[str, Any]:
    return {row["case_id"]: row for row in read_rows(out / "predictions.csv")}


def test_rows_of_others_stay(tmp_path: Path) -> None:
    one, other = folder(tmp_path, "a"), folder(tmp_path, "b")
    enter(one, "a")
    enter(other, "b", voxels=5)
    enter(one, "c")
    assert {name: row["voxels/liver"] for name, row in found(tmp_path).items()} == {"a": "3", "b": "5", "c": "3"}
    again = folder(tmp_path, "b", overwrite=True)
    assert set(found(tmp_path)) == {"a", "c"}
    enter(one, "a", status="failed")
    enter(again, "b", voxels=7)
    assert {name: row["status"] for name, row in found(tmp_path).items()} == {"a": "failed", "b": "done", "c": "done"}
    assert found(tmp_path)["b"]["voxels/liver"] == "7"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions.json"]


def test_another_model_that_takes_the_folder_meanwhile_is_told(tmp_path: Path) -> None:
    one = folder(tmp_path, "a")
    other = folder(tmp_path, "b", overwrite=True, model={"run": "s"})
    enter(other, "b")
    with pytest.raises(MedtrainError, match="another process has put predictions of another model or setting"):
        enter(one, "a")
    assert set(found(tmp_path)) == {"b"}


def test_two_processes_write_one_table(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WORK, str(tmp_path)]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen([*words, name], stdin=pipe, stdout=pipe, text=True) for name in ("a", "b")]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    rows = read_rows(tmp_path / "t.csv")
    assert len(rows) == 80
    assert [row["case_id"] for row in rows] == sorted(f"{name}{number}" for name in "ab" for number in range(40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.json"]


def test_a_lock_that_is_never_given_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = PredictionTable(tmp_path / "t.csv", tmp_path / "t.json", MODEL, columns=["case_id"], overwrite=False)
    monkeypatch.setattr(predictions, "_LONGEST_WAIT_S", 0.0)
    lock = tmp_path / ".t.csv.lock"
    lock.write_text(json.dumps(vars(Holder(7, 7, "elsewhere", "x"))))
    with pytest.raises(MedtrainError, match="process 7 on elsewhere") as error:
        table.enter("a", {"case_id": "a"}, at_once=True)
    assert str(lock) in str(error.value.hint)
    lock.unlink()
    table.enter("b", {"case_id": "b"}, at_once=True)
    assert [row["case_id"] for row in read_rows(tmp_path / "t.csv")] == ["a", "b"]


def test_a_scan_of_many_specks_is_read_again(tmp_path: Path) -> None:
    """Their scores would be longer than the longest cell that csv reads by default; the highest are kept."""
    csv.field_size_limit(131072)
    scores = [0.9999 - 1e-5 * number for number in range(30_000)]
    folder(tmp_path, "a").record(scan("a"), CaseReport("a", "done", lesions={"liver": scores}))
    row = found(tmp_path)["a"]
    assert row["lesions/liver"] == "30000"
    kept = row["lesion_scores/liver"].split()
    assert (len(kept), kept[0]) == (1000, "0.9999")
    assert float(kept[-1]) == pytest.approx(scores[999], abs=1e-4)
    folder(tmp_path, "a", overwrite=True)
    path = tmp_path / "predictions.csv"  # of an earlier version
    path.write_text(f"case_id,lesion_scores/liver\na,{'0.5178 ' * 30_000}\n")
    csv.field_size_limit(131072)
    assert len(found(tmp_path)["a"]["lesion_scores/liver"]) == 210_000
