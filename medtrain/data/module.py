"""The data of a run as the engine uses them: training batches from any position, validation cases one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from medtrain.data.annotated import Annotated
from medtrain.data.case import Dataset
from medtrain.data.geometry import CaseGeometry
from medtrain.data.loader import Batch
from medtrain.data.patches import PatchDataset, unpack
from medtrain.data.plan import Plan
from medtrain.data.preprocess import normalize
from medtrain.data.sampler import EpochSampler
from medtrain.data.splits import split_hash
from medtrain.data.store import FORMAT, Region, Store
from medtrain.data.stream import TrainingStream, evenly
from medtrain.data.transforms.base import Augmentation

if TYPE_CHECKING:
    from medtrain.data.volume_data import VolumeData

log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]


class SegmentationData:
    """Prepared cases, divided into a training and a validation part.

    Training batches are a function of the seed and the batch's number: the number of workers, of processes and the
    batch to start from make no difference.

    Args:
        settings: Sampling and number of workers; None workers reads in the training process.
        dataset: The cases and labels.
        store: All cases of the split, prepared.
        split: Case ids of "train" and "val".
        annotated: Outputs that were annotated, of cases where not all were.
        plan: Patch, batch size, normalisation.
        augment: Changes training patches.
        seed: Of order, places and augmentation.
        hints: Name of the previous stage's label map by case, in a cascade.
        pin_memory: Whether workers' batches go through page-locked memory, for copies to a GPU that do not wait.
    """

    def __init__(
        self,
        *,
        settings: VolumeData,
        dataset: Dataset,
        store: Store,
        split: Mapping[str, Sequence[str]],
        plan: Plan,
        augment: Augmentation,
        seed: int,
        annotated: Annotated | None = None,
        hints: Mapping[str, str] | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.store = store
        self.split: dict[str, list[str]] = {part: list(split[part]) for part in ("train", "val")}
        self.plan = plan
        self.annotated = dict(annotated or {})
        self.groups = {case.case_id: case.group for case in dataset.cases}
        self.hints = dict(hints or {})
        self._warn_of_contradictions()
        self.augment = augment
        self.sampler = EpochSampler(
            num_samples=len(self.split["train"]) * settings.samples_per_case, batch_size=plan.batch_size, seed=seed
        )
        self.patches = PatchDataset(
            store=store,
            case_ids=self.split["train"],
            plan=plan,
            augment=augment,
            batch_size=plan.batch_size,
            oversample_foreground=settings.oversample_foreground,
            seed=seed,
            annotated=self.annotated,
            hints=self.hints,
            disturb_hints=settings.cascade_augment,
        )
        self.stream = TrainingStream(
            self.patches,
            self.sampler,
            unit="patches",
            workers=settings.num_workers or 0,
            mark_used=store.mark_used,
            pin_memory=pin_memory,
        )

    def _warn_of_contradictions(self) -> None:
        """Of labels that hold classes which are said not to have been annotated."""
        if self.plan.regions is not None:
            return
        used = sorted({*self.split["train"], *self.split["val"]} & self.annotated.keys())
        for case_id in used:
            known = self.annotated[case_id]
            present = self.store.case(case_id).class_ids
            wrong = [self.plan.class_names[index] for index in present if index and not known[index]]
            if wrong:
                log.warning(
                    "%s: the label holds %s, which data.annotated says nobody annotated: taken for not annotated",
                    case_id,
                    ", ".join(wrong),
                )

    @property
    def batch_size(self) -> int:
        """Patches of a batch over all processes."""
        return self.sampler.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every training case is seen samples_per_case times."""
        return self.sampler.batches_per_epoch

    @property
    def label_pad(self) -> int:
        """Class index of voxels outside a case."""
        return self.plan.ignore_index or 0

    def train_batches(self, start_batch: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches from any one on, without end; see `TrainingStream.batches` and `medtrain.data.patches.collate`."""
        return self.stream.batches(start_batch, rank=rank, world_size=world_size)

    def to_device(self, batch: Batch, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
        """Move a batch and augment it there.

        Returns:
            `image` float32 [B, C, *patch_size], in a cascade with the channels of the previous stage, `label`
            [B, *patch_size], `annotated` bool [B, K] where some cases were annotated in part, the others unchanged.
        """
        names = ("image", "label")
        moved: dict[str, Any] = {name: [t.to(device, non_blocking=True) for t in batch[name]] for name in names}
        if "annotated" in batch:
            moved["annotated"] = torch.stack(batch["annotated"]).to(device, non_blocking=True)
        augmented = self.augment.apply({**batch, **moved}, patch_size=self.plan.patch_size, label_pad=self.label_pad)
        if self.plan.cascade is not None:
            augmented["label"], hints = unpack(augmented["label"], self.plan)
            augmented["image"] = torch.cat([augmented["image"], self.plan.cascade.channels(hints)], dim=1)
        if memory_format is not None:
            augmented["image"] = augmented["image"].contiguous(memory_format=memory_format)
        return augmented

    def evaluation_cases(self, part: Part = "val", *, limit: int | None = None) -> list[str]:
        """Case ids of a part in order, or `limit` of them evenly spread."""
        return evenly(self.split.get(part, []), limit)

    @property
    def cases_per_item(self) -> int:
        """Cases are judged one by one."""
        return 1

    def evaluation_items(self, *, rank: int = 0, world_size: int = 1, limit: int | None = None) -> Iterator[Batch]:
        """This process's share of the validation part, case by case; no case comes twice.

        Args:
            rank: Of this process.
            world_size: Number of processes.
            limit: At most this many cases over all processes, evenly spread.
        """
        yield from self.judged_items(self.evaluation_cases("val", limit=limit)[rank::world_size])

    def judged_items(self, case_ids: Sequence[str]) -> Iterator[Batch]:
        """Whole cases, one by one, as `evaluation_item` describes them."""
        for case_id in case_ids:
            yield self.evaluation_item(case_id)

    def trial_item(self, case_id: str) -> Batch:
        """A piece of a case of at most two patches along each axis, as if it were a whole one on the network's grid.

        A whole scan may take minutes to judge; a piece shows that it can be done.
        """
        case = self.store.case(case_id)
        patch = (1,) * (3 - len(self.plan.patch_size)) + self.plan.patch_size
        sizes = [min(whole, 2 * part) for whole, part in zip(case.shape, patch)]
        region = tuple(slice((whole - size) // 2, (whole + size) // 2) for whole, size in zip(case.shape, sizes))
        item = self._item(case_id, region)
        shape = tuple(item["label"].shape)
        return {**item, "geometry": CaseGeometry.unchanged(shape, case.spacing), "source_label": item["label"]}

    def evaluation_item(self, case_id: str) -> Batch:
        """A whole case.

        Returns:
            case_id: Its id.
            group: Its patient.
            image: float32 tensor [C, D, H, W], normalised, on the network's grid; in a cascade with the channels of the
                previous stage.
            label: Class indices [D, H, W] on the same grid.
            geometry: The way back to the scan's grid.
            source_label: Class indices on the scan's own grid.
            spacing: Voxel size (D, H, W) in mm of the network's grid.
            annotated: Whether each output was annotated; missing where all were.
        """
        self.store.mark_used()
        case = self.store.case(case_id)
        return {**self._item(case_id), "geometry": case.geometry, "source_label": case.source_label()}

    def _item(self, case_id: str, region: Region | None = None) -> Batch:
        """A case, or a region of it, on the network's grid."""
        case = self.store.case(case_id)
        normal = normalize(case.read_image(region), case.stats, self.plan.normalization, case.read_body(region))
        image = torch.from_numpy(normal)
        if self.plan.cascade is not None:
            hints = torch.from_numpy(case.read_hints(self.hints[case_id], region))
            image = torch.cat([image, self.plan.cascade.channels(hints[None])[0]])
        return {
            "case_id": case_id,
            "group": self.groups[case_id],
            "image": image,
            "label": case.read_label(region),
            "spacing": case.spacing,
            **({"annotated": self.annotated[case_id]} if case_id in self.annotated else {}),
        }

    def describe(self) -> dict[str, Any]:
        """What identifies the data, for provenance and for telling whether a resumed run sees the same."""
        used = sorted({*self.split["train"], *self.split["val"]})
        return {
            "dataset": self.dataset.dataset_name,
            "root": str(self.dataset.root),
            "scheme": f"volumes-{FORMAT}",
            "data_hash": self.store.data_hash,
            "split_hash": split_hash(self.split),
            "num_train": len(self.split["train"]),
            "num_val": len(self.split["val"]),
            "cases": {case_id: self.store.keys[case_id] for case_id in used},
            "contents": {case_id: self.store.contents[case_id] for case_id in used if case_id in self.store.contents},
            **({"annotated": {case: list(known) for case, known in self.annotated.items()}} if self.annotated else {}),
        }

    def close(self) -> None:
        """Stop the workers of every iterator."""
        self.stream.close()
