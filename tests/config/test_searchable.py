"""Which keys may vary: the rules name keys that exist, and every setting of the engine has been thought about."""

from __future__ import annotations

import pytest

from medtrain import registry
from medtrain.config.paths import ALL_GROUPS, ROOT_KEYS
from medtrain.config.searchable import _NO_EFFECT, _SPEED, GRID_MAY, SHARED, why_not
from medtrain.config.sweeps import load_sweep
from medtrain.errors import ConfigError


def parameters(group: str) -> set[str]:
    return {name for option in registry.names(group) for name in registry.get(group, option).params}


def reason(key: str, *, is_grid: bool = False, objectives: tuple[str, ...] = (), final: bool = False) -> str | None:
    found = why_not(key, is_grid=is_grid, objectives=objectives, final_evaluation=final)
    return found[0] if found else None


@pytest.mark.parametrize("key", sorted({*SHARED, *_NO_EFFECT, *_SPEED}))
def test_the_rules_name_what_exists(key: str) -> None:
    group, _, name = key.partition(".")
    assert group in (*ALL_GROUPS, *ROOT_KEYS)
    assert name in ("", "*") or name in parameters(group)
    assert reason(key)


def test_every_setting_of_the_engine_is_classified() -> None:
    assert {name for name in parameters("trainer") if reason(f"trainer.{name}") is None} == {
        "max_steps", "max_epochs", "max_time", "precision", "accumulate", "clip_norm", "clip_value", "ema_decay",
        "ema_warmup", "init_from", "nonfinite", "stages",
    }  # fmt: skip


def test_every_setting_of_the_data_is_classified() -> None:
    assert {name for name in parameters("data") if reason(f"data.{name}") is None} == {
        "spatial_dims", "patch_size", "spacing", "batch_size", "normalization", "oversample_foreground",
        "samples_per_case", "image_size", "channels", "window", "scaling", "balance", "max_instances",
        "missing_numbers", "resolution", "cascade_augment", "zscore_nonzero", "memory_gib",
    }  # fmt: skip


@pytest.mark.parametrize("group", ["model", "loss", "augment", "optimizer", "scheduler"])
def test_all_that_shapes_the_network_can_vary(group: str) -> None:
    assert reason(group) is None
    assert [name for name in parameters(group) if reason(f"{group}.{name}")] == []


def test_a_grid_may_have_seeds_and_folds() -> None:
    assert {key for key in SHARED if reason(key, is_grid=True) is None} == set(GRID_MAY)


def test_speed_counts_where_it_is_an_objective() -> None:
    for key in _SPEED:
        assert reason(key, objectives=("val/dice",)) == "has no effect on what is learned, only on the speed"
        assert reason(key, objectives=("val/dice", "train_s")) is None
        assert reason(key, objectives=("latency_ms",)) is None


def test_mirroring_counts_where_it_is_evaluated() -> None:
    assert reason("inference.mirror")
    assert reason("inference.mirror", final=True) is None
    assert load_sweep(["inference.mirror=true,false", "trainer.final_evaluation=true"]).space.size == 2
    with pytest.raises(ConfigError, match="only the final evaluation uses it, which trials leave out"):
        load_sweep(["inference.mirror=true,false"])


@pytest.mark.parametrize("key", ["sweep.n_trials", "sampler", "pruner.warmup", "debug", "run", "logger", "callbacks"])
def test_what_never_varies(key: str) -> None:
    assert reason(key, is_grid=True)


def test_early_stopping_counts() -> None:
    assert reason("callbacks.early_stopping.patience") is None
    words = ["callbacks=[early_stopping]", "callbacks.early_stopping.patience=2,5"]
    config = load_sweep(words)
    assert config.train.tree["callbacks"]["early_stopping"]["patience"] == 10
    assert config.overrides[:2] == ("callbacks=[early_stopping]", "logger=[csv,jsonl]")


def test_the_examples_of_the_manual() -> None:
    words = [
        "model=unet", "data=phantom", "optimizer.lr=tag(log, interval(1e-4,1e-1))", "loss=choice(dice_ce,focal)",
        "loss.gamma=interval(0.5,5)", "model.dropout=interval(0,0.5)", "data.batch_size=range(2,9,2)",
        "sweep.n_trials=30", "sweep.workers=2", "sampler=tpe", "pruner=median",
    ]  # fmt: skip
    config = load_sweep(words)
    assert [dimension.key for dimension in config.space.dimensions] == [
        "loss", "optimizer.lr", "loss.gamma", "model.dropout", "data.batch_size",
    ]  # fmt: skip
    assert config.space.is_conditional
    assert config.overrides[:2] == ("model=unet", "data=phantom")
    grid = load_sweep(["optimizer.lr=1e-3,3e-3", "loss=dice_ce,focal"])
    assert grid.is_grid
    assert grid.space.size == 4
