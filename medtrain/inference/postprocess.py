"""From logits to label maps, and what is done to these afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.metrics.surface import bounding_box
from medtrain.registry import closest

FOREGROUND = "foreground"
"""In the place of a class name: everything that is not background, as one."""


def decide(logits: Tensor, regions: Sequence[Sequence[int]] | None) -> Tensor:
    """The class of every voxel.

    Classes exclude each other: the largest logit wins, of equal ones the first. Regions do not: each holds the voxels
    whose logit is above 0 (a probability above one half), and they are painted in order, later over earlier.

    Args:
        logits: [K, *S], or [R, *S] with regions.
        regions: Class indices of every region, the one that it is painted with first; None for classes.

    Returns:
        Class indices [*S] on the device of the logits, uint8, or int16 where there are 255 classes or more.
    """
    highest = len(logits) - 1 if regions is None else max(max(region) for region in regions)
    dtype = torch.uint8 if highest < 254 else torch.int16
    if regions is None:
        return _first_largest(logits, dtype)
    assert len(regions) == len(logits), (len(regions), logits.shape)
    label = torch.zeros(logits.shape[1:], dtype=dtype, device=logits.device)
    for channel, region in zip(logits, regions):
        label.masked_fill_(channel > 0, region[0])
    return label


def _first_largest(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The first largest of axis 0; on a CPU many times faster than `torch.argmax`, which indexes in 64 bits."""
    if logits.device.type != "cpu":
        return logits.argmax(0).to(dtype)
    values = logits.float().numpy()
    best = values[0].copy()
    larger = np.empty(best.shape, dtype=bool)
    winner = np.zeros(best.shape, dtype=np.uint8 if dtype == torch.uint8 else np.int16)
    index = np.empty_like(winner)
    for number, channel in enumerate(values[1:], start=1):
        np.greater(channel, best, out=larger)
        # indices grow, so where a class is larger its index is the maximum
        np.multiply(larger, winner.dtype.type(number), out=index)
        np.maximum(winner, index, out=winner)
        np.maximum(best, channel, out=best)
    return torch.from_numpy(winner)


def keep_largest_components(label: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Turn all but the largest connected component of each given class into background.

    Voxels that touch by a face, an edge or a corner are connected (26 neighbours in 3-D, as nnU-Net). Of equally large
    components the one that comes first in array order stays.

    Args:
        label: Class indices [*S]; not changed.
        classes: Class indices to treat, each on its own; 0 treats everything that is not background as one.

    Returns:
        A new label map, or `label` itself when there is nothing to remove.
    """
    from scipy import ndimage  # here, because SciPy takes most of a second to import

    result = label
    for index in classes:
        mask = label == index if index else label != 0
        box = bounding_box(mask)
        if box is None:
            continue
        components, count = ndimage.label(mask[box], structure=np.ones((3,) * label.ndim, dtype=bool))
        del mask
        if count <= 1:
            continue
        largest = _largest_component(components, count)
        if result is label:
            result = label.copy()
        # slice by slice, because whole masks would take as much memory as the label map again
        for part, found in zip(result[box], components):
            part[(found > 0) & (found != largest)] = 0
    return result


def _largest_component(components: np.ndarray, count: int) -> int:
    """The most frequent number above 0, the first of equal ones; `np.bincount` of the whole would make it 64 bits."""
    sizes = np.zeros(count + 1, dtype=np.int64)
    for part in components:
        found = np.bincount(part.ravel())
        sizes[: len(found)] += found
    return 1 + int(sizes[1:].argmax())


def class_indices(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Look up foreground classes by name.

    Args:
        names: Names from the settings; `foreground`, where no class is called so, is all of them together: index 0.
        class_names: The name of every class index, background first.

    Raises:
        UsageError: A name is unknown or is the background.
    """
    known = list(class_names[1:])
    for name in names:
        if name not in known and name != FOREGROUND:
            close = closest(name, known)
            raise UsageError(
                f"inference.keep_largest: no foreground class is named `{name}`; the classes are {', '.join(known)}",
                hint=f"did you mean `{close}`?" if close else None,
            )
    return [known.index(name) + 1 if name in known else 0 for name in names]
