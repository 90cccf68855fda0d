"""What is said of a sweep that cannot work, before its first trial: in the user's own words, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pytest

from medtrain.config.compose import load_config
from medtrain.config.sweeps import load_sweep
from medtrain.errors import ConfigError, Problem
from medtrain.registry import Range, register


def complain(overrides: Sequence[str]) -> list[str]:
    """What is said about a sweep, each problem as `problem | hint`."""
    with pytest.raises(ConfigError) as caught:
        load_sweep(overrides)
    return [f"{problem} | {problem.hint}" for problem in caught.value.problems]


RERUN = "`sweep.rerun_best=3` trains the best ones again over several seeds; a grid of comma lists may have seeds"
JUDGED = "all trials are judged alike, or their values could not be compared"

GOLDEN = {
    "unknown key": (
        "optimizer.lrr=interval(0.1,1)",
        "optimizer.lrr: unknown key (command line) | did you mean `optimizer.lr`?",
    ),
    "unknown group": ("modl=a,b", "modl: unknown key (command line) | did you mean `model`?"),
    "unknown option": (
        "loss=dice_ce,foca",
        "loss=foca: unknown loss `foca`; available: dice_ce, focal (command line) | did you mean `loss=focal`?",
    ),
    "a file that there is not": (
        "experiment=null,nowhere.yaml",
        "experiment=nowhere.yaml: there is no such file (command line) | None",
    ),
    "a space that is none": (
        "sweep.space=[1]",
        "sweep.space: expected mapping of names to any value, got [1] (command line) | None",
    ),
    "a preset that there is not": (
        "sweep=nope",
        "sweep=nope: unknown sweep `nope`; available: default (command line) | None",
    ),
    "a reference": (
        "optimizer.lr=${seed},1e-3",
        "optimizer.lr: expected float > 0, got '${seed}' in `${seed},1e-3` (command line) | None",
    ),
    "a number for an option": (
        "loss=1,dice_ce",
        "loss=1: unknown loss `1`; available: dice_ce, focal (command line) | None",
    ),
    "a range of a group": (
        "loss=interval(0,1)",
        "loss: is a group: its options have no range (command line) | write `loss=dice_ce,focal`",
    ),
    "a range of a text": (
        "model.norm=interval(0,1)",
        "model.norm: takes one of instance, batch, group, which has no range (command line)"
        " | list the choices: `model.norm='choice(...)'`",
    ),
    "a range of a list": (
        "model.channels=interval(0,1)",
        "model.channels: takes list of int >= 1, which has no range (command line)"
        " | list the choices: `model.channels='choice(...)'`",
    ),
    "below": (
        "optimizer.lr=interval(0,1)",
        "optimizer.lr: must be > 0, got 0.0 in `interval(0,1)` (command line) | None",
    ),
    "above": (
        "model.dropout=interval(0.5,1)",
        "model.dropout: must be >= 0 and < 1, got 1.0 in `interval(0.5,1)` (command line) | None",
    ),
    "a wrong choice": (
        "model.norm=batch,bach",
        "model.norm: must be one of instance, batch, group, got 'bach' in `batch,bach` (command line)"
        " | did you mean `model.norm=batch`?",
    ),
    "a wrong format": (
        "trainer.every=20,10ep",
        "trainer.every: '20' is not valid: it needs a unit in `20,10ep` (command line)"
        ' | write for example "500step" or "10ep"',
    ),
    "a wrong item": (
        "model.channels=[8,16],[8,0]",
        "model.channels[1]: must be >= 1, got 0 in `[8,16],[8,0]` (command line) | None",
    ),
    "the same value in two ways": (
        "optimizer.lr=1,1.0,2",
        "optimizer.lr: `1,1.0,2` names 1.0 twice (command line) | None",
    ),
    "not whole": (
        "model.out_channels=interval(2,4.5)",
        "model.out_channels: takes whole numbers, `interval(2,4.5)` has 4.5 (command line) | None",
    ),
    "one value": (
        "loss=choice(focal)",
        "loss: `choice(focal)` is one value only, which searches nothing (command line) | to set it: `loss=focal`",
    ),
    "unreadable": (
        "optimizer.lr=interval(0.1",
        "optimizer.lr=interval(0.1: cannot be read: no viable alternative at input 'interval(0.1' (command line)"
        " | None",
    ),
    "plus": (
        "+optimizer.lr=interval(0.1,1)",
        "+optimizer.lr=interval(0.1,1): `+` is not used: every key exists already (command line)"
        " | write `optimizer.lr=interval(0.1,1)`",
    ),
    "several of many": (
        "callbacks=curves,early_stopping",
        "callbacks=curves,early_stopping: all trials have the same ones (command line)"
        " | write a list: `callbacks=[curves,early_stopping]`",
    ),
    "the folder": (
        "run.level=choice(low,high)",
        "run.level: cannot be searched: has no effect on what is learned (command line)"
        " | set it for all trials: `run.level=...`",
    ),
    "the seed": (
        "seed=choice(0,1)",
        f"seed: cannot be searched: all trials share the seed, or luck would win (command line) | {RERUN}",
    ),
    "the fold": (
        "data.fold=choice(0,1)",
        "data.fold: cannot be searched: all trials share the split (command line)"
        " | `sweep.folds=[0,1,2]` trains every trial on these folds and takes the mean",
    ),
    "the data": (
        "data.root=a,b",
        "data.root: cannot be searched: all trials learn from the same data (command line)"
        " | begin a sweep for each data set",
    ),
    "the task": ("task=segmentation,classification", f"task: cannot be searched: {JUDGED} (command line) | None"),
    "the task's settings": ("task.level=low,high", f"task.level: cannot be searched: {JUDGED} (command line) | None"),
    "a callback that is not chosen": (
        "callbacks.early_stopping.patience=1,2",
        "callbacks.early_stopping.patience: early_stopping is not chosen (command line)"
        " | choose it with `callbacks=[early_stopping]`",
    ),
    "a callback without effect": (
        "callbacks.curves.level=low,high",
        "callbacks.curves.level: cannot be searched: has no effect on what is learned (command line)"
        " | set it for all trials: `callbacks.curves.level=...`",
    ),
    "speed alone": (
        "trainer.compile=true,false",
        "trainer.compile: cannot be searched: has no effect on what is learned, only on the speed (command line)"
        " | set it for all trials, or add train_s or latency_ms to `sweep.objectives`",
    ),
    "the sweep itself": (
        "sweep.n_trials=1,2",
        "sweep.n_trials=1,2: a sweep does not search its own settings (command line) | None",
    ),
    "the sweep's lists": (
        "sweep.objectives=a,b",
        "sweep.objectives=a,b: a sweep does not search its own settings (command line)"
        " | write a list: `sweep.objectives=[a,b]`",
    ),
    "the sampler": (
        "sampler=auto,tpe",
        "sampler=auto,tpe: a sweep does not search its own settings (command line) | None",
    ),
    "a debug preset": (
        "debug=null,smoke",
        "debug: cannot be searched: a debug preset is not searched (command line)"
        " | choose one for all trials: `debug=...`",
    ),
    "a constraint": (
        "sweep.constraints=['parameters < 5']",
        "sweep.constraints[0]: 'parameters < 5' is not valid: expected METRIC <= NUMBER or METRIC >= NUMBER"
        """ (command line) | write for example `'sweep.constraints=["parameters <= 5e6"]'`""",
    ),
    "a range of another library": (
        "optimizer.lr=loguniform(1e-4,1e-1)",
        "optimizer.lr: expected float > 0, got 'loguniform(1e-4,1e-1)' (command line)"
        " | a range, for `medtrain sweep`, is written `'optimizer.lr=tag(log, interval(1e-4, 1e-1))'`",
    ),
    "the same in the space": (
        "sweep.space.optimizer.lr=uniform(0.1,0.5)",
        "optimizer.lr: `uniform(0.1,0.5)` cannot be read (command line) | write `interval(0.1, 0.5)`",
    ),
    "an item of nothing": (
        "optimizer.rules.0.lr_mult=interval(0,1)",
        "optimizer.rules.0.lr_mult: `optimizer.rules` has no items; set the whole list (command line) | None",
    ),
}


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("mistake", GOLDEN)
def test_one_mistake(mistake: str) -> None:
    override, message = GOLDEN[mistake]
    something = "inference.level=choice(low,high)"  # not a grid, and not empty
    assert complain([override, something]) == [message]


@pytest.mark.usefixtures("conf")
def test_nothing_varies() -> None:
    [text] = complain(["model.dropout=0.2"])
    assert text.startswith("sweep.space: nothing varies | let a value vary, e.g. `optimizer.lr=")


@pytest.mark.usefixtures("conf")
def test_all_at_once_and_each_once() -> None:
    found = complain(
        ["~a.b", "model=unett", "model.dropout=choice(1,2)", "optimizer.lr=interval(0,1)", "loss=dice_ce,dice",
         "loss.level=low,hih", "sede=1", "seed=choice(1,2)", "trainer.max_steps=0", "sweep.n_trials=0"]
    )  # fmt: skip
    assert [line.split(":")[0] for line in found] == [
        "~a.b", "seed", "loss=dice", "optimizer.lr", "model=unett", "sede", "trainer.max_steps", "sweep.n_trials",
    ]  # fmt: skip


@pytest.mark.usefixtures("conf")
def test_a_key_that_no_option_has() -> None:
    assert complain(["optimizer=adamw,sgd", "optimizer.momntum=0.1,0.2"]) == [
        "optimizer.momntum: unknown key of every optimizer that is searched (adamw, sgd) (command line)"
        " | did you mean `optimizer.momentum`?"
    ]


@pytest.mark.usefixtures("conf")
def test_what_depends_on_a_wrong_entry_is_not_blamed() -> None:
    assert len(complain(["optimizer=adamw,sdg", "optimizer.momentum=0.1,0.2"])) == 1
    assert len(complain(["optimizer=choice(sgd", "optimizer.momentum=0.1,0.2"])) == 1
    assert len(complain(["optimizer=shuffle(adamw,sgd)", "optimizer.momentum=0.1,0.2", "optimizer.lr=1"])) == 1


def test_options_are_checked_one_by_one(conf: Any) -> None:
    conf.write("optimizer/bad.yaml", "defaults: [sgd, _self_]\nlr: -1\n")
    assert complain(["optimizer=adamw,bad,sgd", "model.norm=batch,group"]) == [
        "optimizer.lr: must be > 0, got -1 (conf/optimizer/bad.yaml, with optimizer=bad) | None"
    ]
    assert load_sweep(["optimizer=adamw,bad", "optimizer.lr=1,2"]).space.size == 4  # which mends it


@pytest.mark.usefixtures("conf")
def test_a_required_value_of_an_option() -> None:
    assert complain(["model=unet,swin", "optimizer.lr=1,2"]) == [
        "model.heads: required, not set (int >= 1) (with model=swin) | add `model.heads=...`"
    ]
    assert load_sweep(["model=unet,swin", "model.heads=4"]).space.size == 2


def test_what_an_option_changes_for_all(conf: Any) -> None:
    conf.write("experiment/a.yaml", "# @package _global_\ndata:\n  fold: 3\n")
    conf.write("experiment/b.yaml", "# @package _global_\nmodel:\n  dropout: 0.2\n")
    assert complain(["experiment=b,a"]) == [
        "experiment=a: sets data.fold to 3: all trials share the split (command line) | None"
    ]
    assert load_sweep(["experiment=b,a", "data.fold=1"]).space.size == 2


def test_a_range_that_only_some_options_allow(conf: Any) -> None:
    def lion(*, lr: Annotated[float, Range(gt=0, le=0.5)] = 0.1) -> None:
        """Roar.

        Args:
            lr: Rate.
        """

    register("optimizer", "lion")(lion)
    assert complain(["optimizer=adamw,lion", "optimizer.lr=interval(0.1,1)"]) == [
        "optimizer.lr: must be > 0 and <= 0.5, got 1.0 in `interval(0.1,1)`, with optimizer=lion (command line) | None"
    ]


SPACES = {
    "unknown key": (
        "optimizer.lrr: [1, 2]",
        "optimizer.lrr: unknown key (conf/sweep/mine.yaml) | did you mean `optimizer.lr`?",
    ),
    "a choice that there is not": (
        "{model.norm: [batch, group], optimizer.lr: {choices: [1, 2], when: {model.norm: bach}}}",
        "optimizer.lr: its condition can never hold: `model.norm` has the choices batch, group, not bach"
        " (conf/sweep/mine.yaml) | did you mean `batch`?",
    ),
    "a condition on what is set": (
        "{model.norm: [batch, group], optimizer.lr: {choices: [1, 2], when: {loss: focal}}}",
        "optimizer.lr: its condition can never hold: loss is dice_ce (conf/sweep/mine.yaml)"
        " | let it vary: `loss=focal,...`",
    ),
    "a condition on a number": (
        "{model.dropout: 'interval(0,0.5)', optimizer.lr: {choices: [1, 2], when: {model.dropout: 0.1}}}",
        "optimizer.lr: a condition names choices, and `model.dropout` varies over numbers (conf/sweep/mine.yaml)"
        " | None",
    ),
    "a condition on nothing": (
        "{loss: [focal, dice_ce], optimizer.lr: {choices: [1, 2], when: {los: focal}}}",
        "optimizer.lr: its condition names the unknown key `los` (conf/sweep/mine.yaml) | did you mean `loss`?",
    ),
    "a condition under which there is no such key": (
        "{optimizer: [adamw, sgd], optimizer.momentum: {choices: [0.1, 0.2], when: {optimizer: [adamw, sgd]}}}",
        "optimizer.momentum: does not exist for optimizer=adamw (conf/sweep/mine.yaml)"
        " | write `when: {optimizer: sgd}`",
    ),
    "a circle": (
        "{model.norm: {choices: [batch, group], when: {loss.level: low}},"
        " loss.level: {choices: [low, high], when: {model.norm: batch}}}",
        "sweep.space: the conditions of loss.level, model.norm depend on one another | None",
    ),
    "a part and the whole": (
        "{model.channels: [[1, 2], [2, 3]], model.channels.0: [1, 2]}",
        "model.channels.0: lies in `model.channels`, which varies as a whole (conf/sweep/mine.yaml) | None",
    ),
}


@pytest.mark.parametrize("mistake", SPACES)
def test_one_mistake_in_a_preset(conf: Any, mistake: str) -> None:
    space, message = SPACES[mistake]
    conf.write("sweep/mine.yaml", f"space: {space if space.startswith('{') else '{' + space + '}'}\n")
    assert complain(["sweep=mine"]) == [message]


def test_settings_of_a_sweep_in_an_experiment(conf: Any) -> None:
    conf.write("experiment/a.yaml", "# @package _global_\nsweep:\n  n_trials: 3\n")
    assert complain(["experiment=a", "optimizer.lr=1,2"]) == [
        "sweep: has no effect in this file (conf/experiment/a.yaml)"
        " | write it in a file of the group sweep: `medtrain sweep sweep=FILE.yaml`"
    ]
    conf.write("experiment/b.yaml", "# @package _global_\ndefaults:\n  - override /sampler: tpe\n")
    assert complain(["experiment=b", "optimizer.lr=1,2"]) == [
        "experiment/b: the defaults list overrides the group `sampler`, which comes after it"
        " | choose it on the command line, `medtrain sweep sampler=...`, or in a file of the group sweep"
    ]


@pytest.mark.usefixtures("conf")
def test_train_knows_whose_settings_these_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["sweep.n_trials=3", "sampler=tpe", "sampler.startup=3"])
    assert caught.value.problems == (
        Problem("sampler=tpe", "belongs to `medtrain sweep`", None, "command line"),
        Problem("sweep.n_trials", "belongs to `medtrain sweep`", None, "command line"),
        Problem("sampler.startup", "belongs to `medtrain sweep`", None, "command line"),
    )
