"""A sweep put together: its configuration, that of its trials, and its space."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from medtrain.config.compose import load_config
from medtrain.config.overrides import Override, read_override
from medtrain.config.render import to_yaml
from medtrain.config.space import Dimension
from medtrain.config.sweeps import SweepConfig, load_saved_sweep, load_sweep
from medtrain.errors import ConfigError, UsageError
from medtrain.registry import GROUPS, SWEEP_GROUPS, plain

LR = "optimizer.lr=tag(log, interval(1e-4,1e-1))"


def dimensions(config: SweepConfig) -> dict[str, Dimension]:
    return {dimension.key: dimension for dimension in config.space.dimensions}


def check_trial(config: SweepConfig, params: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a trial, composed from text alone as in a process of its own."""
    words = [*config.overrides, *config.space.overrides(params), "run.level=high"]
    return load_config(words, config_dirs=config.config_dirs, imports=config.imports).tree


@pytest.mark.usefixtures("conf")
def test_the_configuration_is_that_of_train_with_what_trials_leave_out() -> None:
    config = load_sweep([LR, "model.norm=batch", "sweep.n_trials=7", "sampler=tpe", "sampler.startup=3"])
    assert list(config.composed.tree) == ["seed", *GROUPS, *SWEEP_GROUPS]
    assert config.composed.tree["sampler"] == {"name": "tpe", "startup": 3}
    assert config.composed.tree["sweep"]["n_trials"] == 7
    assert config.composed.tree["callbacks"] == {}
    assert config.composed.tree["trainer"]["compile"] is True  # what quiet.yaml sets in the toy world
    assert config.overrides == ("model.norm=batch", "callbacks=[]", "logger=[csv]", "trainer.compile=true")
    assert config.full_overrides == ("model.norm=batch",)
    assert config.train.tree == {key: value for key, value in config.composed.tree.items() if key not in SWEEP_GROUPS}
    assert config.train.tree == load_config(config.overrides).tree
    assert config.composed.overrides[0] == LR  # as typed


@pytest.mark.usefixtures("conf")
def test_config_yaml_shows_what_varies() -> None:
    config = load_sweep([LR, "loss=dice_ce,focal"])
    assert config.composed.tree["sweep"]["space"] == {
        "optimizer.lr": "tag(log, interval(1e-4,1e-1))",
        "loss": "dice_ce,focal",
    }
    again = yaml.safe_load(to_yaml(config.composed.tree))
    assert again["sweep"]["space"] == config.composed.tree["sweep"]["space"]


@pytest.mark.usefixtures("conf")
def test_the_type_of_a_number_is_that_of_its_parameter() -> None:
    found = dimensions(
        load_sweep(
            [
                LR,
                "model.out_channels=interval(2,8)",
                "model.dropout=range(0,0.3,0.1)",
                "trainer.max_steps=range(10,41,10)",
            ]
        )
    )
    assert found["optimizer.lr"] == Dimension(key="optimizer.lr", kind="float", low=1e-4, high=0.1, log=True)
    assert found["model.out_channels"] == Dimension(key="model.out_channels", kind="int", low=2, high=8)
    assert found["model.dropout"] == Dimension(key="model.dropout", kind="float", low=0.0, high=0.2, step=0.1)
    assert found["trainer.max_steps"] == Dimension(key="trainer.max_steps", kind="int", low=10, high=40, step=10)
    assert isinstance(found["model.out_channels"].low, int)


@pytest.mark.usefixtures("conf")
def test_a_key_exists_beside_the_options_that_have_it() -> None:
    config = load_sweep(
        ["optimizer.momentum=interval(0,0.9)", "model=unet,swin", "model.heads=2,4", "optimizer=adamw,sgd"]
    )
    found = dimensions(config)
    assert [d.key for d in config.space.dimensions][:2] == ["model", "optimizer"]  # what others depend on comes first
    assert found["optimizer.momentum"].when == {"optimizer": ("sgd",)}
    assert found["model.heads"].when == {"model": ("swin",)}
    params = {"model": "swin", "optimizer": "sgd", "model.heads": "4", "optimizer.momentum": 0.5}
    tree = check_trial(config, params)
    assert tree["model"] == {"name": "swin", "heads": 4, "depth": 2}
    assert tree["optimizer"]["momentum"] == 0.5
    assert check_trial(config, {"model": "unet", "optimizer": "adamw"})["model"]["name"] == "unet"


@pytest.mark.usefixtures("conf")
def test_a_key_of_every_option_has_no_condition() -> None:
    assert dimensions(load_sweep([LR, "optimizer=adamw,sgd"]))["optimizer.lr"].when == {}


@pytest.mark.usefixtures("conf")
def test_what_is_set_for_one_option_only_is_set_beside_it() -> None:
    config = load_sweep(["optimizer=adamw,sgd", "optimizer.momentum=0.5", "optimizer.lr=0.2", "model.norm=batch,group"])
    assert config.overrides[:2] == ("optimizer.lr=0.2", "callbacks=[]")
    fixed = dimensions(config)["optimizer.momentum"]
    assert fixed == Dimension(key="optimizer.momentum", kind="choice", choices=("0.5",), when={"optimizer": ("sgd",)})
    assert config.is_grid
    assert config.space.size == 4
    params = {"optimizer": "sgd", "optimizer.momentum": "0.5", "model.norm": "group"}
    assert check_trial(config, params)["optimizer"] == {"name": "sgd", "lr": 0.2, "momentum": 0.5}
    assert check_trial(config, {"optimizer": "adamw", "model.norm": "group"})["optimizer"]["lr"] == 0.2


@pytest.mark.usefixtures("conf")
def test_the_base_is_one_of_the_options() -> None:
    config = load_sweep(["optimizer=sgd,adamw", LR])
    assert config.train.tree["optimizer"]["name"] == "adamw"  # train.yaml's, which is among them
    config = load_sweep(["augment=none,light", "model=swin", "model.heads=1,2"])
    assert config.train.tree["augment"]["name"] == "light"


def test_a_choice_that_is_not_among_the_options_gives_way(conf: Any) -> None:
    conf.write("optimizer/fast.yaml", "defaults: [sgd, _self_]\nlr: 5\n")
    config = load_sweep(["optimizer=fast,sgd", "optimizer.lr=interval(1,2)"])
    assert config.overrides[0] == "optimizer=fast"
    assert config.train.tree["optimizer"]["lr"] == 5.0


@pytest.mark.usefixtures("conf")
def test_what_the_base_requires_is_taken_from_the_space() -> None:
    config = load_sweep(["model=swin", "model.heads=range(2,9,2)"])
    assert config.train.tree["model"]["heads"] == 2
    assert check_trial(config, {"model.heads": 8})["model"]["heads"] == 8


@pytest.mark.usefixtures("conf")
def test_plain_comma_lists_are_a_grid() -> None:
    assert load_sweep(["optimizer.lr=1e-3,1e-2", "seed=0,1,2", "data.fold=0,1"]).is_grid
    assert not load_sweep(["optimizer.lr=choice(1e-3,1e-2)"]).is_grid
    assert not load_sweep(["optimizer.lr=1e-3,1e-2", "model.norm=choice(batch,group)"]).is_grid


@pytest.mark.usefixtures("conf")
def test_lists_and_null_are_choices() -> None:
    config = load_sweep(["model.channels=[8,16],[4,8,16]", "trainer.max_steps=choice(null,5)"])
    assert dimensions(config)["model.channels"].choices == ("[8,16]", "[4,8,16]")
    tree = check_trial(config, {"model.channels": "[4,8,16]", "trainer.max_steps": "null"})
    assert tree["model"]["channels"] == (4, 8, 16)
    assert tree["trainer"]["max_steps"] is None


def test_a_preset_holds_a_space_alone(conf: Any) -> None:
    conf.write("sweep/mine.yaml", "space:\n  optimizer.lr: interval(0.1, 1)\n  loss: [focal, dice_ce]\nn_trials: 5\n")
    config = load_sweep(["sweep=mine"])
    assert list(dimensions(config)) == ["loss", "optimizer.lr"]
    assert config.composed.tree["sweep"]["name"] == "default"
    assert config.composed.tree["sweep"]["n_trials"] == 5
    assert config.composed.tree["sweep"]["retries"] == 1


def test_the_command_line_wins_over_a_preset(conf: Any) -> None:
    conf.write(
        "sweep/mine.yaml",
        "space:\n  optimizer.lr: interval(0.1, 1)\n  model.norm: [batch, group]\n  model.dropout: interval(0, 0.5)\n",
    )
    config = load_sweep(
        ["sweep=mine", "optimizer.lr=0.5", "model.norm=batch,instance", "sweep.space.model.dropout=null"]
    )
    assert list(dimensions(config)) == ["model.norm"]
    assert dimensions(config)["model.norm"].choices == ("batch", "instance")
    assert config.train.tree["optimizer"]["lr"] == 0.5
    again = load_sweep(
        ["sweep=mine", "sweep.space.optimizer.lr={low: 1, high: 3}", "optimizer.lr=tag(log,interval(1,9))"]
    )
    assert dimensions(again)["optimizer.lr"].high == 9.0  # the last word counts
    again = load_sweep(["sweep=mine", "sweep.space.optimizer.lr={low: 1, high: 3}"])
    assert dimensions(again)["optimizer.lr"].high == 3.0


def test_a_preset_can_take_an_entry_of_another_away(conf: Any) -> None:
    conf.write("sweep/one.yaml", "space:\n  optimizer.lr: interval(0.1, 1)\n  model.norm: [batch, group]\n")
    conf.write("sweep/two.yaml", "defaults: [one, _self_]\nspace:\n  model.norm: null\n")
    assert list(dimensions(load_sweep(["sweep=two"]))) == ["optimizer.lr"]


def test_what_the_command_line_settles_is_left_out_of_a_preset(conf: Any) -> None:
    conf.write(
        "sweep/mine.yaml",
        "space:\n  optimizer: [adamw, sgd]\n  optimizer.momentum: interval(0, 0.9)\n"
        "  model.dropout: {low: 0, high: 0.5, when: {optimizer: sgd}}\n  optimizer.lr: interval(0.1, 1)\n",
    )
    config = load_sweep(["sweep=mine", "optimizer=adamw"])
    assert list(dimensions(config)) == ["optimizer.lr"]
    assert config.notes == (
        "optimizer.momentum of conf/sweep/mine.yaml is left out: optimizer=adamw has no such key",
        "model.dropout of conf/sweep/mine.yaml is left out: optimizer is adamw",
    )
    assert list(config.composed.tree["sweep"]["space"]) == ["optimizer.lr"]
    always = load_sweep(["sweep=mine", "optimizer=sgd"])
    assert [(d.key, d.when) for d in always.space.dimensions] == [
        ("optimizer.momentum", {}),
        ("model.dropout", {}),
        ("optimizer.lr", {}),
    ]


def test_conditions_of_conditions(conf: Any) -> None:
    conf.write(
        "sweep/mine.yaml",
        "space:\n"
        "  optimizer.momentum: {choices: [0.5, 0.9], when: {optimizer: [sgd]}}\n"
        "  model.dropout: {low: 0, high: 0.5, when: {optimizer.momentum: 0.9, model.norm: [batch, group]}}\n"
        "  model.norm: [batch, group, instance]\n"
        "  optimizer: [adamw, sgd]\n",
    )
    config = load_sweep(["sweep=mine"])
    assert [dimension.key for dimension in config.space.dimensions] == [
        "optimizer", "optimizer.momentum", "model.norm", "model.dropout",
    ]  # fmt: skip
    assert dimensions(config)["model.dropout"].when == {
        "optimizer.momentum": ("0.9",),
        "model.norm": ("batch", "group"),
    }


def test_a_preset_of_the_whole_configuration(conf: Any, tmp_path: Path) -> None:
    text = (
        "# @package _global_\ndefaults:\n  - override /loss: focal\n  - override /sampler: tpe\n"
        "  - override /callbacks: [early_stopping]\nsweep:\n  space:\n    optimizer.lr: interval(0.1, 1)\n"
        "model:\n  dropout: 0.3\nsampler:\n  startup: 5\n"
    )
    conf.write("sweep/mine.yaml", text)
    (tmp_path / "elsewhere.yaml").write_text(text)
    for name in ("mine", str(tmp_path / "elsewhere.yaml")):
        config = load_sweep([f"sweep={name}"])
        assert config.composed.tree["sampler"] == {"name": "tpe", "startup": 5}
        assert list(config.train.tree["callbacks"]) == ["early_stopping"]
        assert config.overrides == (
            "loss=focal", "callbacks=[early_stopping]", "logger=[csv]", "model.dropout=0.3", "trainer.compile=true"
        )  # fmt: skip
        assert config.full_overrides == ("loss=focal", "callbacks=[early_stopping]", "model.dropout=0.3")
    conf.write("sweep/more.yaml", "# @package _global_\ndefaults: [mine, _self_]\nsweep:\n  n_trials: 3\n")
    assert load_sweep(["sweep=more"]).composed.tree["sweep"]["n_trials"] == 3
    typed = load_sweep(["sweep=mine", "loss=dice_ce", "model.dropout=0.1", "callbacks=[curves]"])
    assert typed.train.tree["loss"]["name"] == "dice_ce"
    assert typed.train.tree["model"]["dropout"] == 0.1
    assert list(typed.train.tree["callbacks"]) == ["curves"]


def test_a_file_beside_the_sweep(tmp_path: Path, conf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("space:\n  optimizer.lr: interval(0.1, 1)\n")
    Path("x.yaml").write_text("model:\n  dropout: 0.3\n")
    config = load_sweep(["sweep=mine.yaml", "experiment=x.yaml"])
    assert config.overrides[0] == f"experiment={tmp_path}/x.yaml"  # a trial may run in another folder
    assert config.train.tree["model"]["dropout"] == 0.3
    Path("my lab").mkdir()
    Path("x.yaml").rename("my lab/x y.yaml")
    config = load_sweep(["sweep=mine.yaml", "experiment='my lab/x y.yaml',null"])
    assert (
        check_trial(config, {"experiment": f"'{tmp_path}/my lab/x y.yaml'", "optimizer.lr": 1.0})["model"]["dropout"]
        == 0.3
    )
    assert dimensions(config)["experiment"].choices == (f"'{tmp_path}/my lab/x y.yaml'", "null")
    config = load_sweep(["sweep=mine.yaml", "experiment='my lab/x y.yaml'"])
    assert load_config(config.overrides).tree["model"]["dropout"] == 0.3


def test_experiments_keep_what_they_choose(conf: Any) -> None:
    conf.write(
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /callbacks: [early_stopping]\n  - override /optimizer: sgd\n"
        "trainer:\n  compile: false\n",
    )
    config = load_sweep(["experiment=mine", "optimizer.momentum=interval(0,0.5)"])
    assert list(config.train.tree["callbacks"]) == ["early_stopping"]
    assert config.train.tree["trainer"]["compile"] is False
    assert config.overrides == ("experiment=mine", "logger=[csv]")


def test_experiments_can_be_compared(conf: Any) -> None:
    conf.write("experiment/a.yaml", "# @package _global_\ndefaults:\n  - override /optimizer: sgd\n")
    conf.write("experiment/b.yaml", "# @package _global_\nmodel:\n  dropout: 0.4\n")
    config = load_sweep(["experiment=a,b,null", "optimizer.momentum=0.1,0.2"])
    assert dimensions(config)["experiment"].choices == ("a", "b", "null")
    assert dimensions(config)["optimizer.momentum"].when == {"experiment": ("a",)}
    assert check_trial(config, {"experiment": "b"})["model"]["dropout"] == 0.4
    assert check_trial(config, {"experiment": "null"})["model"]["dropout"] == 0.1
    assert check_trial(config, {"experiment": "a", "optimizer.momentum": "0.2"})["optimizer"]["momentum"] == 0.2


def test_the_users_own_folder_and_modules(tmp_path: Path, conf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("lab_sweep_nets.py").write_text(
        "from medtrain.registry import register\n"
        '@register("model", "labnet")\n'
        "def labnet(*, width: int = 3) -> None:\n"
        '    """Net."""\n'
    )
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/wide.yaml").write_text("defaults: [schema/labnet@_here_, _self_]\nwidth: 9\n")
    config = load_sweep(
        ["model=unet,wide,labnet", "model.width=range(1,5)"], config_dirs=["mine"], imports=["lab_sweep_nets"]
    )
    assert config.config_dirs == (f"{tmp_path}/mine",)
    assert config.imports == ("lab_sweep_nets",)
    assert dimensions(config)["model.width"].when == {"model": ("wide", "labnet")}
    assert check_trial(config, {"model": "wide", "model.width": 2})["model"] == {"name": "labnet", "width": 2}


def test_interpolations_follow_what_varies(conf: Any) -> None:
    conf.write(
        "sweep/mine.yaml",
        "# @package _global_\nmodel:\n  dropout: ${optimizer.lr}\n"
        "sweep:\n  space:\n    optimizer.lr: interval(0.1, 0.5)\n",
    )
    config = load_sweep(["sweep=mine"])
    assert check_trial(config, {"optimizer.lr": 0.25})["model"]["dropout"] == 0.25


# --- continuing


@pytest.fixture
def folder(conf: object, tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    folder.mkdir()
    words = [LR, "optimizer=adamw,sgd", "sweep.n_trials=5", "sampler=tpe"]
    (folder / "config.yaml").write_text(to_yaml(load_sweep(words).composed.tree))
    return folder


def test_a_sweep_reads_back(folder: Path) -> None:
    config = load_sweep([LR, "optimizer=adamw,sgd", "sweep.n_trials=5", "sampler=tpe"])
    sections = load_saved_sweep(folder)
    assert list(sections) == list(SWEEP_GROUPS)
    assert plain(sections) == plain({group: config.composed.tree[group] for group in SWEEP_GROUPS})


def test_more_trials_can_be_asked_for(folder: Path) -> None:
    words = [
        "sweep.n_trials=60",
        "sweep.timeout=2h",
        "sweep.workers=2",
        "sweep.rerun_folds=[0,1]",
        "sampler.startup=10",
    ]
    sections = load_saved_sweep(folder, words)  # 10 is what it is already
    assert sections["sweep"]["n_trials"] == 60
    assert sections["sweep"]["timeout"] == "2h"
    assert sections["sweep"]["rerun_folds"] == [0, 1]


@pytest.mark.usefixtures("folder")
def test_what_is_refused_can_be_typed(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_saved_sweep(folder, ["sweep.constraints=[parameters <= 2e6, val/dice >= 0.4]"])
    shown = str(caught.value).split("not `")[1].split("` (")[0]
    assert shown == """'sweep.constraints=["parameters <= 2e6","val/dice >= 0.4"]'"""
    (word,) = shlex.split(shown)
    read = read_override(word)
    assert isinstance(read, Override)
    assert read.value == ["parameters <= 2e6", "val/dice >= 0.4"]


@pytest.mark.usefixtures("folder")
def test_nothing_else_can_be_changed(folder: Path) -> None:
    anew = "begin a new sweep; `sweep.warm_start=[FOLDER]` takes over what this one has learned"
    words = [
        "sweep.objectives=[val/iou]", "sampler.startup=3", "sampler=auto", "optimizer.lr=1", "optimizer.lr=1,2",
        "sweep.n_trials=1,2", "sweep.space.seed=3",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_saved_sweep(folder, words)
    objectives = "`'sweep.objectives=[]'`, not `'sweep.objectives=[val/iou]'`"
    space = """'sweep.space={optimizer.lr:"tag(log, interval(1e-4,1e-1))",optimizer:"adamw,sgd"}'"""
    changed = """'sweep.space={optimizer.lr:"tag(log, interval(1e-4,1e-1))",optimizer:"adamw,sgd",seed:3}'"""
    assert [(f"{problem}", problem.hint) for problem in caught.value.problems] == [
        ("sampler: cannot be changed: the trials of a sweep share their configuration (command line)", anew),
        ("optimizer.lr: cannot be changed: the trials of a sweep share their configuration (command line)", anew),
        ("optimizer.lr: the space of a sweep cannot be changed (command line)", anew),
        ("sweep.n_trials=1,2: a sweep does not search its own settings (command line)", None),
        (f"sweep.space: cannot be changed: it is `{space}`, not `{changed}` (command line)", anew),
        (f"sweep.objectives: cannot be changed: it is {objectives} (command line)", anew),
        (
            "sampler.startup: cannot be changed: it is `sampler.startup=10`, not `sampler.startup=3` (command line)",
            anew,
        ),
    ]
    with pytest.raises(ConfigError, match=r"sweep.n_trials: must be >= 1, got 0 \(command line\)"):
        load_saved_sweep(folder, ["sweep.n_trials=0"])


@pytest.mark.usefixtures("conf")
def test_a_run_is_not_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config().tree))
    with pytest.raises(UsageError, match=r"is not a sweep: .* has no `sweep`"):
        load_saved_sweep(tmp_path)


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("text", "constraints"),
    [
        ("[parameters <= 2e6]", ["parameters <= 2e6"]),
        ("parameters <= 2e6", ["parameters <= 2e6"]),
        ("['parameters <= 2e6',\"val/dice >= 0.4\"]", ["parameters <= 2e6", "val/dice >= 0.4"]),
        ("[parameters <= 2e6, val/dice >= 0.4]", ["parameters <= 2e6", "val/dice >= 0.4"]),
    ],
)
def test_constraints_whose_quotes_the_shell_has_eaten(text: str, constraints: list[str]) -> None:
    config = load_sweep([f"sweep.constraints={text}", "optimizer.lr=0.1,0.2"])
    assert config.composed.tree["sweep"]["constraints"] == constraints


@pytest.mark.usefixtures("conf")
def test_one_folder_to_begin_from_needs_no_brackets() -> None:
    config = load_sweep(["sweep.warm_start=~/old sweep", "sweep.objectives=val/dice", "optimizer.lr=0.1,0.2"])
    assert config.composed.tree["sweep"]["warm_start"] == ["~/old sweep"]
    assert config.composed.tree["sweep"]["objectives"] == ["val/dice"]
