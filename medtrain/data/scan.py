"""Look at every case once before planning: sizes, intensities, class volumes; kept in the store by content."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.data.case import Case, Dataset
from medtrain.data.check import find_mismatch
from medtrain.data.digests import DigestCache, digest_of
from medtrain.data.geometry import nonzero_box
from medtrain.data.io.nifti import Volume, read_header, read_image, read_label
from medtrain.data.labels import LabelMap
from medtrain.data.store import mark_used
from medtrain.data.workers import MemoryGate, Progress, for_each_case
from medtrain.errors import DataError, Problem
from medtrain.run.atomic import atomic_write, disk_errors

if TYPE_CHECKING:
    from medtrain.data.volume_data import VolumeData

QUANTILES = 1001
"""Evenly spaced quantiles kept per case and channel; 0.5 and 99.5 % of a case's foreground are among them."""

_FORMAT = 2  # 1 did not compare the positions of image and label
_BYTES_PER_VOXEL = 10
_SMALL_FILES = 2**20  # bytes of a case's images below which its memory need not be looked up

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class ForegroundIntensities:
    """Intensities of one channel inside the labelled structures of one case.

    Args:
        mean: Mean.
        std: Standard deviation.
        quantiles: QUANTILES values from minimum to maximum.
    """

    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class CaseScan:
    """What planning needs to know of one case.

    Args:
        shape: Voxels (D, H, W) of the whole scan.
        cropped_shape: Voxels of its non-zero box.
        spacing: Voxel size in mm (D, H, W).
        bytes_per_voxel: Of all channels together, as stored.
        class_voxels: Voxels of each class, background first.
        foreground: One entry per channel; empty when no voxel is labelled.
    """

    shape: Shape
    cropped_shape: Shape
    spacing: Spacing
    bytes_per_voxel: int
    class_voxels: tuple[int, ...]
    foreground: tuple[ForegroundIntensities, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        # dataclasses.asdict would copy every quantile by itself
        return {**own, "foreground": [{**vars(channel)} for channel in self.foreground]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseScan:
        """Inverse of to_json."""
        foreground = tuple(
            ForegroundIntensities(entry["mean"], entry["std"], tuple(entry["quantiles"]))
            for entry in data["foreground"]
        )
        return cls(
            shape=tuple(data["shape"]),
            cropped_shape=tuple(data["cropped_shape"]),
            spacing=tuple(data["spacing"]),
            bytes_per_voxel=data["bytes_per_voxel"],
            class_voxels=tuple(data["class_voxels"]),
            foreground=foreground,
        )


def scan_cases(
    dataset: Dataset,
    settings: VolumeData,
    *,
    case_ids: Collection[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, CaseScan]:
    """Measure labelled cases; what was measured before is read from the store.

    Args:
        dataset: The cases.
        settings: Where the store is and which classes are joined.
        case_ids: Which cases; all if None.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each case.

    Returns:
        Scans by case id.

    Raises:
        DataError: Files that are unreadable or contradict each other, all of them.
    """
    root = Path(settings.store)
    labels = LabelMap.from_dataset(dataset, settings.merge_labels)
    make_store(root)
    digests = DigestCache(root / "digests.json")
    gate = MemoryGate()

    def scan_case(case: Case) -> CaseScan:
        key = scan_key(case, digests, labels)
        path = root / "scans" / f"{key}.json"
        found = _read_scan(path) if mark_used(path) else None
        if found is None:
            small = sum(file.stat().st_size for file in case.images) < _SMALL_FILES
            with gate.hold(0 if small else _BYTES_PER_VOXEL * count_voxels(case) * dataset.num_channels):
                image, classes = read_case(case, dataset, labels)
                found = scan_volume(image, classes, labels.num_classes)
                RECENT.keep(key, image, classes)
            atomic_write(path, json.dumps(found.to_json()), sync=False)
        return found

    chosen = [case for case in dataset.cases if case_ids is None or case.case_id in case_ids]
    try:
        return for_each_case(chosen, scan_case, workers=workers, progress=progress)
    finally:
        digests.save()


def scan_key(case: Case, digests: DigestCache, labels: LabelMap) -> str:
    """Names what is known of a case: its content, and how its labels are read."""
    return digest_of({"format": _FORMAT, "files": digests.of_case(case), "labels": labels.to_json()})


class Recent:
    """Cases that were read to be measured, kept for being prepared next, as long as they are few and small.

    Args:
        limit: Bytes of all of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, tuple[Volume, np.ndarray]] = {}
        self._used = 0
        self._lock = threading.Lock()

    def keep(self, key: str, image: Volume, classes: np.ndarray) -> None:
        """Remember a case if there is room."""
        size = image.array.nbytes + classes.nbytes
        with self._lock:
            if key not in self._kept and self._used + size <= self._limit:
                self._kept[key] = (image, classes)
                self._used += size

    def take(self, key: str) -> tuple[Volume, np.ndarray] | None:
        """The case, which is forgotten; None if it is not known."""
        with self._lock:
            found = self._kept.pop(key, None)
            if found is not None:
                self._used -= found[0].array.nbytes + found[1].nbytes
            return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self._used = 0


RECENT = Recent(limit=128 * 2**20)
"""Of this process."""


def count_voxels(case: Case) -> int:
    """Voxels of a case's image, from its header."""
    return math.prod(read_header(case.images[0]).grid.shape)


def read_case(case: Case, dataset: Dataset, labels: LabelMap) -> tuple[Volume, np.ndarray]:
    """Read a labelled case and turn its label values into classes.

    Returns:
        The image and class indices [D, H, W].

    Raises:
        DataError: Names the file and what is wrong with it.
    """
    assert case.label is not None, f"{case.case_id} has no label"
    image, label = read_image(case.images), read_label(case.label)
    first = case.images[0]
    if len(image.array) != dataset.num_channels:
        message = f"{len(image.array)} channels where {dataset.num_channels} are declared"
        raise DataError([Problem(where=str(first), message=message)])
    mismatch = find_mismatch(case, image.grid, label.grid)
    if mismatch is not None:
        raise DataError([mismatch])
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        raise DataError([Problem(where=str(first), message="holds NaN or infinite intensities")])
    try:
        return image, labels.to_classes(label.array)
    except ValueError as error:
        raise DataError([Problem(where=str(case.label), message=str(error))]) from None


def scan_volume(image: Volume, classes: np.ndarray, num_classes: int) -> CaseScan:
    """Measure one case.

    Args:
        image: The scan, [C, D, H, W].
        classes: Class indices [D, H, W]; values from num_classes on are ignored.
        num_classes: Number of classes.
    """
    labelled = np.flatnonzero(classes)  # few voxels as a rule: what follows is cheap
    values = classes.ravel()[labelled]
    counts = np.bincount(values, minlength=num_classes)[:num_classes]
    counts[0] = classes.size - len(labelled)
    foreground: tuple[ForegroundIntensities, ...] = ()
    if counts[1:].any():
        inside = labelled[values < num_classes]
        foreground = tuple(_foreground(channel.ravel()[inside]) for channel in image.array)
    box = nonzero_box(image.array)
    whole: Shape = image.array.shape[1:]
    d, h, w = (high - low for low, high in box)
    stored = 4 if image.array.dtype.kind == "f" else 2
    return CaseScan(
        shape=whole,
        cropped_shape=(d, h, w),
        spacing=image.spacing,
        bytes_per_voxel=stored * len(image.array),
        class_voxels=tuple(int(count) for count in counts),
        foreground=foreground,
    )


def _foreground(values: np.ndarray) -> ForegroundIntensities:
    ordered = np.sort(values)
    # the nearest rank: real intensities, and no float64 copy of a large structure
    ranks = np.rint(np.linspace(0, len(ordered) - 1, QUANTILES)).astype(np.int64)
    mean = float(values.mean(dtype=np.float64))
    std = float(np.sqrt(np.square(values - np.float64(mean)).mean()))
    return ForegroundIntensities(mean, std, tuple(ordered[ranks].tolist()))


def _read_scan(path: Path) -> CaseScan | None:
    try:
        return CaseScan.from_json(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a cache: damaged means measure again
        return None


def make_store(root: Path) -> None:
    """Make the store's folders where they are missing."""
    with disk_errors(root):
        for name in ("cases", "scans"):
            (root / name).mkdir(parents=True, exist_ok=True)
