"""The search space as data: its values, its points, its conditions."""

from __future__ import annotations

import itertools
import json

from medtrain.config.space import Dimension, Space

LR = Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1, log=True)
BATCH = Dimension(key="data.batch_size", kind="int", low=2, high=8, step=2)
DROPOUT = Dimension(key="model.dropout", kind="float", low=0.0, high=0.3, step=0.1)
LOSS = Dimension(key="loss", kind="choice", choices=("dice_ce", "focal"))
GAMMA = Dimension(key="loss.gamma", kind="int", low=1, high=3, when={"loss": ("focal",)})


def test_a_range_of_whole_numbers_has_both_its_ends() -> None:
    assert BATCH.values() == [2, 4, 6, 8]
    assert GAMMA.values() == [1, 2, 3]


def test_steps_of_a_float_range_reach_the_end_despite_rounding() -> None:
    assert DROPOUT.values() == [0.0, 0.1, 0.2, 0.3]


def test_a_range_without_steps_has_infinitely_many_values() -> None:
    assert LR.values() is None
    assert Space((LR, LOSS)).size is None


def test_the_nearest_value_lies_in_the_space() -> None:
    assert LR.nearest(1.0) == 1e-1
    assert LR.nearest(3e-3) == 3e-3
    assert BATCH.nearest(5.1) == 6
    assert BATCH.nearest(100) == 8
    assert LOSS.nearest("focal") == "focal"
    assert LOSS.nearest("dice") is None
    assert LR.nearest(None) is None
    assert BATCH.nearest(True) is None
    assert LR.nearest(float("nan")) is None


def test_a_conditional_dimension_exists_for_its_choice_only() -> None:
    space = Space((LOSS, GAMMA))
    assert space.is_conditional
    assert [d.key for d in space.active({"loss": "dice_ce"})] == ["loss"]
    assert space.overrides({"loss": "focal", "loss.gamma": 2}) == ["loss=focal", "loss.gamma=2"]
    assert space.overrides({"loss": "dice_ce", "loss.gamma": 2}) == ["loss=dice_ce"]


def test_points_and_size_agree() -> None:
    space = Space((LOSS, GAMMA, BATCH, DROPOUT))
    points = list(space.points())
    # dice_ce: 1, focal: 3 gammas; each with 4 batch sizes and 4 dropouts
    assert len(points) == space.size == (1 + 3) * 4 * 4
    assert len({space.identity(point) for point in points}) == len(points)


def test_size_without_conditions_is_the_product() -> None:
    space = Space((LOSS, BATCH))
    assert [tuple(p.values()) for p in space.points()] == list(itertools.product(["dice_ce", "focal"], [2, 4, 6, 8]))


def test_identity_ignores_order_and_what_is_not_active() -> None:
    space = Space((LOSS, GAMMA, BATCH))
    one = {"loss": "dice_ce", "data.batch_size": 2}
    other = {"data.batch_size": 2, "loss.gamma": 3, "loss": "dice_ce"}
    assert space.identity(one) == space.identity(other)
    assert space.identity(one) != space.identity({**one, "data.batch_size": 4})


def test_numbers_are_written_so_that_nothing_is_lost() -> None:
    lr = 0.1 + 0.2
    (text,) = Space((LR,)).overrides({"optimizer.lr": lr})
    assert float(text.partition("=")[2]) == lr


def test_the_round_trip_through_json_is_exact() -> None:
    space = Space((LR, LOSS, GAMMA, BATCH, DROPOUT))
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
