from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from medtrain.config.space import Dimension
from medtrain.sweep.report.importance import ranked, rate
from medtrain.sweep.report.records import read_sweep
from tests.sweep.report.studies import DICE, GAMMA, LATENCY, LOSS, LR, FakeStudy, define

A = Dimension(key="a", kind="float", low=0.0, high=1.0)
B = Dimension(key="b", kind="float", low=0.0, high=2.0)
C = Dimension(key="c", kind="choice", choices=("x", "y", "z"))
J = Dimension(key="junk", kind="float", low=1e-5, high=1e-1, log=True)


def _random(
    folder: Path,
    dimensions: Sequence[Dimension],
    function: Callable[[Mapping[str, Any]], float | tuple[float, ...]],
    count: int = 120,
    **definition: Any,
) -> FakeStudy:
    rng = np.random.default_rng(3)
    study = FakeStudy(define(folder, dimensions, **definition))
    for _ in range(count):
        params: dict[str, Any] = {}
        for dimension in dimensions:
            if not dimension.is_active(params):
                continue
            if dimension.kind == "choice":
                params[dimension.key] = str(rng.choice(dimension.choices))
            else:
                assert dimension.low is not None
                assert dimension.high is not None
                ends = (math.log(dimension.low), math.log(dimension.high)) if dimension.log else None
                drawn = rng.uniform(*ends) if ends else rng.uniform(dimension.low, dimension.high)
                value = math.exp(drawn) if ends else drawn
                params[dimension.key] = float(np.clip(value, dimension.low, dimension.high))
        values = function(params)
        study.add(TrialState.COMPLETE, params, values=values if isinstance(values, tuple) else (values,))
    return study


def _shares(study: FakeStudy) -> dict[str, float]:
    (shares,) = rate(read_sweep(Path(study.definition.folder), study))
    return dict(shares)


def test_what_decides_comes_first_and_the_shares_add_up(tmp_path: Path) -> None:
    shares = _shares(_random(tmp_path, (A, B, C, J), lambda p: 0.5 + 0.1 * p["a"] + 0.2 * (p["c"] == "z")))
    assert set(list(shares)[:2]) == {"a", "c"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["junk"] + shares["b"] < 0.2


def test_it_is_what_optuna_says_where_nothing_is_special(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, C, J), lambda p: p["a"] + 0.1 * (p["c"] == "z"))
    plain = optuna.create_study(direction="maximize")
    plain.add_trials(study.trials())
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
    assert _shares(study) == pytest.approx(get_param_importances(plain, evaluator=evaluator))


def test_each_objective_is_rated_in_its_own_direction(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B, J), lambda p: (1 + p["a"], -1 - p["a"]), objectives=(DICE, LATENCY))
    dice, latency = rate(read_sweep(tmp_path, study))
    assert dice == latency  # the same trials are the good ones
    study = _random(tmp_path, (A, B, J), lambda p: (p["a"], p["b"]), objectives=(DICE, LATENCY))
    found = rate(read_sweep(tmp_path, study))
    assert [next(iter(shares)) for shares in found] == ["a", "b"]
    assert set(ranked(found)) == {"a", "b", "junk"}
    assert ranked(found)[-1] == "junk"
    assert ranked([{"a": 0.6, "b": 0.4}, {}, {"b": 1.0}]) == ["b", "a"]


def test_a_parameter_that_exists_sometimes_is_rated_among_the_trials_that_have_it(tmp_path: Path) -> None:
    study = _random(tmp_path, (LR, LOSS, GAMMA), lambda p: 0.8 - 0.05 * abs(p.get("loss.gamma", 3.0) - 2.0))
    assert next(iter(_shares(study))) == "loss.gamma"
    shares = _shares(_random(tmp_path, (LR, LOSS, GAMMA), lambda p: 0.8 + 0.01 * p["optimizer.lr"]))
    assert 0 < shares["loss.gamma"] < 0.2


def test_what_no_good_trial_has_is_not_rated(tmp_path: Path) -> None:
    shares = _shares(_random(tmp_path, (LR, LOSS, GAMMA), lambda p: float(p["loss"] == "dice_ce") + p["optimizer.lr"]))
    assert set(shares) == {"loss", "optimizer.lr"}


def test_what_few_trials_have_or_never_varied_is_not_rated(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (A, B, LOSS, GAMMA)))
    for index in range(30):
        rare = {"loss": "focal", "loss.gamma": 1.0 + 0.1 * index} if index > 20 else {"loss": "dice_ce"}
        study.add(TrialState.COMPLETE, {"a": index / 30, "b": 1.0, **rare}, values=[index])
    assert set(_shares(study)) == {"a", "loss"}  # 9 have a gamma


def test_a_parameter_that_one_trial_lacks_is_rated(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B), lambda p: p["a"], count=30)
    study.add(TrialState.COMPLETE, {"b": 1.0}, values=[0.5])
    assert next(iter(_shares(study))) == "a"


def test_pruned_trials_count_as_bad_ones_and_crashes_say_nothing(tmp_path: Path) -> None:
    def study_of(state: TrialState, failure: str | None) -> FakeStudy:
        rng = np.random.default_rng(0)
        study = FakeStudy(define(tmp_path, (A, B)))
        for _ in range(80):
            point = {"a": float(rng.uniform()), "b": float(rng.uniform(0, 2))}
            if point["a"] < 0.5:
                study.add(TrialState.COMPLETE, point, values=[0.8 + 0.01 * float(rng.uniform())])
            else:  # would have been bad
                study.add(state, point, failure=failure)
        return study

    crashed = _shares(study_of(TrialState.FAIL, "crash"))
    for state, failure in ((TrialState.PRUNED, None), (TrialState.PRUNED, "oom"), (TrialState.FAIL, "nonfinite")):
        shares = _shares(study_of(state, failure))
        assert shares["a"] > 0.8, (state, failure)
        assert shares["a"] > crashed["a"]


def test_most_trials_may_be_pruned(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B), lambda p: p["a"], count=10)
    for index in range(90):
        study.add(TrialState.PRUNED, {"a": 0.3 * index / 90, "b": 2 * (index * 7 % 90) / 90})
    assert _shares(study)["a"] > 0.8


def test_too_few_or_equal_results_give_nothing(tmp_path: Path) -> None:
    assert _shares(_random(tmp_path, (A, B), lambda p: p["a"], count=19)) == {}
    assert len(_shares(_random(tmp_path, (A, B), lambda p: p["a"], count=20))) == 2
    assert _shares(_random(tmp_path, (A, B), lambda _: 0.5, count=40)) == {}
    assert _shares(_random(tmp_path, (A, B), lambda p: float(p["a"] > 0.9), count=60)) == {}  # most are equally bad
    few = _random(tmp_path, (A, B), lambda p: p["a"], count=9)
    for _ in range(20):
        few.add(TrialState.PRUNED, {"a": 0.1, "b": 0.1})
    assert _shares(few) == {}


def test_a_result_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B), lambda p: p["a"], count=40)
    before = _shares(study)
    study.add(TrialState.COMPLETE, {"a": 0.0, "b": 0.0}, values=[math.inf])
    assert _shares(study) == before
