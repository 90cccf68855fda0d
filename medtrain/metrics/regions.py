"""Metrics of regions: structures that are made of several classes and may lie within each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medtrain.metrics.cases import evaluate_case
from medtrain.metrics.overlap import as_label_map

_IGNORED = 2


def evaluate_regions(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    spacing: Sequence[float],
    regions: Sequence[Sequence[int]],
    region_names: Sequence[str],
    *,
    ignore_index: int | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Compare a predicted map of classes with the true one, region by region; see `evaluate_case`.

    Args:
        prediction: Class indices [*S].
        label: Class indices [*S]; may hold `ignore_index`.
        spacing: Voxel size in mm per axis of S.
        regions: Class indices of every region.
        region_names: Name of every region.
        ignore_index: Voxels with this label are left out.
        settings: Further ones of `evaluate_case`.
    """
    predicted, true = as_label_map(prediction), as_label_map(label)
    top = max(predicted.max(initial=0), true.max(initial=0), *(max(region) for region in regions))
    row: dict[str, float] = {}
    for name, region in zip(region_names, regions, strict=True):
        table = np.zeros(int(top) + 1, dtype=np.uint8)
        table[list(region)] = 1
        found = table[predicted]
        if ignore_index is not None and ignore_index <= top:
            table[ignore_index] = _IGNORED
        ignored = None if ignore_index is None else _IGNORED
        row |= evaluate_case(found, table[true], spacing, ("background", name), ignore_index=ignored, **settings)
    return row


def forget_unannotated(row: dict[str, float], names: Sequence[str], annotated: Sequence[bool]) -> dict[str, float]:
    """A row of metrics in which structures that nobody annotated in the case have no value.

    Args:
        row: Metrics by `<metric>/<name>`.
        names: The structures.
        annotated: Whether each was annotated.
    """
    unknown = {name for name, known in zip(names, annotated, strict=True) if not known}
    return {key: math.nan if key.partition("/")[2] in unknown else value for key, value in row.items()}
