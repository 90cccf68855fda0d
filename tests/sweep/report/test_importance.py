from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from medtrain.config.space import Dimension
from medtrain.sweep.report import importance
from medtrain.sweep.report.importance import Attribution, _AdditiveModel, attribute
from medtrain.sweep.report.records import read_sweep
from tests.sweep.report.studies import DICE, GAMMA, LATENCY, LOSS, LR, TWELVE, FakeStudy, define, search

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


def _shares(found: Attribution, objective: int = 0) -> dict[str, float]:
    return {item.key: item.shares[objective] for item in found.items}


def test_shares_are_those_of_the_variance(tmp_path: Path) -> None:
    # variances: 0.1 a: 0.01/12; 0.1 b/2: 0.0025 * 4/12 = 0.01/12; 0.1 [c = z]: 0.01 * 2/9
    study = _random(tmp_path, (A, B, C, J), lambda p: 0.5 + 0.1 * p["a"] + 0.05 * p["b"] + 0.1 * (p["c"] == "z"))
    found = attribute(read_sweep(tmp_path, study))
    shares = _shares(found)
    total = 2 / 12 + 2 / 9
    assert shares["a"] == pytest.approx(1 / 12 / total, abs=0.05)
    assert shares["b"] == pytest.approx(1 / 12 / total, abs=0.05)
    assert shares["c"] == pytest.approx(2 / 9 / total, abs=0.05)
    assert shares["junk"] < 0.01
    assert sum(shares.values()) == pytest.approx(1.0)
    assert found.explained[0] > 0.95
    assert found.ranked(0)[0] == "c"
    assert found.items[0].key == "c"
    assert [item.key for item in found.items if item.is_clear(0)].count("junk") == 0


def test_minimizing_mirrors_maximizing(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, J), lambda p: (1 + p["a"], -1 - p["a"]), objectives=(DICE, LATENCY))
    found = attribute(read_sweep(tmp_path, study))
    assert found.items[0].shares[0] == pytest.approx(found.items[0].shares[1])
    assert len(found.explained) == 2


def test_only_chance_is_not_clear(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    study = _random(tmp_path, TWELVE, lambda _: float(rng.standard_normal()), count=60)
    found = attribute(read_sweep(tmp_path, study))
    assert found.explained[0] < 0.3
    assert sum(item.is_clear(0) for item in found.items) <= 2  # 1 of 20 by construction


def test_a_parameter_that_exists_sometimes_is_rated_where_it_exists(tmp_path: Path) -> None:
    def score(params: Mapping[str, Any]) -> float:
        return 0.8 - 0.05 * abs(params.get("loss.gamma", 2.0) - 2.0)

    found = attribute(read_sweep(tmp_path, _random(tmp_path, (LR, LOSS, GAMMA), score)))
    assert found.ranked(0)[0] == "loss.gamma"
    assert found.items[0].is_clear(0)


def test_a_parameter_is_not_rated_for_trials_that_do_not_have_it(tmp_path: Path) -> None:
    def score(params: Mapping[str, Any]) -> float:
        return 0.8 if params["loss"] == "dice_ce" else 0.6

    found = attribute(read_sweep(tmp_path, _random(tmp_path, (LR, LOSS, GAMMA), score)))
    assert _shares(found)["loss"] > 0.97
    assert _shares(found)["loss.gamma"] < 0.02


def test_pruned_trials_count_as_bad_ones_and_crashes_say_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def study_of(state: TrialState, failure: str | None) -> FakeStudy:
        study = FakeStudy(define(tmp_path, (A, B)))
        for index in range(40):
            a, b = float(rng.uniform(0.0, 1.0)), float(rng.uniform(0, 2))
            if a < 0.5:  # the rest would have been bad
                study.add(TrialState.COMPLETE, {"a": a, "b": b}, values=[0.8 + 0.01 * float(rng.uniform())])
            else:
                study.add(state, {"a": a, "b": b}, failure=failure)
            del index
        return study

    for state, failure in ((TrialState.PRUNED, None), (TrialState.PRUNED, "oom"), (TrialState.FAIL, "nonfinite")):
        found = attribute(read_sweep(tmp_path, study_of(state, failure)))
        assert _shares(found)["a"] > 0.8, (state, failure)
    found = attribute(read_sweep(tmp_path, study_of(TrialState.FAIL, "crash")))
    assert not found.items or not found.items[0].is_clear(0)


def test_a_far_outlier_does_not_decide(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B), lambda p: 0.8 + 0.1 * p["a"], count=60)
    study.add(TrialState.COMPLETE, {"a": 0.9, "b": 1.99}, values=[-50.0])
    assert _shares(attribute(read_sweep(tmp_path, study)))["a"] > 0.9


def test_too_few_or_equal_results_give_nothing(tmp_path: Path) -> None:
    study = _random(tmp_path, (A, B), lambda p: p["a"], count=7)
    assert attribute(read_sweep(tmp_path, study)) == Attribution()
    equal = attribute(read_sweep(tmp_path, _random(tmp_path, (A, B), lambda _: 0.5, count=20)))
    assert equal.ranked(0) == []
    assert math.isnan(equal.explained[0])
    assert all(math.isnan(item.shares[0]) and not item.is_clear(0) for item in equal.items)


def test_a_long_sweep_is_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def eigh(matrix: np.ndarray) -> Any:
        sizes.append(len(matrix))
        return decompose(matrix)

    decompose = np.linalg.eigh
    monkeypatch.setattr(importance.np.linalg, "eigh", eigh)
    monkeypatch.setattr(importance, "_MOST_TRIALS", 60)
    study = _random(tmp_path, (A, B), lambda p: 0.8 + 0.1 * p["a"])
    assert _shares(attribute(read_sweep(tmp_path, study)))["a"] > 0.95
    assert sizes == [60]


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    sweep = read_sweep(tmp_path, search(tmp_path, 60, dimensions=TWELVE))
    assert attribute(sweep) == attribute(sweep)


def test_leaving_one_out_is_what_it_says() -> None:
    """The closed form against fits without each trial: kernel ridge regression with a free mean."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(25, 2))
    target = np.sin(4 * x[:, 0]) + 0.1 * rng.standard_normal(25)
    plain = [np.exp(-0.5 * ((c[:, None] - c[None]) / 0.3) ** 2) for c in x.T]
    centred = [k + k.mean() - k.mean(0, keepdims=True) - k.mean(1, keepdims=True) for k in plain]
    _, explained = _AdditiveModel(centred).fit(target)

    def errors(noise: float) -> float:
        kernel, total = sum(plain) / 2, 0.0
        for out in range(25):
            keep = np.arange(25) != out
            size = keep.sum()
            # [K + noise, 1; 1, 0] [w; b] = [y; 0]
            system = np.zeros((size + 1, size + 1))
            system[:size, :size] = kernel[np.ix_(keep, keep)] + noise * np.eye(size)
            system[:size, size] = system[size, :size] = 1.0
            solution = np.linalg.solve(system, np.append(target[keep], 0.0))
            total += float(target[out] - kernel[out, keep] @ solution[:size] - solution[size]) ** 2
        return total / 25

    best = min(errors(noise) for noise in 10.0 ** np.arange(-2.5, 2.01, 0.25))
    assert explained == pytest.approx(1 - best / target.var(), abs=1e-9)
