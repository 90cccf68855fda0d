from __future__ import annotations

import math
from typing import Any

import pytest

from medtrain.callbacks.early_stopping import EarlyStopping
from medtrain.errors import UsageError
from medtrain.metrics.spec import MetricSpec


def _feed(callback: EarlyStopping, view: Any, values: list[float]) -> list[int]:
    """Steps at which a stop was asked for."""
    stops = []
    for value in values:
        before = len(view.stops)
        view.evaluate(callback, view.step + 1, val_dice=value, val_hd95=value)
        if len(view.stops) > before:
            stops.append(view.step)
    return stops


def test_stops_after_patience_evaluations_without_improvement(view: Any) -> None:
    # best at step 2; 3, 4 and 5 are not better (equal is not better, NaN neither)
    assert _feed(EarlyStopping(patience=3), view, [0.5, 0.6, 0.6, math.nan, 0.55]) == [5]
    assert view.stops == [
        "early stopping: val/dice has not improved for 3 evaluations (best 0.6000 at step 2)",
    ]


def test_an_improvement_starts_the_count_again(view: Any) -> None:
    assert _feed(EarlyStopping(patience=2), view, [0.5, 0.4, 0.6, 0.5, 0.7, 0.6]) == []


def test_small_improvements_do_not_count(view: Any) -> None:
    # compared with the best that counted, so a slow climb counts once it has gained enough
    assert _feed(EarlyStopping(patience=3, min_delta=0.1), view, [0.50, 0.55, 0.59, 0.61, 0.65, 0.66, 0.67]) == [7]


def test_smaller_is_better_for_a_distance(view: Any) -> None:
    callback = EarlyStopping(patience=1, monitor="val/hd95", mode="min")
    callback.on_fit_start(view)
    assert _feed(callback, view, [5.0, 4.0, 3.0, 3.5]) == [4]


def test_never_a_valid_value(view: Any) -> None:
    assert _feed(EarlyStopping(patience=2), view, [math.nan, math.nan]) == [2]
    assert "no valid value yet" in view.stops[0]


def test_resumed_count_is_the_same(view: Any) -> None:
    first = EarlyStopping(patience=3)
    assert _feed(first, view, [0.5, 0.4, 0.4]) == []
    second = EarlyStopping(patience=3)
    second.load_state_dict(first.state_dict())
    assert _feed(second, view, [0.5]) == [4]


def test_a_run_whose_patience_is_used_up_does_not_train_on(view: Any) -> None:
    first = EarlyStopping(patience=2)
    first.on_fit_start(view)
    assert _feed(first, view, [0.5, 0.4, 0.4]) == [3]
    resumed = EarlyStopping(patience=2)
    resumed.load_state_dict(first.state_dict())
    resumed.on_fit_start(view)
    assert view.stops == ["early stopping: val/dice has not improved for 2 evaluations (best 0.5000 at step 1)"] * 2
    patient = EarlyStopping(patience=3)
    patient.load_state_dict(first.state_dict())
    patient.on_fit_start(view)
    assert len(view.stops) == 2
    assert _feed(patient, view, [0.4]) == [4]


def test_mistakes_are_found_before_training(view: Any) -> None:
    with pytest.raises(UsageError, match=r"needs callbacks\.early_stopping\.mode"):
        EarlyStopping(monitor="val/hd95").on_fit_start(view)
    with pytest.raises(UsageError, match=r"mode=min: val/dice has the mode max"):
        EarlyStopping(mode="min").on_fit_start(view)
    EarlyStopping(monitor="val/dice").on_fit_start(view)
    EarlyStopping(mode="max").on_fit_start(view)


def test_unknown_metric_names_the_nearest(view: Any) -> None:
    callback = EarlyStopping(monitor="val/hd96", mode="min")
    with pytest.raises(UsageError, match="no such metric; there are: val/dice, val/dice/liver, val/hd95") as caught:
        callback.on_fit_start(view)
    assert "val/hd95" in str(caught.value.hint)
    # a metric that exists and that this evaluation did not compute
    with pytest.raises(UsageError, match="no such metric; there are: val/dice"):
        view.evaluate(EarlyStopping(monitor="val/hd95", mode="min"), 1, val_dice=1.0)


@pytest.mark.parametrize(
    ("mode", "value", "best", "delta", "expected"),
    [
        ("max", 0.6, 0.5, 0.0, True),
        ("max", 0.5, 0.5, 0.0, False),
        ("min", 0.4, 0.5, 0.0, True),
        ("min", 0.45, 0.5, 0.1, False),
        ("max", math.nan, None, 0.0, False),
        ("max", -9.0, None, 0.0, True),
        ("max", 0.1, math.nan, 0.0, True),
        ("min", -math.inf, 0.0, 0.0, True),
    ],
)
def test_metric_spec(mode: Any, value: float, best: float | None, delta: float, expected: bool) -> None:
    assert MetricSpec("x", mode).improves(value, best, min_delta=delta) is expected
