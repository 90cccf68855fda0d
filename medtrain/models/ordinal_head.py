"""A last layer whose thresholds between grades cannot cross."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        self.num_thresholds = num_outputs // num_targets
        self.score = nn.Linear(num_features, num_targets, bias=False)
        # evenly spaced by 1 around 0: the middle grades begin as the most probable ones
        self.first = nn.Parameter(torch.full((num_targets, 1), -(self.num_thresholds - 1) / 2))
        gap = torch.full((num_targets, self.num_thresholds - 1), 1.0)
        self.gaps = nn.Parameter(gap.expm1().log())

    def thresholds(self) -> Tensor:
        """Rising thresholds [T, K - 1]."""
        # running sums as a product, because CUDA has no deterministic cumsum
        sums = torch.ones(self.gaps.shape[1], self.gaps.shape[1], device=self.gaps.device, dtype=self.gaps.dtype).triu()
        return torch.cat([self.first, self.first + F.softplus(self.gaps) @ sums], -1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, T * (K - 1)] of features [B, F]."""
        logits = self.score(features).unsqueeze(-1) - self.thresholds()
        return logits.flatten(1)
