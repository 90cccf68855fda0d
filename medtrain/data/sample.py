"""What a source of labelled images finds: samples, and the set that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medtrain.data.marks import Mark


@dataclass(frozen=True)
class ArrayItem:
    """One image inside an `.npz` file.

    Args:
        path: The file.
        key: Name of the array in it.
        index: Position along the array's first axis.
        unpacked: File that holds the array by itself, to be mapped; None where it is held in memory.
    """

    path: Path
    key: str
    index: int
    unpacked: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.path}[{self.key}][{self.index}]"


ImageRef = Path | ArrayItem
"""Where an image is: a file, or a place in one."""

Annotation = ImageRef | Mark
"""What matters in an image: an image of a mask, a box or a point."""


@dataclass(frozen=True)
class Sample:
    """One thing to classify: an image, several views of a patient, a bag of instances; with its table row.

    Args:
        sample_id: Unique within the set.
        images: One image; or one per view, None where the view is missing; or the instances of a bag, in the order of
            their rows. Empty for a sample of tabular values only.
        targets: One per target: a class index, a number, or None where nobody labelled it.
        group: The patient. Samples of one patient never come to lie in two parts.
        numeric: One per numeric column, None where it is missing.
        categorical: One per categorical column, as written; None where it is missing.
        part: "train", "val" or "test" where the source says so.
        annotation: Mask of what matters in the image, white where it does, or a box or point; None where nobody drew
            one.
        metadata: One per metadata column, as written; empty where it is missing.
    """

    sample_id: str
    images: tuple[ImageRef | None, ...]
    targets: tuple[int | float | None, ...]
    group: str
    numeric: tuple[float | None, ...] = ()
    categorical: tuple[str | None, ...] = ()
    part: str | None = None
    annotation: Annotation | None = None
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Args:
        target_name: Column, or "class".
        classes: Class names by index, or None for a number.
    """

    target_name: str
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class SampleSet:
    """Samples and what their values mean.

    Args:
        set_name: For people.
        root: Folder that paths are told from.
        samples: Sorted by id.
        targets: In the order of `Sample.targets`.
        view_names: In the order of `Sample.images`; empty for single images and bags.
        numeric_names: In the order of `Sample.numeric`.
        categorical_names: In the order of `Sample.categorical`.
        bags: Whether the images of a sample are instances of a bag.
        metadata_names: In the order of `Sample.metadata`.
    """

    set_name: str
    root: Path
    samples: tuple[Sample, ...]
    targets: tuple[Target, ...]
    view_names: tuple[str, ...] = ()
    numeric_names: tuple[str, ...] = ()
    categorical_names: tuple[str, ...] = ()
    bags: bool = False
    metadata_names: tuple[str, ...] = ()

    def strata(self) -> list[tuple[object, ...]]:
        """What a split should balance: the classes of each sample by target; numbers are labelled or not."""
        kinds = [target.classes is not None for target in self.targets]
        return [
            tuple(value if is_class or value is None else "labelled" for value, is_class in zip(sample.targets, kinds))
            for sample in self.samples
        ]

    def class_counts(self) -> list[list[int] | None]:
        """How many samples each class of each target has, unlabelled ones left out; None for numbers."""
        counts = [None if target.classes is None else [0] * len(target.classes) for target in self.targets]
        for sample in self.samples:
            for count, value in zip(counts, sample.targets):
                if count is not None and value is not None:
                    count[int(value)] += 1
        return counts

    def files(self) -> Iterator[Path]:
        """Every file that the samples name, each once, in order."""
        seen: dict[Path, None] = {}
        for sample in self.samples:
            for ref in sample.images:
                if ref is not None:
                    seen[ref if isinstance(ref, Path) else ref.path] = None
        yield from seen
