"""Checking many configs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medtrain.config.check import check_all
from medtrain.errors import UsageError


def test_everything_that_ships(conf: Any) -> None:
    conf.write("experiment/good.yaml", "# @package _global_\nseed: 1\n")
    conf.write("experiment/bad.yaml", "# @package _global_\nseed: -1\n")
    found = dict(check_all([]))
    assert len(found) == 1 + 24 + 2  # train, the toy components, the experiments
    assert [name for name, problems in found.items() if problems] == ["experiment=bad"]
    assert str(found["experiment=bad"][0]) == "seed: must be >= 0, got -1 (conf/experiment/bad.yaml)"


def test_a_required_value_is_asked_for_when_the_component_is_named(conf: Any) -> None:
    assert dict(check_all([]))["model=swin"] == ()
    [(name, problems)] = check_all(["model=swin", "seed=1"])
    assert name == "model=swin seed=1"
    assert [problem.where for problem in problems] == ["model.heads"]


@pytest.mark.usefixtures("conf")
def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\n")
    (tmp_path / "b.yaml").write_text("sede: 1\n")
    found = dict(check_all([str(tmp_path / "*.yaml"), "loss=focal"]))
    assert [len(problems) for problems in found.values()] == [0, 1]
    with pytest.raises(UsageError, match=r"there is no file no\*\.yaml"):
        list(check_all(["no*.yaml"]))
