"""What is said of components that contradict each other, before the first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medtrain.engine.build import _check_together, _warn_of_two_corrections, check_sides
from medtrain.errors import UsageError


def check(
    *,
    held_out: int = 3,
    interval: str = "step",
    decomposable: bool = True,
    accumulate: int = 1,
    save_predictions: bool = False,
    **task: Any,
) -> None:
    parts: list[Any] = [
        SimpleNamespace(loss=SimpleNamespace(decomposable=decomposable), **task),
        SimpleNamespace(accumulate=accumulate, save_predictions=save_predictions),
        SimpleNamespace(world_size=1),
        SimpleNamespace(interval=interval),
        SimpleNamespace(evaluation_cases=lambda part, limit: ["case"] * held_out),
    ]
    _check_together(*parts, {"loss": {"name": "dice_ce"}, "data": {}})


def test_a_schedule_that_follows_the_evaluations_needs_some() -> None:
    check(interval="metric")
    check(held_out=0)
    with pytest.raises(UsageError, match=r"data\.fold=null there are none"):
        check(held_out=0, interval="metric")


def test_a_dice_of_the_batch_is_not_accumulated() -> None:
    check(decomposable=False)
    check(accumulate=2)
    with pytest.raises(UsageError, match=r"loss=dice_ce, as it is set, cannot be used with trainer.accumulate > 1"):
        check(decomposable=False, accumulate=2)


def test_only_tasks_that_predict_label_maps_keep_them() -> None:
    check(save_predictions=True, on_prediction=None)
    with pytest.raises(UsageError, match=r"trainer\.save_predictions keeps label maps, and this task predicts none"):
        check(save_predictions=True)


@pytest.mark.parametrize(
    ("lacks", "augment", "given", "refused"),
    [
        (True, {"name": "images"}, None, True),
        (True, {"name": "images"}, [["a", "b"]], True),  # those of other targets
        (True, {"name": "images"}, [], False),
        (True, {"name": "images", "mirror_p": 0.0}, None, False),
        (True, {"name": "images_none"}, None, False),
        (False, {"name": "images"}, None, False),
    ],
)
def test_zones_are_not_mirrored_where_nobody_knows_their_pairs(
    lacks: bool, augment: dict[str, Any], given: list[list[str]] | None, refused: bool
) -> None:
    plan: Any = SimpleNamespace(runtime=lambda: {"image_size": (8, 8), "spatial_dims": 2, "in_channels": 1})
    task: Any = SimpleNamespace(lacks_pairs=lacks)
    config = {"augment": augment, "data": {"paired_targets": given}}
    if not refused:
        check_sides(config, plan, task)
        return
    with pytest.raises(
        UsageError, match=r"augment=images swaps left and right, but .* which zones form pairs"
    ) as error:
        check_sides(config, plan, task)
    assert error.value.hint is not None
    assert "data.paired_targets=[]" in error.value.hint


@pytest.mark.parametrize(
    ("balance", "loss", "key"),
    [
        ("classes", {"class_weights": "balanced"}, "class_weights"),
        ("sqrt", {"pos_weight": "balanced", "class_weights": None}, "pos_weight"),
        ("classes", {"parts": [{"loss": "ce", "class_weights": [1.0, 2.0]}]}, "class_weights"),
        ("classes", {"class_weights": "none", "pos_weight": "none"}, None),
        ("classes", {"parts": []}, None),
        ("none", {"class_weights": "balanced"}, None),
    ],
)
def test_rare_classes_that_are_made_up_for_twice_are_told_of(
    balance: str, loss: dict[str, Any], key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_two_corrections({"data": {"balance": balance}, "loss": loss})
    assert [record.getMessage().partition(" both")[0] for record in caplog.records] == (
        [] if key is None else [f"data.balance={balance} and loss.{key}"]
    )
