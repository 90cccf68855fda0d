from __future__ import annotations

import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from medtrain.sweep.report.records import read_sweep
from tests.sweep.report.studies import DEFAULT, DICE, FIVE, LATENCY, LOSS, LR, FakeStudy, define

_WORKER = {"host": "node1", "pid": 7, "pid_start": 1, "token": "t"}


def test_a_trial_of_every_state(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR, LOSS)))
    point = {"optimizer.lr": 0.01, "loss": "focal"}
    study.add(TrialState.COMPLETE, point, values=[0.8], metrics={"val/dice": 0.8, "n": 3}, seconds=9.5, worker=_WORKER)
    study.add(TrialState.PRUNED, point, curve={5: 0.1, 10: math.nan, 15: 0.2}, metrics={"val/dice": 0.2}, end_s=30.0)
    study.add(TrialState.FAIL, point, failure="crash", message="killed\n by  signal 9", metrics=None)
    study.add(TrialState.RUNNING, point, curve={40: 0.5})
    study.add(TrialState.WAITING)
    sweep = read_sweep(tmp_path, study)
    complete, pruned, failed, running, waiting = sweep.records
    assert (complete.values, complete.seconds, complete.machine, complete.metrics["n"]) == ((0.8,), 9.5, "node1", 3.0)
    assert complete.folder == "trials/0000"
    assert complete.is_candidate
    assert pruned.curve == ((5, 0.1), (15, 0.2))  # what is not finite says nothing
    assert pruned.values == (0.2,)
    assert pruned.seconds == 30.0  # between start and end, as the trial did not say
    assert pruned.was_stopped_early
    assert not pruned.is_candidate
    assert (failed.failure, failed.message, failed.machine) == ("crash", "killed by signal 9", "")
    assert math.isnan(failed.values[0])
    assert math.isnan(running.seconds)
    assert (waiting.params, waiting.started) == ({}, None)
    assert sweep.counts == {"running": 1, "complete": 1, "pruned": 1, "failed": 1, "waiting": 1}
    assert sweep.num_finished == 3
    assert [record.number for record in sweep.best] == [0]
    assert [sweep.spent(record) for record in sweep.records[:2]] == [1.0, 0.15]
    assert sweep.spent(running) == 0.4
    assert math.isnan(sweep.spent(failed))


def test_out_of_memory_is_not_what_the_pruner_ended(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    study.add(TrialState.PRUNED, {"optimizer.lr": 0.01}, failure="oom", message="out of memory")
    assert not read_sweep(tmp_path, study).records[0].was_stopped_early


@pytest.mark.parametrize(("last", "spent"), [(0, 0.2), (1, 0.4), (4, 1.0)])
def test_a_fold_is_spent_when_it_is_reported(tmp_path: Path, last: int, spent: float) -> None:
    study = FakeStudy(define(tmp_path, (LR,), folds=[0, 1, 2, 3, 4]))
    study.add(TrialState.PRUNED, {"optimizer.lr": 0.01}, curve=dict.fromkeys(range(last + 1), 0.5))
    sweep = read_sweep(tmp_path, study)
    assert sweep.spent(sweep.records[0]) == pytest.approx(spent)


def test_the_configuration_as_it_is_is_found_by_its_point(tmp_path: Path) -> None:
    default = {**DEFAULT, "loss.gamma": 2.0}
    study = FakeStudy(define(tmp_path, FIVE, default={key: default[key] for key in default if key in _keys()}))
    active = {key: DEFAULT[key] for key in ("optimizer.lr", "loss", "model.dropout", "data.batch_size")}
    study.add(TrialState.COMPLETE, {**active, "optimizer.lr": 0.02}, values=[0.9])
    study.add(TrialState.FAIL, active)
    study.add(TrialState.COMPLETE, active, values=[0.8])  # dice_ce has no gamma
    study.add(TrialState.WAITING)
    sweep = read_sweep(tmp_path, study)
    assert [record.is_default for record in sweep.records] == [False, True, True, False]
    assert sweep.default is not None
    assert sweep.default.number == 2  # the one that came to an end


def _keys() -> set[str]:
    return {dimension.key for dimension in FIVE}


def test_what_misses_a_constraint_is_named_and_cannot_win(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), constraints=("parameters <= 5e6", "val/dice >= 0.5")))
    for dice, parameters in ((0.9, 6e6), (0.4, 7e6), (0.8, 5e6)):
        metrics = {"val/dice": dice, "parameters": parameters}
        study.add(TrialState.COMPLETE, {"optimizer.lr": 0.01}, values=[dice], metrics=metrics)
    study.add(TrialState.PRUNED, {"optimizer.lr": 0.01}, metrics={})
    sweep = read_sweep(tmp_path, study)
    assert [record.violated for record in sweep.records] == [
        ("parameters <= 5e+06",),
        ("parameters <= 5e+06", "val/dice >= 0.5"),
        (),
        (),
    ]
    assert [record.is_candidate for record in sweep.records] == [False, False, True, False]
    assert [record.number for record in sweep.best] == [2]


def test_the_front_is_sorted_by_the_first_objective(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), objectives=(DICE, LATENCY)))
    for values in ((0.7, 5.0), (0.9, 20.0), (0.8, 10.0), (0.75, 12.0)):
        study.add(TrialState.COMPLETE, {"optimizer.lr": 0.01}, values=values)
    sweep = read_sweep(tmp_path, study)
    assert [record.number for record in sweep.best] == [1, 2, 0]
    assert sweep.is_multi
