"""Completion, through the protocol the shells' scripts use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medtrain import registry
from medtrain.cli.complete import complete_group, complete_option, complete_override

HEAVY = ("torch", "numpy", "hydra", "omegaconf", "yaml", "rich")


def bash(*words: str) -> list[str]:
    """Complete the last word as bash asks: the line split at spaces and, as COMP_WORDBREAKS says, at `=`."""
    code = (
        "import sys\n"
        "sys.argv = ['medtrain']\n"
        "from medtrain.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"loaded = set({HEAVY!r}) & set(sys.modules)\n"
        "sys.exit(f'imported: {loaded}' if loaded else 0)\n"
    )
    environment = os.environ | {
        "_MEDTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["medtrain", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_splits_at_the_equal_sign() -> None:
    assert bash("tr") == ["train"]
    assert bash("train", "data", "=", "msd_l") == ["msd_liver", "msd_lung"]
    assert bash("train", "optimizer", "=", "sgd", "optimizer.m") == ["optimizer.momentum=0.99"]


def test_bash_knows_what_a_sweep_has_besides() -> None:
    assert bash("sweep", "sampler", "=", "nsga") == ["nsga2", "nsga3"]
    assert bash("sweep", "sweep", "=", "unet_basics", "sweep.n_t") == ["sweep.n_trials="]
    assert bash("train", "sampler", "=", "nsga") == []


def test_bash_without_that_word_break() -> None:
    assert bash("train", "data=msd_l") == ["data=msd_liver", "data=msd_lung"]


def test_zsh_gets_whole_words() -> None:
    environment = os.environ | {
        "_MEDTRAIN_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "medtrain show trainer.precision=f",
    }
    done = subprocess.run(
        [sys.executable, "-m", "medtrain"], env=environment, capture_output=True, text=True, check=False
    )
    assert '"trainer.precision=fp16"\n"trainer.precision=fp32"' in done.stdout


@pytest.fixture(autouse=True)
def _no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)


def complete(text: str, *before: str, folders: tuple[Path, ...] = ()) -> list[str]:
    return complete_override({"overrides": before, "config_dirs": folders}, text)


def test_groups_and_root_keys() -> None:
    assert complete("lo") == ["logger=", "loss="]
    assert complete("se") == ["seed="]
    assert complete("model") == ["model.", "model="]
    assert "experiment=" in complete("")


def test_a_group_alone_offers_its_options() -> None:
    every = ["optimizer=adam", "optimizer=adamw", "optimizer=adamw_slow", "optimizer=rmsprop", "optimizer=sgd"]
    assert complete("optimi") == every
    assert complete("optimizer=a") == every[:3]
    assert complete("debug=s") == ["debug=smoke", "debug=speed"]


def test_keys_of_the_chosen_component() -> None:
    assert "optimizer.betas=" in complete("optimizer.")
    assert "optimizer.momentum=" in complete("optimizer.", "optimizer=sgd")
    assert "optimizer.betas=" not in complete("optimizer.", "optimizer=sgd")
    assert "data.root=" in complete("data.r", "data=msd_liver")
    assert complete("nothing.") == []


def test_keys_of_the_chosen_callbacks() -> None:
    assert complete("callbacks.early") == []
    assert "callbacks.early_stopping.patience=" in complete("callbacks.early", "callbacks=[curves,early_stopping]")


def test_choices_and_defaults() -> None:
    assert complete("model.norm=") == ["model.norm=batch", "model.norm=group", "model.norm=instance"]
    assert complete("trainer.compile=") == ["trainer.compile=false", "trainer.compile=true"]
    assert complete("optimizer.lr") == ["optimizer.lr=0.001"]
    assert "optimizer.lr=" in complete("optimizer.l")
    assert complete("trainer.max_t") == ["trainer.max_time="]


def test_lists() -> None:
    assert complete("logger=[csv,t") == ["logger=[csv,tensorboard"]


def sweep(text: str, *before: str) -> list[str]:
    return complete_override({"overrides": before}, text, config_name="sweep")


def test_a_sweep_has_groups_that_a_run_has_not() -> None:
    assert sweep("sam") == [f"sampler={name}" for name in registry.names("sampler")]
    assert sweep("prun") == [f"pruner={name}" for name in registry.names("pruner")]
    assert "sweep=unet_basics" in sweep("sweep=")
    assert "sweep." in sweep("sweep")
    assert complete("sam") == []
    assert complete("sampler=") == []
    assert complete("sweep.n_") == []
    assert "optimizer=sgd" in sweep("optimizer=")


def test_keys_of_a_sweep() -> None:
    assert sweep("sweep.n_") == ["sweep.n_trials="]
    assert sweep("sweep.try_d", "sweep=unet_basics") == ["sweep.try_default=false", "sweep.try_default=true"]
    assert "sampler.multivariate=" in sweep("sampler.", "sampler=tpe")
    assert sweep("sampler.") == []  # auto has nothing to set
    assert "loss.batch_dice=" in sweep("loss.")


def test_several_options_and_their_keys() -> None:
    assert sweep("loss=dice_ce,fo") == ["loss=dice_ce,focal"]
    assert "loss=dice_ce,dice_ce" not in sweep("loss=dice_ce,")
    assert sweep("loss=choice(dice_ce,fo") == ["loss=choice(dice_ce,focal"]
    for words in ("loss=dice_ce,focal", "loss=choice(dice_ce,focal)", "loss='choice(dice_ce, focal)'"):
        assert sweep("loss.gam", words) == ["loss.gamma=2.0"]
        assert "loss.ce_weight=" in sweep("loss.", words)


def test_the_users_own_options(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tiny.yaml").write_text("defaults: [unet, _self_]\n")
    assert complete("model=tin", folders=(tmp_path,)) == ["model=tiny"]
    assert complete("model.n", "model=tiny", folders=(tmp_path,)) == [
        "model.norm=batch", "model.norm=group", "model.norm=instance",
    ]  # fmt: skip


def test_commands_that_train_take_the_same_words() -> None:
    for command in ("train", "crossval", "plan"):
        environment = {**os.environ, "_MEDTRAIN_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
                       "_TYPER_COMPLETE_ARGS": f"medtrain {command} trainer.init_m"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "medtrain"], env=environment, capture_output=True, text=True, check=False
        )
        assert "trainer.init_min_match=0.5" in done.stdout, (command, done)


def test_arguments_of_list_and_describe() -> None:
    assert complete_group("lo") == ["loss", "logger"]
    assert complete_option({}, "model=vit") == ["model=vit", "model=vit_lora"]
    assert {"model=unet", "model=zones"} < set(complete_option({}, "mod"))
    assert complete_option({}, "sampler=nsga") == ["sampler=nsga2", "sampler=nsga3"]
    assert complete_group("sa") == ["sampler"]
    assert complete_option({}, "lo") == ["loss=", "logger="]
    assert complete_option({}, "loss=dice_") == ["loss=dice_bce", "loss=dice_ce"]
