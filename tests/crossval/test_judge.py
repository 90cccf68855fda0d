"""Which fold judges a case, and what `medtrain evaluate` hands on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medtrain.crossval import judge, launch
from medtrain.crossval.folder import RECORD, judged_by
from medtrain.errors import UsageError


def _fold(path: Path, name: str, *cases: str) -> None:
    place = path / name / "evaluation"
    place.mkdir(parents=True)
    (place / "cases.csv").write_text("".join(f"{line}\n" for line in ("case_id,dice", *(f"{c},1" for c in cases))))


def test_a_case_is_judged_by_the_done_fold_that_held_it_out(tmp_path: Path) -> None:
    _fold(tmp_path, "fold_0", "a", "b")
    _fold(tmp_path, "fold_1", "c")
    _fold(tmp_path, "fold_2", "d")
    (tmp_path / "cases.csv").write_text("case_id,fold,dice\na,0,1\n")  # put together before fold 1 was done
    members = ("fold_0", "fold_1")
    assert [judged_by(tmp_path, members, case) for case in "abc"] == ["fold_0", "fold_0", "fold_1"]
    for case in ("d", "unknown"):  # fold 0 may be trained on it
        with pytest.raises(UsageError, match=f"--case {case}: no fold that is done"):
            judged_by(tmp_path, members, case)


def test_the_device_alone_has_the_folds_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medtrain: Callable[..., int]
) -> None:
    (tmp_path / RECORD).write_text("{}")
    calls: list[str] = []
    monkeypatch.setattr(judge, "judge_folds", lambda path, words, **told: calls.append(told["device"]))
    monkeypatch.setattr(launch, "evaluate_crossval", lambda path, **told: calls.append("put together"))
    assert medtrain("evaluate", tmp_path, "--device", "cpu") == 0
    assert medtrain("evaluate", tmp_path) == 0
    assert calls == ["cpu", "put together"]
