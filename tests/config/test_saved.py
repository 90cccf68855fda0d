"""Reading the config of a run back."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtrain.config.compose import load_config
from medtrain.config.render import to_yaml
from medtrain.config.saved import load_saved
from medtrain.errors import ConfigError, MedtrainError, UsageError


@pytest.fixture
def run(conf: object, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config(["optimizer=sgd", "seed=4"]).tree))
    return folder


def test_round_trip(run: Path) -> None:
    assert load_saved(run) == load_config(["optimizer=sgd", "seed=4"]).tree


def test_values_can_be_changed(run: Path) -> None:
    changed = load_saved(run, ["trainer.max_steps=9", "optimizer.lr=1"])
    assert changed["trainer"]["max_steps"] == 9
    assert changed["optimizer"] == {"name": "sgd", "lr": 1.0, "momentum": 0.9}


def test_all_problems_at_once(run: Path) -> None:
    text = (run / "config.yaml").read_text().replace("momentum: 0.9", "momentum: fast")
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_saved(run, ["model=swin", "trainer.max_stps=9", "~seed"])
    assert [str(problem) for problem in caught.value.problems] == [
        "~seed: nothing can be removed: `~` is not used (command line)",
        "model=swin: the components of a run cannot be exchanged (command line)",
        f"optimizer.momentum: expected float, got 'fast' ({run}/config.yaml)",
        "trainer.max_stps: unknown key (command line)",
    ]


@pytest.mark.usefixtures("conf")
def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        load_saved(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"is not a run: it has no config\.yaml"):
        load_saved(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(MedtrainError, match="not valid YAML"):
        load_saved(tmp_path)
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(MedtrainError, match="must be a mapping"):
        load_saved(tmp_path)


def test_a_run_names_no_modules_to_import(run: Path) -> None:
    text = (run / "config.yaml").read_text().replace("name: sgd", "name: os.system")
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"unknown optimizer `os\.system`"):
        load_saved(run)
