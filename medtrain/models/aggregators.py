"""Aggregators: the features of a bag's instances, or of a study's views, become those of the sample.

Features are [B, N, D], of which `present` [B, N] are there. Absent ones have no influence whatever stands in their
place, and a sample without any gets finite features. All but those that know views by name do not depend on the
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.masked import Attention, Transformer, masked_softmax, zero_absent
from medtrain.models.parts import build_part
from medtrain.registry import Range

AggregatorName = Literal[
    "mean",
    "max",
    "attention",
    "gated_attention",
    "deepsets",
    "transformer",
    "learned_weight",
    "cross_view_attention",
]


class Aggregated(NamedTuple):
    """What an aggregator returns.

    Args:
        features: [B, out_dim].
        attention: [B, N], 0 where absent and 1 in sum over the present (0 if there are none); None where nothing is
            weighted.
    """

    features: Tensor
    attention: Tensor | None = None


class Aggregator(nn.Module):
    """Base of the aggregators.

    Args:
        in_dim: Features D of each instance.
        out_dim: Features of the result.
    """

    knows_views: ClassVar[bool] = False
    """Whether the place of an instance means something: the names of the views are needed."""

    def __init__(self, *, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim

    def forward(self, features: Tensor, present: Tensor) -> Aggregated:
        """Aggregate [B, N, D], of which `present` [B, N] are there."""
        return self.aggregate(zero_absent(features, present), present)

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """What `forward` returns, of features that are zeros where absent."""
        raise NotImplementedError


class MeanAggregator(Aggregator):
    """The mean over the present instances.

    Args:
        in_dim: Features of each instance.
    """

    def __init__(self, *, in_dim: int) -> None:
        super().__init__(in_dim=in_dim, out_dim=in_dim)

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        return Aggregated(features.sum(1) / present.sum(1, keepdim=True).clamp(min=1))


class MaxAggregator(Aggregator):
    """The largest value of each feature over the present instances; 0 without any.

    Args:
        in_dim: Features of each instance.
    """

    def __init__(self, *, in_dim: int) -> None:
        super().__init__(in_dim=in_dim, out_dim=in_dim)

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        lowest = torch.finfo(features.dtype).min
        largest = features.masked_fill(~present.unsqueeze(-1), lowest).amax(1)
        return Aggregated(largest.masked_fill(~present.any(1, keepdim=True), 0.0))


class AttentionAggregator(Aggregator):
    """Weighted mean with a = softmax(w . tanh(V h)) over the present instances.

    M. Ilse et al., Attention-based Deep Multiple Instance Learning, 2018, equation 8.

    Args:
        in_dim: Features of each instance.
        dim: Rows of V.
        drop: Dropout of tanh(V h).
    """

    def __init__(self, *, in_dim: int, dim: int = 128, drop: float = 0.1) -> None:
        super().__init__(in_dim=in_dim, out_dim=in_dim)
        self.hidden = nn.Linear(in_dim, dim)
        self.dropout = nn.Dropout(drop)
        self.score = nn.Linear(dim, 1)

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        return _weighted(features, self.score(self.dropout(self._activate(features))).squeeze(-1), present)

    def _activate(self, features: Tensor) -> Tensor:
        return self.hidden(features).tanh()


class GatedAttentionAggregator(AttentionAggregator):
    """Weighted mean with a = softmax(w . (tanh(V h) * sigmoid(U h))) over the present instances.

    M. Ilse et al., Attention-based Deep Multiple Instance Learning, 2018, equation 9.

    Args:
        in_dim: Features of each instance.
        dim: Rows of V and U.
        drop: Dropout of the product.
    """

    def __init__(self, *, in_dim: int, dim: int = 128, drop: float = 0.1) -> None:
        super().__init__(in_dim=in_dim, dim=dim, drop=drop)
        self.gate = nn.Linear(in_dim, dim)

    def _activate(self, features: Tensor) -> Tensor:
        return self.hidden(features).tanh() * self.gate(features).sigmoid()


class DeepSetsAggregator(Aggregator):
    """rho(sum of phi(h)) over the present instances (M. Zaheer et al., Deep Sets, 2017).

    phi is Linear, ReLU; rho is Linear, ReLU, dropout.

    Args:
        in_dim: Features of each instance.
        dim: Features of phi and of the result.
        drop: Dropout of the result.
    """

    def __init__(self, *, in_dim: int, dim: int = 256, drop: float = 0.1) -> None:
        super().__init__(in_dim=in_dim, out_dim=dim)
        self.phi = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(drop))

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        return Aggregated(self.rho(zero_absent(self.phi(features), present).sum(1)))


class TransformerAggregator(Aggregator):
    """A transformer over the present instances and a learned query token, whose output is the result.

    Without positions, so the order has no influence. The attention is that of the token in the last layer.

    Args:
        in_dim: Features of each instance.
        dim: Features inside, and of the result.
        heads: Attention heads; they divide `dim`.
        layers: Transformer layers.
        drop: Dropout inside the layers.
    """

    def __init__(self, *, in_dim: int, dim: int = 256, heads: int = 8, layers: int = 2, drop: float = 0.1) -> None:
        super().__init__(in_dim=in_dim, out_dim=dim)
        self.project = nn.Linear(in_dim, dim)
        self.transformer = Transformer(dim, heads, layers, drop, key="model.aggregator_heads")

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        return Aggregated(*self.transformer(self.project(features), present))


class LearnedWeightAggregator(Aggregator):
    """Weighted mean with one learned weight for each view, a softmax over the present views.

    Args:
        in_dim: Features of each view.
        num_views: Named views.
    """

    knows_views: ClassVar[bool] = True

    def __init__(self, *, in_dim: int, num_views: int) -> None:
        super().__init__(in_dim=in_dim, out_dim=in_dim)
        self.scores = nn.Parameter(torch.zeros(num_views))

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        return _weighted(features, self.scores.expand(features.shape[0], -1), present)


class CrossViewAttentionAggregator(Aggregator):
    """Each view attends to all present views; the results are averaged with learned attention.

    Args:
        in_dim: Features of each view.
        num_views: Named views.
        dim: Features inside, and of the result.
        heads: Attention heads; they divide `dim`.
        drop: Dropout of the attention weights and of what is added.
    """

    knows_views: ClassVar[bool] = True

    def __init__(self, *, in_dim: int, num_views: int, dim: int = 256, heads: int = 8, drop: float = 0.1) -> None:
        super().__init__(in_dim=in_dim, out_dim=dim)
        self.project = nn.Linear(in_dim, dim)
        self.views = nn.Parameter(torch.randn(num_views, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, drop, key="model.aggregator_heads")
        self.dropout = nn.Dropout(drop)
        self.score = nn.Linear(dim, 1)

    def aggregate(self, features: Tensor, present: Tensor) -> Aggregated:
        """See `Aggregator.forward`."""
        views = zero_absent(self.project(features) + self.views, present)
        normed = self.norm(views)
        views = views + self.dropout(self.attention(normed, normed, present))
        return _weighted(views, self.score(views.tanh()).squeeze(-1), present)


AGGREGATORS: Mapping[str, type[Aggregator]] = {
    "mean": MeanAggregator,
    "max": MaxAggregator,
    "attention": AttentionAggregator,
    "gated_attention": GatedAttentionAggregator,
    "deepsets": DeepSetsAggregator,
    "transformer": TransformerAggregator,
    "learned_weight": LearnedWeightAggregator,
    "cross_view_attention": CrossViewAttentionAggregator,
}


@dataclass(frozen=True, kw_only=True)
class AggregatorSettings:
    """Settings that some of the aggregators have; null takes the aggregator's own.

    Args:
        aggregator_dim: Hidden size of the aggregator; null = 128 for attention, 256 for the others that have one.
        aggregator_heads: Attention heads of `transformer` and `cross_view_attention`; null = 8.
        aggregator_layers: Layers of `transformer`; null = 2.
        aggregator_drop: Dropout of the aggregator; null = 0.1 where it has one.
    """

    aggregator_dim: Annotated[int, Range(ge=1)] | None = None
    aggregator_heads: Annotated[int, Range(ge=1)] | None = None
    aggregator_layers: Annotated[int, Range(ge=1)] | None = None
    aggregator_drop: Annotated[float, Range(ge=0, lt=1)] | None = None

    def options(self) -> dict[str, Any]:
        """As `build_aggregator` takes them."""
        return {
            "dim": self.aggregator_dim,
            "heads": self.aggregator_heads,
            "layers": self.aggregator_layers,
            "drop": self.aggregator_drop,
        }


def build_aggregator(
    aggregator: str, *, in_dim: int, num_views: int = 0, options: Mapping[str, Any] | None = None
) -> Aggregator:
    """Construct an aggregator.

    Args:
        aggregator: Its name.
        in_dim: Features of each instance.
        num_views: Named views; 0 for bags, whose instances have no names.
        options: Settings of some aggregators only, None where not set.

    Raises:
        UsageError: An option has no effect with this aggregator, or views without names are to be told apart.
    """
    if aggregator in AGGREGATORS and AGGREGATORS[aggregator].knows_views and not num_views:
        others = ", ".join(name for name, part in AGGREGATORS.items() if not part.knows_views)
        raise UsageError(
            f"model.aggregator={aggregator} tells views apart by name, and the instances of a bag have none",
            hint=f"use model.aggregator among {others}, or data with views (`data.views`)",
        )
    fixed = {"in_dim": in_dim, "num_views": num_views}
    return build_part("aggregator", aggregator, AGGREGATORS, fixed=fixed, options=options or {})


def _weighted(features: Tensor, scores: Tensor, present: Tensor) -> Aggregated:
    attention = masked_softmax(scores.float(), present)  # half precision cannot tell the weights of 200 instances
    return Aggregated((attention.unsqueeze(1).to(features.dtype) @ features).squeeze(1), attention)
