"""Steps whose gradient is not finite: what each policy does, and what a checkpoint knows of them."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from medtrain.engine.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("policy", "applied"), [("skip", False), ("raise", False), ("ignore", True)])
def test_only_ignore_applies_what_is_not_finite(policy: Literal["skip", "raise", "ignore"], applied: bool) -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision = Precision("fp32", CPU, nonfinite=policy)
    weight.grad = torch.tensor([1.0, math.inf])
    norm = precision.clip(optimizer, [weight], norm=None, value=None)
    assert not torch.isfinite(norm)
    precision.step(optimizer, norm)
    assert (weight.tolist() != [0.0, 0.0]) == applied
    assert precision.read_skipped() == ((0, 0) if applied else (1, 1))


def test_a_checkpoint_knows_the_steps_skipped_in_a_row() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    first, second = Precision("fp32", CPU), Precision("fp32", CPU)
    for norm in (math.nan, 1.0, math.nan, math.nan):
        first.step(optimizer, torch.tensor(norm))
    second.load_state_dict(first.state_dict())
    second.step(optimizer, torch.tensor(math.nan))
    assert second.read_skipped() == (4, 3)  # three before and one after; the last three in a row
