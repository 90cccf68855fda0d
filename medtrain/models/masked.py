"""Attention and its softmax over sets of which some members may be absent, or all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError


def masked_softmax(scores: Tensor, present: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the present members: absent ones get exactly 0, and so do all of a set without any.

    Args:
        scores: Of any shape.
        present: bool, of a shape that broadcasts to that of the scores.
        dim: Axis of the set.
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~present, lowest).softmax(dim) * present


def zero_absent(features: Tensor, present: Tensor) -> Tensor:
    """Features [B, N, D] with zeros where absent, whatever stands there, NaN included."""
    return features.masked_fill(~present.unsqueeze(-1), 0.0)


class Attention(nn.Module):
    """Multi-head attention of queries to keys that may be absent (A. Vaswani et al., 2017).

    Args:
        dim: Features of queries, keys and the result.
        heads: Divides `dim`.
        drop: Probability of dropping an attention weight in training.
        key: Config key of the heads, for the message.

    Raises:
        UsageError: The heads do not divide the features.
    """

    def __init__(self, dim: int, heads: int, drop: float, *, key: str) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(
                f"{key}={heads} does not divide the {dim} features",
                hint=f"choose a divisor of {dim}: {', '.join(str(n) for n in range(1, 17) if dim % n == 0)}",
            )
        self.heads = heads
        self.drop = drop
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """Attend from [B, Q, D] to [B, N, D].

        Args:
            queries: [B, Q, D].
            keys: [B, N, D]; also the values.
            present: [B, N] bool; a sample without any key gets zeros.
        """
        some = present.any(1, keepdim=True)
        # a row without any key would be a softmax over nothing; it attends everywhere instead and is zeroed below
        mask = (present | ~some)[:, None, None, :]
        drop = self.drop if self.training else 0.0
        query, key, value = (self._split(part) for part in (self.query(queries), self.key(keys), self.value(keys)))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop)
        return self.out(mixed.transpose(1, 2).flatten(2)) * some.unsqueeze(-1)

    def weights(self, queries: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """The attention [B, Q, N] that `forward` pays in evaluation, averaged over the heads."""
        query, key = self._split(self.query(queries)), self._split(self.key(keys))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        return masked_softmax(scores, present[:, None, None, :]).mean(1)

    def _split(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, D / heads]


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network of four times the width, each normalised first and added.

    Args:
        dim: Features.
        heads: Divides `dim`.
        drop: Dropout of the attention weights and of what is added.
        key: Config key of the heads, for the message.
    """

    def __init__(self, dim: int, heads: int, drop: float, *, key: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, drop, key=key)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(drop), nn.Linear(4 * dim, dim), nn.Dropout(drop)
        )
        self.dropout = nn.Dropout(drop)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens [B, N, D] of which `present` [B, N] are there."""
        normed = self.norm1(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, present))
        return tokens + self.feed_forward(self.norm2(tokens))

    def first_weights(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Attention [B, N] of the first token to all."""
        normed = self.norm1(tokens)
        return self.attention.weights(normed[:, :1], normed, present).squeeze(1)


class Transformer(nn.Module):
    """Transformer layers whose first token gathers the others (the class token).

    Args:
        dim: Features.
        heads: Divides `dim`.
        depth: Layers.
        drop: Dropout inside the layers.
        key: Config key of the heads, for the message.
    """

    def __init__(self, dim: int, heads: int, depth: int, drop: float, *, key: str) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, drop, key=key) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """What the first token becomes.

        Args:
            tokens: [B, N, dim]; whatever is absent is not looked at.
            present: [B, N] bool.

        Returns:
            [B, dim], and its attention [B, N] to the present tokens in the last layer, 1 in sum (0 without any).
        """
        first = self.first.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([first, zero_absent(tokens, present)], 1)
        there = torch.cat([torch.ones_like(present[:, :1]), present], 1)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, there)
        last = self.layers[-1]
        assert isinstance(last, TransformerLayer)
        weights = last.first_weights(tokens, there)[:, 1:]
        gathered = self.norm(last(tokens, there)[:, 0])
        return gathered, weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
