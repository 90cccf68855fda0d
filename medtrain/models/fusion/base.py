"""What every fusion takes and returns, and what stands in for a modality that a sample lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Tokens(NamedTuple):
    """The parts of a modality: cells of a feature map, columns of a table.

    Args:
        length: L, tokens of a sample.
        dim: Features of each.
    """

    length: int
    dim: int


class Fused(NamedTuple):
    """What a fusion returns.

    Args:
        features: [B, dim].
        weights: [B, M], how much each modality counts: 0 where absent, 1 in sum over the present ones (0 if there
            are none); None where the fusion has no such thing.
    """

    features: Tensor
    weights: Tensor | None = None


class Fusion(nn.Module):
    """Base of the fusions: M modalities with features [B, d_m] of which a sample may lack some, or all.

    The result never depends on the features of an absent modality, and is finite without any.

    Args:
        in_dims: d_m of each modality.
        dim: Features of the result.
    """

    needs_tokens: ClassVar[bool] = False
    """Whether the fusion looks at the parts of a modality (`Tokens`) instead of its one vector."""

    def __init__(self, *, in_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.in_dims = tuple(in_dims)
        self.dim = dim

    def forward(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None = None) -> Fused:
        """Fuse what is present.

        Args:
            features: [B, d_m] of each modality; whatever stands there for an absent one is not looked at.
            present: [B, M] bool.
            tokens: [B, L_m, t_m] of each modality, for fusions that need them.
        """
        absent = ~present
        features = [value.masked_fill(absent[:, m, None], 0.0) for m, value in enumerate(features)]
        if tokens is not None:
            tokens = [value.masked_fill(absent[:, m, None, None], 0.0) for m, value in enumerate(tokens)]
        return self.fuse(features, present, tokens)

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """What `forward` returns, of features and tokens that are zeros where absent."""
        raise NotImplementedError


class Placeholders(nn.Module):
    """A learned vector for each modality, used where a sample lacks it; zeros before training.

    Args:
        dims: Features of each modality.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in dims)

    def forward(self, features: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        """The features [B, d_m] of each modality, with its vector where it is absent."""
        return [
            torch.where(present[:, m, None], value, vector.to(value.dtype))
            for m, (value, vector) in enumerate(zip(features, self.vectors, strict=True))
        ]


def drop_modalities(present: Tensor, rate: float) -> Tensor:
    """Which modalities stay when each is dropped with a probability, but never the last one of a sample.

    Drawn from torch's generator of the device, as dropout is (N. Neverova et al., ModDrop, 2015).

    Args:
        present: [B, M] bool.
        rate: Probability in [0, 1).
    """
    draws = torch.rand(present.shape, device=present.device)
    kept = present & (draws >= rate)
    last = torch.where(present, draws, -1.0).argmax(1, keepdim=True)
    rescued = torch.zeros_like(present).scatter(1, last, value=True) & present
    return torch.where(kept.any(1, keepdim=True), kept, rescued)
