"""From logits to label maps, and what is done to these afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.metrics.surface import bounding_box
from medtrain.registry import closest

FOREGROUND = "foreground"
"""In the place of a name: everything that is not background, as one."""


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


@dataclass(frozen=True)
class Structure:
    """What only the largest component is kept of.

    Args:
        classes: Its class indices; empty stands for everything that is not background.
        becomes: The class of what is removed.
    """

    classes: tuple[int, ...]
    becomes: int = 0


def keep_largest_components(label: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """Remove all but the largest connected component of each given structure, one structure after the other.

    Voxels that touch by a face, an edge or a corner are connected (26 neighbours in 3-D, as nnU-Net). Of equally large
    components the one that comes first in array order stays.

    Args:
        label: Class indices [*S]; not changed.
        structures: Of `find_structures`.

    Returns:
        A new label map, or `label` itself when there is nothing to remove.
    """
    from scipy import ndimage  # here, because SciPy takes most of a second to import

    result = label
    for structure in structures:
        mask = _mask(result, structure)
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
            part[(found > 0) & (found != largest)] = structure.becomes
    return result


def _mask(label: np.ndarray, structure: Structure) -> np.ndarray:
    if not structure.classes:
        return label != 0
    mask = label == structure.classes[0]
    for index in structure.classes[1:]:
        mask |= label == index
    return mask


def _largest_component(components: np.ndarray, count: int) -> int:
    """The most frequent number above 0, the first of equal ones; `np.bincount` of the whole would make it 64 bits."""
    sizes = np.zeros(count + 1, dtype=np.int64)
    for part in components:
        found = np.bincount(part.ravel())
        sizes[: len(found)] += found
    return 1 + int(sizes[1:].argmax())


def find_structures(
    names: Sequence[str], class_names: Sequence[str], regions: Mapping[str, Sequence[int]] | None = None
) -> list[Structure]:
    """Look up structures by name.

    What is removed of a class becomes background. What is removed of a region becomes a class of the smallest region
    around it, which stays as it was, that is in no region but those around; background where there is none.

    Args:
        names: Of regions or foreground classes; of what is called alike the region. `foreground`, where nothing is
            called so, is everything together.
        class_names: The name of every class index, background first.
        regions: Class indices of every region, the one that it is painted with first.

    Raises:
        UsageError: A name is unknown or is the background.
    """
    areas = {name: tuple(members) for name, members in (regions or {}).items()}
    classes = {name: (index,) for index, name in enumerate(class_names) if index}
    found: list[Structure] = []
    for name in names:
        if name in areas:
            found.append(Structure(areas[name], _around(areas[name], list(areas.values()))))
        elif name in classes:
            found.append(Structure(classes[name]))
        elif name == FOREGROUND:
            found.append(Structure(()))
        else:
            known = list(dict.fromkeys([*areas, *classes]))
            close = closest(name, known)
            kinds = "regions and classes" if areas else "classes"
            raise UsageError(
                f"inference.keep_largest: no {'region or ' if areas else ''}foreground class is named `{name}`; the "
                f"{kinds} are {', '.join(known)}",
                hint=f"did you mean `{close}`?" if close else None,
            )
    return found


def _around(members: tuple[int, ...], regions: Sequence[tuple[int, ...]]) -> int:
    """A class that only regions hold which hold all of a region and more, of the smallest of them; or the background.

    Left and right kidney cover both kidneys: what is removed of one would become the other.
    """
    larger = [region for region in regions if set(region) > set(members)]
    others = {index for region in regions if region not in larger for index in region}
    return next((index for region in sorted(larger, key=len) for index in region if index not in others), 0)
