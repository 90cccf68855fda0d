"""Lesions, intervals, subgroups of a table and the comparison of runs, through the command line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., int]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _better(run: Path, copy: Path) -> None:
    """A copy of a run that is better by 0.1 in the Dice of the liver, in every case but the last."""
    shutil.copytree(run, copy)
    rows = _rows(copy / "evaluation" / "cases.csv")
    for row in rows[:-1]:
        row["dice/liver"] = repr(float(row["dice/liver"]) + 0.1)
    with (copy / "evaluation" / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_judged_and_compared(
    common: list[str], medtrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, table = tmp_path / "first", tmp_path / "table.csv"
    lesions = ["task.lesions=[cancer]", "task.nsd_tolerance_mm={liver: 3}"]
    assert (
        medtrain("train", *common, *lesions, "trainer.max_steps=3", "trainer.eval_every=3step", f"run.dir={run}") == 0
    )
    cases = _rows(run / "evaluation" / "cases.csv")
    assert all(row["group"] == row["case_id"] for row in cases)
    for row in cases:
        found, missed, false = (float(row[f"lesions_{key}/cancer"]) for key in ("found", "missed", "false"))
        candidates = row["lesion_peaks/cancer"].split()
        hits = {lesion for item in candidates for lesion in item.partition(":")[2].split("+") if lesion}
        assert len(hits) >= found  # lower thresholds may find more
        assert sum(item.endswith(":") for item in candidates) >= min(false, 2000)
        assert found + missed >= 1
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["intervals"].keys() >= {"dice", "dice/liver", "nsd/cancer", "lesion_sensitivity/cancer"}
    froc = [float(row["sensitivity"]) for row in _rows(run / "evaluation" / "froc.csv")]
    assert len(froc) == 7
    assert summary["mean"]["froc"] == pytest.approx(sum(froc) / 7)
    assert "With 95 % intervals" in (run / "report.md").read_text()

    table.write_text("case_id,site\n" + "".join(f"{row['case_id']},{'ns'[i % 2]}\n" for i, row in enumerate(cases)))
    capsys.readouterr()
    assert medtrain("evaluate", run, f"task.report.metadata={table}", "task.report.subgroups=[site]") == 0
    said = capsys.readouterr().err
    assert "95 % intervals, patients drawn again" in said
    assert "site n" in said
    (folder,) = (run / "evaluation").glob("val_step_*")
    groups: dict[tuple[str, str], Any] = {
        (row["subgroup"], row["metric"]): row for row in _rows(folder / "subgroups.csv")
    }
    chosen = [float(row["dice/liver"]) for i, row in enumerate(cases) if i % 2 == 0]
    assert float(groups["n", "dice/liver"]["value"]) == pytest.approx(sum(chosen) / len(chosen))
    assert int(groups["n", "dice/liver"]["n_samples"]) == len(chosen)

    second, out = tmp_path / "second", tmp_path / "out.json"
    _better(run, second)
    assert medtrain("compare", run, second, "--resamples", 50, "--metric", "dice/liver", "--out", out) == 0
    assert "A = first, B = second: val" in capsys.readouterr().out
    (comparison,) = json.loads(out.read_text())["comparisons"]
    by_name = {item["metric"]: item for item in comparison["differences"]}
    assert by_name["dice/liver"]["difference"] == pytest.approx(0.1 * (len(cases) - 1) / len(cases))
    assert by_name["hd95_mm/liver"]["difference"] == 0
    assert {"froc", "lesion_fp/cancer", "nsd"} <= by_name.keys()
    assert len(comparison["apart"]) == len(cases) - 1
    assert math.isclose(comparison["apart"][0][2] - comparison["apart"][0][1], 0.1, abs_tol=1e-9)
    assert medtrain("compare", run, second, "--part", "test") == 2
    assert "has not been evaluated on its test part" in capsys.readouterr().err
