"""What is optimized, under which conditions, and where a search begins."""

from __future__ import annotations

import logging

import pytest

from medtrain.config.space import Dimension, Space
from medtrain.errors import ConfigError
from medtrain.sweep.objectives import choose_objectives, default_point, digest
from medtrain.sweep.result import Constraint, Objective
from medtrain.sweep.trial import Probe

FACTS = Probe(
    metrics={"val/dice": "max", "val/hd95_mm": "min", "val/dice/tumour": "max"},
    monitor="val/dice",
    config={},
    split_hashes=("0",),
    dataset="x",
    device="cpu",
    gpus=0,
)


def section(*objectives: str, constraints: tuple[str, ...] = ()) -> dict[str, object]:
    return {"objectives": list(objectives), "constraints": list(constraints)}


def test_the_monitor_of_the_task_is_the_objective_and_knows_its_direction() -> None:
    assert choose_objectives(section(), FACTS) == ((Objective("val/dice", "max"),), ())


def test_directions_come_from_the_task() -> None:
    objectives, constraints = choose_objectives(
        section("val/hd95_mm", "parameters", constraints=("latency_ms <= 20", "val/dice/tumour>=0.4")), FACTS
    )
    assert [(goal.metric, goal.mode) for goal in objectives] == [("val/hd95_mm", "min"), ("parameters", "min")]
    assert constraints == (Constraint("latency_ms", "<=", 20.0), Constraint("val/dice/tumour", ">=", 0.4))


def test_unknown_metrics_are_all_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_objectives(section("dice", constraints=("paramters <= 1",)), FACTS)
    first, second = caught.value.problems
    assert first.where == "sweep.objectives"
    assert "val/hd95_mm" in first.message
    assert first.hint == "did you mean val/dice?"
    assert second.where == "sweep.constraints"
    assert second.hint == "did you mean parameters?"


def test_a_metric_cannot_be_optimized_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        choose_objectives(section("val/dice", "val/dice"), FACTS)


@pytest.mark.parametrize("text", ["val/dice", "val/dice < 1", "val/dice >= much", "<= 3"])
def test_a_constraint_that_cannot_be_read_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected METRIC|not a number"):
        Constraint.parse(text)


def test_a_violation_is_positive_on_the_wrong_side_only() -> None:
    assert Constraint.parse("parameters <= 5e6").violation({"parameters": 6e6}) == 1e6
    assert Constraint.parse("parameters <= 5e6").violation({"parameters": 5e6}) == 0.0
    assert Constraint.parse("val/dice >= 0.5").violation({"val/dice": 0.75}) == -0.25
    assert Constraint.parse("val/dice >= 0.5").violation({}) == float("inf")
    assert Constraint.parse("val/dice >= 0.5").violation({"val/dice": float("nan")}) == float("inf")


SPACE = Space(
    (
        Dimension(key="loss", kind="choice", choices=("dice_ce", "focal")),
        Dimension(key="loss.gamma", kind="float", low=1.0, high=3.0, when={"loss": ("focal",)}),
        Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-2, log=True),
        Dimension(key="data.batch_size", kind="int", low=2, high=8, step=2),
        Dimension(key="model.channels", kind="choice", choices=("[8,16]", "[16,32]")),
        Dimension(key="optimizer.weight_decay", kind="choice", choices=("0", "1e-3")),
    )
)


def test_the_default_point_is_the_configuration_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    config = {
        "loss": {"name": "focal", "gamma": 2.0},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.001},
        "data": {"batch_size": 4},
        "model": {"channels": [16, 32]},
    }
    with caplog.at_level(logging.INFO, "medtrain"):
        point, moved = default_point(SPACE, config)
    assert point == {
        "loss": "focal",
        "loss.gamma": 2.0,
        "optimizer.lr": 3e-3,
        "data.batch_size": 4,
        "model.channels": "[16,32]",
        "optimizer.weight_decay": "1e-3",
    }
    assert not caplog.records
    assert not moved


def test_what_lies_outside_of_the_space_is_moved_in_and_said(caplog: pytest.LogCaptureFixture) -> None:
    config = {
        "loss": {"name": "tversky"},
        "optimizer": {"lr": 1.0, "weight_decay": 0.0},
        "data": {"batch_size": None},
        "model": {"channels": [4, 8]},
    }
    with caplog.at_level(logging.INFO, "medtrain"):
        point, moved = default_point(SPACE, config)
    assert point == {
        "loss": "dice_ce",
        "optimizer.lr": 1e-2,
        "data.batch_size": 2,
        "model.channels": "[8,16]",
        "optimizer.weight_decay": "0",
    }
    assert moved == {
        "loss": "tversky", "optimizer.lr": "1.0", "data.batch_size": "None", "model.channels": "[4, 8]",
    }  # fmt: skip
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "loss=tversky is not in the space" in said
    assert "optimizer.lr=1.0" in said
    assert "weight_decay" not in said


def test_the_digest_sees_what_is_learned_only() -> None:
    tree = {"seed": 0, "model": {"name": "unet"}, "run": {"note": "a"}, "logger": {}, "callbacks": {}}
    assert digest(tree) == digest({**tree, "run": {"note": "b"}, "logger": {"csv": {"name": "csv"}}})
    assert digest(tree) != digest({**tree, "seed": 1})
