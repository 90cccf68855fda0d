"""Which sample comes when: a pure function of the seed and the position, so that no state has to be kept.

A sample is named by (epoch, index). The order of an epoch depends on the seed and the epoch alone; every rank takes
its slice of each global batch. So the same batches come with any number of processes and workers, and training
continues at any batch without replaying those before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Names a sample.

    Args:
        epoch: Counted from 0.
        index: Within the epoch; from num_samples on it names further samples of the same cases, which fill up the last
            batch.
        slot: Position in the global batch.
    """

    epoch: int
    index: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
    """The order of samples.

    Args:
        num_samples: Samples of an epoch.
        batch_size: Samples of a global batch.
        seed: Of the order.
        shuffle: Whether an epoch's samples come in random order.
        remainder: What becomes of an epoch's last, incomplete batch: wrap fills it with further samples, keep leaves
            it short.
    """

    num_samples: int
    batch_size: int
    seed: int
    shuffle: bool = True
    remainder: Literal["wrap", "keep"] = "wrap"

    def __post_init__(self) -> None:
        assert self.num_samples > 0, "no samples"
        assert self.batch_size > 0, "no batch"

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, the last one included."""
        return -(-self.num_samples // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch in the order they come."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        # the spawn key keeps this stream apart from those of the samples
        seeds = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
        return np.random.Generator(np.random.Philox(seeds)).permutation(self.num_samples)

    def batches(self, start: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[list[SampleKey]]:
        """This rank's slices of all batches from any one on, without end.

        Args:
            start: The first batch, counted over all epochs.
            rank: Of this process.
            world_size: Number of processes; with remainder wrap it divides batch_size.
        """
        whole = self.batch_size % world_size == 0
        assert whole or self.remainder == "keep", f"{self.batch_size} is no multiple of {world_size}"
        epoch, batch = divmod(start, self.batches_per_epoch)
        while True:
            order = self.order(epoch)
            for number in range(batch, self.batches_per_epoch):
                keys = self._batch(epoch, number, order)
                yield keys[len(keys) * rank // world_size : len(keys) * (rank + 1) // world_size]
            epoch, batch = epoch + 1, 0

    def _batch(self, epoch: int, number: int, order: np.ndarray) -> list[SampleKey]:
        first = number * self.batch_size
        last = first + self.batch_size
        if self.remainder == "keep":
            last = min(last, self.num_samples)
        keys = []
        for slot, position in enumerate(range(first, last)):
            turn, place = divmod(position, self.num_samples)
            keys.append(SampleKey(epoch, int(order[place]) + turn * self.num_samples, slot))
        return keys
