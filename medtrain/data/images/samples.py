"""Samples as the network gets them: read, augmented, encoded, and put side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtrain.data.images.balance import draw_samples
from medtrain.data.images.copies import ImageCopies
from medtrain.data.images.mixing import draw_mix
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.reading import read_annotation
from medtrain.data.sample import ImageRef, Sample
from medtrain.data.sampler import SampleKey
from medtrain.data.transforms.images.base import Augmented, ImageAugmentation

Batch = dict[str, Any]

_OF_BATCHES = 1 << 20  # a stream of random numbers beside those of the images of a sample


@dataclass
class ReadSample:
    """One sample, read and augmented.

    Args:
        sample: What it was read from.
        images: [*image_size, C] of each image there is, in the order of the batch's V axis.
        present: Which view or instance there is; one entry, where a sample has one image.
        targets: [T], swapped where left and right changed places.
        annotation: Mask [*image_size], or None.
        key: What a training sample was drawn by.
    """

    sample: Sample
    images: list[np.ndarray]
    present: list[bool]
    targets: list[float]
    annotation: np.ndarray | None = None
    key: SampleKey | None = None


class SampleReader:
    """Reads samples for evaluation and prediction, and puts them side by side.

    Args:
        plan: Sizes, channels, encoding of the table.
        copies: Reads the image files.
        augment: Brings images to their size.
    """

    def __init__(self, *, plan: ImagePlan, copies: ImageCopies, augment: ImageAugmentation) -> None:
        self.plan = plan
        self.copies = copies
        self.augment = augment

    def read(self, sample: Sample) -> ReadSample:
        """A sample as it is judged: all instances, nothing changed at random.

        Raises:
            DataError: An image cannot be read.
        """
        result = _started(sample)
        for ref in self._refs(sample, result):
            image = self.copies.read(ref)
            mask = self._mask(sample, image, ref)
            self._take(result, self.augment.evaluate(image, mask))
        return result

    def collate(self, samples: Sequence[ReadSample]) -> Batch:
        """Samples side by side.

        Returns:
            case_id: Ids.
            group: Patients.
            weight: Number of samples.
            image: [B, C, *S], or [B, V, C, *S] with views or bags: uint8, or float32 from 0 to 1. Colours lie in
                memory pixel by pixel, as they were decoded (torch's channels_last).
            present: bool [B, V]; only with views or bags, or where the image is optional.
            numeric, categorical, observed: See `medtrain.data.tabular.TabularArrays`; only with a table.
            target: float32 [B, T], NaN where unlabelled.
            annotation: float32 [B, *S], NaN where a sample has none; only where some have one.
            column/<name>: Texts of a metadata column, empty where they are missing.
        """
        plan = self.plan
        batch: Batch = {
            "case_id": [item.sample.sample_id for item in samples],
            "group": [item.sample.group for item in samples],
            "weight": float(len(samples)),
            "target": torch.tensor([item.targets for item in samples], dtype=torch.float32).reshape(len(samples), -1),
        }
        if plan.has_images:
            batch["image"] = self._stack(samples)
            if plan.several_images or plan.optional_image:
                width = max(len(item.present) for item in samples)
                present = [item.present + [False] * (width - len(item.present)) for item in samples]
                batch["present"] = torch.tensor(present, dtype=torch.bool).reshape(len(samples), width)
        if plan.tabular is not None:
            table = plan.tabular.transform([item.sample for item in samples])
            batch["numeric"] = torch.from_numpy(table.numeric)
            batch["categorical"] = torch.from_numpy(table.categorical)
            batch["observed"] = torch.from_numpy(table.observed)
        if plan.annotated:
            batch["annotation"] = self._annotations(samples)
        for place, name in enumerate(plan.metadata_names):
            # new samples need not have them
            batch[f"column/{name}"] = [(item.sample.metadata or ("",) * (place + 1))[place] for item in samples]
        return batch

    def _refs(self, sample: Sample, result: ReadSample) -> list[ImageRef]:
        """The images that there are; says in the result which."""
        refs = list(sample.images)
        if self.plan.max_instances is not None:
            refs = [ref for ref in refs if ref is not None]
        elif not self.plan.view_names:
            refs = [*refs, None][:1]
        result.present = [ref is not None for ref in refs]
        return [ref for ref in refs if ref is not None]

    def _mask(self, sample: Sample, image: np.ndarray, ref: ImageRef) -> np.ndarray | None:
        if sample.annotation is None:
            return None
        return read_annotation(sample.annotation, (image.shape[0], image.shape[1]), ref)

    def _take(self, result: ReadSample, done: Augmented) -> None:
        result.images.append(done.image)
        if done.mask is not None:
            result.annotation = done.mask
        if done.mirrored:
            for first, second in self.plan.paired_targets:
                targets = result.targets
                targets[first], targets[second] = targets[second], targets[first]

    def _stack(self, samples: Sequence[ReadSample]) -> Tensor:
        plan = self.plan
        arrays = [image for item in samples for image in item.images]
        as_bytes = all(image.dtype == np.uint8 for image in arrays)
        width = max(len(item.present) for item in samples)
        lead = (len(samples), width) if plan.several_images else (len(samples),)
        shape = (*lead, *plan.image_size, plan.in_channels)
        full = all(all(item.present) and len(item.present) == width for item in samples)
        make = torch.empty if full else torch.zeros
        stacked = make(shape, dtype=torch.uint8 if as_bytes else torch.float32)
        place = stacked.numpy()
        for row, item in enumerate(samples):
            slots = [slot for slot, there in enumerate(item.present) if there]
            for slot, image in zip(slots, item.images, strict=True):
                where = (row, slot) if plan.several_images else (row,)
                place[where] = image if as_bytes or image.dtype != np.uint8 else image.astype(np.float32) / 255
        return stacked.movedim(-1, -1 - plan.spatial_dims)

    def _annotations(self, samples: Sequence[ReadSample]) -> Tensor:
        masks = torch.full((len(samples), *self.plan.image_size), float("nan"))
        for row, item in enumerate(samples):
            if item.annotation is not None:
                masks[row] = torch.from_numpy(np.ascontiguousarray(item.annotation, dtype=np.float32))
        return masks


class TrainingReader(SampleReader):
    """Reads samples for training: each is a pure function of the seed and its key. Sent to every worker process.

    Args:
        plan: Sizes, channels, encoding of the table.
        copies: Reads the image files.
        augment: Changes images at random.
        samples: Of the training part.
        seed: Of everything random.
        shares: How often each sample is drawn; see `medtrain.data.images.balance`. None for once an epoch each.
    """

    def __init__(
        self,
        *,
        plan: ImagePlan,
        copies: ImageCopies,
        augment: ImageAugmentation,
        samples: Sequence[Sample],
        seed: int,
        shares: np.ndarray | None = None,
    ) -> None:
        super().__init__(plan=plan, copies=copies, augment=augment)
        self.samples = tuple(samples)
        self.seed = seed
        self.shares = shares
        self._drawn: tuple[int, np.ndarray] | None = None

    def __getitem__(self, key: SampleKey) -> ReadSample:
        """Draw, read and change a sample.

        Raises:
            DataError: An image cannot be read.
        """
        sample = self.samples[self.position(key)]
        result = _started(sample)
        result.key = key
        refs = self._chosen(self._refs(sample, result), result, key)
        for place, ref in enumerate(refs):
            image = self.copies.read(ref)
            seeds = np.random.SeedSequence([self.seed, key.epoch, key.index], spawn_key=(place,))
            done = self.augment.train(image, seed=int(seeds.generate_state(1)[0]), mask=self._mask(sample, image, ref))
            self._take(result, done)
        return result

    def collate(self, samples: Sequence[ReadSample]) -> Batch:
        """Samples side by side; see `SampleReader.collate`.

        Returns:
            mix: How images and targets are to be mixed, a function of the first sample's key; only where that was
                asked for.
        """
        batch = super().collate(samples)
        mixup, cutmix, first = self.augment.mixup, self.augment.cutmix, samples[0].key
        if (mixup or cutmix) and first is not None:
            seeds = np.random.SeedSequence([self.seed, first.epoch, first.index], spawn_key=(_OF_BATCHES,))
            rng = np.random.Generator(np.random.Philox(seeds))
            batch["mix"] = draw_mix(rng, self.plan.image_size, mixup=mixup, cutmix=cutmix)
        return batch

    def position(self, key: SampleKey) -> int:
        """Which of the samples a key stands for."""
        index = key.index % len(self.samples)
        if self.shares is None:
            return index
        if self._drawn is None or self._drawn[0] != key.epoch:
            self._drawn = (key.epoch, draw_samples(self.shares, seed=self.seed, epoch=key.epoch))
        return int(self._drawn[1][index])

    def _chosen(self, refs: list[ImageRef], result: ReadSample, key: SampleKey) -> list[ImageRef]:
        """The instances of a bag for this epoch."""
        most = self.plan.max_instances
        if most is None or len(refs) <= most:
            return refs
        seeds = np.random.SeedSequence([self.seed, key.epoch, key.index])
        chosen = np.random.Generator(np.random.Philox(seeds)).choice(len(refs), size=most, replace=False)
        result.present = [True] * most
        return [refs[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Normalizer:
    """Brings a batch to its device, with the images as the network takes them.

    Args:
        plan: Mean and deviation of each channel.
    """

    plan: ImagePlan
    _kept: dict[tuple[torch.device, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    def __call__(self, batch: Batch, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
        """Move a batch and normalise its images; views and instances that are not there become 0.

        Which are there (`present`) stays in main memory: it decides how many images are encoded, and reading it on a
        GPU would wait for all that the GPU has yet to do.

        Args:
            batch: Of `SampleReader.collate`.
            device: Where to.
            memory_format: Of images without an axis of views; None leaves channels first.
        """
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name != "present" else value
            for name, value in batch.items()
        }
        if "image" in moved:
            moved["image"] = self._normalize(moved["image"], moved.get("present"), memory_format)
        return moved

    def _normalize(self, image: Tensor, present: Tensor | None, memory_format: torch.memory_format | None) -> Tensor:
        axis = -1 - self.plan.spatial_dims
        planes = memory_format in (None, torch.contiguous_format)
        if planes and image.device.type == "cpu":
            image = self._by_planes(image)
        else:
            image = self._by_rows(image.movedim(axis, -1)).movedim(-1, axis)
        if present is not None:
            there = present if self.plan.several_images else present[:, 0]
            there = there.to(image.device, non_blocking=True)
            image = image.mul_(there.reshape(*there.shape, *(1,) * (image.dim() - there.dim())))
        if memory_format is None or planes:
            return image.contiguous()
        # with an axis of views there is no such format, but each image has it
        return image if self.plan.several_images else image.contiguous(memory_format=memory_format)

    def _by_planes(self, image: Tensor) -> Tensor:
        """Channels become planes while bytes are widened: much faster than to move the floats afterwards."""
        shape = (-1, *(1,) * self.plan.spatial_dims)
        scale, shift = self._constants(image.device, 1, image.dtype == torch.uint8)
        done = torch.empty(image.shape, dtype=torch.float32).copy_(image)
        return torch.addcmul(shift.reshape(shape), done, scale.reshape(shape), out=done)

    def _by_rows(self, pixels: Tensor) -> Tensor:
        """Images [..., W, C] as they lie in memory; whole rows are four times as fast as three channels at a time."""
        rows = pixels.reshape(-1, pixels.shape[-2] * pixels.shape[-1])
        scale, shift = self._constants(pixels.device, pixels.shape[-2], pixels.dtype == torch.uint8)
        done = torch.empty(rows.shape, dtype=torch.float32, device=pixels.device).copy_(rows)
        return torch.addcmul(shift, done, scale, out=done).view(pixels.shape)

    def _constants(self, device: torch.device, width: int, whole: bool) -> tuple[Tensor, Tensor]:
        """Scale and shift of every value of a row."""
        key = (device, width, whole)
        if key not in self._kept:
            mean = torch.tensor(self.plan.mean, dtype=torch.float64)
            std = torch.tensor(self.plan.std, dtype=torch.float64)
            pair = (1 / (std * (255 if whole else 1)), -mean / std)
            scale, shift = (values.float().repeat(width).to(device) for values in pair)
            self._kept[key] = scale, shift
        return self._kept[key]


def _started(sample: Sample) -> ReadSample:
    targets = [float("nan") if value is None else float(value) for value in sample.targets]
    return ReadSample(sample, [], [], targets)
