"""What the loop needs of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch

from medtrain.tasks.base import Batch

Part = Literal["train", "val", "test"]


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

    @property
    def cases_per_item(self) -> int:
        """Cases of an evaluation item, but for the last one."""
        ...

    def evaluation_cases(self, part: Part, *, limit: int | None) -> list[str]:
        """The case ids of a part, or `limit` of them."""
        ...

    def evaluation_items(self, *, rank: int, world_size: int, limit: int | None) -> Iterator[Batch]:
        """This rank's share of the validation part: every `world_size`-th case."""
        ...

    def judged_items(self, case_ids: Sequence[str]) -> Iterator[Batch]:
        """Evaluation items of the named cases, of any part."""
        ...

    def trial_item(self, case_id: str) -> Batch:
        """An evaluation item that is quick to judge: of a large case, a piece."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the data: `cases` (id -> content key), the `scheme` of these keys, and `split_hash`."""
        ...

    def close(self) -> None:
        """Stop what reads ahead."""
        ...
