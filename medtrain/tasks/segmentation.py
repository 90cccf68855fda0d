"""Segmentation: every voxel of an image gets a class; cases are judged whole, on their own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.inference.postprocess import find_structures, keep_largest_components
from medtrain.inference.probability import ProbabilityMaps
from medtrain.losses.base import SegmentationLoss
from medtrain.losses.deep_supervision import DeepSupervisionLoss
from medtrain.metrics.cases import evaluate_case, metric_specs, summarize, worst_cases
from medtrain.metrics.lesions import LesionRule, component_scores
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.surface import SURFACE_METRICS
from medtrain.metrics.tables import summary_table, write_evaluation
from medtrain.pictures.case import WorstCase, draw_case
from medtrain.registry import Range, closest, register
from medtrain.tasks.base import Batch, PictureStyle, PlainTask, Record, StepOutput, find_monitor
from medtrain.tasks.case_report import DEFAULT_CASE_REPORT, CaseColumns, CaseReport, case_tables

if TYPE_CHECKING:
    from rich.table import Table

    from medtrain.data.geometry import CaseGeometry
    from medtrain.data.plan import Plan
    from medtrain.inference.sliding_window import SlidingWindow


@register(
    "task", "segmentation", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("segmentation",)
)
class Segmentation(PlainTask):
    """Train on patches, judge whole cases on the source grid.

    A training batch holds `image` [B, C, *S] float32 and `label` [B, *S] class indices, and `annotated` bool [B, K]
    where not everything was annotated. An evaluation item is a whole prepared case; its logits are resampled to the
    scan's own grid before they are compared with the scan's own label.

    Args:
        loss: Loss of logits [B, K, *S] and labels [B, *S].
        inference: Sliding-window settings.
        plan: Patch, classes and ignore index.
        device: Where the model runs.
        memory_format: Memory format of windows, as in training.
        monitor: The metric that decides which weights are best: `dice`, or e.g. `dice/liver`, `nsd`, `hd95_mm`.
        surface_metrics: Compute HD95 and NSD in every evaluation; `final` only in the last one.
        nsd_tolerance_mm: Tolerance of the normalised surface distance in mm; by class or region, e.g.
            `{liver: 2, tumour: 1}`, for some, where the others have 1 mm.
        lesions: Classes or regions whose connected components are lesions: they are counted one by one, too, and
            scored by their highest probability (FROC; final evaluations only, unless `monitor` is `froc`, because it
            needs the probabilities of whole scans at thresholds below the prediction).
        lesion_iou: A predicted lesion finds a true one when their IoU is at least this; 0 when they overlap at all.
        report: Confidence intervals and subgroups of the final evaluation.
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
        nsd_tolerance_mm: Annotated[float, Range(ge=0)] | dict[str, float] = 1.0,
        lesions: tuple[str, ...] = (),
        lesion_iou: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        report: CaseReport = DEFAULT_CASE_REPORT,
    ) -> None:
        self.loss = DeepSupervisionLoss(loss)
        self.inference = inference
        find_structures(inference.keep_largest, plan.class_names, plan.named_regions)  # an unknown name is said now
        self.plan = plan
        self.device = device
        self.memory_format = memory_format
        self.surface_metrics = surface_metrics
        self.class_names: Sequence[str] = (plan.class_names[0], *plan.judged_names)
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.lesions = LesionRule(lesions, lesion_iou)
        self.report = report
        self._check_names("lesions", lesions)
        if isinstance(nsd_tolerance_mm, Mapping):
            self._check_names("nsd_tolerance_mm", nsd_tolerance_mm)
            if wrong := [name for name, tolerance in nsd_tolerance_mm.items() if not tolerance >= 0]:
                raise UsageError(f"task.nsd_tolerance_mm.{wrong[0]}={nsd_tolerance_mm[wrong[0]]}: it must be >= 0")
        self.in_channels = plan.in_channels
        self.worst: WorstCase | None = None
        self.on_prediction: Callable[[Batch, np.ndarray], None] | None = None
        """Called in a final evaluation with each case and its predicted class indices on the source grid."""
        self.monitor = self._find_monitor(monitor)

    @cached_property
    def columns(self) -> CaseColumns:
        """The table of subgroups, for final evaluations; all else does without."""
        return CaseColumns(self.report)

    def _check_names(self, key: str, names: Iterable[str]) -> None:
        judged = self.plan.judged_names
        for name in names:
            if name not in judged:
                near = closest(name, judged)
                raise UsageError(
                    f"task.{key}: {name} is none of the classes or regions {', '.join(judged)}",
                    hint=f"did you mean {near}?" if near else None,
                )

    def _specs(self) -> dict[str, MetricSpec]:
        return metric_specs(self.class_names, self.lesions.lesions, froc=True)

    def _find_monitor(self, name: str) -> MetricSpec:
        monitor = find_monitor(name, self._specs())
        if self.surface_metrics != "always" and name.split("/")[0] in SURFACE_METRICS:
            raise UsageError(
                f"task.monitor={name} needs surface distances in every evaluation, but "
                f"task.surface_metrics={self.surface_metrics}",
                hint="set task.surface_metrics=always",
            )
        return monitor

    def metrics(self) -> Mapping[str, MetricSpec]:
        """The metrics of every evaluation, with their direction."""
        final = set() if self.surface_metrics == "always" else set(SURFACE_METRICS)
        if not self._monitors_froc:
            final.add("froc")
        return {key: spec for key, spec in self._specs().items() if key.split("/")[0] not in final}

    @property
    def _monitors_froc(self) -> bool:
        return self.monitor.name.split("/")[1] == "froc"

    def runtime(self) -> dict[str, Any]:
        """Models have one output per class, or per region, and a cascade's see more than the image."""
        return {"num_outputs": self.plan.num_outputs, "in_channels": self.plan.input_channels}

    def example_batch(self) -> dict[str, Tensor]:
        """A patch [1, C, *S]."""
        return {"image": torch.zeros(1, self.plan.input_channels, *self.plan.patch_size)}

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor | Sequence[Tensor]:
        """Logits of patches [B, C, *S], at several resolutions in training with deep supervision."""
        return model(batch["image"])

    def batch_weight(self, batch: Batch) -> float:
        """Its patches."""
        return float(batch["weight"])

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Logits of a batch of patches and their loss."""
        logits = self.forward(model, batch)
        known = batch.get("annotated")
        return StepOutput(self.loss(logits, batch["label"], ignore_index=self.plan.ignore_index, annotated=known))

    def check_training(self, data: Mapping[str, Any], augment: Any) -> None:
        """See that the table of subgroups fits; of data anything does, masks are changed along with their images."""
        _ = self.columns

    def begin_evaluation(self) -> None:
        """Forget the worst case."""
        self.worst = None

    def evaluation_step(self, model: nn.Module, item: Batch, *, final: bool) -> list[Record]:
        """Predict a case by sliding window, bring it to its source grid and compare it there."""
        if final:
            _ = self.columns  # a table that does not fit is said before anything is judged
        maps = self.lesion_maps() if final or self._monitors_froc else None
        prediction = self.predict_label([model], [item["image"]], item["geometry"], final=final, maps=maps)
        if final and self.on_prediction is not None:
            self.on_prediction(item, prediction)
        row = self._judge(prediction, item, None if maps is None else maps.maps, final=final)
        self._keep_if_worst(item, prediction, row)
        return [{"case_id": item["case_id"], "group": item.get("group", item["case_id"]), **row}]

    def lesion_maps(self) -> ProbabilityMaps | None:
        """Where it is kept how sure networks are of lesions, which scores what they find; None without lesions."""
        if not self.lesions.lesions:
            return None
        first = 0 if self.plan.regions is not None else 1  # the background has an output of its own
        outputs = {name: self.plan.judged_names.index(name) + first for name in self.lesions.lesions}
        return ProbabilityMaps(outputs, regions=self.plan.regions is not None)

    def _judge(
        self, prediction: np.ndarray, item: Batch, probabilities: Mapping[str, np.ndarray] | None, *, final: bool
    ) -> dict[str, Any]:
        """Metrics of a predicted map of classes: of the classes, or of the regions."""
        annotated = item.get("annotated")
        return evaluate_case(
            prediction,
            item["source_label"],
            spacing=item["geometry"].canonical_spacing,
            class_names=self.class_names,
            regions=self.plan.regions,
            annotated=None if annotated is None else annotated[-len(self.plan.judged_names) :],
            surface=self.surface_metrics == "always" or (self.surface_metrics == "final" and final),
            nsd_tolerance_mm=self.nsd_tolerance_mm,
            ignore_index=self.plan.ignore_index,
            lesions=self.lesions,
            probabilities=probabilities,
        )

    def predict_label(
        self,
        models: Sequence[nn.Module],
        images: Sequence[Tensor],
        geometry: CaseGeometry,
        *,
        final: bool,
        maps: ProbabilityMaps | None = None,
    ) -> np.ndarray:
        """Classes of a whole scan on its own grid, post-processed.

        Args:
            models: Networks in evaluation mode; the probabilities of several are averaged.
            images: Normalised [C, D, H, W]: one for all networks, or one for each.
            geometry: How the scan came to the network's grid.
            final: Whether to mirror as the final evaluation does.
            maps: Is filled with how sure the networks are of some outputs.

        Returns:
            Class indices [D, H, W].

        Raises:
            UsageError: `inference.max_memory` is too little.
        """
        label = self.inference.predict_label(
            [self._windows_through(model) for model in models],
            images,
            geometry,
            patch_size=self.plan.patch_size,
            regions=self.plan.regions,
            mirror=self.inference.mirror if final else self.inference.mirror_in_training,
            device=self.device,
            maps=maps,
        )
        final_label = self.inference.postprocess(label, self.plan.class_names, self.plan.named_regions)
        if maps is not None and final_label is not label:
            self._end_at(label, final_label, maps)
        return final_label

    def score_lesions(self, label: np.ndarray, maps: ProbabilityMaps) -> dict[str, list[float]]:
        """How sure networks are of each lesion that they found in a scan, by name, the surest first."""
        found = {}
        for name, certainty in maps.maps.items():
            found[name] = component_scores(np.isin(label, self._members(name)), certainty)
        return found

    def _members(self, name: str) -> tuple[int, ...]:
        """The classes of a class or region."""
        at = self.plan.judged_names.index(name)
        return (at + 1,) if self.plan.regions is None else tuple(self.plan.regions[at])

    def _end_at(self, label: np.ndarray, final_label: np.ndarray, maps: ProbabilityMaps) -> None:
        """Show no lesions beyond a label map from which components were removed: lower thresholds have them again.

        That is where components of the lesions themselves were removed, or of a structure that they are part of and
        where there may be some of them. What was removed of another structure makes no difference to them.

        Args:
            label: Class indices [*S] as decided.
            final_label: As post-processed.
            maps: Is changed.
        """
        names = self.inference.keep_largest
        for structure in find_structures(names, self.plan.class_names, self.plan.named_regions):
            kept = keep_largest_components(label, [structure])
            removed = label != kept
            for name, certainty in maps.maps.items():
                members = self._members(name)
                part_of_it = not structure.classes or set(members) <= set(structure.classes)
                lost = removed if part_of_it else removed & np.isin(label, members) & ~np.isin(kept, members)
                if certainty[lost].any():
                    certainty[~np.isin(final_label, members)] = 0
            label = kept

    def _windows_through(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(windows: Tensor) -> Tensor:
            if self.memory_format is not None:
                windows = windows.contiguous(memory_format=self.memory_format)
            return model(windows)

        return forward

    def summarize(self, records: Sequence[Record]) -> dict[str, float]:
        """Means over cases, per class and over the classes."""
        return summarize(records, self.class_names)

    def worst_cases(self, records: Sequence[Record], count: int = 5) -> list[tuple[str, float]]:
        """Those with the lowest mean Dice."""
        return worst_cases(records, count)

    def pictures(self, records: Sequence[Record], style: PictureStyle) -> dict[str, np.ndarray]:
        """The case with the lowest mean Dice among those that this process judged."""
        if self.worst is None:
            return {}
        title = f"{self.worst['case_id']}   mean Dice {self.worst['score']:.4f}   {style.title}".strip()
        pixels = draw_case(
            self.worst,
            list(self.plan.class_names),
            title=title,
            channel=style.channel,
            panel_size=style.panel_size,
            opacity=style.opacity,
        )
        return {"worst": pixels}

    def write_evaluation(
        self, folder: Path, records: Sequence[Record], summary: Mapping[str, float], *, extra: Mapping[str, Any]
    ) -> None:
        """One row per case, their statistics, intervals and subgroups."""
        worst = [{"case_id": case, "dice": dice} for case, dice in self.worst_cases(records)]
        tables = case_tables(records, self.class_names, self.columns, self.report)
        write_evaluation(folder, records, summary, tables=tables, extra={**extra, "worst": worst})

    def summary_table(self, records: Sequence[Record], summary: Mapping[str, float], *, title: str) -> Table:
        """One row per class."""
        return summary_table(records, summary, title=title)

    def final_cost(self) -> float:
        """A pass for every mirrored copy that evaluations during training leave out."""
        axes = self.inference.mirror_axes if self.inference.mirror_axes is not None else range(self.plan.spatial_dims)
        return float(2 ** len(axes)) if self.inference.mirror and not self.inference.mirror_in_training else 1.0

    def describe_final(self) -> str:
        """Whether it mirrors."""
        mirrored = self.inference.mirror and self.inference.mirror_axes
        return "with mirroring" if mirrored and not self.inference.mirror_in_training else ""

    def _keep_if_worst(self, item: Batch, prediction: np.ndarray, row: Mapping[str, float]) -> None:
        values = [value for key, value in row.items() if key.startswith("dice/") and not np.isnan(value)]
        if not values:
            return
        score = float(np.mean(values))
        if self.worst is not None and score >= self.worst["score"]:
            return
        self.worst = WorstCase(
            case_id=item["case_id"],
            score=score,
            image=item["image"].float().cpu().numpy(),
            label=np.asarray(item["label"]),
            prediction=item["geometry"].near_label(prediction),
            spacing=item["spacing"],
        )
