"""Terms that tell a network where to look: on what lies in a mask, a box or around a point, or sharply at all.

Every term is one number per sample, 0 where the sample says nothing of it; whoever adds them up divides.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionForm = Literal["kl", "bce", "dice", "mse"]
"""How a map is compared with a mask."""

_SHARPNESS = 10.0
_TINY = 1e-6


def mask_term(attention: Tensor, annotation: Tensor, form: AttentionForm) -> Tensor:
    """How far attention maps are from the masks they should follow [B]; 0 for samples without a mask.

    The mask is averaged over the pixels that each place of the map covers.

    - `kl`: divergence of the map, made to sum to 1, from softmax(10 mask) over places.
    - `bce`: binary cross-entropy of every place, averaged.
    - `mse`: squared difference of the map, made to sum to 1, and softmax(10 mask), summed over places.
    - `dice`: 1 minus the soft Dice score.

    Args:
        attention: [B, *s] >= 0; `bce` needs values up to 1.
        annotation: [B, *S] in 0..1; NaN where a sample has none.
        form: One of the above.
    """
    maps = attention.float()
    known = annotation.isfinite().flatten(1).all(1)
    masks = resize_mask(annotation.float().nan_to_num(0), tuple(maps.shape[1:])).flatten(1)
    maps = maps.flatten(1)
    if form == "bce":
        # the logarithm of 0 has no gradient, and half-precision maps reach 0 and 1; written out, because PyTorch's own
        # refuses to run under autocast
        inside = maps.clamp(_TINY, 1 - _TINY)
        losses = -(masks * inside.log() + (1 - masks) * (-inside).log1p()).mean(1)
    elif form == "dice":
        losses = 1 - (2 * (maps * masks).sum(1) + _TINY) / (maps.sum(1) + masks.sum(1) + _TINY)
    else:
        goal = (_SHARPNESS * masks).softmax(1)
        shares = (maps + _TINY) / (maps + _TINY).sum(1, keepdim=True)
        terms = goal * (goal.log() - shares.log()) if form == "kl" else (goal - shares).square()
        losses = terms.sum(1)
    return losses * known


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Masks [B, *size] of masks [B, *S]: means over areas."""
    if tuple(mask.shape[1:]) == size:
        return mask
    if len(size) == 2:
        return F.adaptive_avg_pool2d(mask.unsqueeze(1), (size[0], size[1])).squeeze(1)
    return F.adaptive_avg_pool3d(mask.unsqueeze(1), (size[0], size[1], size[2])).squeeze(1)


def roughness(attention: Tensor) -> Tensor:
    """Total variation: mean absolute difference of neighbouring places, summed over the axes [B]."""
    maps = attention.float()
    steps = [maps.diff(dim=axis).abs().flatten(1) for axis in range(1, maps.ndim) if maps.shape[axis] > 1]
    return torch.stack([step.mean(1) for step in steps]).sum(0) if steps else maps.flatten(1).sum(1) * 0


def entropy(attention: Tensor, present: Tensor | None = None) -> Tensor:
    """Entropy in nats [B] of weights [B, N] that sum to 1 over those that are present."""
    weights = attention.float()
    if present is not None:
        weights = weights * present.to(weights.device, non_blocking=True)
    return torch.special.entr(weights.clamp_min(0)).sum(1)


def entropy_term(attention: Tensor, present: Tensor | None = None, *, share: float = 0.5) -> Tensor:
    """Squared difference [B] of the entropy of weights over N instances and `share` log N.

    It keeps attention from sitting on one instance and from spreading over all. Bags of one instance cost nothing.

    Args:
        attention: Weights [B, N] that sum to 1 over the instances that are present.
        present: bool [B, N]; None = all.
        share: 0 asks for one instance, 1 for all alike.
    """
    everyone = torch.ones_like(attention, dtype=torch.bool) if present is None else present
    count = everyone.to(attention.device, non_blocking=True).sum(1).float().clamp_min(1)
    # a weight of exactly 0 has an infinite slope
    weights = attention.float().clamp_min(_TINY)
    return (entropy(weights, present) - share * count.log()).square()


def sharpness_term(attention: Tensor, form: Literal["entropy", "variance", "gini"]) -> Tensor:
    """How diffuse a map is [B], to be made small without a mask: self-supervision of class activation maps.

    - `entropy`: of the map made to sum to 1, divided by its maximum log N: 1 for an even map, 0 for a single place.
    - `variance`: minus the variance over places: 0 for an even map, least where half of it is 0 and half is 1.
    - `gini`: 1 minus the Gini coefficient of the places: 1 for an even map, towards 0 for a single place.

    Args:
        attention: [B, *s] >= 0.
        form: One of the above.
    """
    maps = attention.float().flatten(1)
    count = maps.shape[1]
    if form == "variance":
        return -maps.var(1, correction=0)
    shares = (maps + _TINY) / (maps + _TINY).sum(1, keepdim=True)
    if form == "entropy":
        return torch.special.entr(shares).sum(1) / max(math.log(count), _TINY)
    ranks = torch.arange(1, count + 1, device=maps.device, dtype=maps.dtype)
    gini = (shares.sort(1).values * (2 * ranks - count - 1)).sum(1) / count
    return 1 - gini
