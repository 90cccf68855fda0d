"""Samplers: what each is made into, which spaces it refuses, and what the study draws with it."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import warnings
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from medtrain.config.space import Dimension, Space
from medtrain.errors import UsageError
from medtrain.registry import names
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.points import distribution
from medtrain.sweep.samplers import Tpe, make_sampler
from medtrain.sweep.study import SweepStudy
from tests.sweep.searches import (
    BATCH,
    DICE,
    DROPOUT,
    FINITE,
    GAMMA,
    LOSS,
    LR,
    MIXED,
    NORM,
    NUMBERS,
    SIZE,
    create_quick,
    define,
    quality,
    search,
)

SPACES = {
    "grid": FINITE,
    "brute_force": (LOSS, dataclasses.replace(GAMMA, step=1.5), NORM),
    "qmc": (LR, LOSS, BATCH),
    "cmaes": MIXED,
}
CONSTANT = Dimension(key="model.depth", kind="int", low=4, high=4)


def plan(*dimensions: Dimension, **more: Any) -> SearchPlan:
    return SearchPlan(space=Space(dimensions), **more)


def made(name: str, of: SearchPlan, **options: Any) -> Any:
    sampler = make_sampler({"name": name, **options}, of)
    return sampler.build(of, seed=1)


def test_describing_a_sampler_imports_neither_optuna_nor_torch() -> None:
    code = (
        "import sys, medtrain.sweep.samplers, medtrain.sweep.pruners, medtrain.sweep.plan\n"
        "print([name for name in ('optuna', 'torch', 'hydra') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_samplers_are_all_there() -> None:
    wanted = ["auto", "tpe", "gp", "cmaes", "qmc", "random", "grid", "brute_force", "nsga2", "nsga3"]
    assert names("sampler") == sorted(wanted)


@pytest.mark.parametrize("name", names("sampler"))
def test_every_sampler_finds_its_way_through_a_space(name: str) -> None:
    """No warning reaches the user, no point comes twice, every value is in its range, and the number is right."""
    space = SPACES.get(name, MIXED)
    study = create_quick(define(space, sampler=name, n_trials=14, default={"loss": "dice_ce"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried = search(study)
    size = study.definition.space.size
    assert len(tried) == (14 if size is None else min(14, size))
    identities = [study.definition.space.identity(point) for point in tried]
    assert len(set(identities)) == len(identities)
    for point in tried:
        assert list(point) == [dimension.key for dimension in study.definition.space.active(point)]
        for dimension in study.definition.space.active(point):
            known = distribution(dimension)
            assert known._contains(known.to_internal_repr(point[dimension.key]))
            assert isinstance(point[dimension.key], {"float": float, "int": int, "choice": str}[dimension.kind])
    assert study.counts().complete == len(tried)


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "nsga3", "random", "qmc", "auto"])
def test_a_pareto_front_can_be_searched_with(name: str) -> None:
    space = NUMBERS if name == "qmc" else MIXED
    study = create_quick(define(space, sampler=name, n_trials=13, objectives=(DICE, SIZE), try_default=False))
    search(study)
    assert study.counts().complete == 13
    assert {"val/dice", "parameters"} <= study.trials()[0].user_attrs["metrics"].keys()


@pytest.mark.parametrize(("name", "count"), [("tpe", 22), ("gp", 12)])
def test_constraints_steer_the_search(name: str, count: int) -> None:
    """The best values lie where the constraint forbids them: with it, fewer points are on the forbidden side."""

    def forbidden(constraints: list[str]) -> int:
        definition = define(NUMBERS, sampler=name, n_trials=count, constraints=constraints, try_default=False)
        study = create_quick(definition)
        search(study)
        allowed = [trial for trial in study.trials() if 1e6 * (1 + quality(trial.params)) <= 1.8e6]
        if constraints:
            assert {trial.number for trial in study.best(count)} == {trial.number for trial in allowed}
        return count - len(allowed)

    assert forbidden(["parameters <= 1.8e6"]) < forbidden([])


def test_tpe_is_optunas_with_these_options() -> None:
    sampler = made("tpe", plan(LR), n_startup_trials=7, n_ei_candidates=11, multivariate=False, constant_liar=False)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    kept = (sampler._n_startup_trials, sampler._n_ei_candidates, sampler._multivariate, sampler._constant_liar)
    assert kept == (7, 11, False, False)


@pytest.mark.parametrize(("n_trials", "startup"), [(None, 5), (8, 5), (28, 7), (400, 10)])
def test_a_quarter_of_the_trials_is_random(n_trials: int | None, startup: int) -> None:
    for name in ("tpe", "gp"):
        assert made(name, plan(LR, n_trials=n_trials))._n_startup_trials == startup


def test_tpe_models_conditional_spaces_in_groups() -> None:
    assert made("tpe", plan(*MIXED))._group
    assert made("tpe", plan(*MIXED))._multivariate
    assert not made("tpe", plan(*MIXED), multivariate=False)._group
    assert not made("tpe", plan(LR))._group


def test_auto_tries_every_point_of_a_grid_and_uses_tpe_elsewhere() -> None:
    def chosen(*dimensions: Dimension, **more: Any) -> str:
        return type(make_sampler({"name": "auto"}, plan(*dimensions, **more))).__name__

    assert chosen(*FINITE, is_grid=True) == "Grid"
    assert chosen(*FINITE, is_grid=False) == "Tpe"
    assert chosen(LOSS, Dimension(key="loss.x", kind="choice", choices=("1", "2"), when={"loss": ("focal",)})) == "Tpe"
    conditional = Dimension(key="loss.x", kind="choice", choices=("1", "2"), when={"loss": ("focal",)})
    assert chosen(LOSS, conditional, is_grid=True) == "BruteForce"
    assert chosen(LR, objectives=2) == "Tpe"


@pytest.mark.parametrize(
    ("name", "of", "options", "message"),
    [
        ("grid", plan(LR), {}, "optimizer.lr has infinitely many values"),
        ("brute_force", plan(LOSS, LR), {}, "optimizer.lr has infinitely many values"),
        ("grid", plan(LOSS, dataclasses.replace(GAMMA, step=0.5)), {}, "loss.gamma is conditional"),
        ("grid", plan(*(dataclasses.replace(BATCH, key=f"k{i}", high=200) for i in range(3))), {}, "1,000,000"),
        ("cmaes", plan(LR, objectives=2), {}, "knows one objective, and this sweep has 2"),
        ("cmaes", plan(LR, constraints=1), {}, "does not know constraints"),
        ("cmaes", plan(LOSS, GAMMA, CONSTANT), {}, "is a range of numbers"),
        ("qmc", plan(LOSS, GAMMA), {}, "loss.gamma is conditional"),
        ("gp", plan(GAMMA), {}, "all of these are conditional"),
        ("nsga2", plan(LR, n_trials=20), {"population_size": 20}, "sampler.population_size=20 leaves nothing to nsga2"),
        ("nsga3", plan(LR), {"population_size": 50}, "there are 20 trials"),
    ],
)
def test_a_sampler_refuses_what_it_cannot_search(
    name: str, of: SearchPlan, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=r"^sampler[.=]") as caught:
        make_sampler({"name": name, **options}, of)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_study_is_not_made_for_an_impossible_sampler() -> None:
    storage = InMemoryStorage()
    with pytest.raises(UsageError, match="infinitely many"):
        create_quick(define(NUMBERS, sampler="grid"), storage)
    with pytest.raises(UsageError, match="compares one value"):
        create_quick(define(NUMBERS, objectives=(DICE, SIZE), pruner="median"), storage)
    assert storage.get_all_studies() == []


def test_a_grid_is_tried_in_the_order_in_which_it_was_typed() -> None:
    study = create_quick(define(FINITE, sampler="auto", is_grid=True))
    tried = search(study)
    assert [(point["loss"], point["model.norm"]) for point in tried] == list(
        itertools.product(LOSS.choices, NORM.choices)
    )
    assert study.limit == 6


def test_a_grid_is_finished_after_a_default_that_is_one_of_its_points() -> None:
    default = {"loss": "focal", "model.norm": "batch"}
    tried = search(create_quick(define(FINITE, sampler="grid", default=default)))
    assert tried[0] == default
    assert len(tried) == 6
    assert len({tuple(point.items()) for point in tried}) == 6


def test_brute_force_tries_every_point_of_a_conditional_space_in_random_order() -> None:
    gamma = dataclasses.replace(GAMMA, low=0.1, high=0.4, step=0.1)
    study = create_quick(define((LOSS, gamma), sampler="brute_force"))
    tried = search(study)
    expected = [{"loss": "dice_ce"}, *({"loss": "focal", "loss.gamma": value} for value in (0.1, 0.2, 0.3, 0.4))]
    assert tried != expected
    assert sorted(tried, key=str) == sorted(expected, key=str)


def test_the_seed_decides_the_points() -> None:
    def points(name: str, seed: int) -> list[dict[str, Any]]:
        return search(create_quick(define(NUMBERS, sampler=name, n_trials=8, seed=seed)))

    for name in ("random", "tpe", "qmc", "cmaes"):
        assert points(name, 3) == points(name, 3)
        assert points(name, 3) != points(name, 4)


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", "cmaes", "nsga2", "brute_force"])
def test_a_sweep_in_many_sessions_tries_what_one_session_tries(name: str) -> None:
    """A sampler that is seeded once begins its sequence anew in every session, and tries the same points again."""
    space = (LOSS, BATCH) if name == "brute_force" else (LR, BATCH, DROPOUT)
    definition = define(space, sampler=name, n_trials=12, seed=5)
    whole = search(create_quick(definition))
    storage = InMemoryStorage()
    create_quick(definition, storage)
    parts = [point for _ in range(6) for point in search(SweepStudy.load(storage, "study"), most=2)]
    assert parts == whole


def test_tpe_gets_nearer_than_random_points() -> None:
    def mean_of_best(name: str) -> float:
        best = []
        for seed in range(4):
            study = create_quick(define(NUMBERS, sampler=name, n_trials=25, seed=seed))
            search(study)
            best.append(study.best(1)[0].values[0])
        return sum(best) / len(best)

    assert mean_of_best("tpe") > mean_of_best("random")


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsga2"])
def test_a_finite_space_is_tried_whole_and_once(name: str) -> None:
    """A sampler that keeps to its favourite is asked again, and at last a point is drawn among those that are left."""
    tried = search(create_quick(define(FINITE, sampler=name, n_trials=50)))
    assert len(tried) == 6
    assert len({tuple(point.items()) for point in tried}) == 6


def test_cmaes_takes_numbers_for_itself_and_leaves_choices_to_tpe() -> None:
    study = create_quick(define((LR, DROPOUT, LOSS), sampler="cmaes", n_trials=20, try_default=False))
    search(study)
    generations = [trial.system_attrs.get("cma:generation") for trial in study.trials()]
    assert generations[0] is None  # drawn at random
    assert generations[1] == 0
    assert max(generation for generation in generations if generation is not None) >= 2


@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, "cmawm:"), ({"use_separable": True}, "sepcma:"), ({"learn_from_pruned": True}, "cmawm:")],
)
def test_cmaes_minds_whole_numbers(options: dict[str, Any], prefix: str) -> None:
    sampler = made("cmaes", plan(LR, BATCH), population_size=6, **options)
    assert sampler._attr_prefix == prefix
    assert sampler._popsize == 6
    assert sampler._consider_pruned_trials == options.get("learn_from_pruned", False)


def test_the_other_options_reach_optuna() -> None:
    assert made("qmc", plan(LR), sequence="halton", scramble=False)._qmc_type == "halton"
    assert not made("qmc", plan(LR), scramble=False)._scramble
    assert made("gp", plan(LR), deterministic=True)._deterministic
    nsga2 = made("nsga2", plan(LR, n_trials=60), crossover_prob=0.5, swapping_prob=0.2, mutation_prob=0.3)
    strategy = nsga2._child_generation_strategy
    assert (nsga2.population_size, strategy._crossover_prob, strategy._mutation_prob) == (12, 0.5, 0.3)
    assert made("nsga3", plan(LR), dividing_parameter=5)._elite_population_selection_strategy._dividing_parameter == 5
    assert Tpe() == make_sampler({"name": "tpe"}, plan(LR))
