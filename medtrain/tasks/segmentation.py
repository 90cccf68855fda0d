"""Segmentation: every voxel of an image gets a class; cases are judged whole, on their own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medtrain.callbacks.base import WorstCase
from medtrain.errors import UsageError
from medtrain.losses.base import SegmentationLoss
from medtrain.losses.deep_supervision import DeepSupervisionLoss
from medtrain.metrics.cases import evaluate_case, metric_specs, summarize
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.surface import SURFACE_METRICS
from medtrain.registry import closest, register
from medtrain.tasks.base import Batch, Record, StepOutput

if TYPE_CHECKING:
    from medtrain.data.plan import Plan
    from medtrain.inference.sliding_window import SlidingWindow


@register("task", "segmentation", runtime=("loss", "inference", "plan", "device", "memory_format"))
class Segmentation:
    """Train on patches, judge whole cases on the source grid.

    A training batch holds `image` [B, C, *S] float32 and `label` [B, *S] class indices. An evaluation item is a whole
    prepared case; its logits are resampled to the scan's own grid before they are compared with the scan's own label.

    Args:
        loss: Loss of logits [B, K, *S] and labels [B, *S].
        inference: Sliding-window settings.
        plan: Patch, classes and ignore index.
        device: Where the model runs.
        memory_format: Memory format of windows, as in training.
        monitor: The metric that decides which weights are best: `dice`, or e.g. `dice/liver`, `nsd`, `hd95_mm`.
        surface_metrics: Compute HD95 and NSD in every evaluation; `final` only in the last one.
        nsd_tolerance_mm: Tolerance of the normalised surface distance in mm.
    """

    def __init__(
        self,
        *,
        loss: SegmentationLoss,
        inference: SlidingWindow,
        plan: Plan,
        device: torch.device,
        memory_format: torch.memory_format | None = None,
        monitor: str = "dice",
        surface_metrics: Literal["always", "final", "never"] = "always",
        nsd_tolerance_mm: float = 1.0,
    ) -> None:
        self.loss = DeepSupervisionLoss(loss)
        self.inference = inference
        self.plan = plan
        self.device = device
        self.memory_format = memory_format
        self.surface_metrics = surface_metrics
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.class_names: Sequence[str] = plan.class_names
        self.worst: WorstCase | None = None
        self.monitor = self._find_monitor(monitor)

    def _find_monitor(self, name: str) -> MetricSpec:
        specs = metric_specs(self.class_names)
        if name not in specs:
            near = closest(name, specs)
            raise UsageError(
                f"task.monitor={name} is not a metric of this task; available: {', '.join(specs)}",
                hint=f"did you mean task.monitor={near}?" if near else None,
            )
        if self.surface_metrics != "always" and name.split("/")[0] in SURFACE_METRICS:
            raise UsageError(
                f"task.monitor={name} needs surface distances in every evaluation, but "
                f"task.surface_metrics={self.surface_metrics}",
                hint="set task.surface_metrics=always",
            )
        spec = specs[name]
        return MetricSpec(f"val/{name}", spec.mode, spec.unit)

    def metrics(self) -> Mapping[str, MetricSpec]:
        """The metrics of every evaluation, with their direction."""
        specs = metric_specs(self.class_names)
        if self.surface_metrics == "always":
            return specs
        return {key: spec for key, spec in specs.items() if key.split("/")[0] not in SURFACE_METRICS}

    def example_input(self) -> tuple[int, ...]:
        """Shape [C, *S] of a training patch."""
        return (self.plan.in_channels, *self.plan.patch_size)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Logits of a batch of patches and their loss."""
        logits = model(batch["image"])
        return StepOutput(self.loss(logits, batch["label"], ignore_index=self.plan.ignore_index))

    def begin_evaluation(self) -> None:
        """Forget the worst case."""
        self.worst = None

    def evaluation_step(self, model: nn.Module, item: Batch, *, final: bool) -> list[Record]:
        """Predict a case by sliding window, bring it to its source grid and compare it there."""
        logits = self.predict_logits(model, item["image"], final=final)
        prediction = self.inference.postprocess(item["geometry"].invert_logits(logits), self.class_names)
        surface = self.surface_metrics == "always" or (self.surface_metrics == "final" and final)
        row = evaluate_case(
            prediction,
            item["source_label"],
            spacing=item["geometry"].canonical_spacing,
            class_names=self.class_names,
            surface=surface,
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            ignore_index=self.plan.ignore_index,
        )
        self._keep_if_worst(item, logits, row)
        return [{"case_id": item["case_id"], **row}]

    def predict_logits(self, model: nn.Module, image: Tensor, *, final: bool) -> Tensor:
        """Logits [K, D, H, W] of a whole normalised image [C, D, H, W]."""

        def forward(windows: Tensor) -> Tensor:
            if self.memory_format is not None:
                windows = windows.contiguous(memory_format=self.memory_format)
            return model(windows)

        return self.inference.predict_logits(
            forward,
            image,
            patch_size=self.plan.patch_size,
            mirror=self.inference.mirror if final else self.inference.mirror_in_training,
            device=self.device,
        )

    def summarize(self, records: Sequence[Record]) -> dict[str, float]:
        """Means over cases, per class and over the classes."""
        return summarize(records, self.class_names)

    def _keep_if_worst(self, item: Batch, logits: Tensor, row: Mapping[str, float]) -> None:
        score = float(np.nanmean([value for key, value in row.items() if key.startswith("dice/")] or [np.nan]))
        if np.isnan(score) or (self.worst is not None and score >= self.worst["score"]):
            return
        self.worst = WorstCase(
            case_id=item["case_id"],
            score=score,
            image=item["image"].float().cpu().numpy(),
            label=np.asarray(item["label"]),
            prediction=logits.argmax(0).to(torch.uint8).cpu().numpy(),
            spacing=item["spacing"],
        )
