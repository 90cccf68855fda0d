"""Settings of sliding-window inference: overlapping windows, Gaussian weights, mirror test-time augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from medtrain.data.geometry import CaseGeometry
from medtrain.errors import UsageError
from medtrain.inference.postprocess import find_structures, keep_largest_components
from medtrain.inference.probability import ProbabilityMaps
from medtrain.inference.room import Room, parse_size
from medtrain.inference.whole_case import predict_label
from medtrain.inference.windows import ModelFn
from medtrain.registry import Format, Range, register


@register("inference", "sliding_window", tags=("segmentation",))
@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Predict whole cases window by window, for evaluation and prediction.

    Args:
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1); 0.5 is nnU-Net's.
        sigma_scale: Width of the Gaussian window weights as a fraction of the patch, > 0.
        window_batch: Windows per forward; null chooses by patch size and device.
        mirror: Average the logits of all mirrored inputs in `evaluate`, `predict` and the final evaluation: slower
            (8 forwards in 3-D, 4 in 2-D), usually a little better.
        mirror_in_training: The same for the evaluations during training.
        mirror_axes: Axes of the patch that are mirrored, 0 is the first; null means all. Leave out an axis that
            training did not mirror (left and right organs told apart).
        max_memory: What logits may take beyond the image, the label map and the network's own memory, such as "2GiB";
            null takes half of the free memory. Where the logits of the rows that windows still touch do not fit, they
            are kept in a temporary file: slower, and the same result.
        keep_largest: Names of classes or regions of which only the largest connected component is kept; `foreground` is
            all classes together.
    """

    overlap: Annotated[float, Range(ge=0, lt=1)] = 0.5
    sigma_scale: Annotated[float, Range(gt=0)] = 0.125
    window_batch: Annotated[int, Range(ge=1)] | None = None
    mirror: bool = True
    mirror_in_training: bool = False
    mirror_axes: tuple[Annotated[int, Range(ge=0, le=2)], ...] | None = None
    max_memory: Annotated[str, Format(parse_size, "2GiB")] | None = None
    keep_largest: tuple[str, ...] = ()

    def predict_label(
        self,
        models: Sequence[ModelFn],
        images: Sequence[Tensor],
        geometry: CaseGeometry,
        *,
        patch_size: Sequence[int],
        regions: Sequence[Sequence[int]] | None,
        mirror: bool,
        device: torch.device | str | None = None,
        maps: ProbabilityMaps | None = None,
    ) -> np.ndarray:
        """Predict the classes [D, H, W] of a whole scan with these settings; see the function `predict_label`.

        Args:
            models: Each maps windows [B, C, *P] to logits [B, K, *P], in evaluation mode.
            images: [C, D, H, W], normalised: one for all models, or one for each.
            geometry: How the scan came to the network's grid.
            patch_size: Voxels of a window: 3 numbers, or 2 for a model of slices.
            regions: Class indices of every region; None for classes.
            mirror: Whether to average over mirrored inputs: `self.mirror` or `self.mirror_in_training`.
            device: Where the models run; None means the image's device.
            maps: Is filled with probabilities of some outputs.

        Raises:
            UsageError: `mirror_axes` names an axis that the patch does not have, or `max_memory` is too little.
        """
        return predict_label(
            models,
            images,
            geometry,
            patch_size=patch_size,
            regions=regions,
            overlap=self.overlap,
            sigma_scale=self.sigma_scale,
            window_batch=self.window_batch,
            mirror_axes=self._axes(len(patch_size)) if mirror else (),
            device=device,
            max_memory=self.room.limit,
            maps=maps,
        )

    @property
    def room(self) -> Room:
        """What `max_memory` allows."""
        return Room(None if self.max_memory is None else parse_size(self.max_memory))

    def postprocess(
        self, label: np.ndarray, class_names: Sequence[str], regions: Mapping[str, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Keep the largest component of what `keep_largest` names; a label map [D, H, W] of class indices.

        Args:
            label: Class indices.
            class_names: The name of every index, background first.
            regions: Class indices of every region, by name.

        Raises:
            UsageError: `keep_largest` names what is unknown.
        """
        return keep_largest_components(label, find_structures(self.keep_largest, class_names, regions))

    def _axes(self, spatial_dims: int) -> tuple[int, ...]:
        if self.mirror_axes is None:
            return tuple(range(spatial_dims))
        unknown = [axis for axis in self.mirror_axes if not 0 <= axis < spatial_dims]
        if unknown:
            raise UsageError(
                f"inference.mirror_axes names axis {unknown[0]}; a {spatial_dims}-D patch has axes 0 to"
                f" {spatial_dims - 1}"
            )
        return self.mirror_axes
