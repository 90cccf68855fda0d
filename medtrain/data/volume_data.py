"""The settings that every source of labelled volumes shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated as Typed
from typing import Any, Literal

from medtrain.data.annotated import Annotated, read_annotated
from medtrain.data.cascade import read_stage, who_predicts
from medtrain.data.case import Dataset
from medtrain.data.fingerprint import fingerprint_cases
from medtrain.data.footprint import footprint_of
from medtrain.data.labels import LabelMap
from medtrain.data.module import SegmentationData
from medtrain.data.network import padding_advice
from medtrain.data.plan import Plan, make_plan
from medtrain.data.prepare import prepare
from medtrain.data.regions import RegionMap
from medtrain.data.source import DerivedValue, Fold, Machine, Progress
from medtrain.data.splits import load_splits, make_folds, save_splits, select_fold, split_hash
from medtrain.data.store import Store
from medtrain.data.transforms.base import Augmentation
from medtrain.errors import ConfigError, Problem
from medtrain.registry import Range

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundVolumes:
    """The cases of a segmentation data set, divided.

    Args:
        dataset: The cases.
        folds: All folds of the cross-validation; a single entry when the run trains on everything.
        split: The training and validation ids of this run.
        annotated: Outputs that were annotated in cases of which not all were.
    """

    dataset: Dataset
    folds: list[Fold]
    split: Fold
    annotated: Annotated = field(default_factory=dict)

    @property
    def dataset_name(self) -> str:
        """Name of the data set."""
        return self.dataset.dataset_name

    @property
    def split_hash(self) -> str:
        """Names the division of this run."""
        return split_hash(self.split)

    def save_splits(self, path: Path) -> None:
        """Write the folds as nnU-Net's splits_final.json does."""
        save_splits(path, self.folds)


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
        resolution: full takes the data's own voxel size; low takes one at which a patch covers a quarter of the median
            case (nnU-Net's 3d_lowres), for structures larger than a patch; None is full, but low on a CPU where a
            patch would cover less than a fiftieth and neither patch_size nor spacing is given.
        batch_size: Patches per forward pass, over all devices; an optimizer step takes trainer.accumulate of them.
        memory_gib: Memory of the GPU in GiB that patch_size and batch_size are planned for where they are None; a GPU
            with less is taken as it is. None is nnU-Net's: 8, but 24 for model=resenc_l and 40 for model=resenc_xl.
        normalization: auto chooses by channel name: ct (clip to the foreground's 0.5 and 99.5 percentiles, then
            subtract the mean and divide by the standard deviation of the training part) for CT, zscore (per case and
            channel) otherwise; none leaves intensities as they are.
        zscore_nonzero: Whether zscore uses only the voxels inside the body and leaves the others at 0; None: where
            cropping to non-zero voxels removes over a quarter of the median training case (nnU-Net).
        oversample_foreground: Share of a batch's patches that are centred on a labelled voxel.
        samples_per_case: Patches drawn per case and epoch.
        num_workers: Processes that read patches; None derives it: 0 (in the training process) on a CPU, as many as
            there are cores, at most 8, with a GPU.
        store: Folder that keeps prepared cases; shared by runs, safe with several at a time.
        merge_labels: Classes to join, as new name: [names], e.g. {liver: [liver, cancer]}; joining with background
            removes a class.
        regions: Structures to segment that are made of several classes and may lie within each other, as name:
            [classes], e.g. {whole: [edema, core, enhancing], core: [core, enhancing]}; each gets a sigmoid output of
            its own, and predictions are painted in this order, later over earlier. None takes those of dataset.json,
            {} none. They need a loss of sigmoids, such as loss=dice_bce.
        annotated: JSON or CSV file that says which classes or regions were annotated in a case, for data of several
            origins: {"case_1": ["liver"]}, or rows of `case_id,annotated` with names separated by `;`. Cases that it
            does not list are annotated in full. In training, classes that were not annotated in a case become one with
            its background (marginal loss) and regions that were not count nowhere; neither is judged there.
        cascade_from: A run or cross-validation with resolution=low whose label maps this network, at full resolution,
            gets as further channels. A cross-validation predicts every case by the fold that did not train on it.
        cascade_augment: Put mistakes into these channels in training: structures that grow, shrink or are missing.
    """

    root: str | None = None
    fold: Typed[int, Range(ge=0)] | None = 0
    num_folds: Typed[int, Range(ge=2)] = 5
    splits: str | None = None
    spatial_dims: Literal[2, 3] | None = None
    patch_size: tuple[Typed[int, Range(ge=1)], ...] | None = None
    spacing: tuple[Typed[float, Range(gt=0)], ...] | None = None
    resolution: Literal["full", "low"] | None = None
    batch_size: Typed[int, Range(ge=1)] | None = None
    memory_gib: Typed[float, Range(gt=0)] | None = None
    normalization: Literal["auto", "ct", "zscore", "none"] = "auto"
    zscore_nonzero: bool | None = None
    oversample_foreground: Typed[float, Range(ge=0, le=1)] = 0.33
    samples_per_case: Typed[int, Range(ge=1)] = 1
    num_workers: Typed[int, Range(ge=0)] | None = None
    store: str = "outputs/store"
    merge_labels: dict[str, list[str]] | None = None
    regions: dict[str, list[str]] | None = None
    annotated: str | None = None
    cascade_from: str | None = None
    cascade_augment: bool = True

    def discover(self) -> Dataset:
        """Find the cases and what their labels mean; reads names and descriptions, not voxels.

        Raises:
            UsageError: The root is missing or not of this source's layout; says how to get the data.
            DataError: Files contradict each other or the description.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its cases are found")

    def find(self, *, splits: Path | None = None) -> FoundVolumes:
        """Find the cases and divide them; see `medtrain.data.source.DataSource`."""
        dataset = self.discover()
        annotated = self._read_annotated(dataset)
        if self.fold is None:
            split = select_fold([], None, dataset.cases)
            return FoundVolumes(dataset, [split], split, annotated)
        given = splits or (Path(self.splits) if self.splits is not None else None)
        folds = load_splits(given, dataset.cases) if given is not None else make_folds(dataset.cases, self.num_folds)
        return FoundVolumes(dataset, folds, select_fold(folds, self.fold, dataset.cases), annotated)

    def _read_annotated(self, dataset: Dataset) -> Annotated:
        if self.annotated is None:
            return {}
        labels = LabelMap.from_dataset(dataset, self.merge_labels)
        regions = RegionMap.from_settings(dataset, labels, self.regions)
        return read_annotated(
            Path(self.annotated).expanduser(),
            case_ids=[case.case_id for case in dataset.cases],
            class_names=labels.class_names,
            regions=None if regions is None else dict(zip(regions.region_names, regions.members)),
        )

    def derive(
        self,
        found: FoundVolumes,
        machine: Machine,
        *,
        model: Mapping[str, Any],
        augment: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> tuple[Plan, list[DerivedValue]]:
        """Plan spacing, patch and network; see `medtrain.data.source.DataSource`.

        Reads headers and foreground intensities of the training cases (kept in the store for the next time).
        """
        fingerprint = fingerprint_cases(found.dataset, found.split["train"], self, progress=progress)
        plan = make_plan(
            fingerprint,
            found.dataset,
            self,
            device=machine.device,
            memory_gib=machine.memory_gib,
            cores=machine.threads * machine.processes,
            channels=model.get("channels"),
            strides=model.get("strides"),
            kernel_sizes=model.get("kernel_sizes"),
            footprint=footprint_of(model),
            half=machine.half,
        )
        if self.cascade_from is not None:
            plan = self._put_behind(plan, Path(self.cascade_from).expanduser())
        advice = padding_advice(plan.patch_size, plan.strides) if "strides" in model else None
        if advice is not None:
            log.warning(advice)
        values = [DerivedValue(key, getattr(plan, key.partition(".")[2]), why) for key, why in plan.reasons.items()]
        values += self._region_values(found.dataset, plan)
        if self.normalization == "auto":
            schemes = [channel.scheme for channel in plan.normalization]
            why = plan.reasons.get("data.normalization", "by channel name")
            values = [value for value in values if value.key != "data.normalization"]
            values.append(DerivedValue("data.normalization", schemes, why, fills=False))
        if machine.device == "cpu":
            if self.memory_gib is not None:
                log.warning("data.memory_gib is of a GPU, and a CPU trains: computing time bounds the sizes, too")
            why = "a decoder of one convolution per stage trains a quarter faster on a CPU, as accurate per minute"
            values.append(DerivedValue("model.decoder_convs_per_stage", 1, why))
        axes = _mirrored_axes(augment, plan.spatial_dims)
        values.append(DerivedValue("inference.mirror_axes", axes, "the axes training mirrors"))
        values.append(DerivedValue("data.num_workers", *machine.data_workers()))
        return plan, values

    def _put_behind(self, plan: Plan, first: Path) -> Plan:
        """The plan of the second stage of a cascade."""
        if self.resolution == "low" or plan.spatial_dims != 3:
            what = "a network of slices" if plan.spatial_dims != 3 else "resolution=low"
            message = f"a second stage sees volumes at full resolution, and this is {what}"
            raise ConfigError([Problem("data.cascade_from", message, hint="data.cascade_from=null")])
        stage = read_stage(first, plan.channel_names)
        log.info("the network also sees what %s finds: %s", first, ", ".join(stage.class_names[1:]))
        return replace(plan, cascade=stage)

    def _region_values(self, dataset: Dataset, plan: Plan) -> list[DerivedValue]:
        """Regions that the data set defines, to be told; warns of what a map cannot hold."""
        labels = LabelMap.from_dataset(dataset, self.merge_labels)
        regions = RegionMap.from_settings(dataset, labels, self.regions)
        if regions is None:
            return []
        for note in regions.notes:
            log.warning("data.regions: %s", note)
        if self.regions is not None:
            return []
        named = {
            name: [plan.class_names[index] for index in members]
            for name, members in zip(regions.region_names, regions.members)
        }
        return [DerivedValue("data.regions", named, "the labels of dataset.json are lists", fills=False)]

    def read_plan(self, data: Mapping[str, Any]) -> Plan:
        """The plan from what its `to_json` gave."""
        return Plan.from_json(data)

    def prepare(
        self, plan: Plan, found: FoundVolumes, *, workers: int | None = None, progress: Progress | None = None
    ) -> Store:
        """Crop, resample and index every case that is not in the store yet."""
        return prepare(found.dataset, self, plan, workers=workers, progress=progress)

    def open(
        self,
        plan: Plan,
        found: FoundVolumes,
        prepared: Store,
        *,
        augment: Augmentation,
        seed: int,
        pin_memory: bool = False,
    ) -> SegmentationData:
        """The prepared cases as the engine uses them."""
        return SegmentationData(
            settings=self,
            dataset=found.dataset,
            store=prepared,
            split=found.split,
            annotated=found.annotated,
            plan=plan,
            augment=augment,
            seed=seed,
            pin_memory=pin_memory,
            hints=self._hints(plan, [*found.split["train"], *found.split["val"]]),
        )

    def _hints(self, plan: Plan, case_ids: Sequence[str]) -> dict[str, str]:
        """Name of the previous stage's label map by case."""
        if plan.cascade is None or self.cascade_from is None:
            return {}
        members = who_predicts(plan.cascade, Path(self.cascade_from), case_ids, warn=False)  # said when they were made
        return {case_id: plan.cascade.hint_name(chosen) for case_id, chosen in members.items()}


def _mirrored_axes(augment: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    """Axes along which predictions may be averaged over mirrored inputs: those the network has seen mirrored."""
    if not augment.get("mirror_p"):
        return ()
    axes = augment["mirror_axes"]
    return tuple(range(dims)) if axes is None else tuple(sorted({axis % dims for axis in axes}))
