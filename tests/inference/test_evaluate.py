"""What is said of parts that hold no case: each family of data is divided in its own way."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from medtrain.errors import UsageError
from medtrain.inference.evaluate import _choose_cases, _tell_each


class Parts:
    """Two cases to train on, and none besides."""

    def evaluation_cases(self, part: str, *, limit: int | None) -> list[str]:
        return ["a1", "a2"] if part == "train" else []


@pytest.mark.parametrize(
    ("part", "segments", "hint"),
    [
        ("val", True, "--part train: a run with data.fold=null is trained on every case"),
        ("test", True, "--part val: scans are divided into folds, and none is kept back to test"),
        ("val", False, "--part train: with data.shares=[..,0,..] none is held out"),
        ("test", False, "--part val: of folds (data.fold) and with data.shares=[..,..,0] none is kept back to test"),
    ],
)
def test_an_empty_part_says_what_to_judge_instead(part: str, segments: bool, hint: str) -> None:
    data: Any = Parts()
    with pytest.raises(UsageError, match=f"the {part} part of this run has no cases") as caught:
        _choose_cases(data, part, (), segments=segments)
    assert caught.value.hint == hint


def test_cases_are_found_in_any_part() -> None:
    data: Any = Parts()
    assert _choose_cases(data, "val", ["a2"], segments=True) == ["a2"]
    with pytest.raises(UsageError, match="no such case"):
        _choose_cases(data, "val", ["b"], segments=True)


def test_cases_that_were_asked_for_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    def told(record: dict[str, Any]) -> str:
        return "cat, 0.93 sure" if "image" in record else ""

    def summary_table(records: list[dict[str, Any]], summary: dict[str, float], *, title: str) -> str:
        (record,) = records
        return f"{title}: dice {summary['dice']:.2f} of {record['case_id']}"

    def summarize(records: list[dict[str, Any]]) -> dict[str, float]:
        return {"dice": math.fsum(record["dice"] for record in records) / len(records)}

    run: Any = SimpleNamespace(task=SimpleNamespace(told=told, summary_table=summary_table, summarize=summarize))
    records: list[Any] = [{"case_id": "a", "dice": 0.5}, {"case_id": "b", "dice": 0.75}, {"case_id": "c", "image": 1}]
    _tell_each(run, records)
    assert capsys.readouterr().err == "a: dice 0.50 of a\nb: dice 0.75 of b\nc: cat, 0.93 sure\n"
