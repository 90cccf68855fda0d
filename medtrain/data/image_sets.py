"""Samples from folders named after classes, and from MedMNIST's `.npz` files."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from medtrain.data.arrays import load_array, unpack_large
from medtrain.data.io.description import patient_of
from medtrain.data.io.images import Image, convert_channels, image_error, image_stem, is_image, read_image_file
from medtrain.data.sample import ArrayItem, ImageRef, Sample, SampleSet, Target
from medtrain.data.splits import some
from medtrain.data.table import PARTS
from medtrain.errors import DataError, Problem, UsageError

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read_image_folder(root: Path, *, group_pattern: str | None = None) -> SampleSet:
    """The images of a folder that holds one folder per class, or `train`, `val`, `test` with such folders.

    Class folders may have folders inside. Hidden files and files that are no images are passed over.

    Args:
        root: The folder.
        group_pattern: Regular expression whose first group finds the patient in an image's path below its class,
            without suffix. None where each image is a patient of its own.

    Raises:
        UsageError: No such folder, or the pattern does not fit.
        DataError: Fewer than two classes, classes without images, classes that `train` lacks, or two files of one
            name; all at once.
    """
    if not root.is_dir():
        raise UsageError(f"no such folder: {root}")
    top = _folders(root)
    by_part = bool(top) and all(folder.name.lower() in PARTS for folder in top)
    parts = [(PARTS[folder.name.lower()], folder) for folder in top] if by_part else [(None, root)]
    problems: list[Problem] = []
    found: list[tuple[str | None, str, Path, str]] = []  # part, class, file, path below the class
    trained: set[str] = set()
    for part, folder in parts:
        for class_folder in _folders(folder):
            files = sorted(path for path in class_folder.rglob("*") if is_image(path) and path.is_file())
            if not files:
                problems.append(Problem(where=str(class_folder), message="the folder of this class holds no image"))
            if part in (None, "train"):
                trained.add(class_folder.name)
            for path in files:
                found.append((part, class_folder.name, path, image_stem(path.relative_to(class_folder).as_posix())))
    classes = tuple(sorted({name for _, name, _, _ in found} | trained))
    if len(classes) < 2:
        message = f"holds {len(classes)} class folders with images; expected one folder per class, at least 2"
        problems.append(Problem(where=str(root), message=message))
    unknown = [name for name in classes if name not in trained]
    if unknown and by_part:
        problems.append(Problem(where=str(root), message=f"train lacks classes that other parts have: {some(unknown)}"))
    ids = ["/".join(text for text in (part, name, stem) if text) for part, name, _, stem in found]
    for sample_id in sorted(name for name, count in Counter(ids).items() if count > 1):
        problems.append(Problem(where=str(root), message=f"two files have the name {sample_id} but for their suffix"))
    if problems:
        raise DataError(problems, heading=f"{root} is no folder of classes:")
    groups = patient_of([stem for *_, stem in found], group_pattern) if group_pattern else {}
    index = {name: position for position, name in enumerate(classes)}
    samples = [
        Sample(sample_id, (path,), (index[name],), group=groups.get(stem, sample_id), part=part)
        for sample_id, (part, name, path, stem) in zip(ids, found)
    ]
    return SampleSet(
        set_name=root.name,
        root=root,
        samples=tuple(sorted(samples, key=lambda sample: sample.sample_id)),
        targets=(Target("class", classes),),
    )


def read_medmnist(
    path: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    target_names: tuple[str, ...] | None = None,
    store: Path | None = None,
) -> SampleSet:
    """The images of a MedMNIST file: `train_images` [N, H, W], [N, H, W, 3] or [N, D, H, W], `train_labels` [N, T].

    The same for `val` and `test`. One label column is one target; several (ChestMNIST) are targets of two classes.

    Args:
        path: The `.npz` file.
        class_names: By class index; the numbers if None.
        target_names: By label column; `class`, or `label_0` and so on of several, if None.
        store: Folder that runs share: large arrays are unpacked there, rather than held by every process that reads.

    Raises:
        UsageError: No such file, too few class names, or not a name for each label column.
        DataError: Not such a file; everything wrong with its arrays at once.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    problems: list[Problem] = []
    labels: dict[str, np.ndarray] = {}
    unpacked: dict[str, Path | None] = {}
    for part in ("train", "val", "test"):
        found = _part_labels(path, part, problems, store)
        if found is not None:
            labels[part], unpacked[part] = found
    if "train" not in labels and not problems:
        message = "holds no train_images and train_labels, as a MedMNIST file does"
        problems.append(Problem(where=str(path), message=message))
    widths = {array.shape[1] for array in labels.values()}
    if len(widths) > 1:
        problems.append(Problem(where=str(path), message="the labels of its parts differ in their number of columns"))
    if problems:
        raise DataError(problems, heading=f"{path} cannot be used:")
    num_targets = widths.pop()
    largest = max(int(array.max()) for array in labels.values() if array.size)
    num_classes = max(largest, 1) + 1
    if num_targets > 1 and num_classes > 2:
        raise image_error(path, f"has {num_targets} label columns with values up to {largest}; expected 0 and 1")
    if class_names is not None and len(class_names) < num_classes:
        raise UsageError(f"{path.name} has {num_classes} classes, but {len(class_names)} names are given")
    classes = class_names or tuple(str(number) for number in range(num_classes))
    samples = [
        Sample(
            sample_id=f"{part}_{row:06d}",
            images=(ArrayItem(path, f"{part}_images", row, unpacked[part]),),
            targets=tuple(int(value) for value in values),
            group=f"{part}_{row:06d}",
            part=part,
        )
        for part, array in labels.items()
        for row, values in enumerate(array)
    ]
    names = target_names or (("class",) if num_targets == 1 else tuple(f"label_{i}" for i in range(num_targets)))
    if len(names) != num_targets:
        raise UsageError(f"{path.name} has {num_targets} label columns, but {len(names)} names are given")
    return SampleSet(
        set_name=path.stem,
        root=path.parent,
        samples=tuple(sorted(samples, key=lambda sample: sample.sample_id)),
        targets=tuple(Target(name, classes) for name in names),
    )


def read_sample_image(ref: ImageRef, *, channels: Literal[1, 3] | None = None, min_side: int | None = None) -> Image:
    """Read the image that a sample names.

    Args:
        ref: A file, or a place in an `.npz` file, whose arrays are kept once per process.
        channels: See `read_image_file`.
        min_side: See `read_image_file`.

    Raises:
        DataError: The image cannot be read.
        MissingExtraError: See `read_image_file`.
    """
    if isinstance(ref, Path):
        return read_image_file(ref, channels=channels, min_side=min_side)
    images = load_array(ref.path, ref.key, ref.unpacked)
    one = images[ref.index]
    array = one.transpose(2, 0, 1) if one.ndim == 3 and one.shape[-1] == 3 else one[None]
    max_value = float(np.iinfo(one.dtype).max) if one.dtype in (np.uint8, np.uint16) else None
    return convert_channels(Image(array, max_value), channels, ref.path)


def _part_labels(
    path: Path, part: str, problems: list[Problem], store: Path | None
) -> tuple[np.ndarray, Path | None] | None:
    """The labels [N, T] of a part and its unpacked images, or None where the file has no such part or it is wrong."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if f"{part}_images" not in file.files and f"{part}_labels" not in file.files:
                return None
            unpacked = None if store is None else unpack_large(path, f"{part}_images", store)
            images, labels = load_array(path, f"{part}_images", unpacked), load_array(path, f"{part}_labels")
    except DataError as error:
        problems += error.problems
        return None
    except (TypeError, *_DAMAGE):  # of a lone array there is nothing to leave
        problem = Problem(where=str(path), message="not an .npz file, or damaged")
        if problem not in problems:
            problems.append(problem)
        return None
    wrong = None
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        wrong = f"{part}_images is {images.dtype} {images.shape}; expected [N, H, W], [N, H, W, 3] or [N, D, H, W]"
    elif labels.ndim not in (1, 2) or labels.dtype.kind not in "ui" or (labels.size and labels.min() < 0):
        wrong = f"{part}_labels is {labels.dtype} {labels.shape}; expected whole numbers from 0, [N] or [N, T]"
    elif len(labels) != len(images):
        wrong = f"{part} has {len(images)} images and {len(labels)} labels"
    elif not len(labels):
        wrong = f"{part} is empty"
    if wrong:
        problems.append(Problem(where=str(path), message=wrong))
        return None
    return labels.reshape(len(labels), -1), unpacked


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
