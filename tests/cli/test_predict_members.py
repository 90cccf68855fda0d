"""Which runs `medtrain predict` opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medtrain.cli.predict import _members
from medtrain.errors import UsageError


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, overrides: Any = (), *, imports: Any = ()) -> dict[str, Any]:
        keep = [o.split("=")[1] for o in overrides if o.startswith("inference.keep_largest")]
        return {"run": path.name, "inference": {"keep_largest": keep, "overlap": 0.5}}

    monkeypatch.setattr("medtrain.config.saved.load_saved", load)


def crossval(path: Path, members: list[str]) -> Path:
    path.mkdir()
    record = {
        "num_folds": 3,
        "split_hashes": ["a", "b", "c"],
        "members": members,
        "postprocess": {"keep_largest": ["liver"]},
    }
    (path / "crossval.json").write_text(json.dumps(record))
    (path / "status.json").write_text("{}")
    return path


@pytest.mark.usefixtures("saved")
def test_a_run_is_itself(tmp_path: Path) -> None:
    (member,) = _members(tmp_path / "run", (), ())
    assert member.path == tmp_path / "run"
    assert member.config == member.trained


@pytest.mark.usefixtures("saved")
def test_a_cross_validation_is_its_members_with_its_post_processing(tmp_path: Path) -> None:
    folder = crossval(tmp_path / "x-crossval", ["fold_0", "fold_2"])
    members = _members(folder, (), ())
    assert [member.path for member in members] == [folder / "fold_0", folder / "fold_2"]
    assert all(member.config["inference"] == {"keep_largest": ["liver"], "overlap": 0.5} for member in members)
    asked = _members(folder, ("inference.keep_largest=spleen",), ())
    assert asked[0].config["inference"]["keep_largest"] == ["spleen"]


@pytest.mark.usefixtures("saved")
def test_a_cross_validation_without_trained_folds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no fold of .* is trained yet"):
        _members(crossval(tmp_path / "x-crossval", []), (), ())
