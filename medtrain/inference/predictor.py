"""Trained models applied to scans: read, segment, write, one scan after the other without waiting for the disk."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medtrain.crossval.folder import is_crossval
from medtrain.data.geometry import CaseGeometry
from medtrain.data.io.nifti import Volume, is_nifti
from medtrain.data.preprocess import prepare_image
from medtrain.engine.device import out_of_memory
from medtrain.errors import DataError, MedtrainError, Problem, UsageError
from medtrain.inference.cascade import FirstStage
from medtrain.inference.ensemble import check_together, share_normalization
from medtrain.inference.postprocess import find_structures
from medtrain.inference.predictions import TABLE, CaseReport, PredictionFolder
from medtrain.inference.scans import Scan, as_dicom_seg, find_scans, label_values, read_scan, write_segmentation
from medtrain.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from medtrain.data.plan import Plan
    from medtrain.engine.restore import LoadedRun

log = logging.getLogger(__name__)

_WRITES_AHEAD = 2
_FAR_SPACING = 2.0
"""A voxel size this many times the model's, or its inverse, is further than augmentation goes."""


@dataclass(frozen=True)
class _Prepared:
    """A scan as network input, the way back to its file's grid, and why to doubt its segmentation.

    Args:
        files: The scan's.
        images: [C, D, H, W], one for all networks or one for each.
        geometry: The way back.
        seconds: Time of reading and preparing it.
        doubts: Empty as a rule.
    """

    files: Sequence[Path]
    images: Sequence[Tensor]
    geometry: CaseGeometry
    seconds: float
    doubts: str


class Predictor:
    """Segment scans as the run's evaluation does: same preparation, sliding window, way back and post-processing.

    Args:
        runs: An opened run, or several that decide together: the mean of their probabilities counts, in the windows,
            settings and post-processing of the first. All stay in memory.
        mirror: Average over mirrored inputs; None takes the run's setting.

    Raises:
        UsageError: The runs cannot decide together.
        MedtrainError: The run's post-processing names an unknown class, or the first stage of a cascade is missing.
    """

    def __init__(self, runs: LoadedRun | Sequence[LoadedRun], *, mirror: bool | None = None) -> None:
        self._runs: Sequence[LoadedRun] = runs if isinstance(runs, Sequence) else [runs]
        check_together(self._runs)
        run = self._runs[0]
        assert isinstance(run.task, Segmentation), run.task
        self._run = run
        self._plan: Plan = run.plan
        self._task = copy.copy(run.task)
        if mirror is not None:
            self._task.inference = dataclasses.replace(run.task.inference, mirror=mirror)
        find_structures(self._task.inference.keep_largest, self._plan.class_names, self._plan.named_regions)
        self._values = label_values(self._plan)
        self._first_stage = FirstStage.behind(run)

    def predict_case(self, images: Sequence[Path]) -> np.ndarray:
        """Segment one scan.

        Args:
            images: One file per channel in channel order, or one file with all channels.

        Returns:
            Label values as in the training data [D, H, W], on the scan's whole grid in the canonical frame.

        Raises:
            DataError: The scan cannot be read or is not what the model was trained on.
        """
        return self._values[self._segment(self._prepare(images))[0]]

    def predict_folder(
        self, scans: Path, out: Path, *, overwrite: bool = False, output_format: str = "nifti"
    ) -> list[CaseReport]:
        """Segment the scans of a folder, or one scan, into `<out>/<case>.nii.gz`, or `.dcm` for `dicom_seg`.

        The next scan is read and the last one written while one is segmented. A scan that cannot be segmented is
        reported and the others go on. Interrupted and started again, it continues where it stopped. `predictions.csv`
        lists every scan with its status and volumes, and says where a segmentation is to be doubted.

        Args:
            scans: A folder of NIfTI files or of DICOM series, or one file; see `find_scans`.
            out: Folder for the segmentations, not the scans' own.
            overwrite: Predict again what is there, and replace files of the same names.
            output_format: `nifti`, or `dicom_seg` for scans that are DICOM series.

        Returns:
            One report per scan, sorted by case.

        Raises:
            UsageError: There are no scans, or `out` is theirs, holds other files or is named like a scan.
            MedtrainError: The disk is full.
        """
        if is_nifti(out):
            raise UsageError(
                f"OUT is a folder, and {out} is named like a file",
                hint=f"choose a folder, such as {out.parent / 'segmentations'}; each scan's file in it has its name",
            )
        own = scans if scans.is_dir() else scans.parent
        if out.resolve() == own.resolve():
            raise UsageError(
                f"the segmentations would be written among the scans in {own}",
                hint=f"choose another folder, such as {own / 'segmentations'}",
            )
        found = find_scans(scans, self._plan.channel_names)
        if output_format == "dicom_seg":
            found = [as_dicom_seg(scan) for scan in found]
        folder = PredictionFolder(out, self._identity(), found, self._plan.judged_names, overwrite=overwrite)
        reports: dict[str, CaseReport] = {}
        todo: list[Scan] = []
        for scan in found:
            if scan.problem is not None:
                reports[scan.case_id] = self._fail(folder, scan, scan.problem)
            elif folder.is_done(scan):
                reports[scan.case_id] = CaseReport(scan.case_id, "skipped")
            else:
                todo.append(scan)
        skipped = sum(report.status == "skipped" for report in reports.values())
        if skipped:
            log.info("%d of %d scans were segmented before and are skipped", skipped, len(found))
        reports |= {report.case_id: report for report in self._run_all(todo, folder)}
        failed = [case_id for case_id in sorted(reports) if not reports[case_id].ok]
        log.info("%d of %d scans segmented; table in %s", len(reports) - len(failed), len(reports), out / TABLE)
        if failed:
            log.error("%d not segmented: %s", len(failed), ", ".join(failed))
        return [reports[case_id] for case_id in sorted(reports)]

    def _run_all(self, scans: Sequence[Scan], folder: PredictionFolder) -> list[CaseReport]:
        """Segment scan after scan in this thread; one thread reads ahead, one writes behind."""
        if scans:
            log.info("logits may take %s", self._task.inference.room.describe(self._run.device))
        reports: list[CaseReport] = []
        writes: deque[Future[CaseReport]] = deque()
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
            upcoming = reader.submit(self._prepare, scans[0].images) if scans else None
            for number, scan in enumerate(scans, start=1):
                assert upcoming is not None
                current, upcoming = upcoming, None
                try:
                    prepared = current.result()
                except MedtrainError as error:
                    reports.append(self._fail(folder, scan, error.message))
                    prepared = None
                except MemoryError:
                    reports.append(self._fail(folder, scan, "does not fit the main memory"))
                    prepared = None
                if number < len(scans):
                    upcoming = reader.submit(self._prepare, scans[number].images)
                if prepared is None:
                    continue
                started = time.perf_counter()
                try:
                    label, lesions = self._segment(prepared)
                except (MemoryError, RuntimeError, UsageError) as error:
                    message = self._why_not(error)
                    if message is None:
                        raise
                    reports.append(self._fail(folder, scan, message))
                    continue
                if prepared.doubts:
                    log.warning("%s: %s", scan.case_id, prepared.doubts)
                seconds = prepared.seconds + time.perf_counter() - started
                log.info("scan %d of %d: %s in %.1f s", number, len(scans), scan.case_id, seconds)
                writes.append(writer.submit(self._write, folder, scan, label, lesions, prepared, seconds))
                # A bounded queue keeps memory bounded; a full disk stops the work here.
                while len(writes) > _WRITES_AHEAD:
                    reports.append(writes.popleft().result())
            reports += [write.result() for write in writes]
        return reports

    def _prepare(self, images: Sequence[Path]) -> _Prepared:
        started = time.perf_counter()
        volume = read_scan(images)
        channels = volume.array.shape[0]
        if channels != self._plan.in_channels:
            names = ", ".join(self._plan.channel_names)
            message = f"has {channels} channels; the model was trained on {self._plan.in_channels} ({names})"
            raise DataError([Problem(where=str(images[0]), message=message)])
        planes = volume.array.reshape(-1, *volume.array.shape[2:])  # one by one: no mask of the whole scan
        if volume.array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in planes):
            raise DataError([Problem(where=str(images[0]), message="holds NaN or infinite voxels")])
        doubts = "; ".join(_doubts(volume, self._plan))
        nonzero = any(channel.nonzero for channel in self._plan.normalization)
        prepared = prepare_image(volume, self._plan.spacing, nonzero=nonzero)
        del volume
        plans = self._runs[:1] if share_normalization(self._runs) else self._runs
        inputs = [torch.from_numpy(prepared.normalized(run.plan.normalization)) for run in plans]
        return _Prepared(images, inputs, prepared.geometry, time.perf_counter() - started, doubts)

    def _segment(self, prepared: _Prepared) -> tuple[np.ndarray, dict[str, list[float]]]:
        """Class indices [D, H, W] on the scan's whole grid, and how sure the networks are of each lesion."""
        images = prepared.images
        if self._first_stage is not None:
            stage = self._first_stage
            images = [stage.add_channels(image, prepared.files, prepared.geometry) for image in images]
        models = [run.model for run in self._runs]
        maps = self._task.lesion_maps()
        with torch.inference_mode(), self._run.precision.autocast():
            label = self._task.predict_label(models, images, prepared.geometry, final=True, maps=maps)
        return label, {} if maps is None else self._task.score_lesions(label, maps)

    def _why_not(self, error: Exception) -> str | None:
        """Why a scan does not fit the memory; None where the error is another one."""
        if isinstance(error, UsageError):  # inference.max_memory, which a smaller scan may be content with
            return error.message
        if not out_of_memory(error):
            return None
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return "does not fit the main memory"
        torch.cuda.empty_cache()
        return f"does not fit the memory of {self._run.device}"

    def _write(
        self,
        folder: PredictionFolder,
        scan: Scan,
        label: np.ndarray,
        lesions: dict[str, list[float]],
        prepared: _Prepared,
        seconds: float,
    ) -> CaseReport:
        started = time.perf_counter()
        geometry = prepared.geometry
        try:
            write_segmentation(folder.path / scan.output_name, label, self._plan, geometry.grid, scan)
        except DataError as error:  # the scan, not the disk
            return self._fail(folder, scan, error.message)
        plan = self._plan
        # slice by slice: bincount makes a copy of 64 bits
        counts = np.sum([np.bincount(plane.ravel(), minlength=plan.num_classes) for plane in label], axis=0).tolist()
        structures = plan.regions or [(index,) for index in range(1, plan.num_classes)]
        voxels = {name: sum(counts[i] for i in part) for name, part in zip(plan.judged_names, structures, strict=True)}
        millilitres = float(np.prod(geometry.canonical_spacing)) / 1000.0
        report = CaseReport(
            scan.case_id,
            "done",
            message=prepared.doubts,
            seconds=seconds + time.perf_counter() - started,
            voxels=voxels,
            volume_ml={name: count * millilitres for name, count in voxels.items()},
            lesions=lesions,
        )
        folder.record(scan, report)
        return report

    def _fail(self, folder: PredictionFolder, scan: Scan, message: str) -> CaseReport:
        message = "; ".join(message.splitlines())
        log.error("%s is not segmented: %s", scan.case_id, message)
        report = CaseReport(scan.case_id, "failed", message=message)
        folder.record(scan, report)
        return report

    def _identity(self) -> dict[str, Any]:
        """What the predictions depend on besides the scan."""
        settings = dataclasses.asdict(self._task.inference)
        del settings["max_memory"], settings["window_batch"]  # these change nothing but time and memory
        members = [{"run": _name(run), "step": run.step, "weights": run.weights} for run in self._runs]
        identity = {**members[0], "inference": settings}
        if self._plan.regions is not None:  # a label map says which class a voxel has, not of which region it is
            painted = [self._plan.label_values[region[0]] for region in self._plan.regions]
            identity["painted_with"] = dict(zip(self._plan.region_names, painted, strict=True))
        return {**identity, "with": members[1:]} if len(members) > 1 else identity


def _name(run: LoadedRun) -> str:
    """A run's name; those of a cross-validation are called alike, so its name goes before."""
    folder = run.run_dir
    return f"{folder.parent.name}/{folder.name}" if is_crossval(folder.parent) else folder.name


def _doubts(volume: Volume, plan: Plan) -> Iterator[str]:
    """What makes a scan unlike any that a model is trained on, though it can be segmented."""
    for name, channel in zip(plan.channel_names, volume.array, strict=True):
        if channel.min() == channel.max():
            yield f"no contrast: every voxel of {name} is {channel.flat[0]:g}"
    if min(volume.array.shape[1:]) == 1 < min(*plan.patch_size, *plan.median_shape):
        yield "a single slice, and the model was trained on volumes"
    sizes = (volume.spacing, *(plan.source_spacing or (plan.spacing, plan.spacing)))
    own, finest, coarsest = (size[-plan.spatial_dims :] for size in sizes)  # a 2-D plan keeps a scan's slices
    far = _FAR_SPACING * 1.001
    if any(not low / far <= size <= high * far for size, low, high in zip(own, finest, coarsest, strict=True)):
        ours, *theirs = (" x ".join(f"{mm:.3g}" for mm in size) for size in (own, finest, coarsest))
        yield f"spacing {ours} mm is far from the training cases': {' to '.join(dict.fromkeys(theirs))} mm"
