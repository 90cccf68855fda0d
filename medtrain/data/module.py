"""The data of a run as the engine uses them: training batches from any position, validation cases one by one."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import blosc2
import torch
from torch.utils.data import DataLoader, Dataset

from medtrain.data.case import Dataset as CaseSet
from medtrain.data.patches import PatchDataset, Sample, collate
from medtrain.data.plan import Plan
from medtrain.data.preprocess import normalize
from medtrain.data.sampler import EpochSampler, SampleKey
from medtrain.data.splits import split_hash
from medtrain.data.store import Store
from medtrain.data.transforms.base import Augmentation
from medtrain.data.volume_data import VolumeData
from medtrain.data.workers import cores
from medtrain.errors import ConfigError, MedtrainError, Problem

log = logging.getLogger(__name__)

_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]

Batch = dict[str, Any]
Part = Literal["train", "val"]


class SegmentationData:
    """Prepared cases, divided into a training and a validation part.

    Training batches are a function of the seed and the batch's number: the number of workers, of processes and the
    batch to start from make no difference.

    Args:
        settings: Sampling and number of workers; None workers reads in the training process.
        dataset: The cases and labels.
        store: All cases of the split, prepared.
        split: Case ids of "train" and "val".
        plan: Patch, batch size, normalisation.
        augment: Changes training patches.
        seed: Of order, places and augmentation.
        pin_memory: Whether workers' batches go through page-locked memory, for copies to a GPU that do not wait.
    """

    def __init__(
        self,
        *,
        settings: VolumeData,
        dataset: CaseSet,
        store: Store,
        split: Mapping[str, Sequence[str]],
        plan: Plan,
        augment: Augmentation,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.store = store
        self.split: dict[str, list[str]] = {part: list(split[part]) for part in ("train", "val")}
        self.plan = plan
        self.augment = augment
        self.pin_memory = pin_memory
        self.sampler = EpochSampler(
            num_samples=len(self.split["train"]) * settings.samples_per_case, batch_size=plan.batch_size, seed=seed
        )
        self.patches = PatchDataset(
            store=store,
            case_ids=self.split["train"],
            plan=plan,
            augment=augment,
            batch_size=plan.batch_size,
            oversample_foreground=settings.oversample_foreground,
            seed=seed,
        )
        self._iterators: list[Iterator[Batch]] = []

    @property
    def batch_size(self) -> int:
        """Patches of a batch over all processes."""
        return self.sampler.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every training case is seen samples_per_case times."""
        return self.sampler.batches_per_epoch

    @property
    def label_pad(self) -> int:
        """Class index of voxels outside a case."""
        return self.plan.ignore_index or 0

    def train_batches(self, start_batch: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches from any one on, without end, as `collate` makes them.

        The first one is read here, workers start with the second: one look costs no processes.

        Args:
            start_batch: Counted over all epochs.
            rank: Of this process.
            world_size: Number of processes.

        Raises:
            ConfigError: The batch cannot be divided among the processes.
            MedtrainError: A case is damaged, or a worker was killed.
        """
        if self.batch_size % world_size:
            message = f"{self.batch_size} patches cannot be divided among {world_size} processes"
            hint = f"choose a multiple of {world_size}"
            raise ConfigError([Problem(where="data.batch_size", message=message, hint=hint)])
        iterator = self._batches(start_batch, rank, world_size)
        self._iterators.append(iterator)
        return iterator

    def to_device(self, batch: Batch, device: torch.device, memory_format: torch.memory_format | None = None) -> Batch:
        """Move a batch and augment it there.

        Returns:
            `image` float32 [B, C, *patch_size], `label` [B, *patch_size], the other entries unchanged.
        """
        moved = {name: [t.to(device, non_blocking=True) for t in batch[name]] for name in ("image", "label")}
        augmented = self.augment.apply({**batch, **moved}, patch_size=self.plan.patch_size, label_pad=self.label_pad)
        if memory_format is not None:
            augmented["image"] = augmented["image"].contiguous(memory_format=memory_format)
        return augmented

    def evaluation_cases(self, part: Part = "val", *, limit: int | None = None) -> list[str]:
        """Case ids of a part in order, or `limit` of them evenly spread."""
        ids = self.split[part]
        if limit is None or limit >= len(ids):
            return list(ids)
        return [ids[i * len(ids) // limit] for i in range(limit)]

    def evaluation_items(
        self, *, rank: int = 0, world_size: int = 1, limit: int | None = None, part: Part = "val"
    ) -> Iterator[Batch]:
        """This process's share of a part, case by case; no case comes twice.

        Args:
            rank: Of this process.
            world_size: Number of processes.
            limit: At most this many cases over all processes, evenly spread.
            part: Which part.
        """
        for case_id in self.evaluation_cases(part, limit=limit)[rank::world_size]:
            yield self.evaluation_item(case_id)

    def evaluation_item(self, case_id: str) -> Batch:
        """A whole case.

        Returns:
            case_id: Its id.
            image: float32 tensor [C, D, H, W], normalised, on the network's grid.
            label: Class indices [D, H, W] on the same grid.
            geometry: The way back to the scan's grid.
            source_label: Class indices on the scan's own grid.
            spacing: Voxel size (D, H, W) in mm of the network's grid.
        """
        case = self.store.case(case_id)
        image = normalize(case.read_image(), case.stats, self.plan.normalization, case.read_body())
        return {
            "case_id": case_id,
            "image": torch.from_numpy(image),
            "label": case.read_label(),
            "geometry": case.geometry,
            "source_label": case.source_label(),
            "spacing": case.spacing,
        }

    def describe(self) -> dict[str, Any]:
        """What identifies the data, for provenance and for telling whether a resumed run sees the same."""
        used = sorted({*self.split["train"], *self.split["val"]})
        return {
            "dataset": self.dataset.dataset_name,
            "root": str(self.dataset.root),
            "data_hash": self.store.data_hash,
            "split_hash": split_hash(self.split),
            "num_train": len(self.split["train"]),
            "num_val": len(self.split["val"]),
            "cases": {case_id: self.store.keys[case_id] for case_id in used},
        }

    def close(self) -> None:
        """Stop the workers of every iterator."""
        while self._iterators:
            self._iterators.pop().close()  # type: ignore[attr-defined]

    def _batches(self, start: int, rank: int, world_size: int) -> Iterator[Batch]:
        keys = self.sampler.batches(start, rank=rank, world_size=world_size)
        workers = self.settings.num_workers or 0
        here = keys if workers == 0 else itertools.islice(keys, 1)
        for batch_keys in here:
            yield collate([self.patches[key] for key in batch_keys])
        if workers:
            if workers > cores():
                log.warning("data.num_workers=%d, but this process may use %d core(s) only", workers, cores())
            batches = _KeyBatches(self.sampler, start + 1, rank, world_size)
            yield from _unpack(_worker_loader(self.patches, batches, workers, pin_memory=self.pin_memory))


@dataclass(frozen=True)
class _KeyBatches:
    """The keys of batches, as DataLoader wants them."""

    sampler: EpochSampler
    start: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.sampler.batches(self.start, rank=self.rank, world_size=self.world_size)


@dataclass(frozen=True)
class _Failure:
    """A problem for the user met by a worker, which a traceback through two processes would bury."""

    message: str
    hint: str | None


class _Guarded(Dataset[Sample | _Failure]):
    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __getitem__(self, key: SampleKey) -> Sample | _Failure:
        try:
            return self.patches[key]
        except MedtrainError as error:
            return _Failure(error.message, error.hint)


def _worker_loader(patches: PatchDataset, keys: _KeyBatches, workers: int, *, pin_memory: bool) -> DataLoader[Any]:
    # not fork: the training process has threads (loggers, progress, CUDA), whose locks a forked child would inherit
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload(["medtrain.data.patches"])  # one import of torch for all workers
        _start_forkserver()
    with _many_workers_allowed():
        return DataLoader(
            _Guarded(patches),
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_collate_guarded,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=context,
            generator=torch.Generator(),  # else its seed is taken from the global one
        )


def _start_forkserver() -> None:
    """Start the process that workers are forked from, and its helper, with the signals blocked that stop a run.

    A scheduler sends them to every process of a job. Without its server a worker ends, and the training process would
    miss the batch it needs to stop in order.
    """
    from multiprocessing import forkserver, resource_tracker  # not on every system

    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _many_workers_allowed() -> Iterator[None]:
    """Keep PyTorch from warning of more workers than cores, at length and repeatedly: we have said it in a line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _unpack(batches: DataLoader[Any]) -> Iterator[Batch]:
    with _many_workers_allowed():
        iterator = iter(batches)
    try:
        for batch in iterator:
            if isinstance(batch, _Failure):
                raise MedtrainError(batch.message, hint=batch.hint)
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not _means_a_dead_worker(error):
            raise
        raise MedtrainError(
            f"a process that reads training data was killed: {error or type(error).__name__}",
            hint="the machine probably ran out of memory: choose a smaller data.num_workers, or 0",
        ) from error
    finally:
        _end_workers(iterator)


def _means_a_dead_worker(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    # it died while it handed over a batch, unless the error was raised by reading a case and passed on
    return "in DataLoader worker process" not in str(error)


def _end_workers(iterator: Any) -> None:
    """Stop the workers of a DataLoader's iterator now; its destructor waits for an error's traceback to be forgotten.

    PyTorch terminates workers that do not end in time. Ours do not listen to that.
    """
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


def _collate_guarded(samples: Sequence[Sample | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate(samples)  # type: ignore[arg-type]


def _start_worker(worker: int) -> None:
    """Leave the signals that stop a run to the training process, and the cores to the other workers."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)


def _end_with_training() -> None:
    """End this worker when the training process does, however that ends.

    PyTorch's workers watch the process they were forked from. That is the server here, which lives as long as they do.
    """
    training = multiprocessing.parent_process()
    assert training is not None
    training.join()
    os._exit(1)
