"""Fusions by products of features: bilinear of low rank, Kronecker, and its count sketch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.fusion.base import Fused, Fusion, Placeholders

MAX_KRONECKER_WEIGHTS = 10_000_000
"""A Kronecker fusion with more is refused: the count sketch does the same with a fraction."""


class BilinearFusion(Fusion):
    """Low-rank bilinear: LayerNorm(P (U_1 v_1 * ... * U_M v_M) + sum of S_m v_m), then dropout.

    An absent modality is left out of the product and of the sum. J.-H. Kim et al., Hadamard Product for Low-rank
    Bilinear Pooling, 2017. The norm is over the features and not over the batch, which may lack modalities.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
        rank: Of the bilinear form: the length of the products.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float, rank: int = 16) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.factors = nn.ModuleList(nn.Linear(size, rank) for size in in_dims)
        self.product = nn.Linear(rank, dim, bias=False)
        self.skips = nn.ModuleList(nn.Linear(size, dim) for size in in_dims)
        self.finish = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        there = present.unsqueeze(-1)
        factors = torch.stack([layer(value) for layer, value in zip(self.factors, features, strict=True)], 1)
        skips = torch.stack([layer(value) for layer, value in zip(self.skips, features, strict=True)], 1)
        product = factors.masked_fill(~there, 1.0).prod(1).masked_fill(~present.any(1, keepdim=True), 0.0)
        return Fused(self.finish(self.product(product) + skips.masked_fill(~there, 0.0).sum(1)))


class KroneckerFusion(Fusion):
    """All products of features, one of each modality: Linear of [v_1; 1] x ... x [v_M; 1], ReLU, LayerNorm, dropout.

    The ones keep the features of each modality, and of each subset of them, beside the products (A. Zadeh et al.,
    Tensor Fusion Network, 2017). An absent modality is a learned vector.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.

    Raises:
        UsageError: The products need more than 10 million weights.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        size = math.prod(features + 1 for features in in_dims)
        if size * dim > MAX_KRONECKER_WEIGHTS:
            shape = " x ".join(str(features + 1) for features in in_dims)
            raise UsageError(
                f"model.fusion=kronecker would have {shape} x {dim} = {size * dim:,} weights, more than "
                f"{MAX_KRONECKER_WEIGHTS:,}",
                hint="use model.fusion=compact_kronecker, or a smaller model.fusion_dim or model.table_dims",
            )
        self.placeholders = Placeholders(in_dims)
        self.project = nn.Linear(size, dim)
        self.finish = nn.Sequential(nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        first, *others = (_with_one(value) for value in self.placeholders(features, present))
        products = first
        for other in others:
            products = (products.unsqueeze(2) * other.unsqueeze(1)).flatten(1)
        return Fused(self.finish(self.project(products)))


class CompactKroneckerFusion(Fusion):
    """Kronecker fusion of which only a count sketch is computed: Linear of the sketch, ReLU, LayerNorm, dropout.

    The sketch of the products is the circular convolution of the modalities' sketches, a product of their Fourier
    transforms. Inner products of sketches are those of the products in expectation (N. Pham and R. Pagh, 2013;
    Y. Gao et al., Compact Bilinear Pooling, 2016). The places and signs are drawn once and kept with the weights.

    Args:
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
        sketch: Length of the sketch.
    """

    def __init__(self, *, in_dims: Sequence[int], dim: int, drop: float, sketch: int = 2048) -> None:
        super().__init__(in_dims=in_dims, dim=dim)
        self.sketches = nn.ModuleList(CountSketch(size + 1, sketch) for size in in_dims)
        self.placeholders = Placeholders(in_dims)
        self.project = nn.Linear(sketch, dim)
        self.finish = nn.Sequential(nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(drop))

    def fuse(self, features: Sequence[Tensor], present: Tensor, tokens: Sequence[Tensor] | None) -> Fused:
        """See `Fusion.forward`."""
        return Fused(self.finish(self.project(self.sketch(self.placeholders(features, present)))))

    def sketch(self, features: Sequence[Tensor]) -> Tensor:
        """Count sketch [B, sketch] of the products of all features, in float32."""
        with torch.autocast(features[0].device.type, enabled=False):  # half precision has no Fourier transform
            spectrum: Tensor | None = None
            length = 0
            for layer, value in zip(self.sketches, features, strict=True):
                sketched = layer(_with_one(value.float()))
                length = sketched.shape[1]
                transformed = torch.fft.rfft(sketched)
                spectrum = transformed if spectrum is None else spectrum * transformed
            assert spectrum is not None
            return torch.fft.irfft(spectrum, n=length)


class CountSketch(nn.Module):
    """Adds each feature, with a fixed random sign, to a fixed random place (M. Charikar et al., 2002).

    Args:
        in_dim: Features.
        length: Of the sketch.
    """

    places: Tensor
    signs: Tensor

    def __init__(self, in_dim: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("places", torch.randint(length, (in_dim,)))
        self.register_buffer("signs", torch.randint(2, (in_dim,)).mul(2).sub(1).float())

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_dim] to [B, length]."""
        empty = features.new_zeros(len(features), self.length)
        return empty.index_add(1, self.places, features * self.signs.to(features.dtype))


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)
