"""Validation cases that the weights a run begins with were trained on are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medtrain.engine.initial import REPORT
from medtrain.engine.seen import seen_cases, warn_of_seen

FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]
MINE = {"dataset": "Liver", "root": "/data/liver", "cases": {"a": "1", "b": "2", "c": "3"}}


class Data:
    """A run's data with the validation cases a and c."""

    def describe(self) -> dict[str, Any]:
        return MINE

    def evaluation_cases(self, part: str, *, limit: int | None) -> list[str]:
        return ["a", "c"]


def _run(
    place: Path, *, fold: int | None = 0, init_from: Path | None = None, splits: Any = FOLDS, **facts: Any
) -> Path:
    place.mkdir()
    data = {"data": {"fold": fold}, **_begins(init_from)}
    (place / "config.yaml").write_text(yaml.safe_dump(data))
    (place / "data.json").write_text(json.dumps({**MINE, **facts}))
    (place / "splits.json").write_text(json.dumps(splits))
    return place


def _begins(path: Path | None, weights: str | None = None) -> dict[str, Any]:
    return {"trainer": {"init_from": None if path is None else str(path)}, "model": {"weights": weights}}


def test_the_training_part_of_a_run_and_of_those_before_it(tmp_path: Path) -> None:
    first = _run(tmp_path / "first")
    file = first / "checkpoints" / "step_1" / "ema.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    second = _run(tmp_path / "second", fold=1, init_from=file)
    assert seen_cases(_begins(first), MINE) == {"a": first, "b": first}
    assert seen_cases(_begins(file), MINE) == {"a": first, "b": first}
    assert seen_cases(_begins(None, str(file)), MINE) == {"a": first, "b": first}
    assert seen_cases(_begins(second), MINE) == {"b": second, "c": second, "a": first}
    assert set(seen_cases(_begins(_run(tmp_path / "all", fold=None)), MINE)) == {"a", "b", "c"}
    parts = {"train": ["c"], "val": ["a"], "test": ["b"]}  # of images
    assert set(seen_cases(_begins(_run(tmp_path / "images", splits=parts)), MINE)) == {"c"}


def test_weights_of_other_data_have_seen_nothing(tmp_path: Path) -> None:
    assert seen_cases(_begins(None), MINE) == {}
    assert seen_cases(_begins(None, "timm"), MINE) == {}
    (tmp_path / "w.pth").touch()
    assert seen_cases(_begins(tmp_path / "w.pth"), MINE) == {}
    other = {"dataset": "Spleen", "root": "/data/spleen", "cases": {"a": "7", "b": "2"}}
    # the same names; one of them is the very same scan
    assert set(seen_cases(_begins(_run(tmp_path / "other", **other)), MINE)) == {"b"}
    moved = _run(tmp_path / "moved", root="/elsewhere", cases={"a": "7", "b": "8", "c": "9"})
    assert set(seen_cases(_begins(moved), MINE)) == {"a", "b"}


def test_content_decides_where_it_is_known(tmp_path: Path) -> None:
    mine = {**MINE, "contents": {"a": "A", "b": "B", "c": "C"}}
    # another data set, of the same ids: nothing of it is known here
    other = _run(tmp_path / "other", dataset="Spleen", root="/other", contents={"a": "X", "b": "Y", "c": "Z"})
    assert seen_cases(_begins(other), mine) == {}
    # the same scans under other ids, prepared in another way, the labels changed
    facts = {"dataset": "Renamed", "root": "/other", "cases": {"p": "7", "q": "8"}, "contents": {"p": "C", "q": "N"}}
    renamed = _run(tmp_path / "renamed", splits=[{"train": ["p", "q"], "val": []}], **facts)
    assert seen_cases(_begins(renamed), mine) == {"c": renamed}
    # a case whose content only one of them knows is told by its id
    partly = _run(tmp_path / "partly", dataset="Spleen", root="/other", contents={"b": "N"})
    assert seen_cases(_begins(partly), mine) == {"a": partly}
    assert seen_cases(_begins(partly), {**MINE, "contents": {"b": "N"}}) == {"a": partly, "b": partly}
    # of two copies here, both have been seen
    assert set(seen_cases(_begins(renamed), {**MINE, "contents": {"a": "C", "b": "C", "c": "Q"}})) == {"a", "b"}


def test_files_that_were_saved_again_are_the_same_cases(tmp_path: Path) -> None:
    mine = {**MINE, "cases": {"a": "7", "b": "8", "c": "9"}, "contents": {"a": "A", "b": "B", "c": "C"}}
    contents = {"a": "X", "b": "Y", "c": "Z"}
    for name, facts in {"same": {}, "moved": {"root": "/other"}, "renamed": {"dataset": "Liver 2"}}.items():
        run = _run(tmp_path / name, contents=contents, **facts)
        assert seen_cases(_begins(run), mine) == {"a": run, "b": run}
    # what was trained on as `a` is called `c` now, and what is called `b` was validated on as `c`
    swapped = _run(tmp_path / "swapped", contents={"a": "C", "b": "X", "c": "B"})
    assert seen_cases(_begins(swapped), mine) == {"c": swapped}


def test_a_circle_ends(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", init_from=tmp_path / "run")
    assert set(seen_cases(_begins(run), MINE)) == {"a", "b"}


def test_it_is_said_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = _run(tmp_path / "first")
    (tmp_path / REPORT).write_text(json.dumps({"step": 7}))
    warn_of_seen(tmp_path, _begins(None), Data())  # type: ignore[arg-type]
    assert not caplog.records
    warn_of_seen(tmp_path, _begins(first), Data())  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"1 of 2 validation cases (a) were trained on by {first}, whose weights")
    facts = json.loads((tmp_path / REPORT).read_text())
    assert facts == {"step": 7, "validation cases it was trained on": "1 of 2", "seen": ["a"]}
