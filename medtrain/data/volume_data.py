"""The settings that every source of labelled volumes shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from medtrain.registry import Range

if TYPE_CHECKING:
    from medtrain.data.case import Dataset


@dataclass(frozen=True, kw_only=True)
class VolumeData:
    """Settings of a segmentation data set; a source adds how its cases are found.

    What is None is derived from the data and the machine; `medtrain show` prints the value and why.

    Args:
        root: Folder of the data set.
        fold: Which fold is held out for validation; None trains on every case.
        num_folds: Number of folds of the patient-grouped cross-validation.
        splits: JSON file with a list of {"train": [ids], "val": [ids]}, one entry per fold, used instead of num_folds.
        spatial_dims: 3 trains on volumes, 2 on axial slices; None derives it from the shape of the data.
        patch_size: Voxels of a training patch per axis: D, H, W (or H, W when spatial_dims is 2).
        spacing: Voxel size in mm that cases are resampled to: D, H, W (or H, W).
        batch_size: Patches per forward pass, over all devices; an optimizer step takes trainer.accumulate of them.
        normalization: auto chooses by channel name: ct (clip to the foreground's 0.5 and 99.5 percentiles, then
            subtract the mean and divide by the standard deviation of the training part) for CT, zscore (per case and
            channel) otherwise; none leaves intensities as they are.
        oversample_foreground: Share of a batch's patches that are centred on a labelled voxel.
        samples_per_case: Patches drawn per case and epoch.
        num_workers: Processes that read patches; None derives it: 0 (in the training process) on a CPU, as many as
            there are cores, at most 8, with a GPU.
        store: Folder that keeps prepared cases; shared by runs, safe with several at a time.
        merge_labels: Classes to join, as new name: [names], e.g. {liver: [liver, cancer]}; joining with background
            removes a class.
    """

    root: str | None = None
    fold: Annotated[int, Range(ge=0)] | None = 0
    num_folds: Annotated[int, Range(ge=2)] = 5
    splits: str | None = None
    spatial_dims: Literal[2, 3] | None = None
    patch_size: tuple[Annotated[int, Range(ge=1)], ...] | None = None
    spacing: tuple[Annotated[float, Range(gt=0)], ...] | None = None
    batch_size: Annotated[int, Range(ge=1)] | None = None
    normalization: Literal["auto", "ct", "zscore", "none"] = "auto"
    oversample_foreground: Annotated[float, Range(ge=0, le=1)] = 0.33
    samples_per_case: Annotated[int, Range(ge=1)] = 1
    num_workers: Annotated[int, Range(ge=0)] | None = None
    store: str = "outputs/store"
    merge_labels: dict[str, list[str]] | None = None

    def discover(self) -> Dataset:
        """Find the cases and what their labels mean; reads names and descriptions, not voxels.

        Raises:
            UsageError: The root is missing or not of this source's layout; says how to get the data.
            DataError: Files contradict each other or the description.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its cases are found")
