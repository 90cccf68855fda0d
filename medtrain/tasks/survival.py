"""Survival: the time to an event that not everybody lived to see (right-censored)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.losses.survival import DiscreteSurvivalLoss
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.survival import survival_metrics, survival_specs
from medtrain.registry import register
from medtrain.tasks.base import Record
from medtrain.tasks.gallery import Caption
from medtrain.tasks.images import ImageTask
from medtrain.tasks.outcome import Decision, Outcome, Rows, column, columns


@register("task", "survival", runtime=("loss", "inference", "plan", "device", "memory_format"), tags=("images",))
class Survival(ImageTask):
    """A risk per sample (loss=cox) or a survival curve (loss=discrete_survival).

    The targets are the time, and whether the event was seen then (1) or the sample was censored (0). The default
    monitor is Harrell's c-index.
    """

    kinds = ("survival",)

    def make_outcome(self) -> Outcome:
        """A time and an event."""
        times = self.loss.times if isinstance(self.loss, DiscreteSurvivalLoss) else ()
        time, event = (target.target_name for target in self.plan.targets)
        return SurvivalOutcome(time, event, times=times)


class SurvivalOutcome(Outcome):
    """A time to an event.

    Args:
        time_name: Target column of the time.
        event_name: Target column that says whether the event was seen.
        times: Ascending times of which survival is predicted; empty where only a risk is.
    """

    scores_stand_alone = False
    judged_by = "share of right pairs"

    def __init__(self, time_name: str, event_name: str, *, times: Sequence[float] = ()) -> None:
        self.time_key = f"label/{time_name}"
        self.event_key = f"label/{event_name}"
        self.times = tuple(times)
        self.num_predictions = max(1, len(self.times))
        self.time_names = distinct_names(self.times)
        self.curve_keys = [f"survival/{name}" for name in self.time_names]

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """`label/<time>`, `label/<event>`, `risk` and, with curves, `survival/<time>`."""
        risks = (1 - predictions).sum(axis=1) if self.times else predictions[:, 0]
        rows: Rows = [{} for _ in predictions]
        if target is not None:
            for row, (time, event) in zip(rows, target, strict=True):
                row.update({self.time_key: float(time), self.event_key: float(event)})
        for row, risk, said in zip(rows, risks, predictions, strict=True):
            row["risk"] = float(risk)
            row.update({key: float(value) for key, value in zip(self.curve_keys, said, strict=False)})
        return rows

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """Survival probabilities [N, M], or risks [N, 1]."""
        return columns(records, self.curve_keys or ("risk",))

    def specs(self) -> dict[str, MetricSpec]:
        """Those of `survival_metrics`: first the c-index."""
        return survival_specs(curves=bool(self.times))

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """Those of `survival_metrics`."""
        survival = columns(records, self.curve_keys) if self.times else None
        known = np.isfinite(column(records, self.time_key)) & np.isfinite(column(records, self.event_key))
        return survival_metrics(
            column(records, self.time_key)[known],
            column(records, self.event_key)[known],
            column(records, "risk")[known],
            survival=None if survival is None else survival[known],
            grid=np.array(self.times) if self.times else None,
        )

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """Share of the comparable pairs with this sample whose risks are in the right order."""
        time, event = column(records, self.time_key), column(records, self.event_key)
        risk = column(records, "risk")
        known = np.isfinite(time) & np.isfinite(event)
        found = np.full(len(records), np.nan)
        for index in np.flatnonzero(known):
            later = (time > time[index]) | ((time == time[index]) & (event == 0))
            earlier = (time < time[index]) | ((time == time[index]) & (event[index] == 0))
            pairs = known & ((later & (event[index] == 1)) | (earlier & (event == 1)))
            pairs[index] = False
            gaps = np.where(later, risk[index] - risk, risk - risk[index])[pairs]
            if gaps.size:
                found[index] = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
        return found

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """A higher risk."""
        return {"for a higher risk": np.zeros((len(records), 2))}

    def caption(self, record: Record) -> Caption:
        """The time, with a plus where it was censored, and the risk."""
        time, event = record.get(self.time_key, np.nan), record.get(self.event_key, np.nan)
        shown = "" if np.isnan(time) or np.isnan(event) else f"{time:.4g}{'' if event else '+'}"
        return Caption(truth=shown, predicted=f"risk {record['risk']:.3g}")

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """Kaplan-Meier curves of the lower and the upper half of the risks."""
        from medtrain.pictures.survival import draw_survival  # matplotlib takes its time to import

        keys = (self.time_key, self.event_key, "risk")
        return {"survival": draw_survival(*(column(records, key) for key in keys))}


def distinct_names(values: Sequence[float]) -> list[str]:
    """Numbers in six digits, or as many more as tell them apart.

    Args:
        values: All different.
    """
    assert len(set(values)) == len(values), "the times of a survival curve differ"
    for digits in range(6, 18):  # 17 tell any two numbers apart
        names = [f"{value:.{digits}g}" for value in values]
        if len(set(names)) == len(names):
            break
    return names
