from __future__ import annotations

import csv
import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from scipy import stats

from medtrain.sweep.report.records import read_sweep
from medtrain.sweep.report.rerun_summary import choose, lead, summarize_reruns, winner
from tests.sweep.report.studies import DICE, LATENCY, LR, FakeStudy, define


def _put(folder: Path, trial: int, seed: int, dice: Any, *, fold: int | None = None, **changes: Any) -> None:
    place = folder / "rerun" / f"{trial:04d}-seed{seed}{'' if fold is None else f'-fold{fold}'}"
    place.mkdir(parents=True)
    result = {"trial": trial, "seed": seed, "fold": fold, "state": "complete", "metrics": {"val/dice": dice}, **changes}
    (place / "result.json").write_text(json.dumps(result))


def test_mean_and_spread_of_each_configuration(tmp_path: Path) -> None:
    for seed, dice in ((2, 0.80), (1, 0.84), (3, 0.82)):
        _put(tmp_path, 7, seed, dice)
    for seed, dice in ((1, 0.85), (2, 0.86), (3, 0.83)):
        _put(tmp_path, 12, seed, dice)
    rows = summarize_reruns(tmp_path, [DICE])
    assert [row.trial for row in rows] == [12, 7]
    assert [run.seed for run in rows[1].runs] == [1, 2, 3]
    assert rows[1].mean() == pytest.approx(0.82)
    assert rows[1].std() == pytest.approx(0.02)  # of a sample: sqrt((0.02^2 + 0.02^2) / 2)
    assert winner(rows, [DICE]) is rows[0]
    ahead = lead(rows, [DICE])
    assert ahead is not None
    differences = [0.85 - 0.84, 0.86 - 0.80, 0.83 - 0.82]  # with the same seed
    assert ahead.other.trial == 7
    assert ahead.pairs == 3
    assert ahead.difference == pytest.approx(statistics.fmean(differences))
    assert ahead.error == pytest.approx(float(stats.sem(differences)))
    assert not ahead.is_clear


def test_a_lead_of_many_equal_differences_is_clear(tmp_path: Path) -> None:
    for fold in range(4):
        _put(tmp_path, 1, 1, 0.70 + 0.05 * fold, fold=fold)
        _put(tmp_path, 2, 1, 0.72 + 0.05 * fold + 0.001 * fold, fold=fold)  # folds differ far more than these two
    rows = summarize_reruns(tmp_path, [DICE])
    ahead = lead(rows, [DICE])
    assert rows[0].trial == 2
    assert ahead is not None
    assert ahead.is_clear
    assert rows[0].std() > 2 * ahead.difference


def test_two_pairs_are_never_clear(tmp_path: Path) -> None:
    for seed in (1, 2):
        _put(tmp_path, 1, seed, 0.7)
        _put(tmp_path, 2, seed, 0.8 + 1e-6 * seed)
    ahead = lead(summarize_reruns(tmp_path, [DICE]), [DICE])
    assert ahead is not None
    assert ahead.difference > 2 * ahead.error
    assert not ahead.is_clear


def test_how_far_the_search_was_off(tmp_path: Path) -> None:
    for seed, dice in ((1, 0.80), (2, 0.82), (3, 0.84)):  # 0.82 +- 0.02
        _put(tmp_path, 1, seed, dice)
    _put(tmp_path, 2, 1, 0.5)  # one run has no spread
    row, single = summarize_reruns(tmp_path, [DICE])
    assert [row.is_far(value) for value in (0.77, 0.79, 0.85, 0.87, math.nan)] == [True, False, False, True, False]
    assert not single.is_far(0.9)


def test_lower_is_better_where_it_is(tmp_path: Path) -> None:
    for trial, latency in ((1, 9.0), (2, 7.0)):
        for seed in (1, 2):
            _put(tmp_path, trial, seed, 0.5, metrics={"latency_ms": latency + 0.1 * seed})
    rows = summarize_reruns(tmp_path, [LATENCY])
    ahead = lead(rows, [LATENCY])
    assert [row.trial for row in rows] == [2, 1]
    assert ahead is not None
    assert ahead.difference == pytest.approx(2.0)


def test_what_is_not_finished_is_not_compared(tmp_path: Path) -> None:
    _put(tmp_path, 1, 1, 0.99)  # one lucky run
    _put(tmp_path, 1, 2, None, state="failed")
    _put(tmp_path, 1, 3, 0.99, state="stopped")  # goes on later
    _put(tmp_path, 1, 4, math.nan)
    for seed in (1, 2):
        _put(tmp_path, 2, seed, 0.8)
    _put(tmp_path, 3, 1, None, state="failed")
    rows = summarize_reruns(tmp_path, [DICE])
    assert [(row.trial, len(row.runs), row.failed) for row in rows] == [(2, 2, 0), (1, 1, 2), (3, 0, 1)]
    assert lead(rows, [DICE]) is None
    assert math.isnan(rows[2].mean())


def test_only_failures_have_no_winner(tmp_path: Path) -> None:
    _put(tmp_path, 3, 1, None, state="failed")
    rows = summarize_reruns(tmp_path, [DICE])
    assert winner(rows, [DICE]) is None
    assert lead(rows, [DICE]) is None


def test_several_objectives_have_no_winner(tmp_path: Path) -> None:
    _put(tmp_path, 3, 1, 0.5, metrics={"val/dice": 0.5, "latency_ms": 9.0})
    _put(tmp_path, 4, 1, 0.5, metrics={"val/dice": 0.6})  # latency was not measured
    rows = summarize_reruns(tmp_path, [DICE, LATENCY])
    assert [(row.trial, row.failed) for row in rows] == [(3, 0), (4, 1)]
    assert rows[0].values(1) == [9.0]
    assert winner(rows, [DICE, LATENCY]) is None


def test_the_configuration_to_use(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    assert choose(read_sweep(tmp_path, study), []) is None
    for dice in (0.8, 0.9):
        study.add(TrialState.COMPLETE, {"optimizer.lr": 0.01}, values=[dice])
    sweep = read_sweep(tmp_path, study)
    found = choose(sweep, [])
    assert found is not None
    assert (found[0].number, found[1]) == (1, None)
    _put(tmp_path, 0, 1, 0.7)
    rows = summarize_reruns(tmp_path, [DICE])
    found = choose(sweep, rows)
    assert found is not None
    assert (found[0].number, found[1]) == (0, rows[0])
    _put(tmp_path, 17, 1, 0.9)  # of another study
    found = choose(sweep, summarize_reruns(tmp_path, [DICE]))
    assert found is not None
    assert (found[0].number, found[1]) == (1, None)


def test_the_table_reads_back(tmp_path: Path) -> None:
    for seed, dice in ((1, 0.1 + 0.2), (2, 0.5)):
        _put(tmp_path, 7, seed, dice)
    _put(tmp_path, 8, 1, 0.4)
    summarize_reruns(tmp_path, [DICE])
    with (tmp_path / "rerun.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["7", "8"]
    assert float(rows[0]["val/dice min"]) == 0.1 + 0.2
    assert float(rows[0]["val/dice mean"]) == statistics.fmean([0.1 + 0.2, 0.5])
    assert (rows[0]["rank"], rows[0]["runs"], rows[1]["val/dice std"]) == ("1", "2", "")


def test_nothing_was_trained_again(tmp_path: Path) -> None:
    assert summarize_reruns(tmp_path, [DICE]) == []
    assert not (tmp_path / "rerun.csv").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"trial": 3}'])
def test_a_damaged_result_is_left_out_and_named(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    _put(tmp_path, 7, 1, 0.5)
    (tmp_path / "rerun" / "x").mkdir()
    (tmp_path / "rerun" / "x" / "result.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert len(summarize_reruns(tmp_path, [DICE])) == 1
    assert "rerun/x/result.json is left out" in caplog.text
