"""What is said of components that contradict each other, before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medtrain.engine.build import _check_together
from medtrain.engine.opening import changed_data
from medtrain.errors import UsageError


def check(
    *,
    held_out: int = 3,
    interval: str = "step",
    decomposable: bool = True,
    accumulate: int = 1,
    save_predictions: bool = False,
    final_evaluation: bool = True,
    family: str = "segmentation",
) -> None:
    parts: list[Any] = [
        SimpleNamespace(family=family),
        SimpleNamespace(loss=SimpleNamespace(decomposable=decomposable)),
        SimpleNamespace(accumulate=accumulate, save_predictions=save_predictions, final_evaluation=final_evaluation),
        SimpleNamespace(world_size=1),
        SimpleNamespace(interval=interval),
        SimpleNamespace(evaluation_cases=lambda part, limit: ["case"] * held_out),
    ]
    _check_together(*parts, {"loss": {"name": "dice_ce"}, "data": {}})


def test_a_schedule_that_follows_the_evaluations_needs_some() -> None:
    check(interval="metric")
    check(held_out=0)
    with pytest.raises(UsageError, match="no case is held out to be evaluated"):
        check(held_out=0, interval="metric")


def test_a_dice_of_the_batch_is_not_accumulated() -> None:
    check(decomposable=False)
    check(accumulate=2)
    with pytest.raises(UsageError, match=r"loss=dice_ce, as it is set, cannot be used with trainer.accumulate > 1"):
        check(decomposable=False, accumulate=2)


def test_only_tasks_that_predict_label_maps_keep_them() -> None:
    check(save_predictions=True)
    with pytest.raises(UsageError, match=r"which trainer\.final_evaluation=false leaves out"):
        check(save_predictions=True, final_evaluation=False)
    with pytest.raises(UsageError, match=r"trainer\.save_predictions keeps label maps, and this task predicts none"):
        check(save_predictions=True, family="images")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, None),
        ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, "b"),
        ({"a": "1", "b": "2"}, {"a": "1", "c": "2"}, "b, c"),
    ],
)
def test_changed_data_are_told_by_content_within_a_scheme_and_by_name_otherwise(
    tmp_path: Path, before: dict[str, str], now: dict[str, str], said: str | None
) -> None:
    def told(schemes: tuple[str | None, str]) -> str | None:
        noted = {"cases": before, "split_hash": "s"} | ({"scheme": schemes[0]} if schemes[0] else {})
        (tmp_path / "data.json").write_text(json.dumps(noted))
        data = SimpleNamespace(describe=lambda: {"cases": now, "split_hash": "s", "scheme": schemes[1]})
        found = changed_data(SimpleNamespace(path=tmp_path), data)  # type: ignore[arg-type]
        return None if found is None else found.removeprefix("the data changed since the run began: ")

    assert told(("images-1.1", "images-1.1")) == said
    by_name = said if said == "b, c" else None
    assert told(("images-1.1", "images-2.1")) == by_name
    assert told((None, "images-1.1")) == by_name
