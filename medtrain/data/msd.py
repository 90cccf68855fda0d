"""The layout of the Medical Segmentation Decathlon (Antonelli et al. 2022, medicaldecathlon.com)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from medtrain.data.case import Case, Dataset
from medtrain.data.decathlon import default_folder, how_to_get
from medtrain.data.io.description import (
    Description,
    parse_group_pattern,
    patient_of,
    read_description,
    sorted_cases,
)
from medtrain.data.io.folders import DESCRIPTION, find_root, list_scans, require_files
from medtrain.data.io.nifti import file_stem
from medtrain.data.volume_data import VolumeData
from medtrain.errors import DataError, Problem
from medtrain.registry import Format, register

_TASK_FOLDER = re.compile(r"Task\d\d_\w+")


@register("data", "msd", tags=("segmentation", "nifti"))
@dataclass(frozen=True, kw_only=True)
class MsdData(VolumeData):
    """A task of the Medical Segmentation Decathlon, or any data set in its layout.

    `dataset.json` lists the files; without a list, `imagesTr` and `labelsTr` are paired by name. Several channels lie
    in one 4-D file with the channel axis last.

    Args:
        root: The task's folder, which holds dataset.json, or the folder above it.
        task: Name of the task's folder, e.g. Task03_Liver; looked for below root.
        group_pattern: Regular expression whose first group, searched in the case id, is the patient; None takes
            every case for a patient of its own.
    """

    task: str | None = None
    group_pattern: Annotated[str, Format(parse_group_pattern, r"'^(\w+?)_'")] | None = None

    def discover(self) -> Dataset:
        """Find the cases; see `VolumeData.discover`."""
        name = Path(self.root or "").name
        expected = self.task or (name if _TASK_FOLDER.fullmatch(name) else None)
        given = default_folder() if self.root is None else Path(self.root)
        above = given.parent if name == expected else given
        root = find_root(self.root, expected=expected, source=how_to_get(expected or "", above))
        return discover_msd(root, group_pattern=self.group_pattern)


def discover_msd(root: Path, *, group_pattern: str | None = None) -> Dataset:
    """Find the cases of a folder in the Decathlon's layout.

    Args:
        root: Holds dataset.json.
        group_pattern: See `MsdData`.

    Raises:
        DataError: dataset.json is wrong, or there is no labelled case.
        FilesError: Files are missing, cases are listed twice, or entries of the list name no files; all of it at once.
    """
    description = read_description(root / DESCRIPTION)
    training, problems = _training_pairs(root, description)
    test = _test_images(root, description)
    ids = [file_stem(image) for image in (*(image for image, _ in training), *test)]
    repeated = [case_id for case_id, count in Counter(ids).items() if count > 1]
    problems += [Problem(where=case_id, message="this case is listed more than once") for case_id in repeated]
    training = list(dict.fromkeys(training))  # the same files need no second look
    patients = patient_of([file_stem(image) for image, _ in training], group_pattern)
    cases = [
        Case(file_stem(image), images=(image,), label=label, group=patients[file_stem(image)])
        for image, label in training
    ]
    test_cases = [Case(file_stem(image), images=(image,), label=None, group=file_stem(image)) for image in test]
    dataset = Dataset(
        dataset_name=description.title,
        root=root,
        channel_names=description.channel_names,
        labels=description.labels,
        ignore_value=description.ignore_value,
        cases=sorted_cases(cases),
        test_cases=sorted_cases(test_cases),
        regions=description.regions,
    )
    return require_files(dataset, problems)


def _training_pairs(root: Path, description: Description) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Images with their labels, and the entries of the list that are none."""
    listed = description.content.get("training")
    if not listed:
        images = list_scans(root / "imagesTr")
        if not images:
            message = "lists no training cases, and imagesTr holds no NIfTI files"
            raise DataError([Problem(where=str(description.path), message=message)])
        labels = {file_stem(path): path for path in list_scans(root / "labelsTr")}
        return [(path, labels.get(file_stem(path), root / "labelsTr" / path.name)) for path in images], []
    pairs: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    for index, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if isinstance(entry, dict) and all(isinstance(entry.get(part), str) for part in ("image", "label")):
            pairs.append((_listed(root, entry["image"]), _listed(root, entry["label"])))
        else:
            message = f'training entry {index} is not {{"image": FILE, "label": FILE}}: {entry!r:.80}'
            problems.append(Problem(where=str(description.path), message=message))
    if not pairs:
        raise DataError(problems, heading=f"{description.path} is wrong:")
    return [(image, label) for image, label in pairs if not image.name.startswith("._")], problems


def _test_images(root: Path, description: Description) -> list[Path]:
    """Scans without a label: those listed that are there, or else those in imagesTs.

    Listed ones may be missing: copies of a task without its test part are common and train just as well.
    """
    listed: Any = description.content.get("test")
    names = [entry.get("image") if isinstance(entry, dict) else entry for entry in listed or []]
    paths = [_listed(root, name) for name in names if isinstance(name, str)]
    if not paths:
        paths = list_scans(root / "imagesTs")
    return [path for path in paths if path.is_file() and not path.name.startswith("._")]


def _listed(root: Path, name: str) -> Path:
    """The file an entry of dataset.json names; some tasks were unpacked by tools that drop or add the `.gz`."""
    path = root / name
    if not path.exists():
        other = path.with_name(path.name[:-3] if path.name.endswith(".gz") else path.name + ".gz")
        if other.exists():
            return other
    return path
