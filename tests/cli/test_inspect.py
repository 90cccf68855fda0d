"""show, list, describe and validate on what ships."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from medtrain.cli.app import app
from medtrain.config.compose import load_config
from medtrain.registry import plain


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def no_data(in_tmp: Path) -> list[str]:
    """Overrides of a data set that is not there, so that nothing is derived."""
    return ["data=msd", "data.root=nowhere"]


def test_show_prints_the_config(no_data: list[str]) -> None:
    result = run("show", *no_data, "optimizer.lr=1e-2")
    assert result.exit_code == 0
    tree = load_config([*no_data, "optimizer.lr=1e-2"]).tree
    assert yaml.safe_load(result.stdout) == plain(tree)
    assert list(yaml.safe_load(result.stdout)) == list(tree)


def test_show_says_why_nothing_is_derived(no_data: list[str]) -> None:
    result = run("show", *no_data)
    assert result.stderr.startswith("note: what follows from the data is not shown: ")
    assert "nowhere" in result.stderr
    assert "\nhint: " in result.stderr


def test_show_derives_from_the_phantom(in_tmp: Path) -> None:
    words = ["data.num_cases=6", "data.num_test_cases=0", "data.patch_size=null"]
    result = run("show", *words)
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("  patch_size:"))
    assert line.startswith("  patch_size: null  # derived: [")
    resolved = run("show", "--resolve", *words)
    patch_size = yaml.safe_load(resolved.stdout)["data"]["patch_size"]
    assert len(patch_size) == 3
    assert f"  patch_size: {patch_size}  # derived: " in resolved.stdout
    flat = run("show", "--resolve", "--format", "flat", *words)
    assert f"data.patch_size=[{','.join(map(str, patch_size))}]  # derived: " in flat.stdout


def test_show_diff_and_origin() -> None:
    result = run("show", "--diff", "--origin", "experiment=nnunet", "seed=3")
    assert "seed: 3  # command line\n" in result.stdout
    assert "  name: sgd  # conf/experiment/nnunet.yaml\n" in result.stdout
    assert "task:" not in result.stdout
    assert result.stderr == ""
    assert run("show", "--diff").stdout == ""


def test_show_as_json(no_data: list[str]) -> None:
    assert json.loads(run("show", "--format", "json", *no_data).stdout)["data"]["root"] == "nowhere"
    found = json.loads(run("show", "--format", "json", "--origin", *no_data).stdout)
    assert found["data.root"] == {"value": "nowhere", "origin": "command line"}


def test_show_resolve_fills_references_in(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_DATA", "/nowhere")
    assert "root: ${oc.env:MEDTRAIN_DATA,data}/Task03_Liver\n" in run("show", "data=msd_liver").stdout
    assert "root: /nowhere/Task03_Liver\n" in run("show", "--resolve", "data=msd_liver").stdout


def test_show_lists_every_problem() -> None:
    result = run("show", "model=unett", "optimizer.lr=-1", "sede=1")
    assert result.exit_code == 2
    assert result.stdout == ""
    models = ", ".join(run("list", "model").stdout.split())
    assert result.stderr.splitlines() == [
        f"error: model=unett: unknown model `unett`; available: {models} (command line); did you mean `model=unet`?",
        "error: sede: unknown key (command line); did you mean `seed`?",
        "error: optimizer.lr: must be > 0, got -1 (command line)",
    ]


def test_list() -> None:
    assert run("list", "optimizer").stdout.splitlines() == ["adam", "adamw", "adamw_slow", "rmsprop", "sgd"]
    every = run("list").stdout
    assert re.search(r"\nmodel +[a-z0-9_ ]*\bunet\b", every)
    assert "experiment  " in every
    assert "adamw       Adam with decoupled weight decay.\n" in run("list", "optimizer", "--long").stdout
    assert "msd_liver           Medical Segmentation Decathlon, task 03" in run("list", "--long").stdout


def test_list_the_groups_of_a_sweep() -> None:
    assert "unet_basics" in run("list", "sweep").stdout.splitlines()
    assert "\npruner      auto " in run("list").stdout
    long = run("list", "sampler", "--long").stdout
    assert "tpe          Tree-structured Parzen estimator" in long
    assert "quick         The learning rate alone" in run("list", "sweep", "--long").stdout


def test_list_knows_the_users_own(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/tiny.yaml").write_text("# Two levels.\ndefaults: [unet, _self_]\n")
    listed = run("list", "model", "--config-dir", "conf", "--long").stdout.splitlines()
    (mine,) = set(listed) - set(run("list", "model", "--long").stdout.splitlines())
    assert mine.split() == ["tiny", "Two", "levels."]


def test_describe() -> None:
    text = run("describe", "optimizer=adamw").stdout
    assert text.startswith("optimizer=adamw  (medtrain.optim.optimizers)\n\nAdam with decoupled weight decay.\n")
    lr = [
        "optimizer.lr",
        "    float > 0; default 0.001",
        "    0.003 in conf/optimizer/adamw.yaml",
        "    Learning rate.",
    ]
    assert "".join(f"  {line}\n" for line in lr) in text
    assert "list of 2 float; default [0.9, 0.999]" in text
    assert run("describe", "model=unett").exit_code == 2


def test_describe_what_belongs_to_a_sweep() -> None:
    assert run("describe", "sampler=tpe").stdout.startswith("sampler=tpe  (medtrain.sweep.samplers)\n")
    assert run("describe", "sweep.n_trials").stdout.startswith(
        "  sweep.n_trials\n      int >= 1 or null; default null\n"
    )
    text = run("describe", "sweep=unet_basics").stdout
    assert text.startswith("sweep=unet_basics  (sweep=default, medtrain.sweep.settings)\n")
    assert "      in conf/sweep/unet_basics.yaml:\n          optimizer.lr: tag(log, interval(3e-4, 3e-2))\n" in text
    assert "      40 in conf/sweep/unet_basics.yaml\n" in text
    assert run("describe", "sampler").exit_code == 0
    assert run("describe", "hyperband").stdout.startswith("pruner=hyperband")


def test_describe_says_which_component_has_a_key() -> None:
    result = run("describe", "sampler.multivariate")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: sampler=auto has no key `multivariate`; its keys are: none",
        "hint: it belongs to `sampler=tpe`: `medtrain describe sampler=tpe`",
    ]


def test_show_is_for_runs() -> None:
    result = run("show", "sweep=quick", "pruner.warmup=3")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: sweep=quick: belongs to `medtrain sweep` (command line)",
        "error: pruner.warmup: belongs to `medtrain sweep` (command line)",
    ]


def test_validate_sweeps(in_tmp: Path) -> None:
    assert run("validate", "optimizer.lr=interval(1e-3,1e-2)").stdout.endswith("1 checked, 0 wrong\n")
    result = run("validate", "sweep=unet_basics", "loss=dice,foca")
    assert result.exit_code == 2
    assert "loss=foca: unknown loss `foca`" in result.stderr
    Path("space.yaml").write_text("space:\n  optimizer.lr: interval(1e-3, 1e-2)\n")
    Path("whole.yaml").write_text("sampler:\n  seed: 3\nsweep:\n  space:\n    model.dropout: interval(0, 1)\n")
    Path("run.yaml").write_text("seed: 3\n")
    result = run("validate", "*.yaml")
    assert result.stdout == "ok     run.yaml\nok     space.yaml\nwrong  whole.yaml\n3 checked, 1 wrong\n"
    assert result.stderr.splitlines() == [
        "error: whole.yaml: model.dropout: must be >= 0 and < 1, got 1.0 in `interval(0, 1)` (whole.yaml)",
        "error: whole.yaml: sampler.seed: unknown key (whole.yaml); known keys: none",
    ]
    assert run("validate", "sampler=grid").exit_code == 2  # nothing varies


def test_validate(in_tmp: Path) -> None:
    result = run("validate", "optimizer.lr=0.1")
    assert (result.exit_code, result.stdout) == (0, "ok     optimizer.lr=0.1\n1 checked, 0 wrong\n")
    Path("good.yaml").write_text("seed: 1\n")
    Path("bad.yaml").write_text("sede: 1\ntrainer:\n  max_steps: 0\n")
    result = run("validate", "*.yaml")
    assert result.exit_code == 2
    assert result.stdout == "wrong  bad.yaml\nok     good.yaml\n2 checked, 1 wrong\n"
    assert result.stderr.splitlines() == [
        "error: bad.yaml: sede: unknown key (bad.yaml); did you mean `seed`?",
        "error: bad.yaml: trainer.max_steps: must be >= 1, got 0 (bad.yaml)",
    ]
