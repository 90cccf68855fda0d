"""Say, while a run goes on, where its score is likely to end."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from medtrain.callbacks.base import Callback, EngineView
from medtrain.callbacks.extrapolation import extrapolate_quotient, extrapolate_saturating
from medtrain.callbacks.progress import format_duration
from medtrain.loggers.base import PERF_PREFIX
from medtrain.registry import Range, register
from medtrain.run.atomic import atomic_write_json

_LOG = logging.getLogger(__name__)
_FILE = "forecast.json"
_FEWEST = 6
_SMALL_SPREAD = 0.05


@dataclass(frozen=True)
class Forecast:
    """What was expected after an evaluation.

    Args:
        metric: Its key.
        step: When it was made.
        evaluation: Evaluations there were.
        evaluations: Evaluations of the whole run.
        end_step: Step of the last one, about.
        value: Score expected there; with the quotient, its limit.
        spread: Standard deviation over the curves that fit; None with the quotient.
        target: Evaluation at which the quotient reaches its limit, or None.
    """

    metric: str
    step: int
    evaluation: int
    evaluations: int
    end_step: int
    value: float
    spread: float | None = None
    target: int | None = None

    def describe(self) -> str:
        """`val/dice 0.873 +- 0.012 at the last of 40 evaluations`."""
        if self.spread is not None:
            return f"{self.metric} {self.value:.4f} +- {self.spread:.4f} at the last of {self.evaluations} evaluations"
        if self.target is None:
            return f"{self.metric} tends to {self.value:.4f}"
        return f"{self.metric} tends to {self.value:.4f}, reached at evaluation {self.target} of {self.evaluations}"


@register("callbacks", "forecast")
class ScoreForecast(Callback):
    """Extrapolate the monitored metric to the last evaluation of the run; advice only, it never stops one.

    After each evaluation with enough to go by: a line in the log, `forecast/value` and `forecast/spread` among the
    metrics, forecast.json, a mark in progress.png. The spread is the standard deviation over the curves that fit about
    as well, no confidence interval.

    Args:
        method: saturating averages curves that level off exponentially or by a power, weighted by their fit; quotient
            fits one quotient of two polynomials and reports its limit and when it is reached, which is unstable on
            noisy scores; none says nothing.
        start: Evaluations before the first forecast; saturating begins earlier where its spread is below a twentieth
            of the range of the scores so far.
        degree: Of both polynomials of the quotient.
    """

    def __init__(
        self,
        *,
        method: Literal["saturating", "quotient", "none"] = "saturating",
        start: Annotated[int, Range(ge=3)] = 15,
        degree: Annotated[int, Range(ge=1, le=10)] = 5,
    ) -> None:
        self._method = method
        self._start = start
        self._degree = degree

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Forecast, if there is enough to go by and something left to come."""
        # a function of the history and the planned length alone: a resumed run says the same again
        forecast = self._make(view)
        if forecast is None:
            return
        scalars = {"forecast/value": forecast.value}
        if forecast.spread is not None:
            scalars["forecast/spread"] = forecast.spread
        if forecast.target is not None:
            scalars["forecast/target"] = float(forecast.target)
        left = self._seconds_left(forecast, view)
        view.loggers.log_scalars(view.step, int(view.epoch), {**scalars, f"{PERF_PREFIX}forecast_left_s": left})
        atomic_write_json(view.run_dir / _FILE, asdict(forecast), sync=False)
        _LOG.info("forecast: %s, in about %s", forecast.describe(), format_duration(left))

    def _make(self, view: EngineView) -> Forecast | None:
        name = view.monitor.name
        scores = [float(entry.get(name, math.nan)) for entry in view.history]
        count = len(scores)
        total = round(count / view.progress) if view.progress > 0 else count
        if self._method == "none" or total <= count or count < _FEWEST:
            return None
        sign = 1.0 if view.monitor.mode == "max" else -1.0
        signed = [sign * score for score in scores]
        end_step = view.total_steps or round(view.step / view.progress)
        about = (name, view.step, count, total, end_step)
        if self._method == "quotient":
            quotient = extrapolate_quotient(signed, total, degree=self._degree)
            if count < self._start or quotient is None:
                return None
            return Forecast(*about, sign * quotient.limit, target=quotient.target)
        end = extrapolate_saturating(signed, total)
        known = [score for score in scores if math.isfinite(score)]
        if end is None or (count < self._start and end.spread > _SMALL_SPREAD * (max(known) - min(known))):
            return None
        return Forecast(*about, sign * end.value, spread=end.spread)

    def _seconds_left(self, forecast: Forecast, view: EngineView) -> float:
        """Until the run ends, or the quotient reaches its limit: evaluations to come, each as long as their mean."""
        last = forecast.evaluations if self._method == "saturating" else forecast.target or forecast.evaluations
        return max(0, last - forecast.evaluation) * view.elapsed_s / forecast.evaluation


def read_forecast(run_dir: Path) -> Forecast | None:
    """The newest forecast of a run; None without a whole one.

    Args:
        run_dir: The run folder.
    """
    try:
        return Forecast(**json.loads((run_dir / _FILE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
