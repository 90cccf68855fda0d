"""Look at every file of a data set once and report everything that is wrong with it at once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from medtrain.data.case import Case, Dataset
from medtrain.data.io.nifti import Header, SourceGrid, read_header, read_image, read_label
from medtrain.data.workers import MemoryGate, Progress, usable_cores
from medtrain.errors import DataError, Problem

_MEMORY_BYTES = 2 * 2**30
_CHUNK = 1 << 20
_SHOWN = 5


@dataclass(frozen=True)
class CaseSummary:
    """What was found in the files of one case.

    Args:
        case_id: The case.
        shape: Voxels (D, H, W), canonical.
        spacing: Voxel size (D, H, W) in mm.
        orientation: Where the file's axes point to, such as "RAS".
        dtype: Type of the stored voxels.
        intensity: Lowest and highest finite value, or None if the voxels were not read.
        voxels: Label value -> number of voxels; empty without a label.
    """

    case_id: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    intensity: tuple[float, float] | None = None
    voxels: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckReport:
    """The result of looking at a data set.

    Args:
        problems: What must be mended before training.
        warnings: What is unusual but can be trained on.
        cases: Summaries of the labelled cases that could be read, by id.
        test_cases: The same of the cases without a label.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    cases: tuple[CaseSummary, ...]
    test_cases: tuple[CaseSummary, ...]


@dataclass
class _Finding:
    case: Case
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    summary: CaseSummary | None = None
    digest: str | None = None


def inspect_dataset(
    dataset: Dataset,
    *,
    known: Sequence[Problem] = (),
    deep: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every file: there, readable to its end, geometry, label values, finite numbers, duplicates.

    Every file is read once. Threads share the work (decompression runs in parallel), with at most about 2 GiB of
    voxels in memory at a time, or one case.

    Args:
        dataset: What to check; its test cases are checked too.
        known: What was found while its cases were looked for; reported first, and nothing more of the same files.
        deep: False looks at headers only.
        workers: Threads; as many as there are processors, at most 8, if None.
        progress: Called with cases done, cases in all and the case's id.
    """
    gate = MemoryGate(_MEMORY_BYTES)
    everything = [*dataset.cases, *dataset.test_cases]
    findings: list[_Finding] = []
    with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="check") as pool:
        try:
            for finding in pool.map(lambda case: _check_case(case, dataset, deep, gate), everything):
                findings.append(finding)
                if progress is not None:
                    progress(len(findings), len(everything), finding.case.case_id)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    said = {problem.where for problem in known}
    found = [*_check_ids(dataset), *(problem for finding in findings for problem in finding.problems)]
    problems = [*known, *(problem for problem in found if problem.where not in said)]
    warnings = [warning for finding in findings for warning in finding.warnings]
    for duplicate, harmful in _find_duplicates(findings):
        (problems if harmful else warnings).append(duplicate)
    labelled = findings[: len(dataset.cases)]
    if deep:
        warnings += _check_absent_classes(dataset, labelled)
    return CheckReport(
        problems=tuple(_shorten(problems, dataset)),
        warnings=tuple(_shorten(warnings, dataset)),
        cases=tuple(finding.summary for finding in labelled if finding.summary),
        test_cases=tuple(finding.summary for finding in findings[len(dataset.cases) :] if finding.summary),
    )


def _check_case(case: Case, dataset: Dataset, deep: bool, gate: MemoryGate) -> _Finding:
    finding = _Finding(case)
    headers: list[Header] = []
    for path in case.images:
        _collect(finding, lambda: headers.append(read_header(path)))  # noqa: B023 - called at once
    if len(headers) == len(case.images):
        _check_image(finding, headers, dataset, deep, gate)
    if case.label is not None:
        _check_label(finding, headers[0] if headers else None, dataset, deep, gate)
    return finding


def _collect(finding: _Finding, work: Callable[[], None]) -> bool:
    """Run a step; what it raises becomes problems of the case."""
    try:
        work()
    except DataError as error:
        finding.problems += error.problems
        return False
    return True


def _check_image(finding: _Finding, headers: list[Header], dataset: Dataset, deep: bool, gate: MemoryGate) -> None:
    case, first = finding.case, headers[0]
    where = str(case.images[0])
    channels = sum(header.channels for header in headers)
    if channels != dataset.num_channels:
        names = ", ".join(dataset.channel_names)
        message = f"holds {_count(channels, 'channel')}, but dataset.json names {dataset.num_channels} ({names})"
        finding.problems.append(Problem(where=where, message=message))
    summary = CaseSummary(
        case_id=case.case_id,
        shape=first.grid.canonical_shape,
        spacing=first.grid.spacing,
        orientation=first.grid.axis_codes,
        dtype=str(first.dtype),
    )
    finding.summary = summary
    if not deep:
        for path, header in zip(case.images[1:], headers[1:]):
            difference = header.grid.matches(first.grid)
            if difference:
                message = f"{difference} of the first channel {case.images[0].name}"
                finding.problems.append(Problem(where=str(path), message=message))
        return

    def read() -> None:
        image = read_image(case.images).array
        finding.digest = _digest(image)
        broken = _count_non_finite(image)
        if broken:
            message = f"{_count(broken, 'voxel')} {'is' if broken == 1 else 'are'} NaN or infinite"
            finding.problems.append(Problem(where=where, message=message, hint="mend or leave out this case"))
            return
        low, high = float(image.min()), float(image.max())
        finding.summary = replace(summary, intensity=(low, high))
        if low == high:
            finding.warnings.append(Problem(where=where, message=f"every voxel is {low:g}"))

    voxels = int(np.prod(first.grid.shape))
    with gate.hold(8 * voxels * channels):
        _collect(finding, read)


def _check_label(finding: _Finding, image: Header | None, dataset: Dataset, deep: bool, gate: MemoryGate) -> None:
    path = finding.case.label
    assert path is not None
    headers: list[Header] = []
    if not _collect(finding, lambda: headers.append(read_header(path))):
        return
    if image is not None:
        mismatch = find_mismatch(finding.case, image.grid, headers[0].grid)
        if mismatch is not None:
            finding.problems.append(mismatch)
    if not deep:
        return

    def read() -> None:
        voxels = count_values(read_label(path).array)
        if finding.summary is not None:
            finding.summary = replace(finding.summary, voxels=voxels)
        _check_values(finding, str(path), voxels, dataset)

    with gate.hold(8 * int(np.prod(headers[0].grid.shape))):
        _collect(finding, read)


def find_mismatch(case: Case, image: SourceGrid, label: SourceGrid) -> Problem | None:
    """How a label's place in space contradicts its image's, or None; the check and training judge by the same rule.

    Args:
        case: The two files, for the message.
        image: Grid of the image.
        label: Grid of the label.
    """
    difference = label.matches(image)
    if difference is None:
        return None
    hint = "if the voxels do lie on each other, copy the image's header into the label"
    message = f"{difference} of the image {case.images[0].name}"
    return Problem(where=str(case.label), message=message, hint=hint if label.shape == image.shape else None)


def _check_values(finding: _Finding, where: str, voxels: dict[int, int], dataset: Dataset) -> None:
    declared = {value: name for name, value in dataset.labels.items()}
    allowed = {*declared, dataset.ignore_value} - {None}
    unknown = [value for value in voxels if value not in allowed]
    if unknown:
        shown = ", ".join(f"{value} ({_count(voxels[value], 'voxel')})" for value in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        names = ", ".join(f"{value} {name}" for value, name in declared.items())
        finding.problems.append(
            Problem(
                where=where,
                message=f"label values {shown}{more} are not declared; declared are {names}",
                hint="declare them in dataset.json, or mend the file",
            )
        )
    if not any(voxels.get(value) for value in dataset.label_values[1:]):
        finding.warnings.append(Problem(where=where, message="nothing but background is labelled"))


def count_values(label: np.ndarray) -> dict[int, int]:
    """How often each whole number occurs, ascending; works in chunks, so that a large label needs no large copy."""
    flat = label.reshape(-1)
    low = int(flat.min()) if flat.size else 0
    span = (int(flat.max()) - low + 1) if flat.size else 1
    if span > _CHUNK:
        values, numbers = np.unique(flat, return_counts=True)
        return {int(value): int(number) for value, number in zip(values, numbers)}
    counts = np.zeros(span, dtype=np.int64)
    for start in range(0, flat.size, _CHUNK):
        counts += np.bincount(flat[start : start + _CHUNK].astype(np.int64) - low, minlength=span)
    return {low + int(index): int(counts[index]) for index in np.flatnonzero(counts)}


def _check_ids(dataset: Dataset) -> list[Problem]:
    if not dataset.cases:
        return [Problem(where=str(dataset.root), message="there is no labelled case")]
    counts = Counter(case.case_id for case in (*dataset.cases, *dataset.test_cases))
    return [
        Problem(where=case_id, message=f"{number} cases have this id")
        for case_id, number in counts.items()
        if number > 1
    ]


def _find_duplicates(findings: Iterable[_Finding]) -> Iterator[tuple[Problem, bool]]:
    """Images with the same voxels, and whether a split could train on one and validate on the other."""
    owners: dict[str, list[Case]] = {}
    for finding in findings:
        if finding.digest is not None:
            owners.setdefault(finding.digest, []).append(finding.case)
    for same in owners.values():
        if len(same) == 1:
            continue
        harmful = len({case.group for case in same}) > 1
        others = ", ".join(case.case_id for case in (same[0], *same[2:]))
        hint = "remove one, or make them one patient with data.group_pattern" if harmful else None
        yield Problem(where=str(same[1].images[0]), message=f"the same image as {others}", hint=hint), harmful


def _check_absent_classes(dataset: Dataset, findings: Iterable[_Finding]) -> list[Problem]:
    seen = {value for finding in findings if finding.summary for value in finding.summary.voxels}
    return [
        Problem(where=str(dataset.root), message=f"no case holds the label {value} {name}")
        for name, value in dataset.labels.items()
        if seen and value not in seen
    ]


def _digest(image: np.ndarray) -> str:
    state = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def _count_non_finite(image: np.ndarray) -> int:
    if image.dtype.kind != "f":
        return 0
    return sum(int((~np.isfinite(plane)).sum()) for channel in image for plane in channel)


def _shorten(problems: Iterable[Problem], dataset: Dataset) -> list[Problem]:
    """Name files as seen from the data set's folder."""
    prefix = f"{dataset.root}{os.sep}"
    return [replace(problem, where=problem.where.removeprefix(prefix)) for problem in problems]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
