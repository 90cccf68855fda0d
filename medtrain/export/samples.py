"""A patch of a real scan to compare exported files on: random input alone would miss what real intensities reveal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtrain.data.io.nifti import read_image
from medtrain.data.plan import Plan
from medtrain.data.preprocess import prepare_image
from medtrain.errors import MedtrainError
from medtrain.registry import build


def scan_patch(config: Mapping[str, Any], plan: Plan) -> tuple[str, Tensor]:
    """Preprocess the first scan of the run's data set as for prediction and cut out its middle.

    Args:
        config: The run's configuration; its data has to be where it says.
        plan: The run's plan.

    Returns:
        The case's id and a normalised patch [C, *P].

    Raises:
        MedtrainError: The data set is not there or cannot be read.
    """
    dataset = build("data", config["data"]).discover()
    if not dataset.cases:
        raise MedtrainError(f"{dataset.root} holds no cases")
    case = dataset.cases[0]
    volume = read_image(case.images)
    nonzero = any(channel.nonzero for channel in plan.normalization)
    image = prepare_image(volume, plan.spacing, nonzero=nonzero).normalized(plan.normalization)
    if plan.spatial_dims == 2:
        image = image[:, image.shape[1] // 2]
    return case.case_id, torch.from_numpy(middle(image, plan.patch_size))


def middle(image: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
    """The centre of an image [C, *S] as a patch [C, *P], padded with 0 where the image is smaller."""
    out = np.zeros((image.shape[0], *patch_size), dtype=np.float32)
    source, target = [slice(None)], [slice(None)]
    for size, patch in zip(image.shape[1:], patch_size, strict=True):
        length = min(size, patch)
        source.append(slice((size - length) // 2, (size - length) // 2 + length))
        target.append(slice((patch - length) // 2, (patch - length) // 2 + length))
    out[tuple(target)] = image[tuple(source)]
    return out
