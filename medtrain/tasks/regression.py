"""Regression: one or several quantities per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medtrain.errors import UsageError
from medtrain.metrics.arrays import defined_mean
from medtrain.metrics.regression import regression_metrics, regression_specs
from medtrain.metrics.spec import MetricSpec
from medtrain.registry import register
from medtrain.tasks.base import Record
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import Decision, Outcome, Rows, columns, one_by_one, only_value


@register("task", "regression", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Regression(ImageTask):
    """One or several quantities per sample, in the unit of the table; every one may be missing.

    The network predicts standardised values; metrics are those of the quantities themselves. The default monitor is
    the mean absolute error with one quantity; with several, whose units may differ, the mean R2.
    """

    kinds = ("numbers",)

    def make_outcome(self) -> Outcome:
        """The names of the targets."""
        for target in self.plan.targets:
            if target.classes is not None:
                raise UsageError(
                    f"task=regression needs numbers, but {target.target_name} has the classes "
                    f"{', '.join(target.classes)}",
                    hint="choose task=classification or task=ordinal",
                )
        names = tuple(target.target_name for target in self.plan.targets)
        return NumberOutcome(names, scales=[target.std for target in self.plan.targets])


class NumberOutcome(Outcome):
    """T quantities.

    Args:
        target_names: T names.
        scales: Their standard deviations in the training part.
    """

    def __init__(self, target_names: tuple[str, ...], *, scales: Sequence[float]) -> None:
        self.num_predictions = len(target_names)
        self.judged_by = "error in standard deviations" if len(target_names) > 1 else "error"
        self.names = target_names if len(target_names) > 1 else ()
        self.scales = np.array([scale or 1.0 for scale in scales])
        self.label_keys = [f"label/{name}" for name in self.names] or ["label"]
        self.keys = [f"predicted/{name}" for name in self.names] or ["predicted"]

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """`label` and `predicted`, with `/<target>` where there are several."""
        rows: Rows = [{} for _ in predictions]
        if target is not None:
            for row, true in zip(rows, target, strict=True):
                row.update({key: float(value) for key, value in zip(self.label_keys, true, strict=True)})
        for row, said in zip(rows, predictions, strict=True):
            row.update({key: float(value) for key, value in zip(self.keys, said, strict=True)})
        return rows

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """Predicted quantities [N, T]."""
        return columns(records, self.keys)

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `regression_metrics`; with several targets first R2, which has no unit."""
        specs = regression_specs(self.names)
        return {"r2": specs["r2"], **specs} if self.names else specs

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `regression_metrics`."""
        said, true = self.read(records), columns(records, self.label_keys)
        return regression_metrics(said, true, self.names) if self.names else regression_metrics(said[:, 0], true[:, 0])

    def goodness(self, metrics: Mapping[str, float]) -> float:
        """R2, which has no unit."""
        return metrics["r2"]

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Absolute error, negative, in the unit of the target; of several in standard deviations, their mean."""
        errors = -np.abs(self.read(records) - columns(records, self.label_keys))
        if not self.names:
            return errors[:, 0]
        return np.array([defined_mean(row) for row in errors / self.scales])

    def constant(self, records: Sequence[Record]) -> str:
        """The same numbers, to a thousandth of their standard deviation."""
        said, true = np.round(self.read(records) / self.scales, 3), columns(records, self.label_keys)
        values = [only_value(said[:, index], true[:, index]) for index in range(self.num_predictions)]
        if any(value is None for value in values):
            return ""
        return ", ".join(
            f"{value * scale:.4g}" for value, scale in zip(values, self.scales, strict=True) if value is not None
        )

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """More of every quantity."""
        values = np.zeros((len(records), self.num_predictions))
        return one_by_one(self.names or ("for a larger number",), values)

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """Predicted over true values, one picture per target."""
        from medtrain.pictures.agreement import draw_agreement  # matplotlib takes its time to import

        said, true = self.read(records), columns(records, self.label_keys)
        names = [f"agreement_{name}" for name in self.names] or ["agreement"]
        return {name: draw_agreement(said[:, i], true[:, i], title=name) for i, name in enumerate(names)}
