from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from medtrain.sweep.report.analysis import advice, failure_groups, savings
from medtrain.sweep.report.records import read_sweep
from tests.sweep.report.studies import DICE, LATENCY, LR, FakeStudy, define, search

_POINT = {"optimizer.lr": 0.01}


def test_savings_are_what_was_not_spent(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    study.add(TrialState.COMPLETE, _POINT, values=[0.8], seconds=100.0)
    study.add(TrialState.PRUNED, _POINT, curve={10: 0.1, 25: 0.2}, seconds=20.0)  # 60 s and 0.75 trials saved
    study.add(TrialState.PRUNED, _POINT, curve={50: 0.2}, seconds=70.0)  # 70 s and 0.5 trials saved
    study.add(TrialState.PRUNED, _POINT, curve={10: 0.2}, failure="oom", seconds=5.0)  # not by the pruner
    study.add(TrialState.PRUNED, _POINT, seconds=5.0)  # never said how far it was
    study.add(TrialState.FAIL, _POINT, curve={10: 0.1})
    saved = savings(read_sweep(tmp_path, study))
    assert saved is not None
    assert saved.num_pruned == 2
    assert saved.trials == pytest.approx(1.25)
    assert saved.seconds == pytest.approx(130.0)
    assert saved.mean_spent == pytest.approx(0.375)
    assert saved.fraction == pytest.approx(1.25 / 3)


def test_savings_over_folds(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), folds=[0, 1, 2, 3, 4]))
    study.add(TrialState.PRUNED, _POINT, curve={0: 0.5, 1: 0.5}, seconds=40.0)  # 2 of 5
    saved = savings(read_sweep(tmp_path, study))
    assert saved is not None
    assert saved.trials == pytest.approx(0.6)
    assert saved.seconds == pytest.approx(60.0)


def test_nothing_pruned_saves_nothing(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    assert savings(read_sweep(tmp_path, study)) is None
    study.add(TrialState.COMPLETE, _POINT, values=[0.8])
    assert savings(read_sweep(tmp_path, study)) is None


def test_failures_are_grouped_by_their_reason(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    study.add(TrialState.FAIL, _POINT, failure="crash", message="killed by signal 9")
    for size in (512, 1024.5):
        study.add(TrialState.PRUNED, _POINT, failure="oom", message=f"out of memory: tried to allocate {size} MiB")
    study.add(TrialState.PRUNED, _POINT, message="pruned by the sweep at 20 % of its budget")
    study.add(TrialState.FAIL, _POINT)
    found = [(group.failure, group.message, group.numbers) for group in failure_groups(read_sweep(tmp_path, study))]
    assert found == [
        ("oom", "out of memory: tried to allocate 512 MiB", (1, 2)),
        ("crash", "killed by signal 9", (0,)),
        ("failed", "", (4,)),
    ]


def _study(folder: Path, rates: list[float]) -> FakeStudy:
    """The first trials are the best."""
    study = FakeStudy(define(folder, (LR,), default={"optimizer.lr": 0.003}))
    for index, rate in enumerate(rates):
        study.add(TrialState.COMPLETE, {"optimizer.lr": rate}, values=[0.9 - 0.001 * index])
    return study


def test_advice_to_widen_a_range(tmp_path: Path) -> None:
    rest = [0.001] * 16
    at_the_end = _study(tmp_path, [0.1, 0.09, 0.002, 0.098, *rest])  # 1e-4 .. 1e-1, logarithmic
    lines = advice(read_sweep(tmp_path, at_the_end))
    assert any("optimizer.lr lie at the upper end" in line for line in lines)
    for rates in ([0.1, 0.01, 0.002, 0.003], [0.02, 0.1, 0.1, 0.1]):  # one alone; not the very best
        lines = advice(read_sweep(tmp_path, _study(tmp_path, [*rates, *rest])))
        assert not any("end of its range" in line for line in lines)
    lines = advice(read_sweep(tmp_path, _study(tmp_path, [1e-4, 1e-4, 1.1e-4, 1.05e-4, *rest])))
    assert any("at the lower end" in line for line in lines)


def test_advice_when_the_search_brought_nothing(tmp_path: Path) -> None:
    lines = advice(read_sweep(tmp_path, _study(tmp_path, [0.003, *[0.01] * 30])))
    assert any("No trial was better than the configuration as it is" in line for line in lines)
    assert any("last 30 trials found nothing better" in line for line in lines)
    better_later = _study(tmp_path, [0.01] * 30)
    better_later.add(TrialState.COMPLETE, {"optimizer.lr": 0.02}, values=[0.95])
    lines = advice(read_sweep(tmp_path, better_later))
    assert not any("nothing better" in line or "No trial" in line for line in lines)


def test_no_advice_from_few_trials_or_for_several_objectives(tmp_path: Path) -> None:
    assert advice(read_sweep(tmp_path, _study(tmp_path, [0.1] * 19))) == []
    several = search(tmp_path, 40, objectives=(DICE, LATENCY))
    assert advice(read_sweep(tmp_path, several)) == []
