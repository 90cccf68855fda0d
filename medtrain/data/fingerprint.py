"""What the training part of a data set looks like: sizes, voxel sizes, intensities.

A scan of each case is made once and kept beside the prepared cases; a fingerprint is computed from the scans of the
training part alone, so that nothing of the validation part enters the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.data.case import Dataset
from medtrain.data.geometry import resampled_shape
from medtrain.data.scan import CaseScan, ForegroundIntensities, Shape, Spacing, scan_cases
from medtrain.data.workers import Progress
from medtrain.errors import MedtrainError, UsageError

if TYPE_CHECKING:
    from medtrain.data.volume_data import VolumeData


@dataclass(frozen=True)
class ChannelIntensities:
    """Intensities of one channel inside the labelled structures of the training part; every case counts the same."""

    mean: float
    std: float
    median: float
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """The training part in numbers.

    Args:
        shapes: Voxels (D, H, W) of each case's non-zero box.
        spacings: Voxel size in mm of each case.
        relative_crop: Median share of a scan's voxels that lie in its non-zero box.
        channels: Foreground intensities per channel; empty when nothing is labelled.
        class_voxels: Voxels of each class over all cases.
    """

    shapes: tuple[Shape, ...]
    spacings: tuple[Spacing, ...]
    relative_crop: float
    channels: tuple[ChannelIntensities, ...]
    class_voxels: tuple[int, ...]

    @property
    def num_cases(self) -> int:
        """Number of cases it was taken from."""
        return len(self.shapes)

    @property
    def spacing_range(self) -> tuple[Spacing, Spacing]:
        """Finest and coarsest voxel size in mm along each axis."""
        finest, coarsest = (choose(self.spacings, axis=0) for choose in (np.min, np.max))
        return tuple(finest.tolist()), tuple(coarsest.tolist())

    def median_shape(self, spacing: Sequence[float]) -> tuple[float, ...]:
        """Median (D, H, W) after resampling to `spacing` mm: D, H, W, or H, W to keep each case's slices."""
        target = [(mm[0], *spacing) if len(spacing) == 2 else tuple(spacing) for mm in self.spacings]
        shapes = [resampled_shape(n, mm, to) for n, mm, to in zip(self.shapes, self.spacings, target, strict=True)]
        return tuple(float(n) for n in np.median(shapes, axis=0))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Inverse of to_json."""
        return cls(
            shapes=tuple(tuple(shape) for shape in data["shapes"]),
            spacings=tuple(tuple(spacing) for spacing in data["spacings"]),
            relative_crop=data["relative_crop"],
            channels=tuple(ChannelIntensities(**channel) for channel in data["channels"]),
            class_voxels=tuple(data["class_voxels"]),
        )


def fingerprint_cases(
    dataset: Dataset,
    case_ids: Sequence[str],
    settings: VolumeData,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Scan the given cases (or take their scans from the store) and put them together.

    Args:
        dataset: Holds the cases.
        case_ids: The training part.
        settings: Where the store is and which classes are joined.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each case.

    Raises:
        DataError: Files that are unreadable or contradict each other, all of them.
        MedtrainError: None of the cases has a labelled voxel.
        UsageError: No case is given.
    """
    scans = scan_cases(dataset, settings, case_ids=set(case_ids), workers=workers, progress=progress)
    return make_fingerprint(scans, case_ids)


def make_fingerprint(scans: Mapping[str, CaseScan], case_ids: Sequence[str]) -> Fingerprint:
    """The fingerprint of the given cases.

    Args:
        scans: Scans by case id.
        case_ids: The training part.

    Raises:
        MedtrainError: None of the cases has a labelled voxel.
        UsageError: No case is given.
    """
    if not case_ids:
        raise UsageError("the training part of the split is empty", hint="choose another data.fold or data.splits")
    chosen = [scans[case_id] for case_id in case_ids]
    shares = [np.prod(scan.cropped_shape) / np.prod(scan.shape) for scan in chosen]
    class_voxels = np.sum([scan.class_voxels for scan in chosen], axis=0)
    labelled = [scan.foreground for scan in chosen if scan.foreground]
    if not labelled:
        raise MedtrainError(
            f"none of the {len(chosen)} training cases has a labelled voxel",
            hint="run `medtrain data check` with the same data settings; it lists what each label file holds",
        )
    return Fingerprint(
        shapes=tuple(scan.cropped_shape for scan in chosen),
        spacings=tuple(scan.spacing for scan in chosen),
        relative_crop=float(np.median(shares)),
        channels=tuple(_pool(channel) for channel in zip(*labelled, strict=True)),
        class_voxels=tuple(int(count) for count in class_voxels),
    )


def _pool(cases: Sequence[ForegroundIntensities]) -> ChannelIntensities:
    """The mixture of the cases' distributions with equal weights, as nnU-Net's equal number of samples per case."""
    means, stds = np.array([case.mean for case in cases]), np.array([case.std for case in cases])
    mean = float(means.mean())
    variance = float((stds**2 + (means - mean) ** 2).mean())
    quantiles = np.concatenate([case.quantiles for case in cases])
    low, median, high = (float(q) for q in np.percentile(quantiles, (0.5, 50, 99.5)))
    minimum, maximum = float(quantiles.min()), float(quantiles.max())
    return ChannelIntensities(mean, float(np.sqrt(variance)), median, minimum, maximum, low, high)
