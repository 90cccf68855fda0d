"""Losses of numbers."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from medtrain.errors import UsageError
from medtrain.losses.regression import HuberLoss, MAELoss, MSELoss, RegressionLoss
from tests.losses.targets import NAN, Target, classes, scores

AGE = Target("age", None, mean=50.0, std=20.0)
VOLUME = Target("volume", None, mean=0.2, std=0.1)


def test_mse_by_hand() -> None:
    # (90 - 50) / 20 = 2 against 0.5; (0.1 - 0.2) / 0.1 = -1 against 0
    loss = MSELoss(targets=[AGE, VOLUME])
    value = loss(torch.tensor([[0.5, 0.0]]), torch.tensor([[90.0, 0.1]]))
    assert value.item() == pytest.approx((1.5**2 + 1) / 2, rel=1e-6)
    torch.testing.assert_close(loss.predict(torch.tensor([[2.0, -1.0]])), torch.tensor([[90.0, 0.1]]))


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (MSELoss(targets=[AGE]), F.mse_loss),
        (MAELoss(targets=[AGE]), F.l1_loss),
        (HuberLoss(targets=[AGE]), F.huber_loss),
    ],
)
def test_parity_with_torch_on_the_standard_scale(loss: RegressionLoss, reference) -> None:  # type: ignore[no-untyped-def]
    logits, target = scores(8, 1), 50 + 20 * scores(8, 1, seed=2)
    target[3] = NAN
    known = ~target.isnan()
    torch.testing.assert_close(loss(logits, target), reference(logits[known], ((target - 50) / 20)[known]))
    assert loss.weight(target) == 7


def test_huber_delta_and_no_standardisation() -> None:
    # difference 3 with delta 2: 2 * (3 - 1)
    loss = HuberLoss(targets=[AGE], standardize=False, delta=2.0)
    assert loss(torch.tensor([[4.0]]), torch.tensor([[7.0]])).item() == pytest.approx(4.0)
    assert loss.predict(torch.tensor([[4.0]])).item() == 4.0


def test_predictions_undo_what_the_loss_does() -> None:
    target = torch.tensor([[31.0, 0.27], [64.0, 0.11]])
    loss = MSELoss(targets=[AGE, VOLUME])
    said = (target - torch.tensor([50.0, 0.2])) / torch.tensor([20.0, 0.1])
    assert loss(said, target).item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(loss.predict(said), target)


def test_large_numbers_with_a_small_spread_keep_their_differences() -> None:
    # seconds since 1970: float32 holds them to within 64, the standard deviation is 100
    loss = MSELoss(targets=[Target("seconds", None, mean=1.6e9, std=100.0)])
    target = torch.tensor([[1.6e9 + 128]])
    assert loss(torch.tensor([[1.28]]), target).item() == pytest.approx(0, abs=1e-9)


def test_a_constant_number_is_centred_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loss = MSELoss(targets=[Target("dose", None, mean=3.0, std=0.0)])
    assert "dose" in caplog.text
    assert loss(torch.tensor([[0.0]]), torch.tensor([[3.0]])).item() == 0


def test_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="are classes: grade"):
        MSELoss(targets=[AGE, classes(3)])
    with pytest.raises(UsageError, match="needs a target column"):
        MAELoss(targets=[])
