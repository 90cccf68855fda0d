"""The fusions by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medtrain.models.fusion.attentive import AttentionFusion, CrossAttentionFusion
from medtrain.models.fusion.base import Fusion, Tokens
from medtrain.models.fusion.pointwise import ConcatFusion, GatedFusion, SumFusion
from medtrain.models.fusion.products import BilinearFusion, CompactKroneckerFusion, KroneckerFusion
from medtrain.models.parts import build_part

FusionName = Literal[
    "concat", "sum", "gated", "attention", "cross_attention", "bilinear", "kronecker", "compact_kronecker"
]

FUSIONS: Mapping[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "cross_attention": CrossAttentionFusion,
    "bilinear": BilinearFusion,
    "kronecker": KroneckerFusion,
    "compact_kronecker": CompactKroneckerFusion,
}


def build_fusion(
    fusion: str,
    *,
    in_dims: Sequence[int],
    dim: int,
    drop: float,
    token_dims: Sequence[Tokens] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Fusion:
    """Construct a fusion.

    Args:
        fusion: Its name.
        in_dims: Features of each modality.
        dim: Features of the result.
        drop: Dropout of the result.
        token_dims: Tokens of each modality, for fusions with `needs_tokens`.
        options: Settings of some fusions only, None where not set.

    Raises:
        UsageError: An option has no effect with this fusion, or does not fit.
    """
    fixed = {"in_dims": in_dims, "dim": dim, "drop": drop, "token_dims": token_dims}
    return build_part("fusion", fusion, FUSIONS, fixed=fixed, options=options or {})
