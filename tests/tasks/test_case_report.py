"""Intervals and subgroups of segmented cases, with a table of metadata."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medtrain.errors import DataError, UsageError
from medtrain.metrics.cases import metric_specs, summarize
from medtrain.metrics.shown import report_tables
from medtrain.metrics.tables import write_evaluation
from medtrain.tasks.case_report import CaseColumns, CaseReport, case_tables

NAMES = ("background", "liver", "tumour")
NAN = math.nan


def _records() -> list[dict[str, Any]]:
    """Three patients, the second with two cases; the tumour is missing from one case."""
    dice = [(0.9, 0.5), (0.8, 0.4), (0.6, NAN), (0.7, 0.7)]
    return [
        {"case_id": case, "group": group, "dice/liver": liver, "dice/tumour": tumour, "hd95_mm/liver": 2.0}
        for case, group, (liver, tumour) in zip("abcd", ("p", "q", "q", "r"), dice)
    ]


def _table(folder: Path, text: str) -> str:
    path = folder / "cases_table.csv"
    path.write_text(text)
    return str(path)


def test_intervals_draw_patients_with_their_cases() -> None:
    report = CaseReport(resamples=400, confidence=0.9)
    rows = case_tables(_records(), NAMES, CaseColumns(report), report)["intervals"]
    found = {row["metric"]: row for row in rows}
    assert {key: row["value"] for key, row in found.items()} == pytest.approx(summarize(_records(), NAMES), nan_ok=True)
    # by patient the livers have the values 0.9, {0.8, 0.6}, 0.7: no draw is beyond 0.7 and 0.9
    assert 0.7 <= found["dice/liver"]["low"] < 0.75 < found["dice/liver"]["high"] <= 0.9
    assert found["hd95_mm/liver"]["low"] == found["hd95_mm/liver"]["high"] == 2.0
    # drawing q alone leaves a single tumour: defined, for q has one; the mean is the mean of the classes' means
    assert found["dice"]["undefined"] == 0
    again = case_tables(_records()[::-1], NAMES, CaseColumns(report), report)["intervals"]
    assert [row["low"] for row in again] == pytest.approx([row["low"] for row in rows], nan_ok=True)


def test_subgroups_of_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _table(tmp_path, "case_id,site,age\na,north,30\nb,south,50\nc,south,n/a\n")
    report = CaseReport(resamples=0, metadata=path, subgroups=("site", "age"), bins={"age": (40.0,)})
    with caplog.at_level(logging.WARNING):
        rows = case_tables(_records(), NAMES, CaseColumns(report), report)["subgroups"]
    assert "1 of 4 cases are not in" in caplog.text
    found = {
        (row["column"], row["subgroup"]): (row["n_samples"], row["n_patients"], row["value"])
        for row in rows
        if row["metric"] == "dice/liver"
    }
    assert found == {
        ("all", "all"): (4, 3, pytest.approx(0.75)),
        ("site", "north"): (1, 1, 0.9),
        ("site", "south"): (2, 1, pytest.approx(0.7)),
        ("site", "missing"): (1, 1, 0.7),
        ("age", "<40"): (1, 1, 0.9),
        ("age", ">=40"): (1, 1, 0.8),
        ("age", "missing"): (2, 2, pytest.approx(0.65)),
    }


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("case_id,site\na,n\n", {"subgroups": ("sit",)}, "sit is no column"),
        ("id,site\na,n\n", {"subgroups": ("site",)}, "has no column case_id; it has id, site"),
        ("case,age\na,old\n", {"subgroups": ("age",), "bins": {"age": (40.0,)}}, "holds 'old'"),
        ("case,age\na,1\n", {"subgroups": ("age",), "bins": {"age": (4.0, 2.0)}}, "must ascend"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CaseColumns(CaseReport(metadata=_table(tmp_path, text), **settings))


def test_a_case_twice_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3 lists the case 'a' a second time"):
        CaseColumns(CaseReport(metadata=_table(tmp_path, "case_id,site\na,n\na,s\n"), subgroups=("site",)))
    with pytest.raises(UsageError, match="are columns of a table, and there is none"):
        CaseColumns(CaseReport(subgroups=("site",)))


def test_written_and_shown(tmp_path: Path) -> None:
    records = _records()
    path = _table(tmp_path, "case_id,site\na,[bold]\nb,s\nc,s\nd,s\n")
    report = CaseReport(resamples=50, metadata=path, subgroups=("site",))
    out = tmp_path / "evaluation"
    out.mkdir()
    tables = case_tables(records, NAMES, CaseColumns(report), report)
    write_evaluation(out, records, summarize(records, NAMES), tables=tables)
    with (out / "intervals.csv").open(newline="") as file:
        written = {row["metric"]: row for row in csv.DictReader(file)}
    facts = json.loads((out / "summary.json").read_text())
    assert facts["intervals"]["dice"] == [float(written["dice"]["low"]), float(written["dice"]["high"])]
    assert facts["confidence"] == 0.95
    assert "NaN" in facts["empty"]
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    for table in report_tables(out, metric_specs(NAMES), monitor="dice"):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    low, high = facts["intervals"]["dice/liver"]
    assert f"0.750 [{low:.3f}, {high:.3f}]" in text
    assert "site [bold]" in text
    assert "\u2026" not in text
    # evaluated again without: what was said before is gone
    write_evaluation(out, records, summarize(records, NAMES))
    assert not report_tables(out, metric_specs(NAMES), monitor="dice")
    assert "intervals" not in json.loads((out / "summary.json").read_text())


def test_intervals_of_images_are_shown_by_metric(tmp_path: Path) -> None:
    head = "metric,value,low,high,confidence,resamples,undefined\n"
    (tmp_path / "intervals.csv").write_text(f"{head}auroc,0.9,0.8,0.95,0.95,9,0\nrecall/a,0.5,0.1,0.9,0.95,9,0\n")
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(*report_tables(tmp_path, {}, monitor="auroc"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.900 [0.800, 0.950]" in text
    assert "recall" not in text


def test_one_patient_has_no_interval() -> None:
    report = CaseReport(resamples=20)
    rows = case_tables(_records()[1:3], NAMES, CaseColumns(report), report)["intervals"]
    assert all(np.isnan(row["low"]) for row in rows)
