"""MixUp and CutMix: training images that are part of one sample and part of another, as their targets are.

A batch is mixed with itself in reverse order, with one share for all of it. Every sample is then there as often as
before, so that the weight of a batch stays what it was, and the loss is exactly that of the mixed targets: a share of
the loss of the one, and the rest of that of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with its reverse.

    Args:
        share: Part of each sample that is its own, 0 to 1.
        box: Start and stop along each spatial axis of what comes from the other sample (CutMix); None blends every
            pixel (MixUp).
    """

    share: float
    box: tuple[tuple[int, int], ...] | None = None

    def images(self, image: Tensor) -> Tensor:
        """Mix images [B, C, *S] of floating point."""
        other = image.flip(0)
        if self.box is None:
            return image.lerp(other, 1 - self.share)
        mixed = image.clone()
        hole, patch = mixed, other
        for axis, (start, stop) in enumerate(self.box, start=image.dim() - len(self.box)):
            hole, patch = (part.narrow(axis, start, stop - start) for part in (hole, patch))
        hole.copy_(patch)
        return mixed


def draw_mix(rng: np.random.Generator, size: Sequence[int], *, mixup: float, cutmix: float) -> Mix:
    """Draw how a batch is mixed; where both are asked for, each is as likely.

    H. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018; S. Yun et al., CutMix, 2019: the sides of the box
    are (1 - share)^(1/d) of those of the image, its middle lies anywhere, and what falls outside the image is the own
    sample's.

    Args:
        rng: Of the batch.
        size: Spatial axes of the images.
        mixup: Both parameters of the Beta distribution of the share; 0 for no MixUp.
        cutmix: The same of CutMix.
    """
    assert mixup or cutmix
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    part = (1 - share) ** (1 / len(size))
    box = []
    for length in size:
        side, middle = round(length * part), int(rng.integers(length))
        box.append((max(0, middle - side // 2), min(length, middle - side // 2 + side)))
    covered = float(np.prod([stop - start for start, stop in box])) / float(np.prod(size))
    return Mix(1 - covered, tuple(box))
