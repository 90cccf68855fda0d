"""Training batches from any position, in order, read here or ahead by processes: the same for every kind of data."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from medtrain.data.loader import Batch, Reader, pin_tensors, read_ahead
from medtrain.data.sampler import EpochSampler, SampleKey
from medtrain.errors import ConfigError, Problem
from medtrain.run.threads import available_cores

log = logging.getLogger(__name__)


class TrainingStream:
    """Batches that are a function of the seed and their number.

    The number of workers, of processes and the batch to start from make no difference.

    Args:
        reader: Reads samples and puts them side by side; sent to every worker.
        sampler: Which sample comes when.
        unit: What a batch is made of, for messages: patches, samples.
        workers: Processes that read; 0 reads in this one.
        mark_used: Called for every batch: tells the store that its cases are in use.
        pin_memory: Whether workers' batches go through page-locked memory, for copies to a GPU that do not wait.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: EpochSampler,
        *,
        unit: str,
        workers: int,
        mark_used: Callable[[], object],
        pin_memory: bool = False,
    ) -> None:
        self.reader = reader
        self.sampler = sampler
        self.unit = unit
        self.workers = workers
        self.pin_memory = pin_memory
        self._mark_used = mark_used
        self._iterators: list[Iterator[Batch]] = []

    def batches(self, start: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches from any one on, without end.

        The first one is read here, workers start with the second: one look costs no processes.

        Args:
            start: Counted over all epochs.
            rank: Of this process.
            world_size: Number of processes.

        Raises:
            ConfigError: The batch cannot be divided among the processes.
            MedtrainError: A file cannot be read, or a worker was killed.
        """
        size = self.sampler.batch_size
        if size % world_size:
            message = f"{size} {self.unit} cannot be divided among {world_size} processes"
            hint = f"choose a multiple of {world_size}"
            raise ConfigError([Problem(where="data.batch_size", message=message, hint=hint)])
        iterator = self._read(start, rank, world_size)
        self._iterators.append(iterator)
        return iterator

    def close(self) -> None:
        """Stop the workers of every iterator."""
        while self._iterators:
            self._iterators.pop().close()  # type: ignore[attr-defined]

    def _keys(self, start: int, rank: int, world_size: int) -> Iterator[list[SampleKey]]:
        for keys in self.sampler.batches(start, rank=rank, world_size=world_size):
            self._mark_used()
            yield keys

    def _read(self, start: int, rank: int, world_size: int) -> Iterator[Batch]:
        keys = self._keys(start, rank, world_size)
        here = keys if self.workers == 0 else itertools.islice(keys, 1)
        for batch_keys in here:
            yield self.reader.collate([self.reader[key] for key in batch_keys])
        if self.workers:
            if self.workers > available_cores():
                log.warning(
                    "data.num_workers=%d, but this process may use %d core(s) only", self.workers, available_cores()
                )
            pin = functools.partial(pin_tensors, device=torch.cuda.current_device()) if self.pin_memory else None
            yield from read_ahead(self.reader, keys, workers=self.workers, finish=pin, here=True)


def evenly(ids: Sequence[str], limit: int | None) -> list[str]:
    """The ids in order, or `limit` of them evenly spread."""
    if limit is None or limit >= len(ids):
        return list(ids)
    return [ids[i * len(ids) // limit] for i in range(limit)]
