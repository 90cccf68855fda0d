"""Zones: every zone of an image is graded, unless it cannot be; the image's score is the average of its zones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from scipy.special import entr

from medtrain.data.images.plan import ImagePlan
from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.metrics.arrays import defined_mean
from medtrain.metrics.calibration import apply_temperature, fit_temperature
from medtrain.metrics.ordinal import expected_grade
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.zones import (
    RISK_CUTS,
    RISK_NAMES,
    average_scores,
    risk_class,
    risk_confusion,
    zone_confusions,
    zone_metrics,
    zone_specs,
)
from medtrain.registry import Spread, closest, register
from medtrain.tasks.base import Record
from medtrain.tasks.classification import confusion_rows, named_classes
from medtrain.tasks.gallery import Caption
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import (
    Decision,
    Outcome,
    Rows,
    classes_of,
    columns,
    label_or_nan,
    log_probs,
    one_by_one,
    only_value,
)
from medtrain.tasks.settings import ImageTaskSettings

if TYPE_CHECKING:
    from medtrain.losses.units import ImageLoss

ZoneScore = Literal["classes", "expected"]
_UNKNOWN_NAMES = ("unknown", "ungradable")


@register("task", "zones", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Zones(ImageTask):
    """A grade for each of Z zones of an image; every target column is a zone, all with the same classes.

    Grades are the classes in their order, 0 first; the last class may be `unknown`, of zones that cannot be graded. It
    is predicted like the others, and judged on its own. The score of an image is the mean grade of its known zones,
    undefined where there is none. The default monitor is macro F1 over the known grades, averaged over the zones.

    Args:
        unknown_class: Name of the class of zones that cannot be graded; null takes the last class if it is called
            `unknown` or `ungradable`, otherwise every zone has a grade.
        score: What the score of an image averages: the predicted `classes`, or the `expected` grades under the
            predicted probabilities.
        cuts: Highest scores of the risk classes but the last, ascending.
        risk_names: Names of the risk classes, one more than cuts.
    """

    def __init__(
        self,
        *,
        loss: ImageLoss,
        inference: ImageInference,
        plan: ImagePlan,
        device: torch.device,
        memory_format: torch.memory_format | None = None,
        settings: Annotated[ImageTaskSettings, Spread()] = ImageTaskSettings(),  # noqa: B008 - frozen
        unknown_class: str | None = None,
        score: ZoneScore = "classes",
        cuts: tuple[float, ...] = RISK_CUTS,
        risk_names: tuple[str, ...] = RISK_NAMES,
    ) -> None:
        self.unknown_class = unknown_class
        self.score = score
        self.cuts = cuts
        self.risk_names = risk_names
        if list(cuts) != sorted(set(cuts)) or len(risk_names) != len(cuts) + 1:
            raise UsageError(
                f"task.cuts={list(cuts)} must ascend and task.risk_names={list(risk_names)} name one class more"
            )
        super().__init__(
            loss=loss,
            inference=inference,
            plan=plan,
            device=device,
            memory_format=memory_format,
            settings=settings,
        )

    def make_outcome(self) -> Outcome:
        """The targets are the zones."""
        targets = self.plan.targets
        classes = [classes_of(target, "zones") for target in targets]
        if len(set(classes)) != 1:
            shown = "; ".join(f"{t.target_name}: {', '.join(t.classes or ())}" for t in targets)
            raise UsageError(f"task=zones needs zones with the same classes; found {shown or 'no target'}")
        return ZoneOutcome(
            tuple(target.target_name for target in targets),
            classes[0],
            unknown_index=find_unknown(classes[0], self.unknown_class),
            score=self.score,
            cuts=self.cuts,
            risk_names=self.risk_names,
        )

    @property
    def has_places(self) -> bool:
        """Zones do."""
        return True

    @property
    def lacks_pairs(self) -> bool:
        """Whether no zones form pairs."""
        return not self.plan.paired_targets


def find_unknown(class_names: Sequence[str], name: str | None) -> int | None:
    """The index of the class of zones that cannot be graded, or None.

    Args:
        class_names: K names.
        name: Of the class; None looks for `unknown` or `ungradable` at the end.

    Raises:
        UsageError: No class has the name, or it is not the last one.
    """
    if name is None:
        return len(class_names) - 1 if class_names[-1].lower() in _UNKNOWN_NAMES else None
    if name not in class_names:
        near = closest(name, class_names)
        raise UsageError(
            f"task.unknown_class={name} is not a class: {', '.join(class_names)}",
            hint=f"did you mean task.unknown_class={near}?" if near else None,
        )
    if class_names[-1] != name:
        raise UsageError(
            f"the class {name} must be the last one; the classes are {', '.join(class_names)}",
            hint="give the order of the classes in data",
        )
    return len(class_names) - 1


class ZoneOutcome(Outcome):
    """Z zones with one of K classes each.

    Args:
        zone_names: Z names.
        class_names: K names: grades in order, then possibly unknown.
        unknown_index: Of the class unknown, K - 1, or None.
        score: What the score of an image averages.
        cuts: Highest scores of the risk classes but the last.
        risk_names: One name more.
    """

    takes_temperature = True
    judged_by = "error of the grades"

    def __init__(
        self,
        zone_names: tuple[str, ...],
        class_names: tuple[str, ...],
        *,
        unknown_index: int | None = None,
        score: ZoneScore = "classes",
        cuts: Sequence[float] = RISK_CUTS,
        risk_names: Sequence[str] = RISK_NAMES,
    ) -> None:
        self.zone_names = zone_names
        self.class_names = class_names
        self.num_predictions = len(zone_names) * len(class_names)
        self.unknown_index = unknown_index
        self.num_grades = len(class_names) if unknown_index is None else unknown_index
        self.score = score
        self.cuts = tuple(cuts)
        self.risk_names = tuple(risk_names)
        self.keys = [f"prob/{zone}/{name}" for zone in zone_names for name in class_names]
        self.label_keys = [f"label/{zone}" for zone in zone_names]
        self.predicted_keys = [f"predicted/{zone}" for zone in zone_names]
        self.grade_keys = [f"grade/{zone}" for zone in zone_names]

    def runtime(self) -> dict[str, Any]:
        """The zones, for heads that look at their own region."""
        return {"num_zones": len(self.zone_names), "zone_names": self.zone_names}

    def by_zone(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities [N, Z, K] of [N, Z * K]."""
        return probs.reshape(len(probs), len(self.zone_names), len(self.class_names))

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """Per zone `label`, `predicted`, `grade` (expected) and `prob/<zone>/<class>`; `score` and `risk` of the image.

        `grade` and `score` are NaN where they are undefined, and `risk` is empty.
        """
        probs = self.calibrated(self.by_zone(predictions), decision)
        chosen = probs.argmax(axis=2)
        grades = self.expected(probs)
        values = chosen.astype(np.float64) if self.score == "classes" else grades
        scores = average_scores(np.where(chosen < self.num_grades, values, np.nan))
        rows: Rows = [{} for _ in probs]
        if target is not None:
            true_scores = average_scores(np.where(target < self.num_grades, target, np.nan))
            for row, true, score in zip(rows, target, true_scores, strict=True):
                row.update({key: label_or_nan(value) for key, value in zip(self.label_keys, true, strict=True)})
                row.update({"label_score": float(score), "label_risk": self._risk(score)})
        for index, row in enumerate(rows):
            row.update({"score": float(scores[index]), "risk": self._risk(scores[index])})
            row.update({key: int(value) for key, value in zip(self.predicted_keys, chosen[index], strict=True)})
            row.update({key: float(value) for key, value in zip(self.grade_keys, grades[index], strict=True)})
            row.update({key: float(value) for key, value in zip(self.keys, probs[index].ravel(), strict=True)})
        return rows

    def expected(self, probs: np.ndarray) -> np.ndarray:
        """Mean grade [N, Z] under the probabilities [N, Z, K] of the grades, unknown left out."""
        known = probs[..., : self.num_grades]
        shares = known / np.maximum(known.sum(axis=2, keepdims=True), np.finfo(np.float64).tiny)
        return expected_grade(shares.reshape(-1, self.num_grades)).reshape(shares.shape[:2])

    def _risk(self, score: float) -> str:
        index = int(risk_class(np.array([score]), self.cuts)[0])
        return "" if index < 0 else self.risk_names[index]

    def calibrated(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Probabilities [N, Z, K] at the temperature that was chosen, the same for all zones."""
        if "temperature" not in decision:
            return probs
        return apply_temperature(log_probs(probs), decision["temperature"], exclusive=True)

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """Probabilities [N, Z * K]."""
        return columns(records, self.keys)

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `zone_metrics`: first macro F1."""
        return zone_specs(
            self.class_names, self.zone_names, unknown_index=self.unknown_index, risk_names=self.risk_names
        )

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `zone_metrics`."""
        return zone_metrics(
            columns(records, self.predicted_keys),
            columns(records, self.label_keys),
            self.class_names,
            self.zone_names,
            unknown_index=self.unknown_index,
            grades=None if self.score == "classes" else columns(records, self.grade_keys),
            cuts=self.cuts,
            risk_names=self.risk_names,
        )

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Mean distance between the predicted and the true grade over the labelled zones, negative.

        The predicted grade is what the score of the image averages. Unknown is as far from any grade as the lowest
        grade is from the highest.
        """
        labels, chosen = columns(records, self.label_keys), columns(records, self.predicted_keys)
        said = chosen if self.score == "classes" else columns(records, self.grade_keys)
        graded, called = labels < self.num_grades, chosen < self.num_grades
        apart = np.where(graded == called, 0.0, self.num_grades - 1.0)
        errors = np.where(graded & called, np.abs(said - labels), apart)
        return -np.array([defined_mean(row) for row in np.where(np.isnan(labels), np.nan, errors)])

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """One temperature for all zones."""
        if not inference.calibrate:
            return {}
        logits = log_probs(self.by_zone(self.read(records)))
        return {"temperature": fit_temperature(logits, columns(records, self.label_keys))}

    def tables(self, records: Sequence[Record]) -> dict[str, Rows]:
        """Confusion matrices: `confusion` of every zone, `risk_confusion` of the images."""
        chosen, labels = columns(records, self.predicted_keys), columns(records, self.label_keys)
        confusion = [
            {"zone": zone, **row}
            for index, zone in enumerate(self.zone_names)
            for row in confusion_rows(chosen[:, index], labels[:, index], self.class_names)
        ]
        said, true = columns(records, ("score", "label_score")).T
        counts = risk_confusion(said, true, self.cuts)[: len(self.risk_names)]
        names = (*self.risk_names, "undefined")
        risks: Rows = [
            {"label": risk, **{f"predicted {name}": int(count) for name, count in zip(names, row, strict=True)}}
            for risk, row in zip(self.risk_names, counts, strict=True)
        ]
        return {"confusion": confusion, "risk_confusion": risks}

    def constant(self, records: Sequence[Record]) -> str:
        """The same class of every zone of every sample."""
        said, true = columns(records, self.predicted_keys), columns(records, self.label_keys)
        value = only_value(said.ravel(), true.ravel())
        return "" if value is None else f"{self.class_names[int(value)]} in every zone"

    def doubts(self, records: Sequence[Record], decision: Decision) -> np.ndarray:
        """Mean entropy of the zones."""
        probs = self.by_zone(self.read(records))
        return np.asarray(entr(probs).sum(axis=2).mean(axis=1))

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """The predicted class of every zone."""
        return one_by_one(self.zone_names, columns(records, self.predicted_keys))

    def caption(self, record: Record) -> Caption:
        """The class of every zone by its index, and the score."""
        said, true = ([record.get(key, np.nan) for key in keys] for keys in (self.predicted_keys, self.label_keys))
        known = [(one, other) for one, other in zip(said, true, strict=True) if not np.isnan(other)]
        return Caption(
            truth=f"{_indices(true)}  {record['label_score']:.2f}" if known else "",
            predicted=f"{_indices(said)}  {record['score']:.2f}",
            correct=all(one == other for one, other in known) if known else None,
        )

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """A confusion matrix per zone, and the scores of the images."""
        from medtrain.pictures.agreement import draw_global_scores  # matplotlib takes its time to import
        from medtrain.pictures.confusion import draw_zone_confusions

        chosen, labels = columns(records, self.predicted_keys), columns(records, self.label_keys)
        said, true = columns(records, ("score", "label_score")).T
        return {
            "score": draw_global_scores(
                said, true, cuts=self.cuts, risk_names=self.risk_names, highest=self.num_grades - 1
            ),
            "confusion": draw_zone_confusions(
                zone_confusions(chosen, labels, len(self.class_names)), self.class_names, self.zone_names
            ),
        }

    def readable(self, record: Record) -> dict[str, Any]:
        """The names of the classes of every zone."""
        return named_classes(record, [*self.predicted_keys, *self.label_keys], self.class_names)


def _indices(values: Sequence[float]) -> str:
    return " ".join("-" if np.isnan(value) else str(int(value)) for value in values)
