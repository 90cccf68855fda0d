"""Ordinal: probabilities by differencing, grades by rule, and what a wrong grade costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.losses.ordinal import OrdinalLoss
from medtrain.tasks.ordinal import GradeOutcome, Ordinal, exceedances
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, plan, target

GRADES = target("0", "1", "2", "3", "4", name="diagnosis")


def task(**changes: Any) -> Ordinal:
    settings: dict[str, Any] = {
        "loss": OrdinalLoss(targets=[GRADES]),
        "plan": plan(GRADES),
        "report": Report(resamples=0),
    }
    return made("ordinal", **{**settings, **changes})


def reaching(grade: int) -> list[float]:
    """Cumulative logits of a grade without doubt."""
    return [8.0 if threshold < grade else -8.0 for threshold in range(4)]


def test_probabilities_are_differences_of_cumulative_ones() -> None:
    (record,) = task().evaluation_step(Echo(), batch([[2.0, 1.0, -1.0, -2.0]], [2]), final=False)
    above = torch.tensor([2.0, 1.0, -1.0, -2.0]).double().sigmoid().tolist()
    steps = [1.0, *above, 0.0]
    expected = [steps[k] - steps[k + 1] for k in range(5)]
    assert [record[f"prob/{name}"] for name in "01234"] == pytest.approx(expected, rel=1e-9)
    assert record["predicted"] == 2
    assert task().runtime() == {"num_outputs": 4, "cumulative_targets": 1}


def test_crossed_logits_give_no_negative_probability() -> None:
    (record,) = task().evaluation_step(Echo(), batch([[-1.0, 3.0, -2.0, 0.0]], [0]), final=False)
    probs = [record[f"prob/{name}"] for name in "01234"]
    assert min(probs) >= 0
    assert sum(probs) == pytest.approx(1)


def test_the_monitor_is_the_quadratic_weighted_kappa_of_the_split() -> None:
    truth, said = [0, 0, 1, 2, 3, 4, 4, 2], [0, 1, 1, 2, 4, 4, 3, 0]
    found = task()
    data = batch([reaching(grade) for grade in said], truth)
    summary = found.summarize(found.evaluation_step(Echo(), data, final=False))
    assert summary["qwk"] == pytest.approx(0.810811, abs=1e-6)
    assert summary["qwk"] == pytest.approx(cohen_kappa_score(truth, said, weights="quadratic"))
    assert summary["accuracy_within_1"] == 7 / 8
    assert found.monitor.name == "val/qwk"
    assert list(summary) == list(found.metrics())


def test_grades_by_rule() -> None:
    probs = np.array([[0.4, 0.0, 0.05, 0.25, 0.3], [0.26, 0.25, 0.24, 0.25, 0.0]])
    inference = ImageInference()
    chosen = {
        rule: GradeOutcome(("0", "1", "2", "3", "4"), inference, rule=rule).choose(probs, {}).tolist()
        for rule in ("median", "mode", "expected")
    }
    # expected grades 2.05 and 1.48
    assert chosen == {"median": [3, 1], "mode": [0, 0], "expected": [2, 1]}


def test_a_rule_changes_what_is_predicted() -> None:
    data = batch([[0.35, 0.35, 0.3, -0.8]], [0])  # P(y > k) = .587, .587, .574, .310
    chosen = [task(grade=rule).evaluation_step(Echo(), data, final=False)[0]["predicted"] for rule in
              ("median", "mode", "expected")]  # fmt: skip
    assert chosen == [3, 0, 2]


def test_a_softmax_serves_as_well() -> None:
    found = task(loss=ClassCrossEntropy([GRADES]))
    (record,) = found.evaluation_step(Echo(), batch([[0, 0, 0, 5, 0]], [3]), final=False)
    assert record["predicted"] == 3
    assert found.runtime() == {"num_outputs": 5, "cumulative_targets": 0}


def test_the_temperature_is_that_of_the_cumulative_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = 2 * torch.randn(400, 1, generator=generator)
    logits = centre - torch.tensor([-2.0, -0.7, 0.7, 2.0])
    noise = torch.rand(400, 1, generator=generator)
    labels = (torch.logit(noise) + centre > torch.tensor([-2.0, -0.7, 0.7, 2.0])).sum(1, keepdim=True).float()
    labels[0] = NAN
    found = task(inference=ImageInference(calibrate=True))
    records = found.evaluation_step(Echo(), batch(3 * logits, labels), final=True)
    assert found.fit_decision(records)["temperature"] == pytest.approx(3, rel=0.2)
    calibrated = found.decide(records)
    assert found.summarize(calibrated)["nll"] < found.summarize(records)["nll"]
    assert [r["predicted"] for r in calibrated] == [r["predicted"] for r in records]  # the median stays
    cumulated = exceedances(found.outcome.read(calibrated))
    np.testing.assert_allclose(cumulated, torch.sigmoid(3 * logits.double() / found.decision["temperature"]), atol=1e-6)


def test_the_worst_is_farthest_off() -> None:
    found = task()
    data = batch([reaching(4), reaching(1), reaching(0)], [0, 2, 0])
    worst = found.worst_cases(found.evaluation_step(Echo(), data, final=False))
    assert [case for case, _ in worst] == ["c000", "c001", "c002"]
    assert worst[0][1] == pytest.approx(-4, abs=0.01)


def test_a_threshold_has_no_meaning() -> None:
    with pytest.raises(UsageError, match="choose between two classes"):
        task(inference=ImageInference(threshold="youden"))
