"""Tversky loss."""

from __future__ import annotations

import math

import pytest
import torch

from medtrain.errors import UsageError
from medtrain.losses.dice import DiceLoss
from medtrain.losses.tversky import TverskyLoss


def test_equal_weights_are_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    label = torch.randint(0, 3, (2, 6, 6), generator=generator)
    # (I + s) / (P / 2 + T / 2 + s) = (2 I + 2 s) / (P + T + 2 s)
    tversky = TverskyLoss(num_classes=3, alpha=0.5, beta=0.5, smooth=0.5)
    torch.testing.assert_close(tversky(logits, label), DiceLoss(num_classes=3, smooth=1.0)(logits, label))


def test_by_hand() -> None:
    # p = 0.75 on one foreground and 0.25 on one background voxel: TP 0.75, FP 0.25, FN 0.25
    logits = torch.tensor([[[math.log(3), -math.log(3)]]])  # [1, 1, 2]
    loss = TverskyLoss(num_classes=1, alpha=0.2, beta=0.6, smooth=0.0)
    assert loss(logits, torch.tensor([[1, 0]])).item() == pytest.approx(1 - 0.75 / (0.75 + 0.05 + 0.15))


def test_beta_punishes_misses_more() -> None:
    label = torch.tensor([[1, 1, 0, 0]])
    missed = torch.tensor([[[9.0, -9.0, -9.0, -9.0]]])
    invented = torch.tensor([[[9.0, 9.0, 9.0, -9.0]]])
    loss = TverskyLoss(num_classes=1, alpha=0.1, beta=0.9)
    assert loss(missed, label) > loss(invented, label)


def test_no_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="both 0"):
        TverskyLoss(num_classes=2, alpha=0.0, beta=0.0)
