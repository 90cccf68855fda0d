"""A last layer whose thresholds between grades cannot cross."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError

HeadName = Literal["linear", "ordinal"]


class OrdinalHead(nn.Module):
    """One score per target and K - 1 thresholds: logit k is score - threshold_k, falling in k.

    Takes the place of `nn.Linear(num_features, num_outputs)` before `loss=ordinal`. Thresholds are the first one plus
    a running sum of softplus values, so that they rise whatever the optimizer does: the probabilities P(y > k) are in
    order before training has put them there (W. Cao et al., CORAL, 2020, proves order at the optimum only).

    Args:
        num_features: Features F.
        num_outputs: T x (K - 1), as `ImageLoss.num_outputs` of the loss says.
        num_targets: Targets T, each with its own score and thresholds.
    """

    def __init__(self, num_features: int, num_outputs: int, *, num_targets: int = 1) -> None:
        super().__init__()
        assert num_outputs % num_targets == 0, f"{num_outputs} outputs cannot be shared by {num_targets} targets"
        self.num_targets = num_targets
        self.num_thresholds = num_outputs // num_targets
        self.score = nn.Linear(num_features, num_targets, bias=False)
        # one axis, as biases have: thresholds are not drawn to 0 by weight decay
        # evenly spaced by 1 around 0: the middle grades begin as the most probable ones
        self.first = nn.Parameter(torch.full((num_targets,), -(self.num_thresholds - 1) / 2))
        self.gaps = nn.Parameter(torch.full((num_targets * (self.num_thresholds - 1),), 1.0).expm1().log())

    def thresholds(self) -> Tensor:
        """Rising thresholds [T, K - 1]."""
        first, gaps = self.first.unsqueeze(1), F.softplus(self.gaps).view(self.num_targets, self.num_thresholds - 1)
        # running sums as sums of products: CUDA has no deterministic cumsum, and autocast rounds matrix products
        sums = torch.ones(gaps.shape[1], gaps.shape[1], device=gaps.device, dtype=gaps.dtype).tril()
        return torch.cat([first, first + (gaps.unsqueeze(1) * sums).sum(-1)], -1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, T * (K - 1)] of features [B, F]."""
        logits = self.score(features).unsqueeze(-1) - self.thresholds()
        return logits.flatten(1)


def build_head(head: HeadName, num_features: int, num_outputs: int, *, cumulative_targets: int) -> nn.Module:
    """The last layer of a model.

    Args:
        head: `linear` or `ordinal`.
        num_features: Features F.
        num_outputs: Logits.
        cumulative_targets: Targets whose logits are those of P(y > k), as the loss says; 0 with any other loss.

    Raises:
        UsageError: Rising thresholds, and a loss to which they mean nothing.
    """
    if head == "linear":
        return nn.Linear(num_features, num_outputs)
    if not cumulative_targets:
        raise UsageError(
            "model.head=ordinal gives cumulative logits, and the loss takes others",
            hint="set loss=ordinal with loss.form=cumulative, or model.head=linear",
        )
    return OrdinalHead(num_features, num_outputs, num_targets=cumulative_targets)
