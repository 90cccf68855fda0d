"""Fusions that add or concatenate: concat, sum, gated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.fusion.base import Fused, Fusion, Placeholders
from medtrain.models.masked import masked_softmax


class ConcatFusion(Fusion):
    """Concatenate, then Linear, ReLU, LayerNorm, dropout; an absent modality is a learned vector.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.placeholders = Placeholders(in_dims)
        self.project = nn.Linear(sum(in_dims), dim)
        self.finish = nn.Sequential(nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        return Fused(self.finish(self.project(torch.cat(self.placeholders(features, present), 1))))


class SumFusion(Fusion):
    """Sum of one Linear per present modality, then ReLU, LayerNorm, dropout.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.project = nn.ModuleList(nn.Linear(size, dim) for size in in_dims)
        self.finish = nn.Sequential(nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        projected = torch.stack([layer(value) for layer, value in zip(self.project, features, strict=True)], 1)
        return Fused(self.finish(projected.masked_fill(~present.unsqueeze(-1), 0.0).sum(1)))


class GatedFusion(Fusion):
    """Each feature of the result is a mixture of the modalities, in shares that depend on all of them.

    With two modalities: h_v = tanh(W_v v), h_t = tanh(W_t t), z = sigmoid(W_g [v; t]) and
    f = s(a_v) z * h_v + s(a_t) (1 - z) * h_t, where s is the sigmoid and a_v, a_t are learned (J. Arevalo et al.,
    Gated Multimodal Units, 2017). With more, z is a softmax over the modalities. The shares of absent modalities go
    to those that are present.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
        weights: s(a_m) of each modality before training, between 0 and 1; None for 0.5 each.

    Raises:
        UsageError: Not one weight for each modality, or one outside of (0, 1).
    """

    def __init__(
        self, *, in_dims: Sequence[int], dim: int, drop: float, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        weights = [0.5] * len(in_dims) if weights is None else list(weights)
        if len(weights) != len(in_dims) or not all(0 < weight < 1 for weight in weights):
            raise UsageError(
                f"model.fusion_weights={weights} does not fit: one number between 0 and 1 for each of the "
                f"{len(in_dims)} modalities",
                hint=f"for example `model.fusion_weights=[{', '.join(['0.5'] * len(in_dims))}]`",
            )
        self.placeholders = Placeholders(in_dims)
        self.project = nn.ModuleList(nn.Linear(size, dim) for size in in_dims)
        # the scores of the last modality are 0, as in a logistic regression: shares depend on differences only
        self.gate = nn.Linear(sum(in_dims), (len(in_dims) - 1) * dim)
        self.scale = nn.Parameter(torch.logit(torch.tensor(weights, dtype=torch.float32)))
        self.dropout = nn.Dropout(drop)

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        values = self.placeholders(features, present)
        hidden = torch.stack([layer(value).tanh() for layer, value in zip(self.project, values, strict=True)], 1)
        scores = self.gate(torch.cat(values, 1)).unflatten(1, (-1, self.dim))
        scores = torch.cat([scores, torch.zeros_like(scores[:, :1])], 1)
        shares = masked_softmax(scores, present.unsqueeze(-1), dim=1)  # [B, M, dim]
        fused = (self.scale.sigmoid()[:, None] * shares * hidden).sum(1)
        return Fused(self.dropout(fused), shares.mean(2))
