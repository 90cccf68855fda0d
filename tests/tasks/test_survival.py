"""Survival: risks and curves judged over the whole split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtrain.losses.survival import CoxLoss, DiscreteSurvivalLoss
from medtrain.metrics.survival import integrated_brier_score
from medtrain.tasks.report import Report
from medtrain.tasks.survival import Survival, SurvivalOutcome, distinct_names
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

TARGETS = (number("months", mean=3.0, std=1.0), target("0", "1", name="died"))
TIMES = [[1, 1], [2, 1], [3, 0], [4, 1], [5, 0]]


def task(loss: CoxLoss | DiscreteSurvivalLoss) -> Survival:
    return made("survival", loss=loss, plan=plan(*TARGETS), report=Report(resamples=0))


def test_the_c_index_counts_pairs_of_the_whole_split() -> None:
    found = task(CoxLoss(targets=TARGETS))
    data = batch([[5.0], [3.0], [4.0], [2.0], [1.0]], TIMES)
    records = found.evaluation_step(Echo(), data, final=False)
    summary = found.summarize(records)
    assert summary["c_index"] == 7 / 8
    assert summary["n_pairs"] == 8
    assert found.monitor.name == "val/c_index"
    assert list(summary) == list(found.metrics())
    parts = [
        found.evaluation_step(Echo(), batch([[5.0], [3.0]], TIMES[:2]), final=False),
        found.evaluation_step(Echo(), batch([[4.0], [2.0], [1.0]], TIMES[2:], first=2), final=False),
    ]
    assert found.summarize(parts[0] + parts[1])["c_index"] == 7 / 8
    assert np.mean([found.summarize(part)["c_index"] for part in parts]) != 7 / 8
    assert found.worst_cases(records, 2) == [("c002", 0.5), ("c001", 0.75)]  # the pair out of order


def test_the_cox_loss_of_a_sample_alone_means_nothing() -> None:
    found = task(CoxLoss(targets=TARGETS))
    (record,) = found.evaluation_step(Echo(), batch([[1.0]], [[1, 1]]), final=False)
    assert "loss" not in record
    assert "loss" not in found.metrics()


def test_curves_from_discrete_hazards() -> None:
    found = task(DiscreteSurvivalLoss(targets=TARGETS, cuts=(1.5, 2.5, 3.5)))
    logits = [[2.0, 0, 0, 0], [-1.0, 1, 0, 0], [-2.0, -1, 0, 0], [-2.0, -2, -2, 0], [-3.0, -3, -3, 0]]
    records = found.evaluation_step(Echo(), batch(logits, TIMES), final=False)
    hazards = torch.tensor(logits[1]).double().sigmoid()[:3]
    survival = (1 - hazards).cumprod(0)
    assert [records[1][f"survival/{time}"] for time in (1.5, 2.5, 3.5)] == pytest.approx(survival.tolist(), rel=1e-5)
    assert records[1]["risk"] == pytest.approx(float((1 - survival).sum()), rel=1e-5)
    summary = found.summarize(records)
    curves = np.array([[record[f"survival/{time}"] for time in (1.5, 2.5, 3.5)] for record in records])
    times, events = np.array(TIMES, dtype=float).T
    assert summary["ibs"] == integrated_brier_score(times, events, curves, np.array([1.5, 2.5, 3.5]))
    assert summary["c_index"] == 1.0
    assert list(summary) == list(found.metrics())


def test_a_sample_without_a_time_or_an_event_is_left_out() -> None:
    found = task(CoxLoss(targets=TARGETS))
    data = batch([[9.0], [3.0], [2.0], [-9.0]], [[NAN, 1], [1, 1], [2, 0], [1.5, NAN]])
    summary = found.summarize(found.evaluation_step(Echo(), data, final=False))
    assert summary["n_pairs"] == 1
    assert summary["c_index"] == 1.0


def test_close_times_of_a_curve_have_names_of_their_own() -> None:
    assert distinct_names((0.5, 365.0, 1e6)) == ["0.5", "365", "1e+06"]
    assert distinct_names((1234567.0, 1234568.0, 2.0)) == ["1234567", "1234568", "2"]
    assert len(set(distinct_names((0.1, 0.1 + 2**-56)))) == 2
    outcome = SurvivalOutcome("days", "died", times=(20240101.0, 20240102.0))
    assert outcome.curve_keys == ["survival/20240101", "survival/20240102"]
