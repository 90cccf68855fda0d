"""The head with thresholds in order."""

from __future__ import annotations

import pytest
import torch

from medtrain.losses.ordinal import OrdinalLoss
from medtrain.models.ordinal_head import OrdinalHead
from tests.losses.targets import classes


def test_thresholds_rise_whatever_the_parameters() -> None:
    head = OrdinalHead(8, 2 * 4, num_targets=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(5 * torch.randn(parameter.shape, generator=generator))
    assert (head.thresholds().diff(dim=1) > 0).all()
    logits = head(torch.randn(20, 8, generator=generator))  # [B, T * (K - 1)]
    assert logits.shape == (20, 8)
    assert (logits.view(20, 2, 4).diff(dim=-1) < 0).all()


def test_it_begins_with_even_thresholds_around_0() -> None:
    torch.testing.assert_close(OrdinalHead(3, 4).thresholds(), torch.tensor([[-1.5, -0.5, 0.5, 1.5]]))
    torch.testing.assert_close(OrdinalHead(3, 1).thresholds(), torch.tensor([[0.0]]))


def test_logits_are_one_score_against_every_threshold() -> None:
    head, features = OrdinalHead(3, 3), torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    expected = features @ head.score.weight.t() - head.thresholds()
    torch.testing.assert_close(head(features), expected)


def test_it_fits_the_loss_and_all_parts_learn() -> None:
    loss = OrdinalLoss(targets=[classes(5)])
    head = OrdinalHead(6, loss.num_outputs)
    features = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    logits = head(features)
    loss(logits, torch.arange(10).remainder(5).float().unsqueeze(1)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    # in order, so every grade has a probability above 0
    assert (loss.predict(logits) > 0).all()


def test_outputs_that_targets_cannot_share() -> None:
    with pytest.raises(AssertionError, match="5 outputs cannot be shared by 2"):
        OrdinalHead(3, 5, num_targets=2)
