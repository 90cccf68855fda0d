"""Pruners: which is chosen, what each refuses, and whom it gives up."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from medtrain.config.space import Space
from medtrain.errors import UsageError
from medtrain.registry import names
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.pruners import make_pruner
from medtrain.sweep.result import TrialResult
from medtrain.sweep.study import SweepStudy
from tests.sweep.searches import DICE, LR, NUMBERS, SIZE, complete, create_quick, define, quality

ONE = SearchPlan(space=Space((LR,)))
FOLDS = SearchPlan(space=Space((LR,)), folds=5)

DEFAULT = {"optimizer.lr": 3e-3, "model.dropout": 0.0}


def study_of(curves: Sequence[Mapping[int, float]], direction: str = "maximize") -> optuna.Study:
    """A study with finished trials that reported these values."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=direction)
    for curve in curves:
        study.add_trial(create_trial(value=list(curve.values())[-1], intermediate_values=dict(curve)))
    return study


def verdict(name: str, study: optuna.Study, curve: Mapping[int, float], plan: SearchPlan = ONE, **options: Any) -> bool:
    """Whether a trial is given up at the last of its values."""
    pruner = make_pruner({"name": name, **options}, plan).build(plan)
    running = study.ask()
    asked = False
    for step, value in curve.items():
        running.report(value, step)
        asked = pruner.prune(study, study.trials[-1])
    return bool(asked)


def test_the_pruners_are_all_there() -> None:
    compared = {"median", "percentile", "gradual", "hyperband", "successive_halving", "wilcoxon"}
    assert set(names("pruner")) == compared | {"auto", "threshold", "patient", "none"}


@pytest.mark.parametrize(
    ("plan", "chosen"),
    [
        (ONE, "Gradual"),
        (FOLDS, "Wilcoxon"),
        (SearchPlan(space=Space((LR,)), folds=2), "Gradual"),  # two folds cannot be told apart by a rank test
        (SearchPlan(space=Space((LR,)), objectives=2), "NoPruner"),
        (SearchPlan(space=Space((LR,)), is_grid=True), "NoPruner"),
    ],
)
def test_auto_chooses_by_the_sweep(plan: SearchPlan, chosen: str) -> None:
    assert type(make_pruner({"name": "auto"}, plan)).__name__ == chosen


@pytest.mark.parametrize(
    ("name", "plan", "options", "message"),
    [
        *[
            (name, SearchPlan(space=Space((LR,)), objectives=2), {}, f"pruner={name} compares one value")
            for name in names("pruner")
            if name not in ("auto", "none")
        ],
        ("wilcoxon", ONE, {}, "trains on one fold"),
        ("wilcoxon", FOLDS, {"p_threshold": 0.05}, "with 5 folds the smallest probability of error is 0.0625"),
        ("hyperband", FOLDS, {}, "reports whole folds"),
        ("successive_halving", FOLDS, {}, "reports whole folds"),
        ("threshold", ONE, {}, "has no threshold"),
        ("threshold", ONE, {"lower": 0.5, "upper": 0.1}, "pruner.lower=0.5 is above pruner.upper=0.1"),
        ("gradual", ONE, {"first": 20.0, "last": 30.0}, "pruner.last=30 is above pruner.first=20"),
        ("patient", ONE, {"wrapped": "wilcoxon"}, "trains on one fold"),
    ],
)
def test_a_pruner_refuses_what_it_cannot_serve(
    name: str, plan: SearchPlan, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_pruner({"name": name, **options}, plan)
    assert message in caught.value.message


def test_median_gives_up_the_worse_half() -> None:
    study = study_of([{50: value, 100: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)])  # median 0.3
    assert verdict("median", study, {50: 0.29})
    assert not verdict("median", study, {50: 0.30})
    assert not verdict("median", study, {25: 0.35, 50: 0.29})  # its best value so far counts


def test_percentile_keeps_the_best_share() -> None:
    study = study_of([{50: value, 100: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)])
    assert verdict("percentile", study, {50: 0.39}, percentile=25.0)  # 75th percentile of the values: 0.4
    assert not verdict("percentile", study, {50: 0.41}, percentile=25.0)
    assert not verdict("percentile", study, {50: 0.21}, percentile=75.0)


def test_gradual_becomes_stricter() -> None:
    levels = [
        index / 10 for index in range(11)
    ]  # 0, 0.1, ..., 1: the share of x percent that goes on ends at 1 - x/100
    study = study_of([{20: value, 50: value, 100: value} for value in levels])
    assert verdict("gradual", study, {20: 0.49})  # 60 - 0.2 x 50 = 50 percent go on
    assert not verdict("gradual", study, {20: 0.51})
    assert verdict("gradual", study, {50: 0.64})  # 35 percent
    assert not verdict("gradual", study, {50: 0.66})
    assert verdict("gradual", study, {100: 0.89})
    assert not verdict("gradual", study, {100: 0.91})
    assert not verdict("gradual", study, {9: 0.0})
    assert verdict("gradual", study, {20: 0.79}, first=20.0, last=20.0)
    assert not verdict("gradual", study_of([{50: 0.9}] * 3), {50: 0.1}, n_startup_trials=4)
    smaller = study_of([{20: value, 100: value} for value in levels], "minimize")
    assert verdict("gradual", smaller, {20: 0.51})
    assert not verdict("gradual", smaller, {20: 0.49})
    folds = study_of([dict.fromkeys(range(5), value) for value in levels])
    assert verdict("gradual", folds, {0: 0.39}, FOLDS)
    assert not verdict("gradual", folds, {0: 0.41}, FOLDS)
    assert verdict("gradual", folds, {0: 0.91, 4: 0.89}, FOLDS) is False  # its best value counts
    assert verdict("gradual", folds, {4: 0.89}, FOLDS)


def made_up_search(pruner: str, seed: int) -> tuple[float, float]:
    """Share of the compute that a search of 30 trials spends, and what its winner reaches without noise.

    Curves rise the later the smaller the learning rate is, and have the noise of a small validation set.
    """
    study = create_quick(define(NUMBERS, sampler="tpe", pruner=pruner, n_trials=30, seed=seed, default=DEFAULT))
    spent = 0
    while (assignment := study.next()) is not None:
        rng = np.random.default_rng([seed, assignment.number])
        reached = quality(assignment.params) + rng.normal(0, 0.004)
        slowness = 12 * (1e-2 / assignment.params["optimizer.lr"]) ** 0.25
        for percent in range(10, 101, 10):
            value = reached * (1 - 0.95 * math.exp(-percent / slowness)) + rng.normal(0, 0.006)
            if study.report(assignment, percent, value) and percent < 100:
                break
        spent += percent
        state = "complete" if percent == 100 else "pruned"
        study.finish(assignment, TrialResult(state=state, metrics={"val/dice": value}))
    return spent / 3000, quality(study.best(1)[0].params)


def test_the_default_spends_half_as_much_for_the_same_winner() -> None:
    means = {}
    for pruner in ("none", "median", "auto"):
        results = [made_up_search(pruner, seed) for seed in range(8)]
        means[pruner] = [statistics.fmean(column) for column in zip(*results)]
    assert means["none"][0] == 1.0
    assert means["auto"][0] < 0.55
    assert means["auto"][0] < means["median"][0]
    assert means["auto"][1] > means["none"][1] - 0.003


def test_smaller_is_better_where_the_objective_says_so() -> None:
    study = study_of([{50: value, 100: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)], "minimize")
    assert verdict("median", study, {50: 0.31})
    assert not verdict("median", study, {50: 0.29})


def test_nobody_is_given_up_before_the_warm_up_or_by_too_few() -> None:
    curves = [{10: value, 50: value, 100: value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    study = study_of(curves)
    assert not verdict("median", study, {19: 0.0})
    assert verdict("median", study, {20: 0.0})
    assert verdict("median", study, {10: 0.0}, warmup=10.0)
    assert not verdict("median", study_of(curves[:4]), {50: 0.0})
    assert verdict("median", study_of(curves[:4]), {50: 0.0}, n_startup_trials=4)
    assert not verdict("median", study, {50: 0.0}, n_min_trials=6)


def test_trials_that_reported_at_other_points_are_compared_all_the_same() -> None:
    """Others reported at 30 and 60 percent, this one at 45: Optuna finds nobody to compare it with."""
    study = study_of([{30: value, 60: value + 0.4} for value in (0.1, 0.2, 0.3, 0.4, 0.5)])
    alone = optuna.pruners.MedianPruner(n_startup_trials=5)
    running = study.ask()
    running.report(0.0, 45)
    assert not alone.prune(study, study.trials[-1])
    study.tell(running, state=TrialState.FAIL)
    assert verdict("median", study, {45: 0.29})  # the median of what they had reached by then: 0.3
    assert not verdict("median", study, {45: 0.31})
    assert not verdict("median", study, {25: 0.0})  # nobody had reported by then
    assert study.trials[0].intermediate_values == {30: 0.1, 60: 0.5}  # the study is not touched


@pytest.mark.parametrize("seed", range(4))
def test_at_equal_steps_the_verdicts_are_optunas(seed: int, rng: Any) -> None:
    curves = [{step: float(rng.random()) for step in range(20, 101, 20)} for _ in range(6 + seed)]
    study = study_of(curves)
    ours = make_pruner({"name": "percentile", "percentile": 40.0}, ONE).build(ONE)
    theirs = optuna.pruners.PercentilePruner(40.0, n_startup_trials=5, n_warmup_steps=20)
    verdicts = []
    for _ in range(5):
        running = study.ask()
        for step in range(20, 101, 20):
            running.report(float(rng.random()), step)
            verdicts.append((ours.prune(study, study.trials[-1]), theirs.prune(study, study.trials[-1])))
        study.tell(running, state=TrialState.FAIL)
    assert all(mine == yours for mine, yours in verdicts)
    assert len({mine for mine, _ in verdicts}) == 2


def test_successive_halving_has_its_rungs_at_percents() -> None:
    study = study_of([])
    # rungs at 10, 30 and 90 percent: of the first two trials the better one goes on, the third must beat both
    assert not verdict("successive_halving", study, {5: 0.1})
    assert not verdict("successive_halving", study, {10: 0.5})
    assert verdict("successive_halving", study, {10: 0.4})
    assert not verdict("successive_halving", study, {10: 0.6, 20: 0.0})
    assert verdict("successive_halving", study, {10: 0.1}, min_resource=10, reduction_factor=2)
    assert not verdict("successive_halving", study, {10: 0.1}, min_resource=20)
    assert verdict("successive_halving", study_of([]), {10: 0.5}, bootstrap=1)


def test_hyperband_has_brackets_of_percents() -> None:
    def used(**options: Any) -> Any:
        pruner = make_pruner({"name": "hyperband", **options}, ONE).build(ONE)
        study = study_of([])
        study.ask().report(0.1, 50)
        pruner.prune(study, study.trials[-1])
        return pruner

    assert used()._n_brackets == 3  # first rungs at 10, 30 and 90 percent
    strict = used(min_resource=50, reduction_factor=2, bootstrap=1)
    assert strict._n_brackets == 2
    assert strict._pruners[0]._bootstrap_count == 1


def test_threshold_gives_up_what_is_out_of_bounds() -> None:
    study = study_of([])
    assert verdict("threshold", study, {30: 0.19}, lower=0.2)
    assert not verdict("threshold", study, {30: 0.2}, lower=0.2)
    assert verdict("threshold", study, {30: 2.0}, upper=1.0)
    assert not verdict("threshold", study, {10: 0.0}, lower=0.2)
    assert verdict("threshold", study, {10: 0.0}, lower=0.2, warmup=0.0)
    assert verdict("threshold", study, {30: math.nan}, lower=0.2)


def test_patient_asks_only_about_trials_that_do_not_improve() -> None:
    study = study_of([{50: value, 60: value, 70: value, 80: value} for value in (0.5, 0.6, 0.7, 0.8, 0.9)])
    improving, stuck = {50: 0.1, 60: 0.2, 70: 0.3}, {50: 0.3, 60: 0.2, 70: 0.1}
    assert verdict("median", study, improving)
    assert not verdict("patient", study, improving, patience=1)
    assert verdict("patient", study, stuck, patience=1)
    assert not verdict("patient", study, stuck, patience=2)
    assert not verdict("patient", study, stuck, patience=1, min_delta=0.2)
    good = {50: 0.99, 60: 0.98, 70: 0.97}
    assert not verdict("patient", study, good, patience=1)
    assert verdict("patient", study, good, patience=1, wrapped="none")


def test_wilcoxon_compares_fold_by_fold_with_the_best_trial() -> None:
    study = study_of([{0: 0.80, 1: 0.70, 2: 0.90, 3: 0.60, 4: 0.75}])
    worse = {0: 0.70, 1: 0.60, 2: 0.85, 3: 0.55}
    assert verdict("wilcoxon", study, {0: 0.70, 1: 0.60}, FOLDS)  # p = 1/4
    assert not verdict("wilcoxon", study, {0: 0.70}, FOLDS)
    assert not verdict("wilcoxon", study, {0: 0.70, 1: 0.60}, FOLDS, n_startup_folds=3)
    assert not verdict("wilcoxon", study, {0: 0.70, 1: 0.60}, FOLDS, p_threshold=0.2)
    assert verdict("wilcoxon", study, worse, FOLDS, p_threshold=0.2)  # p = 1/16
    assert not verdict("wilcoxon", study, {0: 0.85, 1: 0.60, 2: 0.95}, FOLDS)


def test_with_folds_the_warm_up_is_a_share_of_them() -> None:
    study = study_of([dict.fromkeys(range(5), value) for value in (0.1, 0.2, 0.3, 0.4, 0.5)])
    assert verdict("median", study, {0: 0.0}, FOLDS)  # 20 percent of five folds is one
    assert not verdict("median", study, {0: 0.0}, FOLDS, warmup=40.0)
    assert verdict("median", study, {0: 0.0, 1: 0.0}, FOLDS, warmup=40.0)


def test_none_lets_everybody_finish() -> None:
    study = study_of([{50: value} for value in (0.6, 0.7, 0.8, 0.9, 0.95)])
    assert not verdict("none", study, {50: 0.0})


class TestReport:
    """What the study makes of the values that a trial reports."""

    def begin(self, **settings: Any) -> SweepStudy:
        study = create_quick(define(NUMBERS, pruner={"name": "median", "n_startup_trials": 2}, n_trials=9, **settings))
        for level in (0.5, 0.7):
            assignment = study.next()
            assert assignment is not None
            for step in (25, 50, 75, 100):
                assert not study.report(assignment, step, level)
            study.finish(assignment, complete(val__dice=level))
        return study

    def test_a_bad_trial_is_given_up(self) -> None:
        study = self.begin()
        assignment = study.next()
        assert not study.report(assignment, 25, 0.65)
        assert not study.report(assignment, 50, 0.5)
        bad = study.next()
        assert study.report(bad, 25, 0.55)  # the median is 0.6
        assert study.finish(bad, TrialResult(state="pruned", message="pruned")) == "pruned"
        assert study.trials()[bad.number].value == 0.55  # as Optuna: what it had reached
        assert study.trials()[bad.number].state == TrialState.PRUNED

    def test_a_trial_that_goes_on_from_its_checkpoint_repeats_some_steps(self) -> None:
        study = self.begin()
        assignment = study.next()
        study.report(assignment, 25, 0.65)
        assert study.report(assignment, 50, 0.3) is False
        assert study.report(assignment, 25, 0.1) is False  # repeated: as it was
        assert study.report(assignment, 50, 0.1) is False
        assert study.trials()[assignment.number].intermediate_values == {25: 0.65, 50: 0.3}
        fresh = study.next()
        assert study.report(fresh, 25, 0.1)
        assert study.report(fresh, 25, 0.1)  # the verdict may have been lost: it is given again

    def test_a_value_that_is_no_number_is_kept_and_gives_the_trial_up(self) -> None:
        study = self.begin()
        assignment = study.next()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert study.report(assignment, 50, math.nan)
        assert math.isnan(study.trials()[assignment.number].intermediate_values[50])

    def test_wilcoxon_says_nothing_to_the_user_about_nan(self) -> None:
        study = create_quick(define(NUMBERS, pruner="auto", folds=[0, 1, 2], n_trials=9))
        assignment = study.next()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not study.report(assignment, 0, math.nan)

    def test_several_objectives_are_not_pruned(self) -> None:
        study = create_quick(define(NUMBERS, objectives=(DICE, SIZE), pruner="auto"))
        assignment = study.next()
        assert not study.report(assignment, 50, 0.0)
        assert study.finish(assignment, complete(val__dice=0.4, parameters=10.0)) == "complete"
        assert study.trials()[0].values == [0.4, 10.0]
