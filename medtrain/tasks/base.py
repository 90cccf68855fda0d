"""What a task must supply: what a batch means, what its loss is, and how a case is judged.

A task holds losses and metrics. It never touches the optimizer, the device or the distribution of work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import closest

Batch = dict[str, Any]
Record = dict[str, Any]
"""The result of one evaluated case: `case_id` and plain values by column."""


ReadCases = Callable[[Sequence[str]], Iterable[Batch]]
"""Reads evaluation items of cases by their ids."""


@dataclass(frozen=True)
class StepOutput:
    """What a training step returns.

    Args:
        loss: Differentiable scalar, a mean over the batch's `weight` units.
        logs: Further scalars to log, means over the same units.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureStyle:
    """How the pictures of an evaluation are drawn.

    Args:
        title: What is said of the model, such as its step.
        channel: Channel of the image to show; a 2-D picture with three channels is shown in colour instead.
        panel_size: Pixels of the longer side of a panel.
        opacity: How strongly the areas of overlays are coloured, 0 to 1.
    """

    title: str = ""
    channel: int = 0
    panel_size: int = 300
    opacity: float = 0.35


class Loss(Protocol):
    """What the engine asks of a loss."""

    @property
    def decomposable(self) -> bool:
        """Whether the loss of a batch is the weighted mean of its parts' losses."""
        ...


class Task(Protocol):
    """A task: segmentation, classification, ... The engine calls nothing else."""

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        ...

    monitor: MetricSpec
    """The metric that decides which weights are best, `val/<name>`."""

    class_names: Sequence[str]
    """Names of the classes by index."""

    in_channels: int
    """Channels of the images."""

    def runtime(self) -> dict[str, Any]:
        """What models that ask for it by name (`runtime=`) get to know about the task, such as `num_outputs`."""
        ...

    def check_training(self, data: Mapping[str, Any], augment: Any) -> None:
        """See that what is trained on fits what is to be learned; asked once, before a new run has a folder.

        A trained run is judged and used without: nothing here may be needed for that.

        Args:
            data: Settings of the data.
            augment: The augmentation, built.

        Raises:
            UsageError: It contradicts the task.
        """
        ...

    def batch_weight(self, batch: Batch) -> float:
        """Number of units of a training batch, as read, over which `training_step` takes its mean."""
        ...

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

    @property
    def lacks_decision(self) -> bool:
        """Whether something is left to the validation part and was not chosen yet."""
        ...

    def fit_decision(self, records: Sequence[Record]) -> dict[str, float]:
        """Choose what is left to the validation part (thresholds, a temperature), adopt it, and return it.

        Args:
            records: Of the whole validation part, judged without a decision.
        """
        ...

    def use_decision(self, decision: Mapping[str, float]) -> None:
        """Adopt what was chosen on the validation part; nothing forgets it."""
        ...

    def decide(self, records: Sequence[Record]) -> list[Record]:
        """Records that were judged without a decision, under the one that is adopted."""
        ...

    def told(self, record: Record) -> str:
        """Truth and prediction of a case in a line; empty where its metrics say all there is."""
        ...

    def worst_cases(self, records: Sequence[Record], count: int = 5) -> list[tuple[str, float]]:
        """The cases that were judged worst, the worst first, each with its score."""
        ...

    def pictures(self, records: Sequence[Record], style: PictureStyle) -> dict[str, np.ndarray]:
        """Pictures of the last evaluation by name, uint8 [H, W, 3], the most telling one first and called `worst`."""
        ...

    def explanations(
        self, model: nn.Module, read: ReadCases, records: Sequence[Record], style: PictureStyle
    ) -> dict[str, np.ndarray]:
        """Pictures of why a model judged some of the cases as it did, by name, uint8 [H, W, 3].

        Args:
            model: The one that was judged, as it was.
            read: Gives evaluation items of the cases it is called with; few of them are looked at again.
            records: Of all cases.
            style: How to draw.

        Raises:
            UsageError: This model cannot be explained.
        """
        ...

    def write_evaluation(
        self, folder: Any, records: Sequence[Record], summary: Mapping[str, float], *, extra: Mapping[str, Any]
    ) -> None:
        """Write `cases.csv`, `summary.json` and what else there is to say of an evaluation into a folder."""
        ...

    def summary_table(self, records: Sequence[Record], summary: Mapping[str, float], *, title: str) -> Any:
        """The metrics as a table for the console (rich)."""
        ...

    def final_cost(self) -> float:
        """Time of a final evaluation of a case, in evaluations during training."""
        ...

    def describe_final(self) -> str:
        """What a final evaluation does besides those during training, for the log; empty when nothing."""
        ...

    def example_batch(self) -> dict[str, Tensor]:
        """One input of the model: zeros by batch entry, with a batch axis of 1."""
        ...

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Call the model with the entries of a batch that it takes."""
        ...


class PlainTask:
    """The parts of a task that leaves nothing to the validation part, and whose metrics say all there is of a case."""

    @property
    def lacks_decision(self) -> bool:
        """Nothing is left to the validation part."""
        return False

    def fit_decision(self, records: Sequence[Record]) -> dict[str, float]:
        """Nothing is chosen."""
        return {}

    def use_decision(self, decision: Mapping[str, float]) -> None:
        """Nothing was chosen."""

    def decide(self, records: Sequence[Record]) -> list[Record]:
        """The records as they are."""
        return list(records)

    def told(self, record: Record) -> str:
        """Nothing."""
        return ""

    def explanations(
        self, model: nn.Module, read: ReadCases, records: Sequence[Record], style: PictureStyle
    ) -> dict[str, np.ndarray]:
        """None."""
        return {}


def find_monitor(name: str, specs: Mapping[str, MetricSpec]) -> MetricSpec:
    """The metric that decides which weights are best.

    Args:
        name: Its name; what `val/` stands before is accepted, too.
        specs: The metrics of the task.

    Raises:
        UsageError: The task has no such metric; names those it has.
    """
    key = name.removeprefix("val/")
    if key not in specs:
        near = closest(key, specs)
        raise UsageError(
            f"task.monitor={name} is not a metric of this task; available: {', '.join(specs)}",
            hint=f"did you mean task.monitor={near}?" if near else None,
        )
    spec = specs[key]
    return MetricSpec(f"val/{key}", spec.mode, spec.unit)
