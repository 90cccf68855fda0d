"""A trained model of images, bags, views and tables applied to new samples: a table of probabilities and classes."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medtrain.data.images.incoming import TABLE_SUFFIXES, input_digest, told_file, told_files
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.samples import ReadSample, SampleReader
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import Sample, SampleSet
from medtrain.data.splits import some
from medtrain.data.transforms.images.base import ImageAugmentation
from medtrain.errors import DataError, MedtrainError, Problem, UsageError
from medtrain.inference.doubts import DoubtingImages
from medtrain.inference.predictions import MARKER, TABLE, PredictionTable, Row, read_rows, write_rows
from medtrain.registry import build, plain
from medtrain.run.atomic import disk_errors
from medtrain.run.threads import available_threads
from medtrain.tasks.base import Record
from medtrain.tasks.generic import Generic
from medtrain.tasks.images import ImageTask

if TYPE_CHECKING:
    from medtrain.engine.restore import LoadedRun

log = logging.getLogger(__name__)

_AHEAD = 2  # batches that are read before they are needed
_TELL_EVERY_S = 5.0
_LEADING = ("case_id", "file", "input", "status", "message")
_NO_FOLDERS = (*TABLE_SUFFIXES, ".xlsx", ".json")
_NOT_TOLD = ("case_id", "group", "loss", "loss_weight", "attention")

Read = tuple[Sample, ReadSample | MedtrainError, str]
"""A sample, what was read or why it was not, and what is unusual about its images."""


class ImagePredictor:
    """Predicts as the run's evaluation does: the same reading, the same batches, the same decisions.

    Args:
        run: An opened run of the images family.

    Raises:
        UsageError: The task predicts nothing, or its inference leaves a decision to the validation part that was
            never taken.
    """

    def __init__(self, run: LoadedRun) -> None:
        if isinstance(run.task, Generic):
            run.task.check_predicts(run.model)
        elif not isinstance(run.task, ImageTask):
            raise UsageError(f"task={run.config['task']['name']} predicts no labelled images")
        self._run = run
        self._task: ImageTask | Generic = run.task
        self._plan: ImagePlan = run.plan
        self._settings: ImageData = build("data", run.config["data"])
        self._augment: ImageAugmentation = build("augment", run.config["augment"], **run.plan.runtime())

    def predict(self, source: Path, out: Path, *, overwrite: bool = False) -> bool:
        """Predict what `source` holds into a table; return whether every sample was predicted.

        A sample that cannot be read is reported and the others go on. Interrupted and started again, it continues where
        it stopped.

        Args:
            source: See `ImageData.read_new`.
            out: A folder, for `predictions.csv`, or the table itself (`.csv`).
            overwrite: Predict again what is there.

        Raises:
            UsageError: There is nothing to predict, or `out` holds something else.
        """
        sample_set = self._settings.read_new(source, self._plan)
        if not sample_set.samples:
            raise UsageError(f"{source} holds no sample")
        table = _Tables(out, self._identity(), sample_set, overwrite=overwrite)
        if table.path.resolve() == source.resolve():
            raise UsageError(f"{source} would be replaced by its predictions", hint="choose another OUT")
        table.open()
        if others := table.replaced():
            log.warning("rows of other files or values with the same ids are replaced: %s", some(others))
        todo = [sample for sample in sample_set.samples if not table.is_done(sample)]
        total = len(sample_set.samples)
        if len(todo) < total:
            log.info("%d of %d samples were predicted before and are skipped", total - len(todo), total)
        failed, done, told = 0, total - len(todo), time.monotonic()
        try:
            with torch.inference_mode(), self._run.precision.autocast():
                for batch in self._batches(todo):
                    failed += self._predict_batch(batch, table)
                    done += len(batch)
                    if time.monotonic() - told > _TELL_EVERY_S:
                        told = time.monotonic()
                        log.info("%d of %d samples", done, total)
        finally:
            table.write()
        log.info("%d of %d samples predicted; table in %s", total - failed, total, table.path)
        if failed:
            log.error("%d of %d samples not predicted; column `message` says why", failed, total)
        return not failed

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[Read]]:
        """Samples read ahead in threads, in batches as evaluation has them."""
        size = 1 if self._plan.max_instances is not None else self._plan.batch_size
        groups = [samples[start : start + size] for start in range(0, len(samples), size)]
        with ThreadPoolExecutor(min(4, available_threads()), thread_name_prefix="read") as pool:
            waiting: deque[list[Future[Read]]] = deque()
            try:
                for group in groups:
                    waiting.append([pool.submit(self._read, sample) for sample in group])
                    if len(waiting) > _AHEAD:
                        yield [future.result() for future in waiting.popleft()]
                while waiting:
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, sample: Sample) -> Read:
        images = DoubtingImages(self._plan)
        reader = SampleReader(plan=self._plan, copies=images, augment=self._augment)
        try:
            if self._plan.has_images and not self._plan.optional_image and not any(sample.images):
                raise DataError([Problem(where=sample.sample_id, message="has no image")])
            return sample, reader.read(sample), images.doubts()
        except MedtrainError as error:
            return sample, error, ""

    def _predict_batch(self, batch: Sequence[Read], table: _Tables) -> int:
        """Predict a batch and enter it; return how many of its samples could not be predicted."""
        good: list[tuple[Sample, ReadSample, str]] = []
        failed = 0
        for sample, found, doubts in batch:
            if isinstance(found, MedtrainError):
                table.fail(sample, found.message)
                failed += 1
            else:
                good.append((sample, found, doubts))
        return failed + (self._judge(good, table) if good else 0)

    def _judge(self, batch: Sequence[tuple[Sample, ReadSample, str]], table: _Tables) -> int:
        try:
            records = self._records([found for _, found, _ in batch])
        except (MedtrainError, torch.OutOfMemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(batch) > 1:  # whichever sample it is, the others go on
                middle = len(batch) // 2
                return self._judge(batch[:middle], table) + self._judge(batch[middle:], table)
            message = error.message if isinstance(error, MedtrainError) else ""
            table.fail(batch[0][0], message or f"does not fit the memory of {self._run.device}")
            return 1
        for (sample, found, doubts), record in zip(batch, records, strict=True):
            if doubts:
                log.warning("%s: %s", sample.sample_id, doubts)
            table.enter(sample, found, record, doubts)
        return 0

    def _records(self, samples: Sequence[ReadSample]) -> list[Record]:
        reader = SampleReader(plan=self._plan, copies=DoubtingImages(self._plan), augment=self._augment)
        batch = reader.collate(samples)
        del batch["target"]  # nothing is known of new samples, and a table that says so is not read
        batch.pop("annotation", None)
        records = self._task.evaluation_step(self._run.model, batch, final=True)
        self._task.begin_evaluation()
        return self._task.readable(records)

    def _identity(self) -> dict[str, Any]:
        """What the predictions depend on besides the samples."""
        return {
            "run": self._run.run_dir.name,
            "step": self._run.step,
            "weights": self._run.weights,
            "inference": plain(dataclasses.asdict(self._task.inference)),
            "decision": dict(self._task.decision),
        }


class _Tables:
    """The table of predictions, and beside it that of the attention over views or instances."""

    def __init__(self, out: Path, model: dict[str, Any], sample_set: SampleSet, *, overwrite: bool) -> None:
        self._model = model
        self._set = sample_set
        self._overwrite = overwrite
        as_file = out.suffix.lower() == ".csv"
        if not as_file and out.is_file():
            known = out.suffix.lower() in TABLE_SUFFIXES
            hint = f"{out.with_suffix('.csv')}" if known else "choose a folder, or a name ending in .csv"
            raise UsageError(f"{out} is a file; OUT is a folder or a .csv file", hint=hint)
        if not as_file and not out.exists() and out.suffix.lower() in _NO_FOLDERS:
            raise UsageError(
                f"{out} is named like a file; predictions are written to a folder or to a .csv file",
                hint=f"{out.with_suffix('.csv')}",
            )
        if as_file and out.is_dir():
            raise UsageError(f"{out} is a folder, but is named like a table", hint=f"choose {out / TABLE}")
        self.path = out if as_file else out / TABLE
        self._marker = out.with_suffix(".json") if as_file else out / MARKER
        self._attention_path = self.path.with_name(f"{self.path.stem}_attention.csv")
        # taken before anything is read: what changes meanwhile is predicted again the next time
        self._inputs = {sample.sample_id: input_digest(sample) for sample in sample_set.samples}
        self._attention: dict[str, list[Row]] = {}

    def open(self) -> None:
        """Continue the table that is there, or begin one."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        ids = [sample.sample_id for sample in self._set.samples]
        self._table = PredictionTable(
            self.path,
            self._marker,
            self._model,
            columns=_LEADING,
            redo=ids if self._overwrite else (),
            overwrite=self._overwrite,
            taken=[self.path.name] if self.path.exists() else (),
        )
        self._take_attention()

    def is_done(self, sample: Sample) -> bool:
        """Whether the sample, with these files and values, was predicted before."""
        row = self._table.rows.get(sample.sample_id, {})
        return row.get("status") == "done" and row.get("input") == self._inputs[sample.sample_id]

    def replaced(self) -> list[str]:
        """Samples of which the table has a row that came from other files or values."""
        rows = self._table.rows
        return [name for name, digest in self._inputs.items() if name in rows and rows[name].get("input") != digest]

    def fail(self, sample: Sample, message: str) -> None:
        """Enter a sample that cannot be predicted."""
        message = "; ".join(message.splitlines())
        log.error("%s is not predicted: %s", sample.sample_id, message)
        self._attention.pop(sample.sample_id, None)
        self._enter(sample, {"status": "failed", "message": message})

    def enter(self, sample: Sample, found: ReadSample, record: Record, doubts: str) -> None:
        """Enter a sample that was predicted."""
        weights = [float(text) for text in str(record.get("attention", "")).split()]
        if weights:
            self._attention[sample.sample_id] = self._attention_rows(sample, found, weights)
        said = {
            key: value
            for key, value in record.items()
            if key not in _NOT_TOLD and not key.startswith(("column/", "label"))
        }
        first = [key for key in said if key.split("/")[-1] == "predicted"]
        ordered = {key: said[key] for key in (*first, *said)}
        self._enter(sample, {"status": "done", "message": doubts, **ordered})

    def write(self) -> None:
        """Write both tables; the attention first, so that no row is done without it."""
        with self._table.alone():
            if self._table.merge():
                self._take_attention(but=self._table.entered)
            if self._attention:
                rows = [row for case_id in sorted(self._attention) for row in self._attention[case_id]]
                columns = list(dict.fromkeys(key for row in rows for key in row))
                write_rows(self._attention_path, columns, rows)
            self._table.write()

    def _take_attention(self, *, but: Collection[str] = ()) -> None:
        """Take the attention of the table's samples from the disk, where other processes may have put some."""
        self._attention = {case_id: rows for case_id, rows in self._attention.items() if case_id in but}
        for row in read_rows(self._attention_path):
            if row["case_id"] in self._table.rows and row["case_id"] not in but:
                self._attention.setdefault(row["case_id"], []).append(row)

    def _enter(self, sample: Sample, row: Row) -> None:
        files, digest = told_files(sample, self._set.root), self._inputs[sample.sample_id]
        told = {"case_id": sample.sample_id, "file": files, "input": digest, **row}
        if self._table.enter(sample.sample_id, told, at_once=False):
            self.write()

    def _attention_rows(self, sample: Sample, found: ReadSample, weights: Sequence[float]) -> list[Row]:
        names = self._set.view_names
        refs = list(sample.images) if names else [ref for ref in sample.images if ref is not None]
        rows: list[Row] = []
        for place, (ref, there) in enumerate(zip(refs, found.present)):
            if ref is not None and there:
                view = {"view": names[place]} if names else {}
                told = {"case_id": sample.sample_id, "instance": place, **view}
                rows.append({**told, "file": told_file(ref, self._set.root), "attention": weights[place]})
        return rows
