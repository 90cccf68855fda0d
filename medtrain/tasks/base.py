"""What a task must supply: what a batch means, what its loss is, and how a case is judged.

A task holds losses and metrics. It never touches the optimizer, the device or the distribution of work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from medtrain.callbacks.base import WorstCase
from medtrain.metrics.spec import MetricSpec

Batch = dict[str, Any]
Record = dict[str, Any]
"""The result of one evaluated case: `case_id` and plain values by metric key."""


@dataclass(frozen=True)
class StepOutput:
    """What a training step returns.

    Args:
        loss: Differentiable scalar, a mean over the batch's `weight` units.
        logs: Further scalars to log, means over the same units.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    """A task: segmentation, classification, ... The engine calls nothing else."""

    worst: WorstCase | None
    """The worst case of the last evaluation, for pictures."""

    class_names: Sequence[str]
    """Names of the classes by index."""

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Forward a training batch and compute its loss, inside autocast."""
        ...

    def evaluation_step(self, model: nn.Module, item: Batch, *, final: bool) -> list[Record]:
        """Judge one evaluation item; `final` asks for the full protocol (test-time augmentation)."""
        ...

    def begin_evaluation(self) -> None:
        """Forget what the last evaluation kept."""
        ...

    def summarize(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of the whole split from the records of every case, sorted by case id."""
        ...

    def metrics(self) -> Mapping[str, MetricSpec]:
        """The metrics that `summarize` returns, the default monitor first."""
        ...

    def example_input(self) -> tuple[int, ...]:
        """Shape of one training input without the batch axis, for the sanity check and the export."""
        ...
