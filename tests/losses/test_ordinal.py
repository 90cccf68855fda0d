"""Losses of grades."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medtrain.errors import UsageError
from medtrain.losses.ordinal import OrdinalLoss, QuadraticKappaLoss, SquaredEMDLoss
from medtrain.metrics.confusion import cohen_kappa
from tests.losses.targets import NAN, Target, classes, labels, scores


def test_cumulative_by_hand() -> None:
    # K = 3, y = 1: above 0 yes, above 1 no; p = 3/4 and 1/5
    logits = torch.tensor([[math.log(3), -math.log(4)]])
    loss = OrdinalLoss(targets=[classes(3)])
    assert loss.num_outputs == 2
    assert loss(logits, torch.tensor([[1.0]])).item() == pytest.approx(-math.log(3 / 4) - math.log(4 / 5))
    # P(y = 0, 1, 2) = 1 - 3/4, 3/4 - 1/5, 1/5
    torch.testing.assert_close(loss.predict(logits), torch.tensor([[[0.25, 0.55, 0.2]]]))


def test_conditional_by_hand() -> None:
    # K = 3; P(y > 0) = 3/4, P(y > 1 | y > 0) = 1/5; only samples above 0 train the second threshold
    logits = torch.tensor([[math.log(3), -math.log(4)]])
    loss = OrdinalLoss(targets=[classes(3)], form="conditional")
    assert loss(logits, torch.tensor([[0.0]])).item() == pytest.approx(-math.log(1 / 4))
    assert loss(logits, torch.tensor([[2.0]])).item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 5))
    torch.testing.assert_close(loss.predict(logits), torch.tensor([[[0.25, 0.6, 0.15]]]))


def test_conditional_is_the_likelihood_of_the_predicted_grade() -> None:
    loss = OrdinalLoss(targets=[classes(5)], form="conditional")
    logits, target = scores(9, 4), labels(5, 9, missing=0)
    chosen = loss.predict(logits).squeeze(1).gather(1, target.long())
    torch.testing.assert_close(loss(logits, target), -chosen.log().mean())


def test_two_grades_are_binary_cross_entropy() -> None:
    target, logits = labels(2, 9, missing=0), scores(9, 1)
    expected = F.binary_cross_entropy_with_logits(logits, target.double())
    for form in ("cumulative", "ordered", "conditional"):
        torch.testing.assert_close(OrdinalLoss(targets=[classes(2)], form=form)(logits, target), expected)


def test_ordered_by_hand() -> None:
    # outputs 1, 0, log(e - 1): softplus log 2 and 1, so logits 1, 1 - log 2, -log 2
    outputs = torch.tensor([[1.0, 0.0, math.log(math.e - 1)]])
    logits = torch.tensor([[1.0, 1 - math.log(2), -math.log(2)]])
    ordered, plain = (OrdinalLoss(targets=[classes(4)], form=form) for form in ("ordered", "cumulative"))
    target = torch.tensor([[2.0]])
    torch.testing.assert_close(ordered(outputs, target), plain(logits, target))
    torch.testing.assert_close(ordered.predict(outputs), plain.predict(logits))
    torch.testing.assert_close(ordered.evidence(outputs, target), logits.sum(1))


def test_ordered_thresholds_cannot_cross() -> None:
    outputs = 5 * scores(50, 8)
    crossing = OrdinalLoss(targets=[classes(5), classes(5)]).predict(outputs)
    assert (crossing == 0).any()
    assert (OrdinalLoss(targets=[classes(5), classes(5)], form="ordered").predict(outputs) > 0).all()


@pytest.mark.parametrize("form", ["cumulative", "ordered", "conditional"])
def test_probabilities_hold_for_logits_that_cross(form: str) -> None:
    loss = OrdinalLoss(targets=[classes(5), classes(5)], form=form)  # type: ignore[arg-type]
    probs = loss.predict(5 * scores(50, 8))
    assert probs.shape == (50, 2, 5)
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(50, 2, dtype=torch.float64))


def test_grades_weigh_as_their_class() -> None:
    loss = OrdinalLoss(targets=[classes(3, counts=(80, 15, 5))], class_weights="balanced")
    target, logits = torch.tensor([[0.0], [2.0], [NAN]]), scores(3, 2)
    plain = OrdinalLoss(targets=[classes(3)])
    each = torch.stack([plain(logits[i : i + 1], target[i : i + 1]) for i in range(2)])
    weight = torch.tensor([100 / 240, 100 / 15], dtype=torch.float64)
    torch.testing.assert_close(loss(logits, target), (each * weight).sum() / weight.sum(), rtol=1e-6, atol=1e-6)


def test_far_misses_cost_more() -> None:
    target = torch.tensor([[0.0]])

    def one_hot_cost(loss: torch.nn.Module, grade: int) -> float:
        value: float = loss(20 * F.one_hot(torch.tensor([grade]), 5).double(), target).item()
        return value

    emd = [one_hot_cost(SquaredEMDLoss(targets=[classes(5)]), grade) for grade in range(5)]
    assert emd == pytest.approx([0, 1, 2, 3, 4], abs=1e-6)  # one step of 1 per grade in between


def test_emd_by_hand() -> None:
    # probabilities 0.5, 0.25, 0.25, y = 2: running sums 0.5, 0.75, 1 against 0, 0, 1
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    loss = SquaredEMDLoss(targets=[classes(3)])
    assert loss(logits, torch.tensor([[2.0]])).item() == pytest.approx(0.25 + 0.5625)


def test_kappa_of_certain_predictions_is_that_of_the_metric() -> None:
    # the golden number of the metric: 0.810811
    true, said = [0, 0, 1, 2, 3, 4, 4, 2], [0, 1, 1, 2, 4, 4, 3, 0]
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (said, true), 1)
    assert cohen_kappa(confusion, "quadratic") == pytest.approx(0.810811, abs=1e-6)
    logits = 50 * F.one_hot(torch.tensor(said), 5).double()
    target = torch.tensor(true).float().unsqueeze(1)
    loss = QuadraticKappaLoss(targets=[classes(5)])
    assert loss(logits, target).item() == pytest.approx(1 - 0.810811, abs=1e-6)
    # unlabelled samples do not count, in the sum of chance either
    more = torch.cat([target, torch.full((3, 1), NAN)])
    assert loss(torch.cat([logits, scores(3, 5)]), more).item() == pytest.approx(1 - 0.810811, abs=1e-6)
    assert not loss.decomposable


def test_kappa_of_one_grade_is_finite() -> None:
    logits = (50 * F.one_hot(torch.tensor([2, 2]), 3).double()).requires_grad_()
    value = QuadraticKappaLoss(targets=[classes(3)])(logits, torch.full((2, 1), 2.0))
    value.backward()
    assert 0 <= value.item() < 1e-4
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_numbers_are_refused() -> None:
    for loss in (OrdinalLoss, SquaredEMDLoss, QuadraticKappaLoss):
        with pytest.raises(UsageError, match="are numbers: age"):
            loss(targets=[Target("age")])
