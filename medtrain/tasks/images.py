"""What the tasks on labelled images, bags, views and tables share: steps, records, decisions, reports."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from medtrain.data.images.mixing import Mix
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.samples import Normalizer
from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.supervision import InstanceEntropy, SupervisedLoss
from medtrain.metrics.arrays import finite_values
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import Spread
from medtrain.tasks.base import Batch, PictureStyle, ReadCases, Record, StepOutput, find_monitor
from medtrain.tasks.gallery import Gallery
from medtrain.tasks.model_io import as_outputs, example_batch, model_inputs, unwrapped
from medtrain.tasks.outcome import Decision, Outcome, Rows, column, require_kind
from medtrain.tasks.report import (
    Subgroups,
    attention_rows,
    interval_rows,
    metrics_table,
    subgroup_rows,
    taken,
    write_report,
)
from medtrain.tasks.settings import ImageTaskSettings
from medtrain.tasks.training_checks import check_mixing, check_sides, warn_of_two_corrections
from medtrain.tasks.watching import Outputs, TruthMaps

if TYPE_CHECKING:
    from rich.table import Table

    from medtrain.losses.units import ImageLoss

log = logging.getLogger(__name__)

_LOSS = MetricSpec("loss", "min")
_CANDIDATES = 60
"""Samples that are kept to be shown as uncertain where the threshold is not known yet."""


class ImageTask:
    """Base of the tasks on labelled images; a subclass says what the outcome is.

    Args:
        loss: Loss of logits and targets [B, T].
        inference: How to predict.
        plan: Classes and shapes.
        device: Where the model runs.
        memory_format: Memory format of images, as in training.
        settings: How it is supervised and judged.
    """

    kinds: tuple[str, ...] = ("classes",)
    """The kinds of loss that the task can judge."""

    def __init__(
        self,
        *,
        loss: ImageLoss,
        inference: ImageInference,
        plan: ImagePlan,
        device: torch.device,
        memory_format: torch.memory_format | None = None,
        settings: Annotated[ImageTaskSettings, Spread()] = ImageTaskSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.loss = loss
        self.inference = inference
        self.plan = plan
        self.device = device
        self.memory_format = memory_format
        self.attention = attention = settings.attention
        self.report = settings.report
        self.supervised = SupervisedLoss(
            loss,
            aux_weights=settings.aux_weights,
            attention=attention,
            instance_entropy=settings.instance_entropy,
        )
        require_kind(loss.kind, self.kinds)
        self._check_attention(settings.instance_entropy)
        self.outcome = self.make_outcome()
        self.subgroups = Subgroups(self.report, plan.tabular, plan.metadata_names)
        self.class_names: Sequence[str] = self.outcome.class_names
        self.in_channels = plan.in_channels
        self.normalizer = Normalizer(plan)
        self.decision: Decision = {}
        source = "model" if attention is None else attention.source
        self.maps = None if source == "model" else TruthMaps(loss, source)
        # evaluation reads logits on the CPU, in full precision
        self.cpu_loss = copy.deepcopy(loss).cpu()
        self.begin_evaluation()
        self._check_inference()
        specs = self.metrics()
        self.monitor = find_monitor(next(iter(specs)) if settings.monitor is None else settings.monitor, specs)

    def make_outcome(self) -> Outcome:
        """What the samples are judged on; called once, with `loss`, `inference` and `plan` in place."""
        raise NotImplementedError

    def _check_attention(self, instance_entropy: InstanceEntropy | None) -> None:
        """Say before the first step what these data cannot give; what the model lacks, its first batch tells."""
        if self.attention is not None and self.attention.mask is not None and not self.plan.annotated:
            raise UsageError(
                f"task.attention.mask={self.attention.mask} compares with masks, and the data have none",
                hint="name the masks in data, or set task.attention.mask=null and task.attention.sharpness=entropy",
            )
        if self.attention is not None and (self.plan.several_images or not self.plan.has_images):
            raise UsageError(
                "task.attention is about the map of one image per sample; these data have bags, views or no images",
                hint="set task.attention=null; task.instance_entropy is for bags and views",
            )
        if instance_entropy is not None and not self.plan.several_images:
            raise UsageError(
                "task.instance_entropy is for bags and views, and these data have one image per sample",
                hint="set task.instance_entropy=null",
            )

    def _check_inference(self) -> None:
        if self.inference.has_threshold and not self.outcome.takes_threshold:
            raise UsageError(
                "inference.threshold and inference.min_sensitivity choose between two classes; this task has "
                f"{len(self.class_names) or 'no'} classes",
                hint="leave inference.threshold=0.5 and inference.min_sensitivity=null",
            )
        if self.inference.calibrate and not self.outcome.takes_temperature:
            raise UsageError("inference.calibrate=true: this task predicts no probabilities", hint="leave it false")
        mirrors = self.inference.mirror or self.inference.mirror_in_training
        if mirrors and not self.plan.has_images:
            raise UsageError("inference.mirror=true: the data have no images", hint="set inference.mirror=false")
        self.inference.copies(self.plan.spatial_dims, mirror=mirrors)
        if mirrors and self.plan.spatial_dims - 1 in self.inference.mirrored_axes(self.plan.spatial_dims):
            self._check_sides()

    def _check_sides(self) -> None:
        """Say that predictions of mirrored images cannot be put back where they belong."""
        if self.lacks_pairs:
            raise UsageError(
                "inference.mirror=true swaps left and right, but the data do not say which zones form pairs",
                hint="name the pairs in data.paired_targets, or mirror another axis: inference.mirror_axes=[0]",
            )

        if self.plan.paired_targets and self.loss.kind == "survival":
            raise UsageError(
                "inference.mirror=true swaps left and right, and survival is not predicted by target: paired targets "
                "cannot be swapped back",
                hint="set inference.mirror=false, or data.paired_targets=[]",
            )

    def check_training(self, data: Mapping[str, Any], augment: Any) -> None:
        """See `Task.check_training`, and `medtrain.tasks.training_checks`."""
        check_mixing(self, augment)
        check_sides(self, data, augment)
        warn_of_two_corrections(self, data)

    @property
    def has_places(self) -> bool:
        """Whether targets belong to places in the image."""
        return False

    @property
    def lacks_pairs(self) -> bool:
        """Whether targets have a place in the image, and nothing says which change places with left and right."""
        return False

    # ------------------------------------------------------------------------------------------------- the model

    def runtime(self) -> dict[str, Any]:
        """The size of the model's last layer, and what the outcome adds."""
        return {
            "num_outputs": self.loss.num_outputs,
            "cumulative_targets": self.loss.cumulative_targets,
            **self.outcome.runtime(),
        }

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Call the model with the entries of the batch that it takes."""
        return model(**self.inputs(model, batch))

    def inputs(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The entries of the batch that the model takes."""
        return {name: batch[name] for name in model_inputs(model) if batch.get(name) is not None}

    def example_batch(self) -> dict[str, Tensor]:
        """One sample with every entry that the data give: zeros."""
        return example_batch(self.plan)

    # -------------------------------------------------------------------------------------------------- training

    def batch_weight(self, batch: Batch) -> float:
        """Weight of the labelled units of the batch, as the loss counts them."""
        return self.loss.weight(batch["target"])

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """The loss of the logits, and beside it that of auxiliary heads and of where the model looks."""
        target, maps = batch["target"], None
        inner = unwrapped(model)
        mix: Mix | None = batch.get("mix")
        if mix is not None:
            batch = {**batch, "image": mix.images(batch["image"])}

        def forward() -> Outputs:
            return as_outputs(self.forward(model, batch))

        if self.maps is None:
            outputs = forward()
        else:
            outputs, maps = self.maps(inner, self.inputs(inner, batch), target, forward)
        loss, terms = self.supervised(
            outputs, target, maps=maps, annotation=batch.get("annotation"), present=batch.get("present")
        )
        if mix is not None:
            other, its_terms = self.supervised(outputs, target.flip(0))
            loss = mix.share * loss + (1 - mix.share) * other
            terms = {name: mix.share * value + (1 - mix.share) * its_terms[name] for name, value in terms.items()}
        return StepOutput(loss, {f"train/loss/{name}": value for name, value in terms.items()})

    # ------------------------------------------------------------------------------------------------ evaluation

    def begin_evaluation(self) -> None:
        """Forget the samples that the last one kept for pictures."""
        later = self.inference.chooses_threshold and not self.decision
        self.gallery = Gallery(
            several=self.plan.several_images, view_names=self.plan.view_names, candidates=_CANDIDATES if later else None
        )

    def evaluation_step(self, model: nn.Module, item: Batch, *, final: bool) -> list[Record]:
        """Predict a batch of samples, as read: one record each, with labels where the batch has a target."""
        read, item = item, self.normalizer(item, self.device, self.memory_format)
        seen: list[Outputs] = []
        spatial_dims = self.plan.spatial_dims

        def predict(part: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
            outputs = {key: value.detach().cpu() for key, value in as_outputs(self.forward(model, part)).items()}
            if not axes:
                seen.append(outputs)
            return self._predictions(outputs["logits"].double(), mirrored=spatial_dims - 1 in axes)

        mirror = self.inference.mirror if final else self.inference.mirror_in_training
        predictions = self.inference.predict(predict, item, spatial_dims=spatial_dims, mirror=mirror)
        target = item["target"].cpu() if item.get("target") is not None else None
        rows = self.outcome.rows(
            finite_values(predictions, "predictions"),
            None if target is None else target.double().numpy(),
            self.decision,
        )
        logits = torch.cat([outputs["logits"] for outputs in seen]).float()
        losses = self._losses(logits, target)
        attention = [_attention_texts(outputs["attention"]) for outputs in seen if "attention" in outputs]
        texts = [text for part in attention for text in part]
        records: list[Record] = [
            {
                "case_id": str(item["case_id"][index]),
                "group": str(item["group"][index]),
                **self.subgroups.values(item, index),
                **row,
                **losses[index],
                **({"attention": texts[index]} if texts else {}),
            }
            for index, row in enumerate(rows)
        ]
        self.gallery.offer(
            read,
            records,
            [self.outcome.caption(record) for record in records],
            scores=self.outcome.scores(records) if self.outcome.scores_stand_alone else -column(records, "loss"),
            doubts=self.outcome.doubts(records, self.decision),
        )
        return records

    def _predictions(self, logits: Tensor, *, mirrored: bool) -> Tensor:
        """Predictions [B, P] of logits on the CPU; where left and right were swapped, they are swapped back."""
        predicted = self.cpu_loss.predict(logits)
        swap = mirrored and bool(self.plan.paired_targets)
        return self.outcome.flatten(predicted[:, self.plan.swapped_targets] if swap else predicted)

    def _losses(self, logits: Tensor, target: Tensor | None) -> list[dict[str, float]]:
        """Loss and weight of every sample; nothing where there is no label, or the loss is that of a whole batch."""
        if target is None or not self.loss.decomposable:
            return [{}] * len(logits)
        found: list[dict[str, float]] = []
        for said, true in zip(logits.split(1), target.split(1), strict=True):
            weight = self.cpu_loss.weight(true)
            value = float(self.cpu_loss(said, true)) if weight else math.nan
            found.append({"loss": value, "loss_weight": weight})
        return found

    def metrics(self) -> Mapping[str, MetricSpec]:
        """The metrics of every evaluation, the default monitor first."""
        specs = self.outcome.specs()
        return {**specs, "loss": _LOSS} if self.loss.decomposable else specs

    def summarize(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of all records together: never means over batches."""
        summary = self.outcome.summarize(records, self.decision)
        if self.loss.decomposable:
            values, weights = column(records, "loss"), np.nan_to_num(column(records, "loss_weight"))
            total = float(weights.sum())
            summary["loss"] = float((np.nan_to_num(values) * weights).sum() / total) if total > 0 else math.nan
        return summary

    # ------------------------------------------------------------------- decisions, taken on the validation part

    def fit_decision(self, records: Sequence[Record]) -> dict[str, float]:
        """Choose what `inference` leaves to the validation part, and adopt it.

        Args:
            records: Of the whole validation part, made without a decision (`use_decision({})`).

        Returns:
            Numbers by name, to be kept with the run for `use_decision`; empty where nothing was asked for. What the
            validation part does not tell, because it has one class only, is missing: a warning says so.
        """
        found = self.outcome.fit(records, self.inference)
        missing = [key for key, value in found.items() if math.isnan(value)]
        if missing:
            log.warning("the validation part does not tell %s: left as it is", ", ".join(missing))
        self.decision = {key: value for key, value in found.items() if key not in missing}
        return dict(self.decision)

    def decide(self, records: Sequence[Record]) -> list[Record]:
        """Records that were made without a decision, under the one that is adopted."""
        return self.outcome.decide(records, self.decision) if self.decision else list(records)

    def use_decision(self, decision: Decision) -> None:
        """Adopt what was chosen on the validation part; what `inference` does not ask for is left out.

        Args:
            decision: Of `fit_decision`; empty to forget it, before the validation part is judged.
        """
        self.decision = {key: value for key, value in decision.items() if self._is_asked_for(key)}

    @property
    def lacks_decision(self) -> bool:
        """Whether `inference` leaves something to the validation part that is not chosen yet."""
        chosen = {self._is_temperature(key) for key in self.decision}
        return (self.inference.calibrate and True not in chosen) or (
            self.inference.chooses_threshold and False not in chosen
        )

    def _is_asked_for(self, key: str) -> bool:
        return self.inference.calibrate if self._is_temperature(key) else self.inference.chooses_threshold

    def _is_temperature(self, key: str) -> bool:
        return key == "temperature" or (key.endswith("/temperature") and "threshold" not in key.split("/"))

    # --------------------------------------------------------------------------------------------------- reports

    def final_tables(self, records: Sequence[Record]) -> dict[str, Rows]:
        """The tables written beside `cases.csv`: `intervals`, `subgroups`, `attention`, and those of the outcome."""
        tables: dict[str, Rows] = {}
        statistic = taken(records, self.summarize)
        if self.report.resamples:
            tables["intervals"] = interval_rows(records, statistic, self.report)
        if self.report.subgroups:
            tables["subgroups"] = subgroup_rows(records, statistic, self.subgroups.columns(records), self.report)
        if any("attention" in record for record in records):
            tables["attention"] = attention_rows(records, self.plan.view_names)
        return {**tables, **self.outcome.tables(records)}

    def write_evaluation(
        self, folder: Path, records: Sequence[Record], summary: Mapping[str, float], *, extra: Mapping[str, Any]
    ) -> None:
        """Write `cases.csv`, `summary.json` and the final tables."""
        by = self.outcome.judged_by
        sign = -1.0 if by.startswith("error") else 1.0
        worst = [{"case_id": case, by: sign * score} for case, score in self.worst_cases(records)]
        facts = {**extra, "worst": worst, "decision": dict(self.decision), "printed": list(self._printed())}
        said = self.outcome.constant(records) if records else ""
        if said:
            log.warning("the model says the same of all %d samples: %s", len(records), said)
        write_report(folder, records, summary, self.final_tables(records), extra=facts)

    def summary_table(self, records: Sequence[Record], summary: Mapping[str, float], *, title: str) -> Table:
        """One row per metric, one column per class where they fit."""
        return metrics_table(summary, self._printed(), title=title)

    def told(self, record: Record) -> str:
        """Truth and prediction, with their probabilities where there are some."""
        return self.outcome.caption(record).line()

    def _printed(self) -> dict[str, MetricSpec]:
        specs = self.metrics()
        names = {*self.outcome.printed(specs), self.monitor.name.removeprefix("val/")}
        return {name: spec for name, spec in specs.items() if name in names}

    def worst_cases(self, records: Sequence[Record], count: int = 5) -> list[tuple[str, float]]:
        """The samples that were predicted worst, the worst first."""
        scores = self.outcome.scores(records) if records else np.zeros(0)
        order = sorted((float(score), str(record["case_id"])) for score, record in zip(scores, records, strict=True))
        return [(case, score) for score, case in order if not math.isnan(score)][:count]

    def readable(self, records: Sequence[Record]) -> list[Record]:
        """Records with names in place of class indices, for people."""
        return [{**record, **self.outcome.readable(record)} for record in records]

    def pictures(self, records: Sequence[Record], style: PictureStyle) -> dict[str, np.ndarray]:
        """Samples that this process judged worst or is least sure of, and charts of all records if there are two."""
        if not records:
            return {}
        if self.decision:  # it may have been taken after the samples were judged
            ids = [str(record["case_id"]) for record in records]
            captions = [self.outcome.caption(record) for record in records]
            doubts = self.outcome.doubts(records, self.decision).tolist()
            self.gallery.judge_again(dict(zip(ids, captions, strict=True)), dict(zip(ids, doubts, strict=True)))
        worst = self.gallery.draw(style)
        shown = {} if worst is None else {"worst": worst}
        return shown if len(records) == 1 else {**shown, **self.outcome.charts(records, self.decision)}

    def explanations(
        self, model: nn.Module, read: ReadCases, records: Sequence[Record], style: PictureStyle
    ) -> dict[str, np.ndarray]:
        """Class activation maps, and attention over instances, of the worst, most uncertain and best samples."""
        from medtrain.tasks.explaining import explain_samples  # matplotlib takes its time to import

        return explain_samples(self, model, read, records, style)

    def final_cost(self) -> float:
        """A pass for every mirrored copy that evaluations during training leave out."""
        dims = self.plan.spatial_dims
        during = len(self.inference.copies(dims, mirror=self.inference.mirror_in_training))
        return len(self.inference.copies(dims, mirror=self.inference.mirror)) / during

    def describe_final(self) -> str:
        """Whether it mirrors."""
        return "with mirroring" if self.inference.mirror and not self.inference.mirror_in_training else ""


def _attention_texts(attention: Tensor) -> list[str]:
    """Weights [B, V] as text, one per sample."""
    return [" ".join(f"{weight:.6g}" for weight in row) for row in attention.float().tolist()]
