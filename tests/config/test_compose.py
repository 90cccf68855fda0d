"""How a config is put together: files, choices, values, references, origins."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from medtrain import registry
from medtrain.config.compose import load_config
from medtrain.errors import ConfigError, UsageError


def problems(*overrides: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, **options)
    return [str(problem) for problem in caught.value.problems]


def test_nothing_chosen(conf: Any) -> None:
    composed = load_config()
    assert list(composed.tree) == ["seed", *registry.GROUPS]
    assert composed.tree["seed"] == 0
    assert composed.tree["model"] == {
        "name": "unet", "out_channels": 2, "channels": (8, 16), "dropout": 0.1, "norm": "instance"
    }  # fmt: skip
    assert composed.tree["logger"] == {
        "csv": {"name": "csv", "level": "low"},
        "jsonl": {"name": "jsonl", "level": "low"},
    }
    assert composed.choices["model"] == "unet"
    assert composed.choices["logger"] == ["csv", "jsonl"]
    assert composed.choices["experiment"] is None
    assert composed.defaults_tree == composed.tree | {
        group: registry.plain(composed.tree[group]) for group in ("model",)
    }


@pytest.mark.usefixtures("conf")
def test_choices_and_values() -> None:
    composed = load_config(
        ["optimizer=sgd", "optimizer.lr=1", "model.channels=[4]", "callbacks=[]", "logger=csv", "seed=7"]
    )
    assert composed.tree["optimizer"] == {"name": "sgd", "lr": 1.0, "momentum": 0.9}
    assert isinstance(composed.tree["optimizer"]["lr"], float)
    assert composed.tree["model"]["channels"] == (4,)
    assert composed.tree["callbacks"] == {}
    assert list(composed.tree["logger"]) == ["csv"]
    assert composed.tree["seed"] == 7
    assert composed.overrides[0] == "optimizer=sgd"


@pytest.mark.usefixtures("conf")
def test_the_last_of_two_overrides_wins() -> None:
    composed = load_config(["loss=focal", "seed=1", "seed=2", "loss=dice_ce"])
    assert (composed.tree["seed"], composed.tree["loss"]["name"]) == (2, "dice_ce")


@pytest.mark.usefixtures("conf")
def test_a_component_without_a_file_is_selectable(conf: Any) -> None:
    assert not (conf.root / "model/swin.yaml").exists()
    assert load_config(["model=swin", "model.heads=4"]).tree["model"] == {"name": "swin", "heads": 4, "depth": 2}


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~/scans", "~/scans"),
        ("/data/\u00e9t\u00e9 (2)/x", "/data/\u00e9t\u00e9 (2)/x"),
        ("C=D", "C=D"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("2024", "2024"),
        ("'a,b'", "a,b"),
        ("", ""),
        ("null", None),
    ],
)
def test_text_is_taken_as_typed(text: str, value: str | None) -> None:
    assert load_config([f"data.root={text}"]).tree["data"]["root"] == value


@pytest.mark.usefixtures("conf")
def test_mappings_lists_and_their_items() -> None:
    composed = load_config(
        [
            "data.merge.liver=[liver,cancer]",
            "data.merge.rest=[spleen]",
            "optimizer.rules=[{pattern:'enc*',lr_mult:1},{pattern:head}]",
            "optimizer.rules[1].lr_mult=3",
            "optimizer.rules.0.lr_mult=2",
        ]
    )
    assert composed.tree["data"]["merge"] == {"liver": ["liver", "cancer"], "rest": ["spleen"]}
    assert composed.tree["optimizer"]["rules"] == [
        {"pattern": "enc*", "lr_mult": 2.0},
        {"pattern": "head", "lr_mult": 3.0},
    ]


def test_references(conf: Any) -> None:
    conf.write("data/folder.yaml", "defaults: [schema/folder@_here_, _self_]\nroot: ${oc.env:TOY_ROOT,here}/x\n")
    composed = load_config(["data.fold=${seed}", "seed=3", "model.channels=['${model.out_channels}',4]"])
    assert composed.tree["data"]["root"] == "here/x"
    assert composed.tree["data"]["fold"] == 3
    assert composed.tree["model"]["channels"] == (2, 4)
    assert composed.unresolved["data"]["root"] == "${oc.env:TOY_ROOT,here}/x"


def test_origins(conf: Any) -> None:
    conf.write("experiment/big.yaml", "# @package _global_\ndefaults:\n  - override /optimizer: sgd\nseed: 5\n")
    origins = load_config(["experiment=big", "loss=focal", "model.norm=batch"]).origins
    assert origins["seed"] == "conf/experiment/big.yaml"
    assert origins["optimizer.name"] == "conf/experiment/big.yaml"
    assert origins["optimizer.lr"] == "default of optimizer=sgd"
    assert origins["loss.name"] == "command line"
    assert origins["model.name"] == "conf/train.yaml"
    assert origins["model.dropout"] == "conf/model/unet.yaml"
    assert origins["model.norm"] == "command line"
    assert origins["logger.csv.name"] == "conf/train.yaml"


def test_an_experiment_wins_over_train_yaml_and_loses_to_the_command_line(conf: Any) -> None:
    conf.write("experiment/big.yaml", "# @package _global_\nseed: 5\nmodel:\n  channels: [1, 2, 3]\n  dropout: 0.3\n")
    composed = load_config(["model.dropout=0.5", "experiment=big"])
    assert composed.tree["seed"] == 5
    assert composed.tree["model"]["channels"] == (1, 2, 3)
    assert composed.tree["model"]["dropout"] == 0.5
    assert composed.choices["experiment"] == "big"
    assert load_config(["experiment=big", "experiment=null"]).tree["seed"] == 0


def test_a_data_preset_chooses_other_components(conf: Any) -> None:
    conf.write(
        "data/scans.yaml",
        "defaults:\n  - schema/folder@_here_\n  - override /task: classification\n  - override /loss: focal\n"
        "  - _self_\nroot: here\n",
    )
    composed = load_config(["data=scans"])
    assert composed.tree["task"]["name"] == "classification"
    assert composed.tree["loss"]["name"] == "focal"
    assert load_config(["data=scans", "loss=dice_ce"]).tree["loss"]["name"] == "dice_ce"
    conf.write(
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /data: scans\n  - override /loss: dice_ce\n",
    )
    mine = load_config(["experiment=mine"])
    assert (mine.tree["data"]["root"], mine.tree["loss"]["name"]) == ("here", "dice_ce")


def test_an_experiment_file_anywhere(conf: Any, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("defaults:\n  - override /optimizer: sgd\noptimizer:\n  momentum: 0.5\n  lrr: 1\nseed: -2\n")
    assert problems(f"experiment={file}") == [
        f"seed: must be >= 0, got -2 ({file})",
        f"optimizer.lrr: unknown key ({file})",
    ]
    file.write_text("defaults:\n  - override /optimizer: sgd\noptimizer:\n  momentum: 0.5\n")
    composed = load_config([f"experiment={file}", "optimizer.lr=3"])
    assert composed.tree["optimizer"] == {"name": "sgd", "lr": 3.0, "momentum": 0.5}
    assert composed.origins["optimizer.momentum"] == str(file)


def test_local_settings_are_optional(conf: Any) -> None:
    conf.write("local/default.yaml", "# @package _global_\ndata:\n  root: /mnt\n")
    assert load_config().tree["data"]["root"] == "/mnt"


def test_a_folder_of_the_user_comes_first(conf: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model/unet.yaml").write_text("defaults: [schema/unet@_here_, _self_]\ndropout: 0.7\n")
    (folder / "model/small.yaml").write_text("defaults: [unet, _self_]\nchannels: [2]\n")
    composed = load_config(["model=small"], config_dirs=[folder])
    assert composed.tree["model"]["dropout"] == 0.7
    assert composed.tree["model"]["channels"] == (2,)
    assert composed.tree["model"]["name"] == "unet"
    assert composed.origins["model.channels"] == f"{folder}/model/small.yaml"
    assert load_config().tree["model"]["dropout"] == 0.1
    assert problems("model=small")[0].startswith("model=small: unknown model `small`; available: swin, unet")


@pytest.mark.usefixtures("conf")
def test_files_that_change_are_read_again(conf: Any) -> None:
    """A process may compose for days, and what it has read before must neither stay nor be marked by its use."""
    conf.write("model/mine.yaml", "defaults: [schema/unet@_here_, _self_]\ndropout: 0.2\n")
    for _ in range(2):
        assert load_config(["model=mine"]).tree["model"]["dropout"] == 0.2
    conf.write("model/mine.yaml", "defaults: [schema/swin@_here_, _self_]\nheads: 4\n")
    assert load_config(["model=mine"]).tree["model"] == {"name": "swin", "heads": 4, "depth": 2}
    (conf.root / "model" / "mine.yaml").unlink()
    with pytest.raises(ConfigError, match="unknown model `mine`"):
        load_config(["model=mine"])


def test_a_missing_config_folder() -> None:
    with pytest.raises(UsageError, match="the config folder nowhere does not exist"):
        load_config(config_dirs=["nowhere"])


@pytest.mark.usefixtures("conf")
def test_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "toy_nets.py"
    module.write_text(
        "from medtrain.registry import register\n"
        '@register("model", "mine")\n'
        "def mine(*, width: int = 3) -> None:\n"
        '    """Mine."""\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_config(["model=mine"], imports=["toy_nets"]).tree["model"] == {"name": "mine", "width": 3}
    del sys.modules["toy_nets"]
    with pytest.raises(UsageError, match="--import toy_nuts: No module named 'toy_nuts'"):
        load_config(imports=["toy_nuts"])
    (tmp_path / "toy_bad.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="--import toy_bad: ZeroDivisionError: division by zero"):
        load_config(imports=["toy_bad"])


def test_plugins(conf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "lab"
        value = "lab.medtrain"
        dist = None

        @staticmethod
        def load() -> None:
            def net(*, width: int = 1) -> None:
                """Lab's."""

            registry.register("model", "lab_net")(net)

    monkeypatch.setattr(registry._STATE, "plugins_loaded", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry])
    monkeypatch.delenv("MEDTRAIN_NO_PLUGINS", raising=False)
    assert load_config(["model=lab_net"]).tree["model"] == {"name": "lab_net", "width": 1}


def test_problems_of_files_name_the_file(conf: Any) -> None:
    conf.write("experiment/bad.yaml", "# @package _global_\nmodel:\n  chanels: [1]\ntrainer:\n  max_steps: 0\n")
    assert problems("experiment=bad") == [
        "model.chanels: unknown key (conf/experiment/bad.yaml)",
        "trainer.max_steps: must be >= 1, got 0 (conf/experiment/bad.yaml)",
    ]


def test_all_options_that_files_get_wrong_come_at_once(conf: Any) -> None:
    conf.write(
        "experiment/bad.yaml",
        "# @package _global_\ndefaults:\n  - override /model: unett\n  - override /loss: foca\n\nseed: -1\n",
    )
    assert problems("experiment=bad", "model.heads=1") == [
        "loss=foca: unknown loss `foca`; available: dice_ce, focal (conf/experiment/bad.yaml)",
        "model=unett: unknown model `unett`; available: swin, unet (conf/experiment/bad.yaml)",
        "seed: must be >= 0, got -1 (conf/experiment/bad.yaml)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "conf/experiment/bad.yaml: not valid YAML: "),
        ("- 1\n- 2\n", "conf/experiment/bad.yaml: must be a mapping of keys to values"),
        ("defaults: 3\n", "conf/experiment/bad.yaml: Invalid defaults list in 'experiment/bad'"),
        (
            "# @package _global_\ndefaults:\n  - override /modle: unet\n",
            "experiment/bad: the defaults list overrides the unknown group `modle`",
        ),
        ("seed: 3\n", "experiment.seed: unknown key (conf/experiment/bad.yaml)"),
    ],
)
def test_broken_files(conf: Any, text: str, message: str) -> None:
    conf.write("experiment/bad.yaml", text)
    assert problems("experiment=bad")[0].startswith(message)


def test_a_broken_experiment_file(conf: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: [1\nb: 2\n")
    assert problems(f"experiment={file}")[0].startswith(f"{file}: not valid YAML: ")
    file.write_text("- 1\n")
    assert problems(f"experiment={file}") == [f"{file}: must be a mapping of keys to values"]


def test_a_file_that_renames_a_component(conf: Any) -> None:
    conf.write("experiment/bad.yaml", "# @package _global_\nmodel:\n  name: swin\n")
    assert problems("experiment=bad") == [
        "model.name: the name of a component is not set as a value (conf/experiment/bad.yaml)"
    ]


def test_a_file_without_a_schema_gets_the_defaults(conf: Any) -> None:
    conf.write("optimizer/mine.yaml", "name: sgd\nlr: 2\n")
    assert load_config(["optimizer=mine"]).tree["optimizer"] == {"name": "sgd", "lr": 2.0, "momentum": 0.9}
    conf.write("optimizer/mine.yaml", "name: sgdd\n")
    assert problems("optimizer=mine") == [
        "optimizer.name: unknown optimizer `sgdd`; available: adamw, sgd (conf/optimizer/mine.yaml)"
    ]


def test_a_primary_config_that_leaves_a_group_out(conf: Any) -> None:
    conf.write("short.yaml", "defaults:\n  - model: unet\n  - _self_\nseed: 1\n")
    found = problems(config_name="short")
    assert "loss: required, not chosen; available: dice_ce, focal" in found
    assert not any(line.startswith(("callbacks", "logger", "model")) for line in found)
