from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import pytest
import yaml

from medtrain import registry
from medtrain.config.space import Dimension, Space
from medtrain.errors import ConfigError, MedtrainError
from medtrain.sweep import wandb_space
from medtrain.sweep.result import Constraint, Definition, Objective
from medtrain.sweep.settings import SweepSettings
from medtrain.sweep.wandb_space import count_evaluations, definition_of, read_params, sweep_config

_LR = Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1, log=True)
_DROPOUT = Dimension(key="model.dropout", kind="float", low=0.0, high=0.5)
_LOSS = Dimension(key="loss", kind="choice", choices=("dice_ce", "focal"))
_GAMMA = Dimension(key="loss.gamma", kind="float", low=0.5, high=5.0, when={"loss": ("focal",)})
_BATCH = Dimension(key="data.batch_size", kind="int", low=2, high=8, step=2)


def _definition(*dimensions: Dimension, sampler: Any = "auto", pruner: Any = "auto", **changes: Any) -> Definition:
    """A sweep; changes are of the definition, or else of its section `sweep`."""
    sections = [{"name": part} if isinstance(part, str) else part for part in (sampler, pruner)]
    of_sweep = set(changes) - set(Definition.__dataclass_fields__)
    sweep = {key: changes.pop(key) for key in of_sweep}
    values: dict[str, Any] = {
        "overrides": ("data=phantom",),
        "imports": (),
        "config_dirs": (),
        "digest": "0123",
        "space": Space(dimensions or (_LR,)),
        "objectives": (Objective("val/dice", "max"),),
        "constraints": (),
        "sweep": {**dataclasses.asdict(SweepSettings()), **sweep},
        "sampler": sections[0],
        "pruner": sections[1],
        "folder": "/scratch/outputs/liver_sweep/20261120-09-3fa2",
        "split_hash": "abc",
        "default": None,
    }
    return Definition(**{**values, **changes})


def _parameter(dimension: Dimension, **changes: Any) -> dict[str, Any]:
    config = sweep_config(_definition(dimension, **changes), project="p")
    (found,) = config["parameters"].values()
    return found


def test_a_whole_sweep() -> None:
    definition = _definition(_LR, _LOSS, _GAMMA, _BATCH, n_trials=30)
    config = sweep_config(definition, project="lab", entity="team", evaluations=10)
    assert config.pop("command")[2:] == ["medtrain", "sweep", "--wandb-agent", "${envvar:WANDB_SWEEP_ID}"]
    assert "draws for every run, also where it is not used, loss.gamma" in config.pop("description")
    assert config == {
        "name": "20261120-09-3fa2",
        "project": "lab",
        "entity": "team",
        "program": "medtrain",
        "method": "bayes",
        "metric": {"name": "val/dice", "goal": "maximize"},
        "run_cap": 30,
        "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3, "strict": True},
        "parameters": {
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
            "loss.choice": {"values": ["dice_ce", "focal"]},
            "loss.gamma": {"distribution": "uniform", "min": 0.5, "max": 5.0},
            "data.batch_size": {"distribution": "q_uniform", "min": 2, "max": 8, "q": 2},
        },
    }
    assert yaml.safe_load(yaml.safe_dump(config)) == config


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (_DROPOUT, {"distribution": "uniform", "min": 0.0, "max": 0.5}),
        (Dimension(key="a.n", kind="int", low=1, high=6), {"distribution": "int_uniform", "min": 1, "max": 6}),
        (Dimension(key="a.n", kind="int", low=1, high=6, step=1), {"distribution": "int_uniform", "min": 1, "max": 6}),
        (
            Dimension(key="a.n", kind="int", low=1, high=64, log=True),
            {"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 1},
        ),
        # the last value that the step reaches, not the bound
        (
            Dimension(key="a.x", kind="float", low=0.0, high=0.55, step=0.125),
            {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.125},
        ),
        # multiples of 3 are not 1, 4, 7, 10
        (Dimension(key="a.n", kind="int", low=1, high=10, step=3), {"values": [1, 4, 7, 10]}),
        (Dimension(key="a.x", kind="float", low=0.25, high=1.0, step=0.5), {"values": [0.25, 0.75]}),
        (Dimension(key="a.x", kind="float", low=1.0, high=4.0, step=1.0, log=True), {"values": [1.0, 2.0, 3.0, 4.0]}),
        (Dimension(key="a.x", kind="float", low=0.5, high=0.9, step=0.5), {"value": 0.5}),
        (Dimension(key="a.c", kind="choice", choices=("1e-3", "0.01", "2")), {"values": [0.001, 0.01, 2]}),
        (Dimension(key="a.c", kind="choice", choices=("1e-3", "null")), {"values": ["1e-3", "null"]}),
        (Dimension(key="a.c", kind="choice", choices=("[32,64]", "true")), {"values": ["[32,64]", "true"]}),
    ],
)
def test_parameters(dimension: Dimension, expected: dict[str, Any]) -> None:
    assert _parameter(dimension) == expected


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        (_BATCH, [2, 4, 6, 8]),  # W&B's grid would leave the 8 out of a q_uniform
        (Dimension(key="a.n", kind="int", low=1, high=3), [1, 2, 3]),
        (Dimension(key="a.x", kind="float", low=0.0, high=0.5, step=0.25), [0.0, 0.25, 0.5]),
        (_LOSS, ["dice_ce", "focal"]),
    ],
)
def test_a_grid_lists_every_value(dimension: Dimension, values: list[Any]) -> None:
    assert _parameter(dimension, sampler="grid") == {"values": values}


def test_parity_with_wandbs_own_reading_of_parameters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
        from wandb.sdk.sweeps.scheduler.optuna import sweep_parameter_to_distribution

    cases = [
        (_LR, FloatDistribution(1e-4, 1e-1, log=True)),
        (_DROPOUT, FloatDistribution(0.0, 0.5)),
        (Dimension(key="a.n", kind="int", low=1, high=6), IntDistribution(1, 6)),
        (Dimension(key="a.n", kind="int", low=1, high=64, log=True), IntDistribution(1, 64, log=True)),
        (_BATCH, IntDistribution(2, 8, step=2)),
        (Dimension(key="a.x", kind="float", low=0.0, high=0.5, step=0.125), FloatDistribution(0.0, 0.5, step=0.125)),
        (_LOSS, CategoricalDistribution(["dice_ce", "focal"])),
    ]
    for dimension, expected in cases:
        assert sweep_parameter_to_distribution(_parameter(dimension)) == expected


@pytest.mark.parametrize(
    ("sampler", "is_grid", "method", "cap"),
    [
        ("auto", False, "bayes", 20),
        ("auto", True, "grid", None),
        ("gp", False, "bayes", 20),
        ("random", False, "random", 20),
        ("grid", False, "grid", None),
        ("brute_force", False, "grid", None),
    ],
)
def test_methods(sampler: str, is_grid: bool, method: str, cap: int | None) -> None:
    config = sweep_config(_definition(_LOSS, _BATCH, sampler=sampler, is_grid=is_grid), project="p")
    assert (config["method"], config.get("run_cap")) == (method, cap)


def test_a_grid_that_was_limited_stays_limited() -> None:
    assert sweep_config(_definition(_LOSS, sampler="grid", n_trials=1), project="p")["run_cap"] == 1


def test_a_conditional_grid_is_not_a_grid_in_wandb() -> None:
    gamma = dataclasses.replace(_GAMMA, kind="choice", choices=("1", "2"), low=None, high=None)
    assert sweep_config(_definition(_LOSS, gamma, is_grid=True), project="p")["method"] == "bayes"
    with pytest.raises(ConfigError, match="train the same point again"):
        sweep_config(_definition(_LOSS, gamma, sampler="grid"), project="p")


@pytest.mark.parametrize(
    ("pruner", "evaluations", "expected"),
    [
        ("none", 10, None),
        ("auto", 10, (2, 3)),
        ("auto", 50, (10, 3)),
        ("auto", None, (2, 3)),
        ("auto", 2, (1, 3)),
        ("auto", 1, None),  # nothing to stop before the end
        ({"name": "hyperband", "min_resource": 25, "reduction_factor": 2}, 10, (3, 2)),
        ({"name": "successive_halving", "min_resource": 1, "reduction_factor": 4}, 10, (1, 4)),
    ],
)
def test_pruning(pruner: Any, evaluations: int | None, expected: tuple[int, int] | None) -> None:
    config = sweep_config(_definition(pruner=pruner), project="p", evaluations=evaluations)
    wanted = expected and {"type": "hyperband", "min_iter": expected[0], "eta": expected[1], "strict": True}
    assert config.get("early_terminate") == wanted


@pytest.mark.parametrize("changes", [{"folds": [0, 1]}, {"objectives": (Objective("train_s", "min"),)}])
def test_what_wandb_cannot_watch_is_not_pruned(changes: dict[str, Any]) -> None:
    assert "early_terminate" not in sweep_config(_definition(**changes), project="p", evaluations=10)
    pruner = {"name": "hyperband", "min_resource": 10}
    with pytest.raises(ConfigError, match="pruner: "):
        sweep_config(_definition(pruner=pruner, **changes), project="p", evaluations=10)


def test_everything_that_wandb_cannot_do_is_said_at_once() -> None:
    definition = _definition(
        _LR,
        sampler="cmaes",
        pruner="median",
        constraints=(Constraint("parameters", "<=", 5e6),),
        objectives=(Objective("val/dice", "max"), Objective("latency_ms", "min")),
        warm_start=["old"],
        workers=2,
        rerun_best=3,
        storage="x.db",
    )
    definition = dataclasses.replace(definition, sweep={**definition.sweep, "constraints": ["parameters <= 5e6"]})
    with pytest.raises(ConfigError) as caught:
        sweep_config(definition, project="p")
    found = {problem.where: problem for problem in caught.value.problems}
    assert set(found) == {
        *("sampler", "pruner", "sweep.objectives", "sweep.constraints", "sweep.warm_start", "sweep.workers"),
        *("sweep.rerun_best", "sweep.storage"),
    }
    assert all(problem.hint for problem in found.values())
    assert found["sweep.objectives"].message == "W&B optimizes one metric, not val/dice, latency_ms"


def test_a_grid_is_pruned_only_when_asked() -> None:
    assert "early_terminate" not in sweep_config(_definition(_LOSS, is_grid=True), project="p", evaluations=10)
    pruner = {"name": "hyperband", "min_resource": 10, "reduction_factor": 3}
    config = sweep_config(_definition(_LOSS, is_grid=True, pruner=pruner), project="p", evaluations=10)
    assert config["early_terminate"]["min_iter"] == 1


def test_settings_that_wandb_does_not_have_are_refused_when_changed() -> None:
    usual = {group: {"name": name, **registry.get(group, name).defaults()} for group, name in _SECTIONS.items()}
    assert sweep_config(_definition(**usual), project="p", evaluations=10)["early_terminate"]["min_iter"] == 1
    changed = {
        "sampler": {**usual["sampler"], "n_startup_trials": 7},
        "pruner": {**usual["pruner"], "bootstrap": 2, "min_resource": 30},
    }
    with pytest.raises(ConfigError) as caught:
        sweep_config(_definition(**changed), project="p", evaluations=10)
    assert [problem.where for problem in caught.value.problems] == ["sampler.n_startup_trials", "pruner.bootstrap"]


_SECTIONS = {"sampler": "gp", "pruner": "hyperband"}


def test_an_endless_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout: has no end of values"):
        sweep_config(_definition(_LOSS, _DROPOUT, sampler="grid"), project="p")


def test_hyperband_needs_the_number_of_evaluations() -> None:
    pruner = {"name": "hyperband", "min_resource": 25, "reduction_factor": 2}
    with pytest.raises(ConfigError, match="not known beforehand"):
        sweep_config(_definition(pruner=pruner), project="p", evaluations=None)


def test_the_definition_travels_with_the_sweep() -> None:
    definition = _definition(_LR, _LOSS, _GAMMA, overrides=("data.root=/data/a b", "run.note='${seed} \"x\"'"))
    config = yaml.safe_load(yaml.safe_dump(sweep_config(definition, project="p"), width=1000))
    assert definition_of(config) == definition


def test_a_sweep_of_somebody_else() -> None:
    with pytest.raises(MedtrainError, match="not made by medtrain"):
        definition_of({"method": "random", "program": "train.py"})
    with pytest.raises(MedtrainError, match="cannot be read"):
        definition_of({"command": [f"{wandb_space.DEFINITION}={json.dumps({'space': []})}"]})


_SPACE = Space(
    (
        _LR,
        _LOSS,
        _GAMMA,
        _BATCH,
        Dimension(key="a.x", kind="float", low=0.0, high=0.5, step=0.1),
        Dimension(key="a.c", kind="choice", choices=("1e-3", "2", "null", "true", "[1,2]")),
    )
)
_DRAWN: dict[str, Any] = {
    "optimizer.lr": 0.01,
    "loss.choice": "focal",
    "loss.gamma": 2,
    "data.batch_size": 4.0,
    "a.x": 0.30000000000000004,
    "a.c": "2",
}


def test_reading_a_draw() -> None:
    params = read_params(_SPACE, _DRAWN)
    assert params == {
        "optimizer.lr": 0.01,
        "loss": "focal",
        "loss.gamma": 2.0,
        "data.batch_size": 4,
        "a.x": pytest.approx(0.3),
        "a.c": "2",
    }
    assert [type(params[key]) for key in ("loss.gamma", "data.batch_size")] == [float, int]
    assert _SPACE.overrides(params)[:4] == ["optimizer.lr=0.01", "loss=focal", "loss.gamma=2.0", "data.batch_size=4"]


def test_what_does_not_exist_is_ignored() -> None:
    params = read_params(_SPACE, {**_DRAWN, "loss.choice": "dice_ce"})
    assert "loss.gamma" not in params
    del params["loss"]
    assert set(params) == {"optimizer.lr", "data.batch_size", "a.x", "a.c"}


@pytest.mark.parametrize(
    ("drawn", "text"),
    [("1e-3", "1e-3"), (0.001, "1e-3"), ("0.001", "1e-3"), (2, "2"), (2.0, "2"), (None, "null"), ("null", "null"),
     (True, "true"), ("[1,2]", "[1,2]")],
)  # fmt: skip
def test_a_choice_is_found_by_its_meaning(drawn: Any, text: str) -> None:
    assert read_params(_SPACE, {**_DRAWN, "a.c": drawn})["a.c"] == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.lr": 0.2}, r"drew optimizer\.lr=0\.2"),
        ({"optimizer.lr": "fast"}, "drew optimizer"),
        ({"optimizer.lr": True}, "drew optimizer"),
        ({"optimizer.lr": float("nan")}, "drew optimizer"),
        ({"data.batch_size": 5}, r"drew data\.batch_size=5"),
        ({"loss.choice": "dice"}, r"drew loss\.choice='dice'"),
        ({"a.c": 3}, r"drew a\.c=3"),
        ({"a.c": False}, r"drew a\.c=False"),
        ({"trainer.max_steps": 100}, r"W&B draws trainer\.max_steps"),
    ],
)
def test_a_draw_from_another_space_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MedtrainError, match=message):
        read_params(_SPACE, {**_DRAWN, **changes})


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(MedtrainError, match=r"drew no a\.c"):
        read_params(_SPACE, {key: value for key, value in _DRAWN.items() if key != "a.c"})


@pytest.mark.parametrize(
    ("every", "steps", "epochs", "expected"),
    [
        ("10%", None, None, 10),
        ("30%", None, None, 3),
        ("100%", 50, None, 1),
        ("500step", 2000, None, 4),
        ("500step", 100, None, 1),
        ("500step", None, None, None),
        ("5ep", None, 100, 20),
        ("5ep", 1000, None, None),
        ("10min", 1000, 10, None),
    ],
)
def test_counting_evaluations(every: str, steps: int | None, epochs: int | None, expected: int | None) -> None:
    trainer = {"eval_every": every, "max_steps": steps, "max_epochs": epochs}
    assert count_evaluations(trainer) == expected
