"""What a data source finds on disk: cases and the data set that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One scan with its label.

    Args:
        case_id: Unique within the data set; also the stem of predicted files.
        images: One file per channel in channel order, or one 4-D file whose last axis is the channel.
        label: The label file, or None where there is none (test cases).
        group: The patient. Cases of one patient never come to lie on both sides of a split.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None
    group: str


@dataclass(frozen=True)
class Dataset:
    """The cases of a segmentation data set and what their voxels mean.

    A class index i (0 .. num_classes - 1) is a position in `labels`; a label value is what the files hold.

    Args:
        dataset_name: For people; shown in tables and reports.
        root: Folder that holds the files.
        channel_names: One per channel, such as "CT" or "T1"; they decide the normalisation.
        labels: Name -> value in the files, background first, the ignore label left out.
        ignore_value: Value in the files of voxels nobody annotated, or None.
        cases: Labelled cases, sorted by id.
        test_cases: Cases without a label, sorted by id.
        regions: Regions that the description defines, by name in the order of painting: the values of their classes,
            the one that the region is painted with first; None where every class stands for itself.
    """

    dataset_name: str
    root: Path
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_value: int | None
    cases: tuple[Case, ...]
    test_cases: tuple[Case, ...]
    regions: dict[str, tuple[int, ...]] | None = None

    @property
    def num_channels(self) -> int:
        """Number of image channels."""
        return len(self.channel_names)

    @property
    def num_classes(self) -> int:
        """Number of classes with the background, without the ignore label."""
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, background first."""
        return tuple(self.labels)

    @property
    def label_values(self) -> tuple[int, ...]:
        """Values in the files by class index."""
        return tuple(self.labels.values())
