"""nnU-Net's raw layout: `DatasetXXX_Name/{dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz}`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medtrain.data.case import Case, Dataset
from medtrain.data.io.description import (
    Description,
    parse_group_pattern,
    patient_of,
    read_description,
    sorted_cases,
)
from medtrain.data.io.folders import DESCRIPTION, find_root, list_scans, require_files
from medtrain.data.io.nifti import SUFFIXES, file_stem
from medtrain.data.volume_data import VolumeData
from medtrain.errors import DataError, Problem
from medtrain.registry import Format, register

_SOURCE = "a folder in nnU-Net's raw layout with dataset.json, imagesTr and labelsTr"
_CHANNEL_FILE = re.compile(r"^(.+)_(\d{4})$")


@register("data", "nnunet", tags=("segmentation", "nifti"))
@dataclass(frozen=True, kw_only=True)
class NnunetData(VolumeData):
    """A data set in nnU-Net's raw layout, one file per channel.

    Labels of `dataset.json` that are lists of values are regions, painted in the order of `regions_class_order`.

    Args:
        root: The DatasetXXX_Name folder, which holds dataset.json, or the folder above it.
        group_pattern: Regular expression whose first group, searched in the case id, is the patient; None takes
            every case for a patient of its own.
    """

    group_pattern: Annotated[str, Format(parse_group_pattern, r"'^(\w+?)_'")] | None = None

    def discover(self) -> Dataset:
        """Find the cases; see `VolumeData.discover`."""
        root = find_root(self.root, expected=None, source=_SOURCE)
        description = read_description(root / DESCRIPTION)
        ending = str(description.content.get("file_ending", SUFFIXES[0]))
        if ending not in SUFFIXES:
            message = f"file_ending {ending!r} is not supported; supported are {' and '.join(SUFFIXES)}"
            raise DataError([Problem(where=str(description.path), message=message)])
        problems: list[Problem] = []
        training = _group_channels(root / "imagesTr", description, problems)
        test = _group_channels(root / "imagesTs", description, problems)
        if not training:
            nothing = Problem(where=str(root / "imagesTr"), message=f"holds no CASE_0000{ending} files")
            raise DataError([nothing, *problems], heading=f"{root} does not fit its {DESCRIPTION}:")
        labels = {case_id: root / "labelsTr" / f"{case_id}{ending}" for case_id in training}
        patients = patient_of(list(training), self.group_pattern)
        dataset = Dataset(
            dataset_name=description.title,
            root=root,
            channel_names=description.channel_names,
            labels=description.labels,
            ignore_value=description.ignore_value,
            cases=sorted_cases(
                [
                    Case(name, images=images, label=labels[name], group=patients[name])
                    for name, images in training.items()
                ]
            ),
            test_cases=sorted_cases(
                [Case(name, images=images, label=None, group=name) for name, images in test.items()]
            ),
            regions=description.regions,
        )
        return require_files(dataset, problems)


def _group_channels(folder: Path, description: Description, problems: list[Problem]) -> dict[str, tuple[Path, ...]]:
    """Case id -> its channel files, all of them whether they exist or not.

    Files that are not named CASE_0000 and channels that dataset.json does not name are added to `problems`.
    """
    ending = str(description.content.get("file_ending", SUFFIXES[0]))
    channels = len(description.channel_names)
    ids: set[str] = set()
    for path in list_scans(folder):
        match = _CHANNEL_FILE.match(file_stem(path))
        if match is None or not path.name.endswith(ending):
            message = f"expected CASE_0000{ending}: the case, then the channel in four digits"
            problems.append(Problem(where=str(path), message=message))
        elif int(match[2]) >= channels:
            message = f"channel {int(match[2])}, but {DESCRIPTION} names {channels}"
            problems.append(Problem(where=str(path), message=message))
        else:
            ids.add(match[1])
    return {
        case_id: tuple(folder / f"{case_id}_{channel:04d}{ending}" for channel in range(channels))
        for case_id in sorted(ids)
    }
