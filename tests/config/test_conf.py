"""Everything that ships in conf/ composes, and every component fits its schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from medtrain import registry
from medtrain.config.annotations import check, describe
from medtrain.config.check import check_all
from medtrain.config.compose import load_config
from medtrain.config.paths import PRESET_GROUPS, conf_dir
from medtrain.registry import plain

FILES = sorted(path.relative_to(conf_dir()).with_suffix("").as_posix() for path in conf_dir().rglob("*.yaml"))
OPTIONS = [
    (group, option) for file in FILES if "/" in file for group, option in [file.split("/", 1)] if group != "trial"
]
BUILTIN = sorted(registry.builtin_modules())


def test_nothing_chosen_trains_on_the_phantom() -> None:
    tree = load_config().tree
    assert tree["data"]["name"] == "phantom"
    assert tree["model"]["name"] == "unet"
    assert tree["optimizer"]["name"] == "adamw"


def test_everything_composes_and_is_valid() -> None:
    checked = dict(check_all([]))
    assert set(checked) == {"train", *(f"{group}={option}" for group, option in OPTIONS)}
    assert {name: problems for name, problems in checked.items() if problems} == {}


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_component_has_a_file(group: str, name: str) -> None:
    assert (group, name) in OPTIONS


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_default_is_a_valid_value(group: str, name: str) -> None:
    for key, param in registry.get(group, name).params.items():
        assert describe(param.type)
        if not param.required:
            value, issues = check(param.type, plain(param.default), key)
            assert not issues, issues
            assert plain(value) == plain(param.default)


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_parameter_is_documented(group: str, name: str) -> None:
    component = registry.get(group, name)
    assert component.summary
    assert [key for key, param in component.params.items() if not param.doc] == []


@pytest.mark.parametrize("group", PRESET_GROUPS)
def test_presets_belong_to_the_whole_config(group: str) -> None:
    for path in (conf_dir() / group).rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "# @package _global_", path
        assert re.match(r"# \w", lines[1]), f"{path}: say what it is for"


@pytest.mark.parametrize("debug", [path.stem for path in (conf_dir() / "debug").glob("*.yaml")])
@pytest.mark.parametrize("optimizer", registry.names("optimizer"))
def test_debug_presets_go_with_every_optimizer(debug: str, optimizer: str) -> None:
    load_config([f"debug={debug}", f"optimizer={optimizer}"])


TASKS = {
    "msd_brain_tumour": "Task01_BrainTumour",
    "msd_heart": "Task02_Heart",
    "msd_liver": "Task03_Liver",
    "msd_hippocampus": "Task04_Hippocampus",
    "msd_prostate": "Task05_Prostate",
    "msd_lung": "Task06_Lung",
    "msd_pancreas": "Task07_Pancreas",
    "msd_hepatic_vessel": "Task08_HepaticVessel",
    "msd_spleen": "Task09_Spleen",
    "msd_colon": "Task10_Colon",
}


def test_the_ten_decathlon_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDTRAIN_DATA", raising=False)
    assert {option for group, option in OPTIONS if group == "data" and option.startswith("msd_")} == set(TASKS)
    for preset, folder in TASKS.items():
        text = yaml.safe_load((conf_dir() / "data" / f"{preset}.yaml").read_text(encoding="utf-8"))
        assert text["root"].endswith(f"/{folder}")
    assert load_config(["data=msd_liver"]).tree["data"]["root"] == "data/Task03_Liver"
    monkeypatch.setenv("MEDTRAIN_DATA", "/scans")
    assert load_config(["data=msd_liver"]).tree["data"]["root"] == "/scans/Task03_Liver"
    assert load_config(["data=msd_liver", "data.root=/x"]).tree["data"]["root"] == "/x"


def test_no_stray_files() -> None:
    strays = [path for path in conf_dir().rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert strays == []


def test_the_tree_is_plain(tmp_path: Path) -> None:
    tree = load_config(["experiment=nnunet"]).tree
    assert yaml.safe_load(yaml.safe_dump(plain(tree))) == plain(tree)
