"""How mistakes read: one line each, with the origin, what is allowed, and the nearest name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from medtrain.config.compose import load_config
from medtrain.errors import ConfigError


def complain(overrides: Sequence[str]) -> list[str]:
    """What is said about overrides, each problem as `problem | hint`."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    assert caught.value.exit_code == 2
    return [f"{problem} | {problem.hint}" for problem in caught.value.problems]


GOLDEN = {
    "unknown option": (
        "model=unett",
        "model=unett: unknown model `unett`; available: swin, unet (command line) | did you mean `model=unet`?",
    ),
    "unknown option, nothing near": (
        "loss=xyz",
        "loss=xyz: unknown loss `xyz`; available: dice_ce, focal (command line) | None",
    ),
    "unknown option in a list": (
        "logger=[csv,jsonll]",
        "logger=jsonll: unknown logger `jsonll`; available: csv, jsonl (command line) | did you mean `logger=jsonl`?",
    ),
    "unknown group": ("modl=unet", "modl: unknown key (command line) | did you mean `model`?"),
    "unknown group with a key": ("modl.depth=3", "modl.depth: unknown key (command line) | did you mean `model`?"),
    "unknown key": (
        "model.chanels=[1]",
        "model.chanels: unknown key (command line) | did you mean `model.channels`?",
    ),
    "unknown key, nothing near": (
        "optimizer.zzz=1",
        "optimizer.zzz: unknown key (command line) | known keys: lr, rules",
    ),
    "unknown root key": (
        "sede=1",
        "sede: unknown key (command line) | did you mean `seed`?",
    ),
    "unknown key in a list item": (
        "optimizer.rules=[{patern:x}]",
        "optimizer.rules[0].patern: unknown key (command line) | did you mean `optimizer.rules[0].pattern`?",
    ),
    "wrong type": (
        "trainer.max_steps=abc",
        "trainer.max_steps: expected int >= 1 or null, got 'abc' (command line) | None",
    ),
    "wrong type, a bool": (
        "trainer.compile=yes",
        "trainer.compile: expected true or false, got 'yes' (command line) | None",
    ),
    "out of range": ("model.dropout=1.5", "model.dropout: must be >= 0 and < 1, got 1.5 (command line) | None"),
    "out of range in a list": (
        "model.channels=[8,0]",
        "model.channels[1]: must be >= 1, got 0 (command line) | None",
    ),
    "not a number": ("optimizer.lr=nan", "optimizer.lr: must be a finite number, got nan (command line) | None"),
    "negative seed": ("seed=-1", "seed: must be >= 0, got -1 (command line) | None"),
    "wrong choice": (
        "model.norm=instanc",
        "model.norm: must be one of instance, batch, group, got 'instanc' (command line)"
        " | did you mean `model.norm=instance`?",
    ),
    "None for null": (
        "data.fold=None",
        "data.fold: expected int >= 0 or null, got 'None' (command line) | did you mean `data.fold=null`?",
    ),
    "a duration without a unit": (
        "trainer.every=20",
        'trainer.every: \'20\' is not valid: it needs a unit (command line) | write for example "500step" or "10ep"',
    ),
    "missing value": ("model=swin", "model.heads: required, not set (int >= 1) | add `model.heads=...`"),
    "plus": (
        "+model.dropout=0.2",
        "+model.dropout=0.2: `+` is not used: every key exists already (command line) | write `model.dropout=0.2`",
    ),
    "smuggling with a plus": (
        "+model.foo=1",
        "model.foo: unknown key (command line) | known keys: out_channels, channels, dropout, norm",
    ),
    "smuggling with two": (
        "++model.chanels=1",
        "model.chanels: unknown key (command line) | did you mean `model.channels`?",
    ),
    "plus before a group": (
        "+loss=focal",
        "+loss=focal: `+` is not used: every key exists already (command line) | write `loss=focal`",
    ),
    "removal": (
        "~model.dropout",
        "~model.dropout: nothing can be removed: `~` is not used (command line)"
        " | set `model.dropout=null` where that is allowed",
    ),
    "removal with a value": (
        "~logger.csv=1",
        "~logger.csv=1: nothing can be removed: `~` is not used (command line)"
        " | choose the ones you want: `logger=[...]`",
    ),
    "package": (
        "loss@task.loss=focal",
        "loss@task.loss=focal: packages are not used: a group has one fixed place (command line) | write `loss=focal`",
    ),
    "a sweep of values": (
        "optimizer.lr=1e-3,1e-4",
        "optimizer.lr=1e-3,1e-4: several values are a sweep; a run takes one (command line)"
        ""
        " | try them all with `medtrain sweep 'optimizer.lr=1e-3,1e-4'`, or write a list as `optimizer.lr=[1e-3,1e-4]`",
    ),
    "a sweep of options": (
        "model=unet,swin",
        "model=unet,swin: several values are a sweep; a run takes one (command line)"
        " | try them all with `medtrain sweep 'model=unet,swin'`",
    ),
    "a sweep function": (
        "optimizer.lr=interval(0,1)",
        "optimizer.lr=interval(0,1): several values are a sweep; a run takes one (command line)"
        " | try them all with `medtrain sweep 'optimizer.lr=interval(0,1)'`",
    ),
    "a list without brackets": (
        "logger=csv,jsonl",
        "logger=csv,jsonl: several values are a sweep; a run takes one (command line)"
        " | write a list: `logger=[csv,jsonl]`",
    ),
    "no value": (
        "trainer",
        "trainer: not an override: write KEY=VALUE, e.g. `optimizer.lr=1e-3`, or GROUP=OPTION, e.g. `model=unet`"
        " (command line) | did you mean `trainer=...`?",
    ),
    "no key": (
        "=3",
        "=3: not an override: write KEY=VALUE, e.g. `optimizer.lr=1e-3`, or GROUP=OPTION, e.g. `model=unet`"
        " (command line) | None",
    ),
    "unbalanced": (
        "model.channels=[1,2",
        "model.channels: expected list of int >= 1, got '[1,2' (command line)"
        " | a list is written in brackets: `model.channels=[...]`",
    ),
    "null for a group": (
        "augment=null",
        "augment=null: choose one of light, none (command line) | did you mean `augment=none`?",
    ),
    "a mapping for a group": (
        "loss={level:high}",
        "loss={level:high}: choose one of dice_ce, focal (command line) | values are set one by one: `loss.KEY=VALUE`",
    ),
    "a number for a group": ("loss=3", "loss=3: choose one of dice_ce, focal (command line) | None"),
    "a component's name": (
        "model.name=swin",
        "model.name: the name of a component is not set as a value (command line)"
        " | choose the component with `model=swin`, or `override /model:` in a defaults list",
    ),
    "a value of what is not chosen": (
        "callbacks.early_stopping.patience=3",
        "callbacks.early_stopping.patience: early_stopping is not chosen (command line)"
        " | choose it with `callbacks=[curves,early_stopping]`",
    ),
    "a callback that does not exist": (
        "callbacks.curvs.level=high",
        "callbacks.curvs.level: unknown key (command line) | did you mean `callbacks.curves`?",
    ),
    "a key of a single value": (
        "optimizer.lr.base=1",
        "optimizer.lr.base: `optimizer.lr` is a single value and has no keys (command line) | None",
    ),
    "an item that does not exist": (
        "optimizer.rules[0].lr_mult=1",
        "optimizer.rules.0.lr_mult: `optimizer.rules` has no items; set the whole list (command line) | None",
    ),
    "hydra's own settings": (
        "hydra.run.dir=x",
        "hydra.run.dir: unknown key (command line)"
        " | Hydra's own settings do not apply here: the run folder is set with `run.dir`",
    ),
    "no experiments": (
        "experiment=fast",
        "experiment=fast: unknown experiment `fast`; there is none (command line) | None",
    ),
    "a missing experiment file": (
        "experiment=my/exp.yaml",
        "experiment=my/exp.yaml: there is no such file (command line) | None",
    ),
    "a reference to nothing": (
        "data.root=${run.levl}",
        "data.root: cannot resolve ${run.levl}: interpolation key 'run.levl' not found (command line)"
        " | did you mean `${run.level}`?",
    ),
}


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("mistake", GOLDEN)
def test_one_mistake(mistake: str) -> None:
    override, message = GOLDEN[mistake]
    assert complain([override]) == [message]
    assert "hydra" not in message.lower() or "hydra" in override  # users need not know what composes


@pytest.mark.usefixtures("conf")
def test_all_problems_come_at_once() -> None:
    found = complain(
        ["seed=x", "optimizer.lrr=1", "~a.b", "loss=dice", "model.dropout=2", "model.norm=x", "data.root=${nope}"]
    )
    assert [line.split(":")[0] for line in found] == [
        "~a.b", "loss=dice", "data.root", "seed", "model.dropout", "model.norm", "optimizer.lrr",
    ]  # fmt: skip


@pytest.mark.usefixtures("conf")
def test_values_of_an_unknown_option_are_not_blamed() -> None:
    assert len(complain(["model=swinn", "model.heads=3", "+model.depth=2"])) == 1
