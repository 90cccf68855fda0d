"""What the loop needs of the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch

from medtrain.tasks.base import Batch


class TrainData(Protocol):
    """Training batches from any position, and the cases to be judged."""

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of an epoch over all processes."""
        ...

    def train_batches(self, start_batch: int, *, rank: int, world_size: int) -> Iterator[Batch]:
        """Endless micro-batches from any position; a pure function of the seed and the position."""
        ...

    def to_device(self, batch: Batch, device: torch.device, memory_format: torch.memory_format | None) -> Batch:
        """Move a batch and apply the device transforms."""
        ...

    def evaluation_cases(self, part: Literal["train", "val"], *, limit: int | None) -> list[str]:
        """The case ids of a part, or `limit` of them."""
        ...

    def evaluation_items(self, *, rank: int, world_size: int, limit: int | None) -> Iterator[Batch]:
        """This rank's share of the validation part."""
        ...
