"""The settings that every source of labelled images shares."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from medtrain.data.image_check import check_leaks, find_duplicates
from medtrain.data.images.balance import Balance, sample_shares
from medtrain.data.images.copies import CONSTANT, ImageCopies, prepare_images
from medtrain.data.images.deriving import make_image_plan
from medtrain.data.images.found import FoundImages, divide
from medtrain.data.images.incoming import read_new
from medtrain.data.images.module import ImageModule
from medtrain.data.images.plan import ImagePlan, ImageScaling
from medtrain.data.io.images import window_of
from medtrain.data.sample import SampleSet
from medtrain.data.source import DerivedValue, Machine, Progress
from medtrain.data.transforms.images.base import ImageAugmentation
from medtrain.errors import DataError, UsageError
from medtrain.registry import Format, Range

log = logging.getLogger(__name__)

Share = Annotated[float, Range(ge=0, le=1)]
Side = Annotated[int, Range(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Settings of a set of labelled images; a source adds how its samples are found.

    What is None is derived from the data and the machine; `medtrain show` prints the value and why.

    Args:
        root: Folder of the data set.
        fold: Validate on this fold of a stratified cross-validation; None divides by what the set says, or by shares.
        num_folds: Number of folds.
        splits: File with the parts instead: JSON {"train": [ids], "val": [ids], "test": [ids]}, or a table with the
            columns id and part.
        shares: Shares of train, val and test where the data set does not name the parts. Parts are made of whole
            patients, with the classes in equal shares. A share of 0 leaves a part empty.
        split_seed: Seed of the division; of its own, so that runs of several seeds share the parts.
        image_size: Pixels per axis, H, W or D, H, W; one number for a square or a cube. None follows what pretrained
            weights were made with, or else the images.
        channels: 1 reads colours as grey, 3 repeats grey.
        batch_size: Samples per forward pass, over all devices; an optimizer step takes trainer.accumulate of them.
        normalization: What is subtracted from channels (of 0 to 1) and divided by. imagenet: its mean and deviation;
            dataset: those of training images; half: 0.5 and 0.5; none: 0 and 1; auto: what pretrained weights were made
            with, imagenet where that is not known, and dataset without such weights.
        window: For images in Hounsfield units, the part of them that becomes 0 to 1: lung, mediastinum, bone,
            soft_tissue, brain, liver, abdomen, or centre/width.
        scaling: How numbers become 0 to 1. auto leaves 8 bits as they are and takes the 0.5 to 99.5 percentiles of each
            other image; full_range divides by the largest value of the file's kind; min_max takes each image's range.
        balance: How often classes come in training: none takes every sample once an epoch; classes, every class
            equally often; sqrt, by the square root of its size.
        paired_targets: Pairs of targets that change places when left and right do; None finds those whose names differ
            in `left` and `right`, and zones of the lungs (A to F, `r_sup` and `l_sup`); [] says that there are none.
        max_instances: Most instances of a bag in training, drawn anew each epoch. In evaluation all are used.
        missing_numbers: A missing number becomes the median of the training part; indicator tells so in a column more.
        duplicates: What to do about identical images in two parts.
        cache: Keep copies of image files as they are read, made smaller and without loss, so that each is decoded once.
            Null keeps them of large, deep and 3-D images, and of large PNG files while all take at most 20 GiB.
        num_workers: Processes that read images; 0 reads in the training process.
        store: Folder of the copies and of what was found about files; shared by runs, safe with several at a time.
    """

    root: str | None = None
    fold: Annotated[int, Range(ge=0)] | None = None
    num_folds: Annotated[int, Range(ge=2)] = 5
    splits: str | None = None
    shares: tuple[Share, Share, Share] = (0.7, 0.15, 0.15)
    split_seed: Annotated[int, Range(ge=0)] = 42
    image_size: Side | tuple[Side, ...] | None = None
    channels: Annotated[int, Range(ge=1)] | None = None
    batch_size: Annotated[int, Range(ge=1)] | None = None
    normalization: Literal["auto", "imagenet", "dataset", "half", "none"] = "auto"
    window: Annotated[str, Format(window_of, '"lung", "40/400"')] | None = None
    scaling: ImageScaling = "auto"
    balance: Balance = "none"
    paired_targets: list[tuple[str, str]] | None = None
    max_instances: Annotated[int, Range(ge=1)] | None = None
    missing_numbers: Literal["indicator", "median"] = "indicator"
    duplicates: Literal["error", "warn", "ignore"] = "error"
    cache: bool | None = None
    num_workers: Annotated[int, Range(ge=0)] | None = None
    store: str = "outputs/store"

    def read(self) -> SampleSet:
        """Find the samples; reads tables and names, not pixels.

        Raises:
            UsageError: The root is missing or not of this source's layout; says how to get the data.
            DataError: Everything that is wrong with the table and its files.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its samples are found")

    def read_new(self, path: Path, plan: ImagePlan) -> SampleSet:
        """Find new samples, without labels, for prediction; see `medtrain.data.images.incoming.read_new`.

        Args:
            path: An image, a folder, a table or an `.npz` file.
            plan: What the model takes.
        """
        return read_new(path, plan, columns=None)

    def find(self, *, splits: Path | None = None) -> FoundImages:
        """Find the samples and divide them; see `medtrain.data.source.DataSource`."""
        sample_set = self.read()
        if not sample_set.samples:
            raise UsageError(f"{sample_set.set_name} holds no sample")
        given = splits or (Path(self.splits) if self.splits is not None else None)
        return divide(
            sample_set,
            splits=given,
            fold=self.fold,
            num_folds=self.num_folds,
            shares=self.shares,
            seed=self.split_seed,
        )

    def derive(
        self,
        found: FoundImages,
        machine: Machine,
        *,
        model: Mapping[str, Any],
        augment: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> tuple[ImagePlan, list[DerivedValue]]:
        """Plan sizes, normalisation and the encoding of the table; see `medtrain.data.source.DataSource`.

        Reads some images of the training part.
        """
        sample_shares(found.samples("train"), found.sample_set.targets, self.balance)
        plan, copies = make_image_plan(found, self, machine, model=model, progress=progress)
        names = [target.target_name for target in plan.targets]
        stand = {
            "data.normalization": [list(plan.mean), list(plan.std)],
            "data.cache": copies,
            "data.channels": plan.in_channels,
            "data.paired_targets": [[names[i] for i in pair] for pair in plan.paired_targets],
        }
        values = [
            DerivedValue(
                key,
                stand[key] if key in stand else getattr(plan, key.partition(".")[2]),
                why,
                fills=key != "data.normalization",
            )
            for key, why in plan.reasons.items()
        ]
        values.append(DerivedValue("data.num_workers", *machine.data_workers()))
        return plan, values

    def read_plan(self, data: Mapping[str, Any]) -> ImagePlan:
        """The plan from what its `to_json` gave."""
        return ImagePlan.from_json(data)

    def prepare(
        self, plan: ImagePlan, found: FoundImages, *, workers: int | None = None, progress: Progress | None = None
    ) -> ImageCopies:
        """Decode every image once, copy it where that was chosen, and see that no image lies in two parts.

        Raises:
            DataError: Every image that cannot be used, or every one that lies in two parts.
        """
        used = found.used()
        copies = prepare_images(
            found.images(),
            plan.image_format,
            store=Path(self.store),
            root=found.sample_set.root,
            copy=bool(self.cache),
            annotations=[
                (sample.annotation, sample.images[0])
                for sample in used
                if sample.annotation is not None and sample.images and sample.images[0] is not None
            ],
            workers=workers,
            progress=progress,
        )
        self._check_duplicates(found, copies)
        return copies

    def open(
        self,
        plan: ImagePlan,
        found: FoundImages,
        prepared: ImageCopies,
        *,
        augment: ImageAugmentation,
        seed: int,
        pin_memory: bool = False,
    ) -> ImageModule:
        """The samples as the engine uses them."""
        return ImageModule(
            found=found,
            copies=prepared,
            plan=plan,
            augment=augment,
            seed=seed,
            balance=self.balance,
            num_workers=self.num_workers or 0,
            pin_memory=pin_memory,
        )

    def _check_duplicates(self, found: FoundImages, copies: ImageCopies) -> None:
        if self.duplicates == "ignore":
            return
        digests = {ref: digest for ref, digest in copies.digests.items() if not digest.startswith(CONSTANT)}
        leaks = check_leaks(found.sample_set, found.split, digests)
        if leaks and self.duplicates == "error":
            raise DataError(
                leaks, heading=f"{len(leaks)} images lie in two parts (data.duplicates=warn trains anyway):"
            )
        for problem in leaks[:3]:
            log.warning("%s: %s", problem.where, problem.message)
        if len(leaks) > 3:
            log.warning("%d images lie in two parts", len(leaks))
        several = find_duplicates(found.sample_set, digests)
        if several and not leaks:
            log.warning(
                "%d images occur more than once, such as %s: %s", len(several), several[0].where, several[0].message
            )
