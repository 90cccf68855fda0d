"""How sure models are of a few outputs on the scan's own grid, kept while the slabs of a whole case are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from medtrain.metrics.certainty import encode


class ProbabilityMaps:
    """Keeps a byte per voxel and output, see `medtrain.metrics.certainty`; 0 outside of the cropped box.

    Args:
        outputs: Index of the outputs to keep, by name.
        regions: Whether the outputs are regions (sigmoid), not classes (softmax).
    """

    def __init__(self, outputs: Mapping[str, int], *, regions: bool) -> None:
        self.outputs = dict(outputs)
        self.maps: dict[str, np.ndarray] = {}
        self._regions = regions
        self._averaged = False

    def begin(self, shape: Sequence[int], *, averaged: bool) -> None:
        """Make room for a scan.

        Args:
            shape: Voxels of the scan.
            averaged: Slabs are the mean probabilities of several models (see `windows.sweep`), not logits of one.
        """
        self.maps = {name: np.zeros(tuple(shape), dtype=np.uint8) for name in self.outputs}
        self._averaged = averaged

    def enter(self, slab: Tensor, crop: Sequence[slice], where: Sequence[slice]) -> None:
        """Keep what is asked for of a slab.

        Args:
            slab: Logits [K, *S] of one model, or what stands for them of several.
            crop: The box of the scan that slabs are parts of.
            where: The slab's place in the box.
        """
        kept = encode(self._probabilities(slab.float(), list(self.outputs.values()))).cpu().numpy()
        for name, values in zip(self.outputs, kept, strict=True):
            self.maps[name][tuple(crop)][tuple(where)] = values

    def _probabilities(self, slab: Tensor, places: list[int]) -> Tensor:
        if self._averaged:
            return slab[places] + 0.5 if self._regions else slab[places]
        if self._regions:
            return slab[places].sigmoid()
        return slab[places].sub(slab.logsumexp(0)).exp()
