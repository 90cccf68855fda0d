"""Multitask: several targets of any kind at once, each judged by its own metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.multitask import MultitaskLoss
from medtrain.losses.ordinal import OrdinalLoss, SquaredEMDLoss
from medtrain.losses.survival import DiscreteSurvivalLoss
from medtrain.losses.units import ImageLoss
from medtrain.metrics.arrays import defined_mean
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.tasks.base import Record
from medtrain.tasks.classification import ClassOutcome
from medtrain.tasks.gallery import Caption
from medtrain.tasks.images import ImageTask
from medtrain.tasks.multilabel import LabelOutcome
from medtrain.tasks.ordinal import GradeOutcome
from medtrain.tasks.outcome import FOR_THE_TRUTH, Decision, Outcome, Rows, Table
from medtrain.tasks.regression import NumberOutcome
from medtrain.tasks.survival import SurvivalOutcome
from medtrain.tasks.zones import ZoneOutcome, find_unknown


@register("task", "multitask", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Multitask(ImageTask):
    """Several targets at once; the parts of the loss say which target columns belong together, and of what kind.

    A part is judged as it would be alone: classes, grades (`ordinal`, `emd`), several labels (`bce`), zones (several
    targets with `ce` or `weighted_zone_ce`), numbers, survival. Columns and metrics begin with the name of the part's
    first target, `diagnosis/auroc`. The default monitor, `score`, is the mean over the parts of their own monitors;
    numbers count with R2, which has no unit.
    """

    kinds = ("mixed",)

    def make_outcome(self) -> Outcome:
        """One outcome per part of the loss."""
        assert isinstance(self.loss, MultitaskLoss)
        outcomes = []
        for part, columns in zip(self.loss.losses, self.loss.columns, strict=True):
            targets = [self.plan.targets[index] for index in columns]
            outcomes.append((targets[0].target_name, outcome_of(part, targets, self.inference)))
        return Parts(self.loss, outcomes)

    @property
    def lacks_pairs(self) -> bool:
        """Whether there is a part of zones of which none form pairs."""
        assert isinstance(self.outcome, Parts)
        paired = {index for pair in self.plan.paired_targets for index in pair}
        parts = self.outcome.target_columns
        return any(
            isinstance(outcome, ZoneOutcome) and not paired & set(parts[name])
            for name, outcome in self.outcome.outcomes.items()
        )

    def _predictions(self, logits: Tensor, *, mirrored: bool) -> Tensor:
        assert isinstance(self.outcome, Parts)
        assert isinstance(self.cpu_loss, MultitaskLoss)
        split = zip(self.cpu_loss.losses, self.cpu_loss.split(logits), strict=True)
        said = [loss.predict(part).double() for loss, part in split]
        if mirrored:
            said = self._swapped_back(said)
        outcomes = self.outcome.outcomes.values()
        return torch.cat([outcome.flatten(part) for outcome, part in zip(outcomes, said, strict=True)], dim=1)

    def _swapped_back(self, said: Sequence[Tensor]) -> list[Tensor]:
        """Predictions [B, T_p, ...] of every part, in which paired targets have changed places, also between parts."""
        places = self._places()
        found = [part.clone() for part in said]
        for left, right in self.plan.paired_targets:
            (part, place), (other, its_place) = places[left], places[right]
            found[part][:, place] = said[other][:, its_place]
            found[other][:, its_place] = said[part][:, place]
        return found

    def _places(self) -> dict[int, tuple[int, int]]:
        """Index of the part and place in it, by target column."""
        assert isinstance(self.loss, MultitaskLoss)
        return {
            column: (part, place)
            for part, columns in enumerate(self.loss.columns)
            for place, column in enumerate(columns)
        }

    def _check_sides(self) -> None:
        super()._check_sides()
        assert isinstance(self.loss, MultitaskLoss)
        kinds, places = [part.kind for part in self.loss.losses], self._places()
        for pair in self.plan.paired_targets:
            found = sorted({kinds[places[column][0]] for column in pair})
            if found not in (["classes"], ["numbers"]):
                names = " and ".join(self.plan.targets[column].target_name for column in pair)
                raise UsageError(
                    f"inference.mirror=true swaps left and right, and the predictions of {names} cannot be swapped "
                    f"back: their parts of the loss are of {' and '.join(found)}",
                    hint="set inference.mirror=false, or leave the pair out of data.paired_targets",
                )


def outcome_of(loss: ImageLoss, targets: Sequence[Any], inference: ImageInference) -> Outcome:
    """What the targets of a part are, by its loss.

    Args:
        loss: Of the part.
        targets: Its target columns (`TargetPlan`).
        inference: Where thresholds come from.
    """
    names = tuple(target.target_name for target in targets)
    if loss.kind == "survival":
        times = loss.times if isinstance(loss, DiscreteSurvivalLoss) else ()
        return SurvivalOutcome(*names, times=times)
    if loss.kind == "numbers":
        return NumberOutcome(names, scales=[target.std for target in targets])
    classes = tuple(targets[0].classes)
    if len(targets) > 1 and len(classes) == 2:
        return LabelOutcome(names, inference)
    if len(targets) > 1:
        return ZoneOutcome(names, classes, unknown_index=find_unknown(classes, None))
    if isinstance(loss, OrdinalLoss | SquaredEMDLoss):
        return GradeOutcome(classes, inference)
    return ClassOutcome(classes, inference)


class Parts(Outcome):
    """Several outcomes side by side; each one's columns and metrics begin with its name.

    Args:
        loss: Tells the target columns of each.
        outcomes: Name and outcome.
    """

    scores_stand_alone = False
    judged_by = "mean rank among all samples"

    def __init__(self, loss: MultitaskLoss, outcomes: Sequence[tuple[str, Outcome]]) -> None:
        self.outcomes = dict(outcomes)
        assert len(self.outcomes) == len(outcomes), "parts have names of their own"
        self.target_columns = dict(zip(self.outcomes, loss.columns, strict=True))
        self.num_predictions = sum(outcome.num_predictions for outcome in self.outcomes.values())
        self.takes_threshold = any(outcome.takes_threshold for outcome in self.outcomes.values())
        self.takes_temperature = any(outcome.takes_temperature for outcome in self.outcomes.values())

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """The columns of every part, after its name."""
        rows: Rows = [{} for _ in predictions]
        start = 0
        for name, outcome in self.outcomes.items():
            width = outcome.num_predictions
            true = None if target is None else target[:, self.target_columns[name]]
            found = outcome.rows(predictions[:, start : start + width], true, within(decision, name))
            start += width
            for row, part in zip(rows, found, strict=True):
                row.update({f"{name}/{key}": value for key, value in part.items()})
        return rows

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """The predictions of all parts side by side."""
        found = [outcome.read(part_of(records, name)) for name, outcome in self.outcomes.items()]
        return np.concatenate(found, axis=1)

    def specs(self) -> dict[str, MetricSpec]:
        """`score`, then the metrics of every part after its name."""
        specs = {"score": MetricSpec("score", "max")}
        for name, outcome in self.outcomes.items():
            for key, spec in outcome.specs().items():
                specs[f"{name}/{key}"] = MetricSpec(f"{name}/{key}", spec.mode, spec.unit)
        return specs

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """The metrics of every part, and `score`, the mean over the parts for which it is defined."""
        metrics: dict[str, float] = {}
        scores = []
        for name, outcome in self.outcomes.items():
            found = outcome.summarize(part_of(records, name), within(decision, name))
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            scores.append(outcome.goodness(found))
        return {"score": defined_mean(np.array(scores)), **metrics}

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Mean rank of the sample in its parts, 0 the worst."""
        ranks = []
        for name, outcome in self.outcomes.items():
            values = outcome.scores(part_of(records, name))
            known = ~np.isnan(values)
            rank = np.full(len(values), np.nan)
            rank[known] = values[known].argsort(kind="stable").argsort(kind="stable") / max(1, known.sum() - 1)
            ranks.append(rank)
        return np.array([defined_mean(row) for row in np.stack(ranks, axis=1)])

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """What every part chooses that can."""
        decision: dict[str, float] = {}
        for name, outcome in self.outcomes.items():
            found = outcome.fit(part_of(records, name), _able(outcome, inference))
            decision |= {f"{name}/{key}": value for key, value in found.items()}
        return decision

    def tables(self, records: Sequence[Record]) -> dict[str, Rows]:
        """The tables of every part after its name."""
        return {
            f"{name}_{key}": rows
            for name, outcome in self.outcomes.items()
            for key, rows in outcome.tables(part_of(records, name)).items()
        }

    def printed(self, names: Iterable[str]) -> list[str]:
        """What every part would print alone, after its name, and `score`."""
        given = list(names)
        kept = {
            f"{name}/{key}"
            for name, outcome in self.outcomes.items()
            for key in outcome.printed([key.removeprefix(f"{name}/") for key in given if key.startswith(f"{name}/")])
        }
        return [key for key in given if key in kept or key.partition("/")[0] not in self.outcomes]

    def constant(self, records: Sequence[Record]) -> str:
        """What each part says of every sample."""
        said = {name: outcome.constant(part_of(records, name)) for name, outcome in self.outcomes.items()}
        return "; ".join(f"{name}: {words}" for name, words in said.items() if words)

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """Those of all parts, but for the truth."""
        found: dict[str, np.ndarray] = {}
        width = 1 + max(max(places) for places in self.target_columns.values())
        for name, outcome in self.outcomes.items():
            asked = outcome.questions(part_of(records, name))
            asked.pop(FOR_THE_TRUTH, None)
            for key, values in asked.items():
                placed = found[name if len(asked) == 1 else f"{name}: {key}"] = np.full((len(records), width), np.nan)
                placed[:, self.target_columns[name]] = values
        return found

    def caption(self, record: Record) -> Caption:
        """Those of all parts."""
        parts = [outcome.caption(part_of([record], name)[0]) for name, outcome in self.outcomes.items()]
        return Caption(
            truth="; ".join(part.truth for part in parts), predicted="; ".join(part.predicted for part in parts)
        )

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """The pictures of every part after its name."""
        return {
            f"{name}_{key}": picture
            for name, outcome in self.outcomes.items()
            for key, picture in outcome.charts(part_of(records, name), within(decision, name)).items()
        }

    def readable(self, record: Record) -> dict[str, Any]:
        """The class names of every part."""
        found: dict[str, Any] = {}
        for name, outcome in self.outcomes.items():
            part = outcome.readable(part_of([record], name)[0])
            found |= {f"{name}/{key}": value for key, value in part.items()}
        return found


def part_of(records: Sequence[Record], name: str) -> Table:
    """The columns that begin with the name of a part, without it."""
    return (records if isinstance(records, Table) else Table(records)).part(name)


def within(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries whose key begins with a name and a slash, without these."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def _able(outcome: Outcome, inference: ImageInference) -> ImageInference:
    """The settings without what means nothing to an outcome."""
    threshold = inference.threshold if outcome.takes_threshold else 0.5
    return ImageInference(
        threshold=threshold,
        min_sensitivity=inference.min_sensitivity if outcome.takes_threshold else None,
        calibrate=inference.calibrate and outcome.takes_temperature,
    )
