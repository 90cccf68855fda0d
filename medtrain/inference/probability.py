"""Probabilities of a few outputs on the scan's own grid, kept while the slabs of a whole case are decided.

Of one model, that is: of several, slabs hold means of probabilities and no logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class ProbabilityMaps:
    """Keeps a byte per voxel and output: 0 to 255 for a probability of 0 to 1; 0 outside of the cropped box.

    Args:
        outputs: Index of the outputs to keep, by name.
        regions: Whether the outputs are regions (sigmoid), not classes (softmax).
    """

    def __init__(self, outputs: Mapping[str, int], *, regions: bool) -> None:
        self.outputs = dict(outputs)
        self.maps: dict[str, np.ndarray] = {}
        self._regions = regions

    def begin(self, shape: Sequence[int]) -> None:
        """Make room for a scan.

        Args:
            shape: Voxels of the scan.
        """
        self.maps = {name: np.zeros(tuple(shape), dtype=np.uint8) for name in self.outputs}

    def enter(self, slab: Tensor, crop: Sequence[slice], where: Sequence[slice]) -> None:
        """Keep what is asked for of a slab.

        Args:
            slab: Logits [K, *S].
            crop: The box of the scan that slabs are parts of.
            where: The slab's place in the box.
        """
        kept = self._probabilities(slab.float(), list(self.outputs.values()))
        scaled = kept.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
        for name, values in zip(self.outputs, scaled, strict=True):
            self.maps[name][tuple(crop)][tuple(where)] = values

    def _probabilities(self, slab: Tensor, places: list[int]) -> Tensor:
        if self._regions:
            return slab[places].sigmoid()
        return slab[places].sub(slab.logsumexp(0)).exp()
