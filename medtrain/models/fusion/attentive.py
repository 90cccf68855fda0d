"""Fusions by attention: among the modalities' vectors, and across their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.fusion.base import Fused, Fusion, Tokens
from medtrain.models.masked import Attention, Transformer


class AttentionFusion(Fusion):
    """A transformer over one token for each present modality and a class token, whose output is the result.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout inside the layers and of the result.
        heads: Attention heads; they divide `dim`.
        layers: Transformer layers.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float, heads: int = 4, layers: int = 1) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.project = nn.ModuleList(nn.Linear(size, dim) for size in in_dims)  # its bias tells modalities apart
        self.transformer = Transformer(dim, heads, layers, drop, key="model.fusion_heads")
        self.dropout = nn.Dropout(drop)

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`; the weights are the last layer's attention of the class token."""
        projected = torch.stack([layer(value) for layer, value in zip(self.project, features, strict=True)], 1)
        fused, weights = self.transformer(projected, present)
        return Fused(self.dropout(fused), weights)


class CrossAttentionFusion(Fusion):
    """The vector of each modality attends to the tokens of the others; the results are fused by a Linear.

    Tokens are the cells of an image's feature map, with learned positions, and the columns of a table. (With one
    token for each modality the softmax over it is 1 and there is no attention at all.) For each modality m:
    h_m = q_m + attention(q_m, tokens of the others), followed by a feed-forward network; the result is
    Dropout(LayerNorm(ReLU(W [h_1; ...; h_M]))) with zeros for the absent.

    Args:
        in_dims: Features of each modality.
        token_dims: Tokens of each modality.
        dim: Features of the result.
        drop: Dropout of the attention weights, of the feed-forward networks and of the result.
        heads: Attention heads; they divide `dim`.

    Raises:
        UsageError: A modality has a single token.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self, *, in_dims: Sequence[int], token_dims: Sequence[Tokens], dim: int, drop: float, heads: int = 4
    ) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        if any(tokens.length < 2 for tokens in token_dims):
            raise UsageError(
                "model.fusion=cross_attention needs several tokens of each modality: attention to a single one is "
                f"no choice; the modalities have {', '.join(str(tokens.length) for tokens in token_dims)}",
                hint="use an image larger than the encoder's stride and two columns or more, or model.fusion=gated",
            )
        self.queries = nn.ModuleList(nn.Linear(size, dim) for size in in_dims)
        self.tokens = nn.ModuleList(nn.Linear(tokens.dim, dim) for tokens in token_dims)
        self.positions = nn.ParameterList(nn.Parameter(torch.randn(tokens.length, dim) * 0.02) for tokens in token_dims)
        self.query_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in in_dims)
        self.token_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in in_dims)
        self.attention = nn.ModuleList(Attention(dim, heads, drop, key="model.fusion_heads") for _ in in_dims)
        self.feed_forward = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * dim, dim)
            )
            for _ in in_dims
        )
        self.project = nn.Linear(len(in_dims) * dim, dim)
        self.finish = nn.Sequential(nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        assert tokens is not None
        embedded = [
            norm(layer(value) + position)
            for layer, norm, value, position in zip(self.tokens, self.token_norms, tokens, self.positions, strict=True)
        ]
        counts = [value.shape[1] for value in embedded]
        results = []
        for m, value in enumerate(features):
            others = [i for i in range(len(embedded)) if i != m]
            keys = torch.cat([embedded[i] for i in others], 1)
            there = torch.cat([present[:, i, None].expand(-1, counts[i]) for i in others], 1)
            query = self.queries[m](value).unsqueeze(1)
            keys = keys.masked_fill(~there.unsqueeze(-1), 0.0)
            query = query + self.attention[m](self.query_norms[m](query), keys, there)
            query = query + self.feed_forward[m](query)
            results.append(query.squeeze(1).masked_fill(~present[:, m, None], 0.0))
        return Fused(self.finish(self.project(torch.cat(results, 1))))
