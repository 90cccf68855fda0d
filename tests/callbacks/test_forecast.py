"""When a forecast is made, and where it appears."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medtrain.callbacks.curves import Curves
from medtrain.callbacks.forecast import Forecast, ScoreForecast, read_forecast
from medtrain.loggers.base import Logger, LoggerSet
from medtrain.metrics.spec import MetricSpec
from medtrain.run.report import write_report


class Recorder(Logger):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        self.rows.append((step, dict(scalars)))


class View:
    """An engine that evaluates every 10 steps and takes 6 seconds for it."""

    def __init__(self, run_dir: Path, *, evaluations: int = 40, timed: bool = False, mode: str = "max") -> None:
        self.run_dir, self.evaluations, self.timed = run_dir, evaluations, timed
        self.monitor = MetricSpec("val/dice", mode)  # type: ignore[arg-type]
        self.history: list[dict[str, float]] = []
        self.recorder = Recorder()
        self.loggers = LoggerSet({"recorder": self.recorder})
        self.class_names = ["background", "liver"]
        self.epoch, self.step = 0, 0

    @property
    def total_steps(self) -> int | None:
        return None if self.timed else 10 * self.evaluations

    @property
    def progress(self) -> float:
        return self.step / (10 * self.evaluations)

    @property
    def elapsed_s(self) -> float:
        return 0.6 * self.step

    def run(self, callback: ScoreForecast, scores: list[float]) -> None:
        for score in scores:
            self.step += 10
            self.history.append({"step": self.step, "epoch": 0, "val/dice": score})
            callback.on_evaluation_end(self, self.history[-1], False)  # type: ignore[arg-type]


def rising(count: int, *, wobble: float = 0.02) -> list[float]:
    return [0.9 - 0.5 * math.exp(-x / 8) + wobble * math.sin(7.0 * x) for x in range(count)]


@pytest.fixture
def view(tmp_path: Path) -> View:
    (tmp_path / "liver" / "run").mkdir(parents=True)
    return View(tmp_path / "liver" / "run")


def test_it_begins_with_the_evaluation_named_and_ends_before_the_last(view: View) -> None:
    view.run(ScoreForecast(), rising(40, wobble=0.1))
    steps = [step for step, _ in view.recorder.rows]
    assert steps == list(range(150, 400, 10))
    values = [row["forecast/value"] for _, row in view.recorder.rows]
    assert values[-1] == pytest.approx(0.9, abs=0.05)


def test_it_begins_earlier_where_the_spread_is_small(view: View) -> None:
    view.run(ScoreForecast(), [0.9 - 0.5 * (x + 1) ** -0.5 for x in range(8)])
    (first, row), *_ = view.recorder.rows
    assert first == 60
    assert row["forecast/value"] == pytest.approx(0.9 - 0.5 * 40**-0.5, abs=1e-6)
    assert row["forecast/spread"] < 1e-3


def test_time_left_is_that_of_the_evaluations_to_come(view: View) -> None:
    view.run(ScoreForecast(), rising(20))
    step, row = view.recorder.rows[-1]
    assert (step, row["perf/forecast_left_s"]) == (200, pytest.approx(20 * 6.0))
    assert set(row) == {"forecast/value", "forecast/spread", "perf/forecast_left_s"}


def test_runs_bounded_by_time_are_counted_by_their_progress(view: View, tmp_path: Path) -> None:
    view.run(ScoreForecast(), rising(20))
    other = View(tmp_path, timed=True)
    other.run(ScoreForecast(), rising(20))
    assert other.recorder.rows == view.recorder.rows
    assert read_forecast(tmp_path) == read_forecast(view.run_dir)


def test_lower_is_better(tmp_path: Path) -> None:
    up, down = View(tmp_path), View(tmp_path, mode="min")
    for method in ("saturating", "quotient"):
        up.run(ScoreForecast(method=method), rising(20))  # type: ignore[arg-type]
        down.run(ScoreForecast(method=method), [-score for score in rising(20)])  # type: ignore[arg-type]
        value = up.recorder.rows[-1][1]["forecast/value"]
        assert down.recorder.rows[-1][1]["forecast/value"] == pytest.approx(-value, rel=1e-9)
        up, down = View(tmp_path), View(tmp_path, mode="min")


def test_the_quotient(view: View, caplog: pytest.LogCaptureFixture) -> None:
    # reaches 0.8 for good after x = 1, the second evaluation
    scores = [(x + 0.8 * x * x) / (1 + 0.5 * x + x * x) for x in range(9)]
    with caplog.at_level(logging.INFO):
        view.run(ScoreForecast(method="quotient", start=9, degree=2), scores)
    ((step, row),) = view.recorder.rows
    assert (step, row["forecast/target"]) == (90, 2)
    assert row["forecast/value"] == pytest.approx(0.8, abs=1e-6)
    assert row["perf/forecast_left_s"] == 0
    assert caplog.messages == [
        "forecast: val/dice tends to 0.8000, reached at evaluation 2 of 40, in about 0:00",
    ]


def test_the_quotient_of_a_curve_that_still_rises_says_when(view: View) -> None:
    view.run(ScoreForecast(method="quotient", start=10, degree=1), [(0.1 + 0.9 * x) / (1 + x) for x in range(10)])
    ((_, row),) = view.recorder.rows
    assert row["forecast/target"] == 40
    assert row["perf/forecast_left_s"] == pytest.approx(30 * 6.0)  # (target - evaluation) x mean duration


def test_none_says_nothing(view: View) -> None:
    view.run(ScoreForecast(method="none"), rising(30))
    assert view.recorder.rows == []
    assert read_forecast(view.run_dir) is None


def test_scores_that_are_not_numbers_are_left_out(view: View) -> None:
    view.run(ScoreForecast(), [math.nan] * 20)
    assert view.recorder.rows == []


def test_a_resumed_run_says_the_same(view: View, tmp_path: Path) -> None:
    scores = rising(25)
    view.run(ScoreForecast(), scores)
    resumed = View(tmp_path)
    resumed.run(ScoreForecast(), scores[:18])
    again = ScoreForecast()
    again.load_state_dict(ScoreForecast().state_dict())
    resumed.run(again, scores[18:])
    assert resumed.recorder.rows == view.recorder.rows


def test_one_line_is_logged(view: View, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        view.run(ScoreForecast(), rising(15))
    (line,) = caplog.messages[-1:]
    forecast = read_forecast(view.run_dir)
    assert forecast is not None
    assert line == (
        f"forecast: val/dice {forecast.value:.4f} +- {forecast.spread:.4f} at the last of 40 evaluations, in about 2:30"
    )


def test_it_appears_in_the_picture(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    view.run(ScoreForecast(), rising(20))
    curves = Curves()
    curves._draw(view)  # type: ignore[arg-type]
    with Image.open(view.run_dir / "progress.png") as picture:
        assert picture.size == (990, 990)
    monkeypatch.setattr("medtrain.callbacks.plots._draw_forecast", lambda axes, line, forecast: drawn.append(forecast))
    curves._draw(view)  # type: ignore[arg-type]
    assert drawn == [read_forecast(view.run_dir)]
    view.history.append({"step": 999, "epoch": 0, "val/dice": 0.5})
    curves._draw(view)  # type: ignore[arg-type]
    assert len(drawn) == 1  # it is not the newest evaluation's


@pytest.mark.parametrize(("status", "shown"), [("running", True), ("done", False)])
def test_it_appears_in_the_report_of_a_run_that_is_not_done(view: View, status: str, shown: bool) -> None:
    view.run(ScoreForecast(), rising(20))
    content = {"status": status, "step": 200, "best": None, "started": None, "updated": None, "message": None}
    (view.run_dir / "status.json").write_text(json.dumps(content))
    text = write_report(view.run_dir).read_text()
    assert ("Forecast at step 200: val/dice 0." in text) == shown


def test_a_damaged_file_is_no_forecast(tmp_path: Path) -> None:
    (tmp_path / "forecast.json").write_text('{"metric": "a"}')
    assert read_forecast(tmp_path) is None
    assert Forecast("m", 1, 2, 3, 4, 0.5).describe() == "m tends to 0.5000"
