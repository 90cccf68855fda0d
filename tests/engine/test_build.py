"""What is said of components that contradict each other, before the first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medtrain.engine.build import _check_together
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
