"""A config written as an experiment file gives the same run again, from anywhere."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from medtrain.config.catalog import options
from medtrain.config.compose import Composed, load_config
from medtrain.config.paths import conf_dir
from medtrain.config.render import experiment_yaml
from medtrain.config.space import Space
from medtrain.config.sweeps import load_sweep


def read_back(composed: Composed, folder: Path, **where: Any) -> dict[str, Any]:
    """The tree that the file gives, without the run folder, whose own place is never in it."""
    file = folder / "again.yaml"
    file.write_text(experiment_yaml(composed, comment="Tried."), encoding="utf-8")
    tree = load_config([f"experiment={file}"], **where).tree
    tree["run"]["dir"] = composed.tree["run"].get("dir")
    return tree


CASES = {
    "nothing": [],
    "values": ["optimizer.lr=1e-05", "seed=7", "model.channels=[4,8,16]", "optimizer.eps=1e-12"],
    "groups": ["loss=focal", "optimizer=sgd", "callbacks=[]", "logger=[jsonl]", "augment=none"],
    "callbacks": ["callbacks=[early_stopping,curves]", "callbacks.early_stopping.patience=3"],
    "an experiment": ["experiment=nnunet", "optimizer.momentum=0.5"],
    "debug": ["debug=smoke", "experiment=hippocampus_20min"],
    "texts": ["run.note='1e3'", "run.tags=['007','a: b # c','null','1_0','yes',\"it's\"]", "data.root='~/my scans'"],
    "mappings": ["data.merge_labels={liver:[liver,cancer],a\\ b:['1']}"],
    "null": ["trainer.ema_decay=null", "trainer.clip_norm=null", "data.patch_size=null"],
    "the run": ["run.dir=somewhere", "run.experiment=mine", "run.root=else"],
    "rules": ["optimizer.rules=[{pattern: 'enc*', lr_mult: 0.1}]"],
    "required": ["data=msd", "data.root=/scans"],
    "the environment": ["data=msd_liver"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_run_again(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_DATA", "/scans")
    composed = load_config(CASES[case])
    assert read_back(composed, tmp_path) == composed.tree
    assert "somewhere" not in (tmp_path / "again.yaml").read_text()


def test_it_is_short_and_says_what_it_is() -> None:
    text = experiment_yaml(load_config(["loss=focal", "optimizer.lr=0.01"]), comment="Trial 7.\n\nval/dice 0.9")
    assert text == (
        "# @package _global_\n# Trial 7.\n#\n# val/dice 0.9\ndefaults:\n  - override /loss: focal\n\n"
        "optimizer:\n  lr: 0.01\n"
    )
    assert experiment_yaml(load_config(), comment="As it is.") == "# @package _global_\n# As it is.\n"


def test_the_environment_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_DATA", "/scans")
    assert "/scans" not in experiment_yaml(load_config(["data=msd_liver"]), comment="")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder that shadows, adds and sets."""
    folder = tmp_path / "mine"
    for name, text in {
        "loss/mine.yaml": "defaults: [focal, _self_]\ngamma: 3\n",
        "loss/dice_ce.yaml": "defaults: [schema/dice_ce@_here_, _self_]\nce_weight: 0.5\n",
        "local/default.yaml": "# @package _global_\nseed: 9\n",
        "experiment/lab.yaml": "# @package _global_\ndefaults:\n  - override /loss: mine\ntrainer:\n  max_steps: 11\n",
        "callbacks/patient.yaml": "defaults: [schema/early_stopping@patient, _self_]\npatient:\n  patience: 99\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["experiment=lab"],
        ["loss=mine", "callbacks=[patient,curves]"],
        ["loss=dice", "seed=0"],
        ["experiment=lab", "loss=focal", "trainer.max_steps=null"],
    ],
)
def test_it_needs_no_folder_of_the_user(words: list[str], mine: Path, tmp_path: Path) -> None:
    composed = load_config(words, config_dirs=[mine])
    assert read_back(composed, tmp_path) == composed.tree
    assert read_back(composed, tmp_path, config_dirs=[mine]) == composed.tree


# --- sweeps


def some_points(space: Space, count: int) -> list[dict[str, Any]]:
    """Points that cover both ends of every dimension, then random ones."""
    draw = random.Random(0)
    points = []
    for index in range(count):
        params: dict[str, Any] = {}
        for dimension in space.dimensions:
            if not dimension.is_active(params):
                continue
            known = dimension.values()
            if known is not None:
                params[dimension.key] = known[index % len(known)] if index < 4 else draw.choice(known)
            else:
                share = (0.0, 1.0)[index] if index < 2 else draw.random()
                params[dimension.key] = dimension.low + share * (dimension.high - dimension.low)  # type: ignore[operator]
        points.append(params)
    return points


@pytest.mark.parametrize("preset", [name for name in options("sweep") if name != "default"])
def test_every_point_of_a_preset_is_a_run_that_can_be_written(preset: str, tmp_path: Path) -> None:
    config = load_sweep([f"sweep={preset}"])
    for params in some_points(config.space, 4):
        words = [*config.overrides, *config.space.overrides(params), f"run.dir={tmp_path}/x"]
        composed = load_config(words)
        assert read_back(composed, tmp_path) == composed.tree
        for dimension in config.space.active(params):
            value = params[dimension.key]
            if dimension.kind != "choice":
                group, _, key = dimension.key.partition(".")
                assert composed.tree[group][key] == value


@pytest.mark.parametrize(
    "words",
    [
        ["sweep=unet_basics", "experiment=nnunet", "debug=smoke", "loss=dice_ce,focal"],
        ["sweep=quick", "experiment=lab"],
        ["experiment=lab,nnunet", "loss=mine,dice_ce", "loss.gamma=1,2", "optimizer.momentum=0.5,0.9"],
        ["data=msd", "data.root=/scans", "loss=choice(mine,tversky,dice_ce)", "loss.ce_weight=interval(0.1,1)"],
    ],
)
def test_trials_of_composed_sweeps(words: list[str], mine: Path, tmp_path: Path) -> None:
    config = load_sweep(words, config_dirs=[mine])
    assert load_config(config.overrides, config_dirs=[mine]).tree == config.train.tree
    for params in some_points(config.space, 4):
        composed = load_config([*config.overrides, *config.space.overrides(params)], config_dirs=[mine])
        assert read_back(composed, tmp_path) == composed.tree
        run = load_config([*config.full_overrides, *config.space.overrides(params)], config_dirs=[mine])
        changed = {key for key in run.tree if run.tree[key] != composed.tree[key]}
        assert changed <= {"callbacks", "logger", "trainer"}
        assert run.tree["trainer"]["final_evaluation"] is ("debug=smoke" not in words)


def test_presets_say_what_they_are() -> None:
    for path in sorted((conf_dir() / "sweep").glob("*.yaml")):
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        assert first.startswith("# "), path
        assert first.endswith("."), path
        space = yaml.safe_load("\n".join(rest)).get("space", {})
        assert bool(space) == (path.stem != "default"), path


@pytest.mark.parametrize(
    ("preset", "typed"),
    [
        ("unet_basics", ["loss=dice"]),
        ("unet_basics", ["optimizer=sgd", "loss=focal,ce"]),
        ("optimization", ["optimizer=adam", "scheduler=constant"]),
        ("augmentation", ["augment=auto", "optimizer.lr=1e-3,1e-2"]),
    ],
)
def test_the_entries_of_a_preset_give_way(preset: str, typed: list[str]) -> None:
    config = load_sweep([f"sweep={preset}", *typed])
    assert config.notes or preset == "unet_basics"
    for params in some_points(config.space, 2):
        load_config([*config.overrides, *config.space.overrides(params)])
