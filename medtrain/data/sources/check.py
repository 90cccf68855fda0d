"""Look at a whole set of labelled images before anything is trained: files, doubles, leaks and classes."""

from __future__ import annotations

from dataclasses import dataclass

from medtrain.data.image_check import check_leaks, find_duplicates, inspect_images
from medtrain.data.images.found import FoundImages
from medtrain.data.images.incoming import told_file
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import SampleSet
from medtrain.data.source import Progress
from medtrain.data.stratified import absent_strata, members_of
from medtrain.data.table import TableError
from medtrain.errors import DataError, Problem


@dataclass(frozen=True)
class SourceReport:
    """What was found.

    Args:
        problems: What must be mended before training.
        warnings: What is unusual but can be trained on.
        summary: The set in words, a line each; empty where it could not be read.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    summary: tuple[str, ...] = ()


def check_source(
    data: ImageData,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> SourceReport:
    """Read the table, every image and the division into parts, and report everything that is wrong at once.

    Args:
        data: The settings.
        decode: Decode every image rather than look at its beginning and end; see `inspect_images`.
        progress: Called with images done, images in all and the image's name.

    Raises:
        UsageError: The settings are wrong, or nothing is where they say.
        MissingExtraError: A package that reads the files is not installed.
    """
    try:
        sample_set = data.read()
    except TableError as error:  # the check goes on to the files that are there
        report = inspect_images(error.sample_set, decode=decode, progress=progress)
        missing = {told_file(path, error.sample_set.root) for path in error.missing}
        damaged = [problem for problem in report.problems if problem.where not in missing]
        return SourceReport((*error.problems, *damaged), tuple(find_duplicates(error.sample_set, report.digests)))
    except DataError as error:
        return SourceReport(tuple(error.problems))
    report = inspect_images(sample_set, decode=decode, progress=progress)
    problems, warnings = list(report.problems), []
    try:
        found = data.find()
    except DataError as error:
        return SourceReport((*problems, *error.problems), tuple(find_duplicates(sample_set, report.digests)))
    leaks = check_leaks(sample_set, found.split, report.digests)
    if data.duplicates == "error":
        problems += leaks
    elif data.duplicates == "warn":
        warnings += leaks
    known = {problem.where for problem in leaks}
    warnings += [problem for problem in find_duplicates(sample_set, report.digests) if problem.where not in known]
    warnings += [*_absent(found), *_without_patients(sample_set)]
    return SourceReport(tuple(problems), tuple(warnings), tuple(_summary(found)))


def _absent(found: FoundImages) -> list[Problem]:
    """Classes that a part has no sample of."""
    parts = {name: ids for name, ids in found.split.items() if ids}
    warnings = []
    for part, index, value in absent_strata(parts, members_of(found.sample_set)):
        target = found.sample_set.targets[index]
        if target.classes is not None and isinstance(value, int):
            message = f"has no sample of class {target.classes[value]} of {target.target_name}"
            warnings.append(Problem(where=part, message=message))
    return warnings


def _without_patients(sample_set: SampleSet) -> list[Problem]:
    """That nothing tells which samples are of one patient: each then counts as a patient."""
    if len({sample.group for sample in sample_set.samples}) < len(sample_set.samples):
        return []
    message = "every sample counts as a patient of its own; images of one patient may come to lie in two parts"
    hint = "name the column of patients with data.group, or the patient in file names with data.group_pattern"
    return [Problem(where=sample_set.set_name, message=message, hint=hint)]


def _summary(found: FoundImages) -> list[str]:
    sample_set = found.sample_set
    patients = len({sample.group for sample in sample_set.samples})
    lines = [f"{len(sample_set.samples)} samples of {patients} patients{_views(sample_set)}"]
    lines += [f"{name}: {len(ids)} samples" for name, ids in found.split.items() if ids]
    for target, counts, missing in zip(sample_set.targets, sample_set.class_counts(), _unlabelled(sample_set)):
        told = "numbers"
        if counts is not None and target.classes is not None:
            told = ", ".join(f"{name} {count}" for name, count in zip(target.classes, counts))
        lines.append(f"{target.target_name}: {told}" + (f", unlabelled {missing}" if missing else ""))
    return lines


def _views(sample_set: SampleSet) -> str:
    if sample_set.bags:
        sizes = [len(sample.images) for sample in sample_set.samples]
        return f", bags of {min(sizes)} to {max(sizes)} images"
    if sample_set.view_names:
        missing = sum(image is None for sample in sample_set.samples for image in sample.images)
        return f", views {', '.join(sample_set.view_names)}, {missing} missing"
    return ""


def _unlabelled(sample_set: SampleSet) -> list[int]:
    return [
        sum(sample.targets[index] is None for sample in sample_set.samples) for index in range(len(sample_set.targets))
    ]
