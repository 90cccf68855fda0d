"""The coarser of two resolutions: nnU-Net's 3d_lowres, for cases of which a patch shows too little."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from medtrain.data.network import Budget, Device, NetworkRequest, by, derive_network
from medtrain.errors import ConfigError, Problem

COVERED = 0.25
"""A patch that covers this share of the median case needs no lower resolution (nnU-Net)."""
TOO_LITTLE = 0.02
"""Below this share of the median case a run on a CPU takes the low resolution unless it is told otherwise: judging one
case at full resolution would take as long as a hundred steps or more, and a patch sees next to no context."""
_GROWTH = 1.03
_COARSER = 2.0
_FEWER = 2.0


def derive_resolution(full: NetworkRequest, budget: Budget, device: Device) -> tuple[Literal["full", "low"], str]:
    """Which resolution a run takes that names none, and why.

    Args:
        full: What the network at full resolution must fit.
        budget: Of the machine.
        device: Where training runs.
    """
    patch = derive_network(full, budget, {}).patch_size
    share = math.prod(patch) / math.prod(full.median_shape)
    covers = f"at full resolution a patch of {by(patch)} covers {min(1.0, share):.1%} of the median case"
    if device != "cpu" or share >= TOO_LITTLE or len(full.spacing) == 2:
        return "full", covers
    return "low", f"{covers}, too little for a CPU; data.resolution=full takes the data's own voxel size"


def low_resolution(full: NetworkRequest, budget: Budget) -> NetworkRequest:
    """The same cases on voxels of which a patch covers a quarter of the median case.

    Voxels grow by 3 % per step: first along the axes that are over twice as fine as the coarsest one, then along all.

    Args:
        full: What the network at full resolution must fit.
        budget: Of the machine.

    Raises:
        ConfigError: A patch at full resolution covers enough, or a lower one would have no more than half the voxels
            less.
    """
    spacing, shape = list(full.spacing), list(full.median_shape)
    patch = derive_network(full, budget, {}).patch_size
    voxels = whole = math.prod(shape)
    if math.prod(patch) >= COVERED * whole:
        share = math.prod(patch) / whole
        message = (
            f"low has no use here: at full resolution a patch of {by(patch)} covers {min(1.0, share):.0%} of the "
            f"median case ({by(shape)}), and {COVERED:.0%} are enough"
        )
        raise ConfigError([Problem("data.resolution", message, hint="data.resolution=full")])
    low = full
    while math.prod(patch) < COVERED * voxels:
        coarsest = max(spacing)
        fine = [coarsest / mm > _COARSER for mm in spacing]
        spacing = [mm * _GROWTH if grows or not any(fine) else mm for mm, grows in zip(spacing, fine)]
        shape = [n * old / new for n, old, new in zip(full.median_shape, full.spacing, spacing)]
        voxels = math.prod(shape)
        low = replace(full, spacing=tuple(spacing), median_shape=tuple(max(1.0, round(n)) for n in shape))
        patch = derive_network(low, budget, {}).patch_size
    if whole / voxels < _FEWER:
        sizes = by([round(mm, 3) for mm in spacing]), by([round(mm, 3) for mm in full.spacing])
        message = (
            f"low has no use here: a patch covers {COVERED:.0%} of the median case at {sizes[0]} mm already, where "
            f"more than half of the voxels of {sizes[1]} mm are left"
        )
        raise ConfigError([Problem("data.resolution", message, hint="data.resolution=full")])
    return low
