"""The images of a run as the engine uses them: training batches from any position, and the samples to be judged."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch

from medtrain.data.digests import digest_of
from medtrain.data.images.balance import Balance, sample_shares
from medtrain.data.images.copies import CONSTANT, FORMAT, ImageCopies
from medtrain.data.images.found import FoundImages
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.samples import Batch, Normalizer, ReadSample, SampleReader, TrainingReader
from medtrain.data.sample import Sample
from medtrain.data.sampler import EpochSampler
from medtrain.data.stream import TrainingStream, evenly
from medtrain.data.transforms.images.base import ImageAugmentation
from medtrain.errors import UsageError
from medtrain.run.threads import available_cores

Part = Literal["train", "val", "test"]

_SCHEME = 1  # raise it when samples get other digests although nothing about them changed
_AHEAD = 2  # evaluation items that are read before they are needed


class ImageModule:
    """Samples of images and tabular values, divided into parts.

    Training batches are a function of the seed and the batch's number: the number of workers, of processes and the
    batch to start from make no difference.

    Args:
        found: The samples and their parts.
        copies: Reads the image files.
        plan: Sizes, batch size, encoding of the table.
        augment: Changes training images, and brings every image to its size.
        seed: Of order, draws and augmentation.
        balance: How often classes come in training.
        num_workers: Processes that read training images; 0 reads in the training process.
        pin_memory: Whether workers' batches go through page-locked memory, for copies to a GPU that do not wait.
    """

    def __init__(
        self,
        *,
        found: FoundImages,
        copies: ImageCopies,
        plan: ImagePlan,
        augment: ImageAugmentation,
        seed: int,
        balance: Balance = "none",
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.found = found
        self.plan = plan
        self.copies = copies
        self.augment = augment
        self.num_workers = num_workers
        if plan.paired_targets:
            augment.require_sides()
            if plan.several_images and augment.mirrors:
                raise UsageError(
                    "the targets have a left and a right side, and an augmentation that mirrors would mirror each view "
                    "for itself",
                    hint="choose an augmentation without mirroring, or set data.paired_targets=[]",
                )
        train = found.samples("train")
        self.sampler = EpochSampler(num_samples=len(train), batch_size=plan.batch_size, seed=seed)
        self.training = TrainingReader(
            plan=plan,
            copies=copies,
            augment=augment,
            samples=train,
            seed=seed,
            shares=sample_shares(train, found.sample_set.targets, balance),
        )
        self.judging = SampleReader(plan=plan, copies=copies, augment=augment)
        self._normalizer = Normalizer(plan)
        self.stream = TrainingStream(
            self.training,
            self.sampler,
            unit="samples",
            workers=num_workers,
            mark_used=copies.mark_used,
            pin_memory=pin_memory,
        )

    @property
    def batch_size(self) -> int:
        """Samples of a batch over all processes."""
        return self.sampler.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which as many samples are drawn as the training part has."""
        return self.sampler.batches_per_epoch

    @property
    def cases_per_item(self) -> int:
        """Samples of an evaluation item, but for the last one; bags are judged one by one, whole."""
        return 1 if self.plan.max_instances is not None else self.plan.batch_size

    def train_batches(self, start_batch: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches from any one on, without end; see `TrainingStream.batches` and `SampleReader.collate`."""
        return self.stream.batches(start_batch, rank=rank, world_size=world_size)

    def to_device(self, batch: Batch, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
        """Move a batch and normalise its images there; see `Normalizer`."""
        return self._normalizer(batch, device, memory_format)

    def evaluation_cases(self, part: Part = "val", *, limit: int | None = None) -> list[str]:
        """Sample ids of a part in order, or `limit` of them evenly spread."""
        return evenly(self.found.split.get(part, []), limit)

    def evaluation_items(
        self, *, rank: int = 0, world_size: int = 1, limit: int | None = None, part: Part = "val"
    ) -> Iterator[Batch]:
        """This process's share of a part: every `world_size`-th sample, none twice.

        Args:
            rank: Of this process.
            world_size: Number of processes.
            limit: At most this many samples over all processes, evenly spread.
            part: Which part.
        """
        return self.judged_items(self.evaluation_cases(part, limit=limit)[rank::world_size])

    def judged_items(self, case_ids: Sequence[str]) -> Iterator[Batch]:
        """Evaluation batches of the named samples, of any part, in their order.

        With worker processes, as many threads read ahead; decoding holds no lock.
        """
        samples = [self.found.by_id[case_id] for case_id in case_ids]
        size = self.cases_per_item
        items = [samples[start : start + size] for start in range(0, len(samples), size)]
        self.copies.mark_used()
        if self.num_workers == 0:
            for item in items:
                yield self.judging.collate([self.judging.read(sample) for sample in item])
            return
        with ThreadPoolExecutor(min(self.num_workers, available_cores()), thread_name_prefix="evaluation") as pool:
            waiting: deque[list[Future[ReadSample]]] = deque()
            try:
                for item in items:
                    waiting.append([pool.submit(self.judging.read, sample) for sample in item])
                    if len(waiting) > _AHEAD:
                        yield self.judging.collate([future.result() for future in waiting.popleft()])
                while waiting:
                    yield self.judging.collate([future.result() for future in waiting.popleft()])
            finally:
                pool.shutdown(cancel_futures=True)

    def trial_item(self, case_id: str) -> Batch:
        """An evaluation batch of one sample."""
        return next(self.judged_items([case_id]))

    def describe(self) -> dict[str, Any]:
        """What identifies the data, for provenance and for telling whether a resumed run sees the same."""
        cases = {sample.sample_id: self._digest(sample) for sample in self.found.used()}
        text = json.dumps(sorted(cases.items()))
        counts = {f"num_{part}": len(ids) for part, ids in self.found.split.items()}
        return {
            "dataset": self.found.dataset_name,
            "root": str(self.found.sample_set.root),
            "scheme": f"images-{_SCHEME}.{FORMAT}",
            "data_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
            "split_hash": self.found.split_hash,
            **counts,
            "cases": cases,
            "contents": {sample.sample_id: digest for sample in self.found.used() if (digest := self._content(sample))},
        }

    def close(self) -> None:
        """Stop the workers of every iterator."""
        self.stream.close()

    def _content(self, sample: Sample) -> str | None:
        """Digest of a sample's images alone; None where it has none, or blank ones, of which there are many alike."""
        found = [self.copies.digests.get(ref) for ref in sample.images if ref is not None]
        known = [digest for digest in found if digest is not None and not digest.startswith(CONSTANT)]
        return digest_of({"images": known}) if known and len(known) == len(found) else None

    def _digest(self, sample: Sample) -> str:
        images = [None if ref is None else self.copies.digests.get(ref, str(ref)) for ref in sample.images]
        values = [sample.targets, sample.group, sample.numeric, sample.categorical]
        content: dict[str, Any] = {"images": images, "values": values}
        # only what there is: what others are known by does not change
        if sample.annotation is not None:
            ref = sample.images[0] if sample.images else None
            drawn = None if ref is None else self.copies.drawn.get((sample.annotation, ref))
            content["annotation"] = drawn or str(sample.annotation)
        if any(sample.metadata):
            content["metadata"] = sample.metadata
        return digest_of(content)
