"""Ordinal: classes that have an order, such as the five grades of diabetic retinopathy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch

from medtrain.data.images.plan import ImagePlan
from medtrain.inference.images import ImageInference
from medtrain.metrics.calibration import apply_temperature, fit_temperature
from medtrain.metrics.ordinal import expected_grade, ordinal_metrics, ordinal_specs
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import Spread, register
from medtrain.tasks.base import Record
from medtrain.tasks.classification import ClassOutcome
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import Decision, Outcome, classes_of, column, logit, one_target
from medtrain.tasks.settings import ImageTaskSettings

if TYPE_CHECKING:
    from medtrain.losses.units import ImageLoss

GradeRule = Literal["median", "mode", "expected"]


@register("task", "ordinal", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Ordinal(ImageTask):
    """One grade per sample, with K - 1 cumulative logits (loss=ordinal) or a softmax (loss=ce).

    The default monitor is the quadratic-weighted kappa, since a wrong grade counts by its distance.

    Args:
        grade: The grade that is predicted: the `median` of its distribution (the number of thresholds that are passed
            with a probability above 0.5), the `mode` (the most probable one), or the `expected` one, rounded.
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
        grade: GradeRule = "median",
    ) -> None:
        self.grade = grade
        super().__init__(
            loss=loss,
            inference=inference,
            plan=plan,
            device=device,
            memory_format=memory_format,
            settings=settings,
        )

    def make_outcome(self) -> Outcome:
        """The grades of the only target."""
        target = one_target(self.plan.targets, "ordinal")
        return GradeOutcome(classes_of(target, "ordinal"), self.inference, rule=self.grade)


class GradeOutcome(ClassOutcome):
    """One of K grades.

    Args:
        class_names: K names, in order.
        inference: How to predict; a threshold has no meaning here.
        rule: How a grade is chosen from its probabilities.
    """

    ordered = True
    judged_by = "error of the expected grade"

    def __init__(self, class_names: tuple[str, ...], inference: ImageInference, *, rule: GradeRule = "median") -> None:
        super().__init__(class_names, inference)
        self.takes_threshold = False
        self.rule = rule

    def calibrated(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Probabilities [N, K] whose cumulative logits are divided by the temperature that was chosen."""
        if "temperature" not in decision:
            return probs
        above = apply_temperature(logit(exceedances(probs)), decision["temperature"], exclusive=False)
        padded = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return padded[:, :-1] - padded[:, 1:]

    def choose(self, probs: np.ndarray, decision: Decision) -> np.ndarray:
        """Grades [N] by the rule."""
        if self.rule == "mode":
            return probs.argmax(axis=1)
        if self.rule == "expected":
            return np.floor(expected_grade(probs) + 0.5).astype(np.int64)
        return (exceedances(probs) > 0.5).sum(axis=1)

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `ordinal_metrics`: first the quadratic-weighted kappa."""
        return ordinal_specs(self.class_names)

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `ordinal_metrics`."""
        labels, chosen = column(records, "label"), column(records, "predicted")
        return ordinal_metrics(self.read(records), labels, self.class_names, predicted=chosen)

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Distance between the expected and the true grade, negative."""
        return -np.abs(expected_grade(self.read(records)) - column(records, "label"))

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """Expected over true grades besides those of classes."""
        from medtrain.pictures.agreement import draw_grades

        grades = draw_grades(expected_grade(self.read(records)), column(records, "label"), self.class_names)
        return {"grades": grades, **super().charts(records, decision)}

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """The temperature of the cumulative logits."""
        if not inference.calibrate:
            return {}
        probs, labels = self.read(records), column(records, "label")
        passed = np.where(np.isnan(labels)[:, None], np.nan, labels[:, None] > np.arange(probs.shape[1] - 1))
        return {"temperature": fit_temperature(logit(exceedances(probs)), passed)}


def exceedances(probs: np.ndarray) -> np.ndarray:
    """The probabilities that a grade is above 0, 1, ..., K - 2.

    Args:
        probs: Of the grades [N, K].

    Returns:
        [N, K - 1], descending along the second axis.
    """
    return np.minimum(np.cumsum(probs[:, ::-1], axis=1)[:, ::-1][:, 1:], 1.0)
