"""Bring a data set into the store: crop, resample and index every case once.

Everything is keyed by content and settings, done once and shared: by folds, runs, and processes that prepare the same
data at the same time. What a killed run leaves behind is removed by the next one.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medtrain.data.case import Case, Dataset
from medtrain.data.digests import DigestCache, digest_of
from medtrain.data.geometry import resampled_shape
from medtrain.data.io.nifti import Volume
from medtrain.data.labels import LabelMap
from medtrain.data.plan import Plan
from medtrain.data.preprocess import prepare_image
from medtrain.data.scan import RECENT, CaseScan, make_store, read_case, scan_cases, scan_key
from medtrain.data.store import (
    FORMAT,
    Store,
    case_folder,
    files_intact,
    format_size,
    mark_used,
    read_description,
    write_case,
)
from medtrain.data.workers import MemoryGate, Progress, for_each_case
from medtrain.errors import MedtrainError
from medtrain.run.atomic import atomic_dir, remove_leftovers

if TYPE_CHECKING:
    from medtrain.data.volume_data import VolumeData

MAX_LOCATIONS = 10_000
"""Foreground voxels kept per class and case."""

_EXPECTED_COMPRESSION = 0.8
_BYTES_PER_VOXEL = 16
_WAIT_FOR_DISK = 16 * 2**20
_log = logging.getLogger(__name__)


def prepare(
    dataset: Dataset,
    settings: VolumeData,
    plan: Plan,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Crop, resample and index every labelled case that is not in the store yet.

    Args:
        dataset: The cases.
        settings: Where the store is and which classes are joined.
        plan: Target spacing; whether the body's outline is needed; the patch that chunks are shaped for.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each newly prepared case.

    Returns:
        A view of the prepared cases.

    Raises:
        DataError: Files that are unreadable or contradict each other, all of them.
        MedtrainError: The disk has too little space left.
    """
    root = Path(settings.store)
    labels = LabelMap.from_dataset(dataset, settings.merge_labels)
    make_store(root)
    for left in (*remove_leftovers(root), *remove_leftovers(root / "cases"), *remove_leftovers(root / "scans")):
        _log.info("removed %s, left behind in the store by a killed run", left)
    digests = DigestCache(root / "digests.json")
    keys = {case.case_id: _case_key(case, digests, labels, plan) for case in dataset.cases}
    digests.save()
    folders = {case_id: case_folder(root, key) for case_id, key in keys.items()}
    # marked before looked at: one that is being removed is either missing here or put back
    there = {case_id for case_id, folder in folders.items() if mark_used(folder)}
    _note_foreign(folders[case_id] for case_id in there)
    todo = [case for case in dataset.cases if case.case_id not in there or not _is_intact(folders[case.case_id])]
    for case in todo:
        if folders[case.case_id].is_dir():
            _log.warning("the prepared case %s is damaged; it is prepared anew", case.case_id)
    if todo:
        scans = scan_cases(dataset, settings, case_ids={case.case_id for case in todo}, workers=workers)
        _check_free_space(root, list(scans.values()), plan)
        # processes that start together take the cases in different orders, so each does a share of the work
        random.Random(secrets.randbits(64)).shuffle(todo)
        gate = MemoryGate()

        def prepare_one(case: Case) -> None:
            folder, scan = folders[case.case_id], scans[case.case_id]
            voxels = max(_prepared_voxels(scan, plan), int(np.prod(scan.shape)))
            with gate.hold(_BYTES_PER_VOXEL * voxels * dataset.num_channels):
                read = RECENT.take(scan_key(case, digests, labels))
                if not _is_intact(folder):  # another process may have been faster
                    image, classes = read or read_case(case, dataset, labels)
                    _prepare_case(dataset.root, image, classes, labels, plan, folder)

        try:
            for_each_case(todo, prepare_one, workers=workers, progress=progress)
        finally:
            RECENT.clear()
    contents = {case.case_id: digest_of({"images": digests.of_case(case)[:-1]}) for case in dataset.cases}
    return Store(root, keys, {case.case_id: case for case in dataset.cases}, contents)


def _note_foreign(folders: Iterable[Path]) -> None:
    foreign = sum(not os.access(folder, os.W_OK) for folder in folders)
    if foreign:
        _log.info(
            "%d prepared cases belong to another user, whose `medtrain data clean` does not see this use", foreign
        )


def foreground_locations(label: np.ndarray, labels: LabelMap) -> dict[int, np.ndarray]:
    """Voxels of each class that is present, at most MAX_LOCATIONS of each, drawn with a fixed seed.

    Args:
        label: Class indices [D, H, W].
        labels: Number of classes and the ignore label; with one, index 0 holds annotated voxels of any class.

    Returns:
        int32 [N, 3] by class index, in array order.
    """
    rng = np.random.Generator(np.random.Philox(1234))
    flat = label.ravel()
    positions = np.flatnonzero(flat)
    classes = flat[positions]
    found: dict[int, np.ndarray] = {}
    if labels.ignore_index is not None:
        found[0] = np.flatnonzero(flat != labels.ignore_index)
    for index in range(1, labels.num_classes):
        found[index] = positions[classes == index]
    for index, voxels in found.items():
        if len(voxels) > MAX_LOCATIONS:
            voxels = voxels[np.sort(rng.choice(len(voxels), MAX_LOCATIONS, replace=False))]
        found[index] = np.stack(np.unravel_index(voxels, label.shape), axis=1).astype(np.int32)
    return {index: rows for index, rows in found.items() if len(rows)}


def _prepare_case(source: Path, image: Volume, classes: np.ndarray, labels: LabelMap, plan: Plan, folder: Path) -> None:
    prepared = prepare_image(image, plan.spacing, nonzero=_needs_body(plan))
    label = prepared.geometry.apply_label(classes)
    existing: Literal["replace", "keep"] = "replace" if folder.is_dir() else "keep"
    # waiting for the disk takes a small case longer than making it anew after a power cut, which is noticed
    large = prepared.array.nbytes >= _WAIT_FOR_DISK
    with atomic_dir(folder, existing=existing, sync=large) as temporary:
        write_case(
            temporary,
            source=source,
            image=prepared.array,
            label=label,
            body=prepared.body,
            source_label=classes,
            geometry=prepared.geometry,
            stats=prepared.stats,
            foreground=foreground_locations(label, labels),
            patch_size=plan.patch_size,
        )


def _needs_body(plan: Plan) -> bool:
    return any(channel.nonzero for channel in plan.normalization)


def _case_key(case: Case, digests: DigestCache, labels: LabelMap, plan: Plan) -> str:
    return digest_of(
        {
            "format": FORMAT,
            "files": digests.of_case(case),
            "labels": labels.to_json(),
            "spacing": list(plan.spacing),
            "nonzero": _needs_body(plan),
        }
    )


def _is_intact(folder: Path) -> bool:
    description = read_description(folder)
    return description is not None and files_intact(folder, description)


def _prepared_voxels(case_scan: CaseScan, plan: Plan) -> int:
    spacing = (case_scan.spacing[0], *plan.spacing) if plan.spatial_dims == 2 else plan.spacing
    return int(np.prod(resampled_shape(case_scan.cropped_shape, case_scan.spacing, spacing)))


def _check_free_space(root: Path, scans: Sequence[CaseScan], plan: Plan) -> None:
    # image, label, and the label on the scan's own grid
    sizes = [_prepared_voxels(s, plan) * (s.bytes_per_voxel + 1) + int(np.prod(s.shape)) for s in scans]
    expected = sum(sizes) * _EXPECTED_COMPRESSION
    free = shutil.disk_usage(root).free
    if free < expected:
        raise MedtrainError(
            f"preparing {len(scans)} cases in {root} takes about {format_size(expected)},"
            f" but only {format_size(free)} of the disk are free",
            hint="free some space, or set data.store to a folder on another disk",
        )
