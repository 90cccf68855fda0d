"""Look at every labelled volume: numbers in tables, outliers, and contact sheets to see them on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtrain.data.case import Case, Dataset
from medtrain.data.fingerprint import make_fingerprint
from medtrain.data.inspect_files import cell, clear_folder, png_bytes, png_pixels, write_csv, write_outliers
from medtrain.data.inspect_measure import CaseMeasure, measure_case
from medtrain.data.inspect_outliers import LEAST_CASES, Findings, Flag, Suspect, find_outliers
from medtrain.data.io.nifti import Volume
from medtrain.data.labels import LabelMap
from medtrain.data.scan import CaseScan, count_voxels, read_case, scan_volume
from medtrain.data.volume_data import VolumeData
from medtrain.data.workers import MemoryGate, Progress, for_each_case
from medtrain.errors import DataError, Problem
from medtrain.pictures.contact import caption, draw_blank, draw_page, draw_tile
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors

_BYTES_PER_VOXEL = 10
_TILE = 150
_COLUMNS, _ROWS = 3, 6
_PANELS = "axial, coronal and sagittal plane with label, axial without"


@dataclass(frozen=True)
class InspectedCase(Suspect):
    """A case among the others.

    Args:
        measure: None where the files cannot be read.
    """

    measure: CaseMeasure | None


@dataclass(frozen=True)
class Inspection:
    """What was found and written.

    Args:
        cases: All cases, the most suspicious first.
        problems: Files that cannot be used.
        files: What was written.
        compared: Whether there were enough cases to compare.
    """

    cases: tuple[InspectedCase, ...]
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    compared: bool


@dataclass(frozen=True)
class _Look:
    scan: CaseScan
    measure: CaseMeasure
    tile: bytes  # PNG


def inspect_volumes(
    settings: VolumeData,
    dataset: Dataset,
    out: Path,
    *,
    known: Sequence[Problem] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Read every labelled case once and write fingerprint.json, cases.csv, outliers.csv and sheet_NN.png.

    Memory is bounded by one case, or about 4 GiB of them, however many there are.

    Args:
        settings: Which classes are joined, and whether all were annotated.
        dataset: The cases.
        out: Folder, made if missing; what an earlier call wrote is replaced.
        known: What was found while the cases were looked for; reported first, and nothing more of the same files.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each case.

    Raises:
        MedtrainError: The folder cannot be written to.
    """
    labels = LabelMap.from_dataset(dataset, settings.merge_labels)
    gate = MemoryGate()
    unreadable: dict[str, list[Problem]] = {}

    def look(case: Case) -> _Look | None:
        try:
            with gate.hold(_BYTES_PER_VOXEL * count_voxels(case) * dataset.num_channels):
                return _look(case, dataset, labels)
        except DataError as error:
            unreadable[case.case_id] = list(error.problems)
            return None

    looks = {
        case_id: found
        for case_id, found in for_each_case(dataset.cases, look, workers=workers, progress=progress).items()
        if found is not None
    }
    measures = [looks[case.case_id].measure for case in dataset.cases if case.case_id in looks]
    findings = find_outliers(
        measures,
        labels.class_names,
        complete=settings.annotated is None,
        calibrated=[_is_ct(name) for name in dataset.channel_names],
    )
    for case_id, problems in unreadable.items():
        findings[case_id] = Findings(tuple(Flag("unreadable", problem.message, 100.0) for problem in problems))
    by_id = {measure.case_id: measure for measure in measures}
    cases = [InspectedCase(case_id, found, by_id.get(case_id)) for case_id, found in findings.items()]
    cases.sort(key=lambda case: (-case.suspicion, case.case_id))
    with disk_errors(out):
        clear_folder(out)
        files = [_write_fingerprint(out, dataset, {key: found.scan for key, found in looks.items()})]
        files.append(_write_cases(out / "cases.csv", cases, dataset, labels))
        files.append(write_outliers(out / "outliers.csv", cases))
        tiles = {key: found.tile for key, found in looks.items()}
        files += _write_sheets(out, dataset, labels, cases, tiles)
    said = {problem.where for problem in known}
    told = [*known, *(new for problems in unreadable.values() for new in problems if new.where not in said)]
    return Inspection(tuple(cases), tuple(told), tuple(f for f in files if f is not None), len(cases) >= LEAST_CASES)


def _look(case: Case, dataset: Dataset, labels: LabelMap) -> _Look:
    image, classes = read_case(case, dataset, labels)
    tile = draw_tile(
        image.array[0],
        classes,
        image.spacing,
        num_classes=labels.num_classes,
        window=_window(image, classes, dataset.channel_names[0], labels.num_classes),
        size=_TILE,
    )
    return _Look(
        scan_volume(image, classes, labels.num_classes),
        measure_case(case.case_id, image, classes, labels.num_classes),
        png_bytes(tile),
    )


def _window(image: Volume, classes: np.ndarray, channel: str, num_classes: int) -> tuple[float, float] | None:
    """Of CT, what surrounds the labelled intensities; others are shown from their 1st to 99th percentile."""
    if not _is_ct(channel):
        return None
    sparse = tuple(slice(None, None, max(1, n // 128)) for n in classes.shape)
    inside = (classes[sparse] > 0) & (classes[sparse] < num_classes)
    values = image.array[0][sparse][inside]
    if values.size < 10:
        return (-160.0, 240.0)
    low, high = (float(value) for value in np.percentile(values, (5, 95)))
    return min(low - 150.0, -100.0), max(high + 100.0, low + 250.0)


def _is_ct(channel: str) -> bool:
    return channel.lower() == "ct"


def _write_fingerprint(out: Path, dataset: Dataset, scans: Mapping[str, CaseScan]) -> Path | None:
    labelled = [case_id for case_id, scan in scans.items() if scan.foreground]
    if not labelled:
        return None
    order = sorted(scans)
    fingerprint = make_fingerprint(scans, order)
    path = out / "fingerprint.json"
    content = {"dataset": dataset.dataset_name, "cases": order, **fingerprint.to_json()}
    atomic_write_json(path, content, sync=False)
    return path


def _write_cases(path: Path, cases: Sequence[InspectedCase], dataset: Dataset, labels: LabelMap) -> Path:
    axes = "dhw"
    header = ["case_id", "suspicion", "flags", "orientation"]
    header += [f"{name}_{axis}" for name in ("voxels", "spacing_mm", "extent_mm") for axis in axes]
    percentiles = ("p01", "median", "p99")
    header += [f"{name}_{channel}" for channel in range(dataset.num_channels) for name in percentiles]
    columns = ["voxels", "ml", "centre_d", "centre_h", "centre_w", "reach_d_mm", "reach_h_mm", "reach_w_mm"]
    columns += ["parts", "largest_part", "level", "variation", "contrast", "touches"]
    header += [f"{name}_{column}" for name in labels.class_names[1:] for column in columns]
    rows: list[list[object]] = [[*header, "ignored_voxels"]]
    for case in sorted(cases, key=lambda case: case.case_id):
        flags = "; ".join(flag.message for flag in case.flags)
        row: list[object] = [case.case_id, f"{case.suspicion:.2f}", flags]
        measure = case.measure
        if measure is not None:
            row += [measure.orientation, *measure.shape, *map(cell, measure.spacing), *map(cell, measure.extent)]
            row += [cell(value) for channel in measure.percentiles for value in channel]
            for index in range(1, labels.num_classes):
                found = measure.classes.get(index)
                if found is None:
                    row += [0, 0, *[""] * (len(columns) - 2)]
                    continue
                row += [found.voxels, cell(found.volume_ml), *map(cell, (*found.centre, *found.reach))]
                row += [found.components, cell(found.largest), cell(found.level), cell(found.variation)]
                row += [cell(found.contrast), " ".join(found.borders)]
            row.append(measure.ignored)
        rows.append(row)
    return write_csv(path, rows)


def _write_sheets(
    out: Path, dataset: Dataset, labels: LabelMap, cases: Sequence[InspectedCase], tiles: Mapping[str, bytes]
) -> list[Path]:
    per_page = _COLUMNS * _ROWS
    pages = math.ceil(len(cases) / per_page)
    sample = png_pixels(next(iter(tiles.values()))) if tiles else draw_blank(4 * _TILE, _TILE)
    files = []
    for page in range(pages):
        part = cases[page * per_page : (page + 1) * per_page]
        drawn = []
        for case in part:
            pixels = png_pixels(tiles[case.case_id]) if case.case_id in tiles else np.zeros_like(sample)
            drawn.append(caption(pixels, case.case_id, _remark(case), [flag.message for flag in case.flags]))
        order = f"{len(cases)} cases, the most suspicious first (page {page + 1} of {pages})"
        title = f"{dataset.dataset_name}: {order}: {_PANELS}"
        path = out / f"sheet_{page + 1:0{max(2, len(str(pages)))}d}.png"
        atomic_write(path, png_bytes(draw_page(title, drawn, labels.class_names, columns=_COLUMNS)), sync=False)
        files.append(path)
    return files


def _remark(case: InspectedCase) -> str:
    if case.measure is None:
        return "cannot be read"
    shape = " x ".join(map(str, case.measure.shape))
    return f"{shape}, {' x '.join(f'{mm:.3g}' for mm in case.measure.spacing)} mm"
