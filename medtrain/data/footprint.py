"""How much memory a network takes, so that patch and batch are planned for the network that is trained.

For its own networks nnU-Net counts the elements of a patch's feature maps and knows how many fit a GPU; these figures
are kept, so that plans agree. What any other network keeps for the backward pass is counted on tensors without data:
it gets the plain U-Net's patch and batch, or smaller ones where the machine could not hold them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medtrain.data import topology
from medtrain.data.topology import Topology
from medtrain.models.activations import kept_for_backward, storages
from medtrain.registry import build, get

log = logging.getLogger(__name__)

Count = Callable[[Topology, Sequence[int], int, int], float]
"""Elements of one patch of a shape, from features per stage, channels of the image and channels of the logits."""

RESENC_GIB = {"m": 8.0, "l": 24.0, "xl": 40.0}
"""GPU memory of nnU-Net's presets of the residual-encoder U-Net."""


@dataclass(frozen=True)
class Footprint:
    """What planning needs to know about a network's memory.

    Args:
        elements: Of nnU-Net's count: feature-map elements of REFERENCE_BATCH patches that fit a GPU, by its GiB and the
            spatial dimensions.
        count: Elements of one patch.
        gib: GPU memory that patch and batch are planned for where the user names none.
        least_batch: Patches that must fit, by spatial dimensions: the patch shrinks until they do.
        share_of_data: Most of the training part's voxels in a batch.
        kept: Elements kept for the backward pass of one patch, of a network that nnU-Net does not know.
    """

    elements: Mapping[float, Mapping[int, float]]
    count: Count
    gib: float
    least_batch: Mapping[int, int]
    share_of_data: float
    kept: Count | None = None

    def fitting(self, dims: int, gib: float) -> float:
        """Elements of REFERENCE_BATCH patches that fit some memory, by the next larger GPU that is known."""
        known = min((size for size in self.elements if size >= gib), default=max(self.elements))
        return self.elements[known][dims] * gib / known


def _plain_unet(shape: Topology, channels: Sequence[int], in_channels: int, num_outputs: int) -> float:
    return topology.feature_map_elements(shape.patch_size, shape.strides, channels, num_outputs)


PLAIN_UNET = Footprint(
    elements={8.0: {3: 560e6, 2: 85e6}},
    count=_plain_unet,
    gib=8.0,
    least_batch={3: 2, 2: 2},
    share_of_data=0.05,
)
"""nnU-Net's default."""


def footprint_of(model: Mapping[str, Any]) -> Footprint:
    """The footprint of a network.

    Args:
        model: Its settings; features, strides and kernels may be missing.
    """
    if model["name"] == "unet":
        return PLAIN_UNET
    if model["name"] == "resenc_unet":
        return _residual_encoder(model)
    return Footprint(
        elements=PLAIN_UNET.elements,
        count=PLAIN_UNET.count,
        gib=PLAIN_UNET.gib,
        least_batch=PLAIN_UNET.least_batch,
        share_of_data=PLAIN_UNET.share_of_data,
        kept=_Counted(model),
    )


def _residual_encoder(model: Mapping[str, Any]) -> Footprint:
    """nnU-Net's planners ResEncM, ResEncL and ResEncXL: one count, three sizes of GPU."""

    def count(shape: Topology, channels: Sequence[int], in_channels: int, num_outputs: int) -> float:
        return topology.residual_feature_map_elements(
            shape.patch_size,
            shape.strides,
            channels,
            num_outputs,
            blocks=model["blocks_per_stage"],
            decoder_convs=model["decoder_convs_per_stage"],
        )

    return Footprint(
        elements={8.0: {3: 680e6, 2: 135e6}, 24.0: {3: 2100e6, 2: 380e6}, 40.0: {3: 3600e6, 2: 560e6}},
        count=count,
        gib=RESENC_GIB[model["preset"]],
        least_batch={3: 2, 2: 12},
        share_of_data=1.0,
    )


class _Counted:
    """Counts what a network keeps for the backward pass by running it on tensors without data.

    Once for each shape of the network: what it keeps grows with the voxels of the patch.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        known = get("model", model["name"]).params
        self._settings = {key: value for key, value in model.items() if key == "name" or key in known}
        if "weights" in self._settings:
            self._settings["weights"] = None
        self._per_voxel: dict[Any, float] = {}

    def __call__(self, shape: Topology, channels: Sequence[int], in_channels: int, num_outputs: int) -> float:
        planned = {"channels": tuple(channels), "strides": shape.strides, "kernel_sizes": shape.kernel_sizes}
        open_ = {key: value for key, value in planned.items() if self._settings.get(key, 0) is None}
        key = tuple(open_.items())
        if key not in self._per_voxel:
            runtime = {
                "spatial_dims": len(shape.patch_size),
                "in_channels": in_channels,
                "num_outputs": num_outputs,
                "patch_size": shape.patch_size,
            }
            self._per_voxel[key] = self._count({**self._settings, **open_}, runtime) / math.prod(shape.patch_size)
        return self._per_voxel[key] * math.prod(shape.patch_size)

    def _count(self, settings: Mapping[str, Any], runtime: Mapping[str, Any]) -> float:
        for device in ("meta", "cpu"):  # some networks read numbers from tensors while they are built
            try:
                with torch.device(device):
                    model = build("model", settings, **runtime).to("meta").train()
                size = (2, runtime["in_channels"], *runtime["patch_size"])  # two: norms over a batch want more than one
                with kept_for_backward(storages([*model.parameters(), *model.buffers()])) as sizes:
                    model(torch.empty(size, device="meta"))
            except Exception as error:  # whatever a model does with values that are not there
                log.debug("%s is not counted on %s: %s: %s", settings["name"], device, type(error).__name__, error)
                continue
            return sum(sizes) / 4 / 2  # elements of float32, of one patch
        return 0.0
