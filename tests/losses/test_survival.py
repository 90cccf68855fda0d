"""Losses of times to an event."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medtrain.errors import UsageError
from medtrain.losses.survival import CoxLoss, DiscreteSurvivalLoss, quantile_cuts
from medtrain.metrics.survival import concordance
from tests.losses.targets import NAN, Target, classes, scores, survival, times


def reference_cox(risk: np.ndarray, time: np.ndarray, event: np.ndarray, ties: str) -> float:
    """The textbook sums, one event time after the other."""
    total = 0.0
    for moment in np.unique(time[event == 1]):
        died = (time == moment) & (event == 1)
        at_risk = np.exp(risk[time >= moment]).sum()
        tied = np.exp(risk[died]).sum()
        for step in range(died.sum()):
            total += np.log(at_risk - (step / died.sum() * tied if ties == "efron" else 0.0))
        total -= risk[died].sum()
    return total / event.sum()


def test_golden_number() -> None:
    risk = torch.tensor([[5.0], [3], [4], [2], [1]])
    target = torch.tensor([[1.0, 1], [2, 1], [3, 0], [4, 1], [5, 0]])
    for ties in ("breslow", "efron"):  # nothing is tied
        loss = CoxLoss(targets=survival(), ties=ties)
        assert loss(risk, target).item() == pytest.approx(0.735122, abs=1e-6)
        assert loss.weight(target) == 3
    assert concordance(target[:, 0].numpy(), target[:, 1].numpy(), loss.risk(risk).numpy()).index == 0.875


def test_ties_by_hand() -> None:
    # equal risks, two events at time 1 of three subjects: Breslow log 3 + log 3, Efron log 3 + log(3 - 1/2 * 2)
    target = torch.tensor([[1.0, 1], [1, 1], [2, 0]])
    breslow = CoxLoss(targets=survival(), ties="breslow")(torch.zeros(3, 1), target)
    efron = CoxLoss(targets=survival())(torch.zeros(3, 1), target)
    assert breslow.item() == pytest.approx(math.log(3))
    assert efron.item() == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_censored_at_the_time_of_an_event_are_at_risk() -> None:
    target = torch.tensor([[1.0, 1], [1, 0]])
    assert CoxLoss(targets=survival())(torch.zeros(2, 1), target).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("seed", range(5))
def test_parity_with_numpy_with_many_ties(ties: str, seed: int) -> None:
    target, risk = times(30, seed=seed), scores(30, 1, seed=seed)
    known = ~target.isnan().any(1).numpy()
    time, event = target.double().numpy()[known].T
    expected = reference_cox(risk[:, 0].numpy()[known], time, event, ties)
    found = CoxLoss(targets=survival(), ties=ties)(risk, target)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_order_and_level_of_risks_do_not_matter() -> None:
    loss, target, risk = CoxLoss(targets=survival()), times(20), scores(20, 1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(risk[order], target[order]), loss(risk, target))
    torch.testing.assert_close(loss(risk + 7, target), loss(risk, target))


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_extreme_risks_stay_finite(ties: str) -> None:
    risk = torch.tensor([[500.0], [-500], [0], [0], [500]], requires_grad=True)
    target = torch.tensor([[1.0, 1], [1, 1], [2, 1], [2, 1], [3, 0]])
    value = CoxLoss(targets=survival(), ties=ties)(risk, target)  # type: ignore[arg-type]
    value.backward()
    assert value.isfinite()
    assert risk.grad is not None
    assert risk.grad.isfinite().all()


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_gradient_with_ties_censoring_and_gaps(ties: str) -> None:
    target, risk = times(8, seed=3), scores(8, 1).requires_grad_()
    assert (target[:, 1] == 1).sum() >= 2
    loss = CoxLoss(targets=survival(), ties=ties)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda said: loss(said, target), (risk,))


def test_a_batch_without_events_costs_nothing() -> None:
    risk = scores(4, 1).requires_grad_()
    value = CoxLoss(targets=survival())(risk, torch.tensor([[1.0, 0], [2, 0], [3, 0], [NAN, 1]]))
    value.backward()
    assert value.item() == 0
    assert risk.grad is not None
    assert not risk.grad.any()


def test_discrete_by_hand() -> None:
    # intervals (0, 2], (2, 4], (4, inf); hazards 1/2, 1/4, 1/5
    loss = DiscreteSurvivalLoss(targets=survival(), cuts=(2.0, 4.0))
    logits = torch.tensor([[0.0, -math.log(3), -math.log(4)]])

    def cost(time: float, event: int) -> float:
        return loss(logits, torch.tensor([[time, event]])).item()

    assert cost(1.0, 1) == pytest.approx(-math.log(1 / 2))
    assert cost(2.0, 1) == pytest.approx(-math.log(1 / 2))
    assert cost(3.0, 1) == pytest.approx(-math.log(1 / 2 * 1 / 4))
    assert cost(9.0, 1) == pytest.approx(-math.log(1 / 2 * 3 / 4 * 1 / 5))
    assert cost(1.0, 0) == 0
    assert cost(2.0, 0) == pytest.approx(-math.log(1 / 2))  # the first interval has ended
    assert cost(9.0, 0) == pytest.approx(-math.log(1 / 2 * 3 / 4))
    torch.testing.assert_close(loss.survival(logits), torch.tensor([[1 / 2, 3 / 8]]))
    torch.testing.assert_close(loss.risk(logits), torch.tensor([1 / 2 + 5 / 8]))


def test_discrete_equals_numpy() -> None:
    loss = DiscreteSurvivalLoss(targets=survival(), cuts=(1.0, 2.5, 4.0))
    target, logits = times(25), scores(25, 4)
    expected = []
    for (time, event), row in zip(target.tolist(), logits.sigmoid().tolist(), strict=True):
        if math.isnan(time) or math.isnan(event):
            continue
        ends = [1.0, 2.5, 4.0]
        if event:
            hit = sum(time > end for end in ends)
            expected.append(-math.log(row[hit]) - sum(math.log(1 - h) for h in row[:hit]))
        else:
            expected.append(-sum(math.log(1 - h) for h in row[: sum(time >= end for end in ends)]))
    assert loss(logits, target).item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert loss.weight(target) == len(expected)


def test_hazards_of_a_fit_are_the_empirical_ones() -> None:
    # at the minimum, h_k = events in k / those who reach k and are not censored in it
    target = torch.tensor([[1.0, 1], [1, 1], [1, 0], [3, 1], [3, 0], [5, 1]])
    loss = DiscreteSurvivalLoss(targets=survival(), cuts=(2.0, 4.0))
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    best = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        best.zero_grad()
        value = loss(logits.expand(6, 3), target)
        value.backward()
        return value

    best.step(closure)
    hazards = logits.detach().sigmoid()[0, :2]
    torch.testing.assert_close(hazards, torch.tensor([2 / 5, 1 / 2], dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_cuts_are_quantiles_of_the_events() -> None:
    assert quantile_cuts([1, 2, 3, 4, 5], 4) == (2.0, 3.0, 4.0)
    assert quantile_cuts([1, 1, 1, 1, 2, 9], 3) == pytest.approx((1.0, 1 + 1 / 3))
    loss = DiscreteSurvivalLoss(targets=survival(), event_times=[float(t) for t in range(1, 102)])
    assert loss.num_outputs == 10
    assert loss.times == pytest.approx(range(11, 101, 10))
    # at most as many intervals as the events have times
    assert DiscreteSurvivalLoss(targets=survival(), event_times=[1.0, 1.0, 2.0, 3.0]).num_outputs <= 10


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match="events at several times"):
        DiscreteSurvivalLoss(targets=survival())
    with pytest.raises(UsageError, match="events at several times"):
        DiscreteSurvivalLoss(targets=survival(), event_times=[3.0, 3.0])
    with pytest.raises(UsageError, match="must be positive and rise"):
        DiscreteSurvivalLoss(targets=survival(), cuts=(2.0, 2.0))
    with pytest.raises(UsageError, match="no effect beside"):
        DiscreteSurvivalLoss(targets=survival(), cuts=(2.0, 3.0), num_intervals=4)


def test_wrong_targets() -> None:
    CoxLoss(targets=survival(event_classes=False))
    with pytest.raises(UsageError, match="needs two targets"):
        CoxLoss(targets=[Target("time")])
    with pytest.raises(UsageError, match="got event of 2 classes and time of numbers") as error:
        CoxLoss(targets=list(reversed(survival())))
    assert "time first" in str(error.value.hint)
    with pytest.raises(UsageError, match="of 3 classes"):
        CoxLoss(targets=[Target("time"), classes(3)])
