"""A whole scan to its label map in bounded memory: windows, held rows, slabs on the scan's own grid, decisions.

Held at once are the image, the label map, and the rows of logits that windows still touch (see
`medtrain.inference.windows`); these stay within `inference.max_memory`, in a temporary file where they must.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medtrain.data.geometry import CaseGeometry
from medtrain.inference.probability import ProbabilityMaps
from medtrain.inference.room import Room
from medtrain.inference.way_back import WayBack
from medtrain.inference.windows import ModelFn, Rows, Windows, default_window_batch, outer, sweep


def predict_label(
    models: Sequence[ModelFn],
    images: Sequence[Tensor],
    geometry: CaseGeometry,
    *,
    patch_size: Sequence[int],
    regions: Sequence[Sequence[int]] | None,
    overlap: float = 0.5,
    sigma_scale: float = 0.125,
    window_batch: int | None = None,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
    max_memory: int | None = None,
    maps: ProbabilityMaps | None = None,
) -> np.ndarray:
    """Predict the classes of a whole scan on its own grid.

    The result depends on nothing but the arguments: repeated calls on a CPU are bit-identical, whatever `max_memory`
    or the batch of windows is (a network whose own sums depend on its batch aside).

    Args:
        models: Each maps windows [B, C, *P] to logits [B, K, *P], in evaluation mode. Several are averaged as
            probabilities.
        images: [C, D, H, W], normalised: one for all models, or one for each.
        geometry: How the scan came to the network's grid.
        patch_size: Voxels of a window, 3 or 2 numbers; 2 means slices along D.
        regions: Class indices of every region that the outputs stand for; None for classes.
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1).
        sigma_scale: Gaussian standard deviation as a fraction of the patch, > 0.
        window_batch: Windows per forward; None chooses by patch size and device. The last batch may be smaller.
        mirror_axes: Axes of the patch (0 is the first) whose 2^n mirror combinations are averaged.
        device: Where the models run; None means the image's device.
        max_memory: Bytes for held rows and temporaries; None takes a share of what is free.
        maps: Is filled with how sure the models are of some outputs, on the scan's own grid: a byte per voxel and
            output, beside the label map.

    Returns:
        Class indices [D, H, W] of the whole scan in the canonical frame.

    Raises:
        UsageError: `max_memory` is too little.
    """
    image = images[0]
    assert tuple(image.shape[1:]) == geometry.resampled_shape, f"{tuple(image.shape)} is not {geometry.resampled_shape}"
    place = image.device if device is None else torch.device(device)
    batch = window_batch or default_window_batch(patch_size, place)
    windows = Windows(image.shape[1:], patch_size, overlap=overlap, batch=batch)
    back = WayBack(geometry, regions, windows.axis, maps, averaged=len(models) > 1)
    sweep(
        models,
        images,
        windows,
        back.take,
        sigma_scale=sigma_scale,
        mirror_axes=mirror_axes,
        regions=regions is not None,
        device=place,
        room=Room(max_memory),
        temporaries=lambda outputs: back.temporaries(outputs, place.type),
    )
    return back.label


def predict_logits(
    model: ModelFn,
    image: Tensor,
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    sigma_scale: float = 0.125,
    window_batch: int | None = None,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
    max_memory: int | None = None,
) -> Tensor:
    """Predict the logits of a whole image, on the network's grid: K x D x H x W x 4 bytes.

    For what needs them all; `predict_label` needs a fraction of the memory.

    Args:
        model: Maps windows [B, C, *P] to logits [B, K, *P] of any float type; in evaluation mode already.
        image: [C, D, H, W] or [C, H, W], normalised.
        patch_size: Voxels of a window, 3 or 2 numbers; 2 with a 4-D image means slices along D.
        overlap: Smallest shared fraction of neighbouring windows, in [0, 1).
        sigma_scale: Gaussian standard deviation as a fraction of the patch, > 0.
        window_batch: Windows per forward; None chooses by patch size and device.
        mirror_axes: Axes of the patch whose mirror combinations are averaged.
        device: Where the model runs; None means the image's device.
        max_memory: Bytes for held rows, beside the result.

    Returns:
        Logits [K, *S] float32, S the image's spatial shape, in main memory.
    """
    place = image.device if device is None else torch.device(device)
    batch = window_batch or default_window_batch(patch_size, place)
    windows = Windows(image.shape[1:], patch_size, overlap=overlap, batch=batch)
    out: list[Tensor] = []

    def collect(rows: Rows) -> None:
        if not out:
            out.append(torch.empty(len(rows.sums), *windows.shape))
        dim = windows.axis + 1
        target = out[0].narrow(dim, rows.first, rows.sums.shape[dim])
        target.copy_(rows.sums)
        if rows.inverse is not None:
            ranges = [slice(None)] * len(rows.inverse)
            ranges[windows.axis] = slice(rows.first, rows.first + rows.sums.shape[dim])
            target.mul_(outer([inverse[part] for inverse, part in zip(rows.inverse, ranges)]).float())

    sweep(
        [model],
        [image],
        windows,
        collect,
        sigma_scale=sigma_scale,
        mirror_axes=mirror_axes,
        regions=False,
        device=place,
        room=Room(max_memory),
        temporaries=lambda outputs: 0,
    )
    return out[0]
