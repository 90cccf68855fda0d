"""Generic: a model that computes its own loss from the entries of a batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.samples import Normalizer
from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference, batch_size, split_batch
from medtrain.metrics.arrays import defined_mean
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.tasks.base import Batch, PictureStyle, PlainTask, Record, StepOutput, find_monitor
from medtrain.tasks.model_io import example_batch, unwrapped
from medtrain.tasks.outcome import column
from medtrain.tasks.report import metrics_table, write_report

if TYPE_CHECKING:
    from rich.table import Table


_MOST_VALUES = 1024


@register("loss", "from_model", tags=("images",))
class LossFromModel(nn.Module):
    """The loss that the model itself returns; for task=generic."""

    decomposable = True
    kind = "model"

    def __init__(self) -> None:
        super().__init__()

    def weight(self, target: Tensor) -> float:
        """Number of samples: the model's loss is a mean over them."""
        return float(len(target))


@register("task", "generic", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Generic(PlainTask):
    """Train any model that is called as `model(**batch)` and returns a loss, or a dict with `loss`.

    The model gets those entries of the batch that its `forward` names (all tensors, if it takes `**kwargs`), `target`
    among them. Its loss must be a mean over the samples. Further scalars that it returns are averaged and logged.

    Args:
        loss: `from_model`.
        inference: Samples per forward.
        plan: Shapes.
        device: Where the model runs.
        memory_format: Memory format of images, as in training.
        monitor: The metric that decides which weights are best: `loss`, or one of `scalars`.
        scalars: Further scalars that the model returns in evaluation, and which direction is better:
            `{accuracy: max}`.
    """

    def __init__(
        self,
        *,
        loss: Any,
        inference: ImageInference,
        plan: ImagePlan,
        device: torch.device,
        memory_format: torch.memory_format | None = None,
        monitor: str = "loss",
        scalars: dict[str, Literal["min", "max"]] | None = None,
    ) -> None:
        if getattr(loss, "kind", "") != "model":
            raise UsageError("task=generic takes the loss that the model returns", hint="set loss=from_model")
        unused = (inference.mirror, inference.mirror_in_training, inference.has_threshold, inference.calibrate)
        if any(unused):
            raise UsageError(
                "task=generic knows only the loss: inference.mirror, threshold and calibrate mean nothing to it",
                hint="leave them at their defaults",
            )
        self.loss = loss
        self.inference = inference
        self.plan = plan
        self.device = device
        self.memory_format = memory_format
        self.scalars = dict(scalars or {})
        self.decision: Mapping[str, float] = {}
        self.class_names: Sequence[str] = ()
        self.in_channels = plan.in_channels
        self.normalizer = Normalizer(plan)
        self.monitor = find_monitor(monitor, self.metrics())

    def runtime(self) -> dict[str, Any]:
        """As many outputs as classes and numbers, should a model ask."""
        return {"num_outputs": sum(len(target.classes or ("",)) for target in self.plan.targets)}

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Call the model with the entries it names."""
        return model(**{name: value for name, value in batch.items() if name in accepted_names(model, batch)})

    def batch_weight(self, batch: Batch) -> float:
        """Number of samples."""
        return float(batch["weight"])

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """The model's loss, and its further scalars for the log."""
        scalars = scalars_of(self.forward(model, batch))
        loss = scalars.pop("loss")
        return StepOutput(loss, {f"train/{name}": value.detach() for name, value in scalars.items()})

    def check_training(self, data: Mapping[str, Any], augment: Any) -> None:
        """Nothing is known of what the model learns: only mixing images needs to know."""
        if augment.mixup or augment.cutmix:
            raise UsageError(
                "augment.mixup and augment.cutmix mix targets in the loss, which the model computes itself",
                hint="set augment.mixup=0 and augment.cutmix=0",
            )

    def begin_evaluation(self) -> None:
        """Nothing is kept between evaluations."""

    def evaluation_step(self, model: nn.Module, item: Batch, *, final: bool) -> list[Record]:
        """The scalars of a batch, for each of its samples: their mean is that over the samples.

        Of samples without a target, what the model returns of each one: see `returned_rows`.
        """
        records: list[Record] = []
        item = self.normalizer(item, self.device, self.memory_format)
        if "target" not in item:
            for part in split_batch(item, self.inference.batch_size):
                for index, row in enumerate(returned_rows(self.forward(model, part), batch_size(part))):
                    known = {"case_id": str(part["case_id"][index]), "group": str(part["group"][index])}
                    records.append({**known, **row})
            return records
        for part in split_batch(item, self.inference.batch_size):
            scalars = scalars_of(self.forward(model, part))
            found = {name: float(value.detach()) for name, value in scalars.items()}
            missing = [name for name in self.scalars if name not in found]
            if missing:
                raise UsageError(
                    f"task.scalars: the model does not return {', '.join(missing)}; it returns {', '.join(found)}"
                )
            for index in range(batch_size(part)):
                ids = {"case_id": str(part["case_id"][index]), "group": str(part["group"][index])}
                records.append({**ids, **found})
        return records

    def check_predicts(self, model: nn.Module) -> None:
        """See that the model can be called without a target.

        Raises:
            UsageError: It cannot.
        """
        target = inspect.signature(unwrapped(model).forward).parameters.get("target")
        if target is not None and target.default is target.empty:
            raise UsageError(
                "task=generic: the model needs `target` to be called, which new samples do not have",
                hint="give its forward a default, target=None, and let it return a dict of tensors [B, ...], such as "
                "logits, where there is none",
            )

    def readable(self, records: Sequence[Record]) -> list[Record]:
        """The records: what the model returns has no names but its own."""
        return list(records)

    def summarize(self, records: Sequence[Record]) -> dict[str, float]:
        """Means over all samples."""
        names = list(dict.fromkeys(name for record in records for name in record if name not in ("case_id", "group")))
        return {name: defined_mean(column(records, name)) for name in names}

    def metrics(self) -> Mapping[str, MetricSpec]:
        """The loss, and the scalars that were announced."""
        return {"loss": MetricSpec("loss", "min"), **{k: MetricSpec(k, mode) for k, mode in self.scalars.items()}}

    def worst_cases(self, records: Sequence[Record], count: int = 5) -> list[tuple[str, float]]:
        """The samples with the largest loss."""
        order = sorted((-float(record["loss"]), str(record["case_id"])) for record in records)
        return [(case, -loss) for loss, case in order if not math.isnan(loss)][:count]

    def pictures(self, records: Sequence[Record], style: PictureStyle) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def write_evaluation(
        self, folder: Path, records: Sequence[Record], summary: Mapping[str, float], *, extra: Mapping[str, Any]
    ) -> None:
        """Write `cases.csv` and `summary.json`."""
        write_report(folder, records, summary, {}, extra=extra)

    def summary_table(self, records: Sequence[Record], summary: Mapping[str, float], *, title: str) -> Table:
        """One row per scalar."""
        specs = {name: MetricSpec(name, "min") for name in summary}
        return metrics_table(summary, specs, title=title)

    def final_cost(self) -> float:
        """As every evaluation."""
        return 1.0

    def describe_final(self) -> str:
        """Nothing more than during training."""
        return ""

    def example_batch(self) -> dict[str, Tensor]:
        """One sample with every entry, `target` among them."""
        return {**example_batch(self.plan), "target": torch.zeros(1, len(self.plan.targets))}


def accepted_names(model: nn.Module, batch: Mapping[str, Any]) -> set[str]:
    """The entries of a batch that a model's `forward` takes; every tensor where it takes `**kwargs`."""
    inner = unwrapped(model)
    parameters = inspect.signature(inner.forward).parameters.values()
    tensors = {name for name, value in batch.items() if isinstance(value, Tensor)}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return tensors
    named = {parameter.name for parameter in parameters} | set(getattr(inner, "inputs", ()))
    return named & set(batch)


def returned_rows(found: Any, count: int) -> list[dict[str, float]]:
    """What a model returned of every sample, by column: `logits` of a tensor [B], `logits/0`, ... of one [B, ...].

    Args:
        found: A tensor, which is called `output`, or a dict of tensors; those without an entry per sample are left out.
        count: B.

    Raises:
        UsageError: There is no tensor with an entry per sample, or more than a table can hold.
    """
    named = found if isinstance(found, Mapping) else {"output": found}
    kept = {
        str(name): value.detach().float().cpu()
        for name, value in named.items()
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
    }
    if not kept:
        raise UsageError(
            "task=generic: without a target the model returned no tensor with an entry per sample; it returned "
            f"{', '.join(map(str, named)) if isinstance(found, Mapping) else type(found).__name__}"
        )
    wide = [name for name, value in kept.items() if value[0].numel() > _MOST_VALUES]
    if wide:
        size = kept[wide[0]][0].numel()
        raise UsageError(
            f"task=generic: the model returns {size} values of `{wide[0]}` per sample; a table takes {_MOST_VALUES}",
            hint="return less where there is no target",
        )
    rows: list[dict[str, float]] = [{} for _ in range(count)]
    for name, value in kept.items():
        keys = [name] if value.dim() == 1 else [f"{name}/{index}" for index in range(value[0].numel())]
        for row, numbers in zip(rows, value.reshape(count, -1).tolist(), strict=True):
            row.update(zip(keys, numbers, strict=True))
    return rows


def scalars_of(found: Any) -> dict[str, Tensor]:
    """What a model returned as scalars by name, `loss` first.

    Raises:
        UsageError: There is no scalar loss.
    """
    if isinstance(found, Tensor):
        found = {"loss": found}
    loss = found.get("loss") if isinstance(found, Mapping) else None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UsageError(f"task=generic: the model must return a loss or a dict with `loss`, it returned {shown}")
    scalars = {
        str(k): v.reshape(()) for k, v in found.items() if isinstance(v, Tensor) and (v.dim() == 0 or k == "loss")
    }
    return {"loss": scalars.pop("loss"), **scalars}
