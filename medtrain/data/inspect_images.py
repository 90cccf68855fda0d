"""Look at a set of labelled images: numbers in tables, outliers, and a contact sheet per class to see them on."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtrain.data.image_sets import read_sample_image
from medtrain.data.images.settings import ImageData
from medtrain.data.inspect_files import cell, clear_folder, png_bytes, write_csv, write_outliers
from medtrain.data.inspect_outliers import LEAST_CASES, Findings, Flag, Numbers, Suspect, compare
from medtrain.data.io.images import window_of
from medtrain.data.sample import ImageRef, Sample, SampleSet
from medtrain.data.workers import Progress, usable_cores
from medtrain.errors import DataError, Problem, UsageError
from medtrain.pictures.contact import caption, draw_page
from medtrain.pictures.thumbnails import absent, thumbnail
from medtrain.run.atomic import atomic_write, disk_errors

_TILE = 150
_COLUMNS, _ROWS = 10, 5
_MOST_PAGES = 10
_DUPLICATE = 40.0


@dataclass(frozen=True)
class ImageInspection:
    """What was found and written.

    Args:
        cases: All samples, the most suspicious first.
        problems: Images that cannot be used.
        files: What was written.
        compared: Whether there were enough images to compare.
    """

    cases: tuple[Suspect, ...]
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    compared: bool


@dataclass(frozen=True)
class _Measure:
    """One image: its size, channels, and grey levels."""

    shape: tuple[int, ...]
    channels: int
    mean: float
    deviation: float
    digest: str


def inspect_images(
    data: ImageData,
    sample_set: SampleSet,
    out: Path,
    *,
    known: Sequence[Problem] = (),
    missing: Collection[Path] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageInspection:
    """Decode every image once and write cases.csv, outliers.csv and sheet_<class>_NN.png.

    Sizes and grey levels are compared over the whole set; equal images of different samples are named. A class has at
    most 10 sheets, of its most suspicious samples.

    Args:
        data: The settings; their window is what is shown of images in Hounsfield units.
        sample_set: The samples.
        out: Folder, made if missing; what an earlier call wrote is replaced.
        known: What was found while the samples were looked for; reported first.
        missing: Files that `known` says are not there.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each image.

    Raises:
        UsageError: There are no images.
        MedtrainError: The folder cannot be written to.
    """
    refs = list(dict.fromkeys(ref for sample in sample_set.samples for ref in sample.images if ref is not None))
    if not refs:
        raise UsageError(f"{sample_set.set_name} holds no images to look at", hint="`medtrain data check` reads tables")
    measures, problems = _measure_all(refs, workers, progress)
    flags = _find_flags(sample_set, refs, measures, problems)
    cases = [
        Suspect(sample.sample_id, Findings(tuple(sorted(flags[sample.sample_id], key=lambda flag: -flag.severity))))
        for sample in sample_set.samples
    ]
    cases.sort(key=lambda case: (-case.suspicion, case.case_id))
    with disk_errors(out):
        clear_folder(out)
        files = [_write_cases(out / "cases.csv", sample_set, cases, measures)]
        files.append(write_outliers(out / "outliers.csv", cases))
        files += _write_sheets(out, sample_set, cases, measures, data.window)
    told = (*known, *(problem for ref, problem in problems.items() if ref not in missing))
    return ImageInspection(tuple(cases), told, tuple(files), len(measures) >= LEAST_CASES)


def _measure_all(
    refs: Sequence[ImageRef], workers: int | None, progress: Progress | None
) -> tuple[dict[ImageRef, _Measure], dict[ImageRef, Problem]]:
    measures: dict[ImageRef, _Measure] = {}
    problems: dict[ImageRef, Problem] = {}

    def look(ref: ImageRef) -> _Measure | Problem:
        try:
            return _measure(read_sample_image(ref).array)
        except DataError as error:
            return error.problems[0]

    with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="images") as pool:
        try:
            for done, (ref, result) in enumerate(zip(refs, pool.map(look, refs)), start=1):
                if isinstance(result, _Measure):
                    measures[ref] = result
                else:
                    problems[ref] = result
                if progress is not None:
                    progress(done, len(refs), str(ref))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return measures, problems


def _measure(array: np.ndarray) -> _Measure:
    state = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array).data)
    mean = float(array.mean(dtype=np.float64))
    return _Measure(array.shape[1:], len(array), mean, float(array.std(dtype=np.float64)), state.hexdigest())


def _find_flags(
    sample_set: SampleSet,
    refs: Sequence[ImageRef],
    measures: Mapping[ImageRef, _Measure],
    problems: Mapping[ImageRef, Problem],
) -> dict[str, list[Flag]]:
    of_image: dict[ImageRef, list[Flag]] = defaultdict(list)
    for ref, problem in problems.items():
        of_image[ref].append(Flag("unreadable", problem.message, 100.0))
    known = [ref for ref in refs if ref in measures]
    for ref in known:
        if measures[ref].deviation == 0:
            of_image[ref].append(Flag("blank", f"every pixel is {measures[ref].mean:g}", 60.0))
    if len(known) >= LEAST_CASES:
        for numbers in _numbers([measures[ref] for ref in known]):
            for index, flag in compare(numbers):
                of_image[known[index]].append(flag)
    flags: dict[str, list[Flag]] = {sample.sample_id: [] for sample in sample_set.samples}
    for sample in sample_set.samples:
        for image in sample.images:
            if image is not None:
                flags[sample.sample_id] += of_image[image]
    for sample_id, flag in _same(sample_set, measures):
        flags[sample_id].append(flag)
    return flags


def _numbers(measures: Sequence[_Measure]) -> list[Numbers]:
    """What is compared; sizes of images with as many axes as most have."""
    axes = [len(measure.shape) for measure in measures]
    usual = max(set(axes), key=axes.count)
    blank = (math.nan,) * usual
    shapes = np.array([measure.shape if len(measure.shape) == usual else blank for measure in measures], np.float64)
    channels = np.array([[float(measure.channels)] for measure in measures])
    means = np.array([[measure.mean] for measure in measures])
    deviations = np.array([[measure.deviation] for measure in measures])
    floor = max(0.15 * float(np.median(deviations)), 1e-9)
    return [
        Numbers("size", "{} pixels", shapes, 0.15, logarithmic=True),
        Numbers("channels", "{} channels", channels, 0.1),
        Numbers("brightness", "mean {}", means, floor),
        Numbers("contrast", "standard deviation {}", deviations, floor),
    ]


def _same(sample_set: SampleSet, measures: Mapping[ImageRef, _Measure]) -> list[tuple[str, Flag]]:
    """Equal images of different samples, told for each of them; other targets are the worse case."""
    owners: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in sample_set.samples:
        for ref in sample.images:
            if ref is not None and ref in measures:
                owners[measures[ref].digest][sample.sample_id] = sample
    found = []
    for same in owners.values():
        for sample in same.values() if len(same) > 1 else ():
            others = [other for other in same.values() if other is not sample]
            differ = any(other.targets != sample.targets for other in others)
            names = ", ".join(other.sample_id for other in others[:3]) + (" ..." if len(others) > 3 else "")
            message = f"the same image as {names}" + (", which is labelled otherwise" if differ else "")
            found.append((sample.sample_id, Flag("duplicate", message, _DUPLICATE + (20 if differ else 0))))
    return found


def _write_cases(
    path: Path, sample_set: SampleSet, cases: Sequence[Suspect], measures: Mapping[ImageRef, _Measure]
) -> Path:
    found = {case.case_id: case for case in cases}
    names = [target.target_name for target in sample_set.targets]
    rows: list[list[object]] = [
        ["case_id", "suspicion", "flags", *names, "image", "pixels", "channels", "mean", "deviation"]
    ]
    for sample in sample_set.samples:
        case = found[sample.sample_id]
        targets = [_target(sample_set, sample, index) for index in range(len(names))]
        head = [sample.sample_id, f"{case.suspicion:.2f}", "; ".join(flag.message for flag in case.flags), *targets]
        for ref in sample.images:
            if ref is None:
                continue
            row: list[object] = [*head, str(ref)]
            if ref in measures:
                measure = measures[ref]
                shape = " x ".join(map(str, measure.shape))
                row += [shape, measure.channels, cell(measure.mean), cell(measure.deviation)]
            rows.append(row)
    return write_csv(path, rows)


def _target(sample_set: SampleSet, sample: Sample, index: int) -> str:
    value, classes = sample.targets[index], sample_set.targets[index].classes
    if value is None:
        return ""
    return f"{value:g}" if classes is None else classes[int(value)]


def _write_sheets(
    out: Path,
    sample_set: SampleSet,
    cases: Sequence[Suspect],
    measures: Mapping[ImageRef, _Measure],
    window: str | None,
) -> list[Path]:
    samples = {sample.sample_id: sample for sample in sample_set.samples}
    groups: dict[str, list[Suspect]] = {}
    single = len(sample_set.targets) == 1 and sample_set.targets[0].classes is not None
    for case in cases:
        name = (_target(sample_set, samples[case.case_id], 0) or "unlabelled") if single else "all"
        groups.setdefault(name, []).append(case)
    files: list[Path] = []
    per_page = _COLUMNS * _ROWS
    for name, group in sorted(groups.items()):
        pages = min(math.ceil(len(group) / per_page), _MOST_PAGES)
        stem = re.sub(r"[^\w.-]+", "_", name)
        for page in range(pages):
            part = group[page * per_page : (page + 1) * per_page]
            tiles = []
            for case in part:
                sample = samples[case.case_id]
                readable = [ref for ref in sample.images if ref is not None and ref in measures]
                remark = _remark(sample_set, sample, told=not single)
                lines = [flag.message for flag in case.flags]
                tiles.append(caption(_picture(readable, sample, window), case.case_id, remark, lines))
            shown = f"{len(group)} samples" if pages * per_page >= len(group) else f"{pages * per_page} of {len(group)}"
            title = f"{sample_set.set_name}: {name}: {shown}, the most suspicious first (page {page + 1} of {pages})"
            path = out / f"sheet_{stem}_{page + 1:02d}.png"
            atomic_write(path, png_bytes(draw_page(title, tiles, (), columns=_COLUMNS)), sync=False)
            files.append(path)
    return files


def _picture(readable: Sequence[ImageRef], sample: Sample, window: str | None) -> np.ndarray:
    """The image of a sample, the first four of several, or what stands for none."""
    if not readable:
        return absent(_TILE, "cannot be read" if any(ref is not None for ref in sample.images) else "no image")
    if len(readable) == 1:
        return thumbnail(_read(readable[0], window), _TILE)
    tile = np.zeros((_TILE, _TILE, 3), np.uint8)
    half = _TILE // 2
    for position, ref in enumerate(readable[:4]):
        row, column = divmod(position, 2)
        part = thumbnail(_read(ref, window), half - 1)
        tile[row * (half + 1) : row * (half + 1) + half - 1, column * (half + 1) : column * (half + 1) + half - 1] = (
            part
        )
    return tile


def _read(ref: ImageRef, window: str | None) -> np.ndarray:
    image = read_sample_image(ref)
    if window is None or image.max_value is not None:
        return image.array
    centre, width = window_of(window)
    return np.clip(image.array, centre - width / 2, centre + width / 2)


def _remark(sample_set: SampleSet, sample: Sample, *, told: bool) -> str:
    """How many images it has, and what its targets are where the sheet does not say it."""
    parts = [f"{len(sample.images)} images"] if len(sample.images) > 1 else []
    if told:
        values = list(zip(sample_set.targets, sample.targets))
        # of findings, each there or not, those that are there are named
        findings = [(target, value) for target, value in values if target.classes and len(target.classes) == 2]
        found = [target.target_name for target, value in findings if value == 1]
        others = [
            f"{target.target_name} {_target(sample_set, sample, index)}"
            for index, (target, value) in enumerate(values)
            if (target, value) not in findings and value is not None
        ]
        parts += [*others, *found] or (["none"] if any(value == 0 for _, value in findings) else ["unlabelled"])
    return ", ".join(parts)
