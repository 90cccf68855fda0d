from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from optuna.trial import TrialState

from medtrain.config.space import Dimension
from medtrain.sweep.report.canvas import plain
from medtrain.sweep.report.importance import rate
from medtrain.sweep.report.plots import draw_history, draw_importance, draw_pictures
from medtrain.sweep.report.plots_progress import cut_pauses, draw_curves, draw_timeline, lanes, timeline_bars
from medtrain.sweep.report.plots_winners import draw_pareto, draw_reruns
from medtrain.sweep.report.records import SweepState, read_sweep
from medtrain.sweep.report.rerun_summary import Rerun, RerunRow
from tests.sweep.report.studies import (
    DEFAULT,
    DICE,
    LATENCY,
    LR,
    PARAMETERS,
    TWELVE,
    FakeStudy,
    define,
    search,
)

C, P, F, R, W = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING


def _state(study: FakeStudy) -> SweepState:
    return read_sweep(Path(study.definition.folder), study)


def _line(figure: Figure, label: str, panel: int = 0) -> Any:
    return next(line for line in figure.axes[panel].lines if line.get_label() == label)


def _texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title(loc) for axes in figure.axes for loc in ("left", "right")]
    return [*found, *titles, *(text.get_text() for text in figure.texts)]


# ------------------------------------------------------------------------------------------------------- history


def test_the_best_so_far_rises_at_candidates_only(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), constraints=("parameters <= 10",), default={"optimizer.lr": 0.01}))
    for dice, parameters, lr in ((0.80, 1, 0.01), (0.95, 99, 0.02), (0.79, 1, 0.03), (0.85, 1, 0.04)):
        study.add(C, {"optimizer.lr": lr}, values=[dice], metrics={"parameters": parameters})
    study.add(P, {"optimizer.lr": 0.01}, curve={5: 0.99})
    study.add(F, {"optimizer.lr": 0.01})
    study.add(R, {"optimizer.lr": 0.01})
    figure = draw_history(_state(study))
    assert figure is not None
    steps = _line(figure, "best so far")
    assert steps.get_xdata().tolist() == [0, 2, 3, 6]
    assert steps.get_ydata().tolist() == [0.80, 0.80, 0.85, 0.85]
    assert _line(figure, "best").get_xydata().tolist() == [[3, 0.85]]
    assert _line(figure, "configuration as it is").get_ydata() == [0.80, 0.80]
    assert "best 0.85, trial 3" in _texts(figure)
    points = {collection.get_label(): collection.get_offsets() for collection in figure.axes[0].collections}
    assert points["misses a constraint"].tolist() == [[1, 0.95]]
    ticks = [c.get_segments()[0][0][0] for c in figure.axes[1].collections if isinstance(c, LineCollection)]
    assert sorted(ticks) == [4, 5, 6]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["running", "failed", "pruned"]


def test_outliers_of_the_history_are_marked_at_the_edge(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    for dice in [0.01, *np.linspace(0.88, 0.92, 20).tolist()]:
        study.add(C, {"optimizer.lr": 0.01}, values=[dice])
    figure = draw_history(_state(study))
    assert figure is not None
    low, _ = figure.axes[0].get_ylim()
    assert low > 0.5
    beyond = next(c for c in figure.axes[0].collections if c.get_label() == "beyond the axis")
    assert beyond.get_offsets().tolist() == [[0, low]]


def test_each_objective_has_its_history(tmp_path: Path) -> None:
    sweep = _state(search(tmp_path, 30, objectives=(DICE, LATENCY), failures=False))
    figure = draw_history(sweep)
    assert figure is not None
    assert len(figure.axes) == 2  # no strip: nothing was pruned and nothing failed
    assert (np.diff(_line(figure, "best so far", 0).get_ydata()) >= 0).all()
    assert (np.diff(_line(figure, "best so far", 1).get_ydata()) <= 0).all()


def test_no_line_for_a_configuration_outside_of_the_space(tmp_path: Path) -> None:
    study = search(tmp_path, 6, failures=False)
    study.definition = dataclasses.replace(study.definition, default_moved={"optimizer.lr": 0.5})
    sweep = _state(study)
    figure = draw_history(sweep)
    assert figure is not None
    assert "configuration as it is" not in figure.axes[0].get_legend_handles_labels()[1]
    caption = next(picture.caption for picture in draw_pictures(sweep, rate(sweep), []) if picture.title == "History")
    assert "dashed" not in caption
    assert "Trial 0 is the one nearest to the configuration as it is" in caption


# ---------------------------------------------------------------------------------------------------- importance


def test_a_bar_for_each_parameter_and_objective(tmp_path: Path) -> None:
    sweep = _state(FakeStudy(define(tmp_path, objectives=(DICE, LATENCY))))
    figure = draw_importance(sweep, [{"loss": 0.6, "optimizer.lr": 0.4}, {"optimizer.lr": 1.0}])
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["optimizer.lr", "loss"]
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == [0.4, 0.6, 1.0, 0.0]
    assert [text for text in _texts(figure) if text.endswith((" %", "rated"))] == ["40 %", "60 %", "100 %", "not rated"]
    figure = draw_importance(sweep, [{}, {"loss": 1.0}])
    assert figure is not None
    assert len(figure.axes[0].patches) == 1  # nothing is known for the first objective
    assert draw_importance(sweep, [{}, {}]) is None


# -------------------------------------------------------------------------------------------------- curves, timeline


def test_pruned_curves_end_in_a_dot(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    study.add(C, {"optimizer.lr": 0.01}, values=[0.9], curve={20: 0.5, 100: 0.9})
    study.add(P, {"optimizer.lr": 0.01}, curve={20: 0.3, 40: 0.4})
    study.add(C, {"optimizer.lr": 0.01}, values=[0.8], curve={20: 0.5, 100: 0.8})
    study.add(C, {"optimizer.lr": 0.01}, values=[0.7])  # said nothing
    figure = draw_curves(_state(study))
    assert figure is not None
    assert _line(figure, "best (trial 0)").get_xydata().tolist() == [[20, 0.5], [100, 0.9]]
    assert {"complete (2)", "pruned (1)", "best (trial 0)"} == set(figure.axes[0].get_legend_handles_labels()[1])
    assert [[20, 0.5], [100, 0.8]] in [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert figure.axes[0].get_legend() is None  # it lies below the axes
    assert "1 trial that ended without a report not shown" in figure.texts[1].get_text()
    dots = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert dots == [[[40, 0.4]]]
    assert figure.axes[0].get_xlabel() == "percent of the budget"


def _timed(folder: Path, spans: list[tuple[str, float, float]], **attrs: Any) -> FakeStudy:
    study = FakeStudy(define(folder, (LR,)))
    for host, start, end in spans:
        worker = {"host": host, "pid": 1}
        study.add(C, {"optimizer.lr": 0.01}, values=[0.9], start_s=start, end_s=end, worker=worker, **attrs)
    return study


def test_trials_that_ran_together_lie_below_each_other(tmp_path: Path) -> None:
    spans = [("n1", 0, 100), ("n1", 5, 50), ("n2", 10, 90), ("n1", 51, 80), ("n1", 101, 150)]
    rows = lanes(timeline_bars(_state(_timed(tmp_path, spans))))
    assert [(machine, [bar.record.number for bar in row]) for machine, row in rows] == [
        ("n1", [0, 4]),
        ("n1", [1, 3]),
        ("n2", [2]),
    ]


def test_a_resumed_trial_is_drawn_where_it_worked_last(tmp_path: Path) -> None:
    (bar,) = timeline_bars(_state(_timed(tmp_path, [("n1", 0, 50_000)], seconds=300.0)))
    assert (bar.start, bar.end) == (49_700, 50_000)


def test_long_pauses_are_cut_out(tmp_path: Path) -> None:
    spans = [("n1", 0, 3000), ("n1", 3050, 6000), ("n1", 90_000, 93_000), ("n2", 2000, 7000)]
    sweep = _state(_timed(tmp_path, spans))
    assert cut_pauses(timeline_bars(sweep)) == [(7000, 90_000)]
    figure = draw_timeline(sweep)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_xlabel() == "hours of work"
    assert axes.get_xlim()[1] < 3.0  # 10000 s of work
    assert "pause 23 h 03 min" in _texts(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["n1", "n2"]


def test_trials_that_were_put_back_do_not_set_the_axis(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    for start in (0.0, 0.137):  # two workers were stopped after 9 s each
        trial = study.add(R, {"optimizer.lr": 0.01}, start_s=start, seconds=9.0)
        trial.state = W
    assert draw_timeline(_state(study)) is None
    study.add(C, {"optimizer.lr": 0.01}, values=[0.9], start_s=50.0, end_s=60.0)
    figure = draw_timeline(_state(study))
    assert figure is not None
    assert [patch.get_width() for patch in figure.axes[0].patches] == [10.0]
    assert "2 stopped trials that will go on not shown" in figure.texts[1].get_text()


def test_a_bar_begins_no_earlier_than_is_known(tmp_path: Path) -> None:
    (bar,) = timeline_bars(_state(_timed(tmp_path, [("n1", 0, 20)], seconds=300.0)))  # 280 s in a session before
    assert (bar.start, bar.end) == (0, 20)


def test_running_trials_reach_to_what_is_known(tmp_path: Path) -> None:
    study = _timed(tmp_path, [("n1", 0, 100)])
    study.add(R, {"optimizer.lr": 0.01}, start_s=20.0)
    study.add(W)
    bars = timeline_bars(_state(study))
    assert [(bar.start, bar.end) for bar in bars] == [(0, 100), (20, 100)]
    assert draw_timeline(_state(FakeStudy(define(tmp_path)))) is None


# --------------------------------------------------------------------------------------------------------- winners


@pytest.mark.parametrize(
    ("modes", "corner"),
    # between (1, 10) and (3, 30) in latency and dice: a front never promises what no trial has reached
    [(("max", "min"), "post"), (("max", "max"), "pre"), (("min", "min"), "post"), (("min", "max"), "pre")],
)
def test_the_front_is_drawn_on_its_worse_side(tmp_path: Path, modes: tuple[Any, Any], corner: str) -> None:
    from medtrain.sweep.result import Objective

    objectives = (Objective("up", modes[0]), Objective("right", modes[1]))
    study = FakeStudy(define(tmp_path, (LR,), objectives=objectives))
    sign = [1 if mode == "max" else -1 for mode in modes]
    for up, right in ((30, -30), (20, -15), (10, -10), (5, -40)):
        study.add(C, {"optimizer.lr": 0.01}, values=[100 + sign[0] * up, 100 + sign[1] * right])
    figure = draw_pareto(_state(study))
    assert figure is not None
    (steps,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert steps.get_drawstyle() == f"steps-{corner}"
    outline = steps.get_path().vertices if corner == "x" else np.column_stack(_corners(steps, corner))
    for x, y in outline:  # every corner is beaten by, or equal to, some point of the front
        assert any(
            sign[1] * point_x >= sign[1] * x - 1e-9 and sign[0] * point_y >= sign[0] * y - 1e-9
            for point_x, point_y in steps.get_xydata()
        )


def _corners(line: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    from matplotlib.cbook import STEP_LOOKUP_MAP

    x, y = STEP_LOOKUP_MAP[f"steps-{where}"](line.get_xdata(), line.get_ydata())
    return x, y


def test_the_whole_front_is_inside(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), objectives=(DICE, LATENCY)))
    for index in range(30):
        study.add(C, {"optimizer.lr": 0.01}, values=[0.90 + 0.001 * index, 50 + index])
    study.add(C, {"optimizer.lr": 0.01}, values=[0.2, 5.0])  # fast and bad
    sweep = _state(study)
    figure = draw_pareto(sweep)
    assert figure is not None
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert all(left < record.values[1] < right and bottom < record.values[0] < top for record in sweep.best)
    assert {"0", "30"} <= set(_texts(figure))


def test_constraints_are_lines_and_what_misses_them_is_crossed(tmp_path: Path) -> None:
    limits = ("latency_ms <= 20", "val/dice >= 0.1", "parameters <= 9")
    study = FakeStudy(define(tmp_path, (LR,), objectives=(DICE, LATENCY), constraints=limits))
    for dice, latency in ((0.90, 25.0), (0.85, 10.0), (0.80, 15.0)):
        metrics = {"val/dice": dice, "latency_ms": latency, "parameters": 1.0}
        study.add(C, {"optimizer.lr": 0.01}, values=[dice, latency], metrics=metrics)
    figure = draw_pareto(_state(study))
    assert figure is not None
    assert list(_line(figure, "latency_ms <= 20").get_xdata()) == [20, 20]
    assert len(_line(figure, "val/dice >= 0.1 (beyond the axis)").get_xdata()) == 0
    assert "Also asked for: parameters <= 9" in figure.texts[1].get_text()
    points = {collection.get_label(): collection.get_offsets().tolist() for collection in figure.axes[0].collections}
    assert points == {
        "beaten": [[15.0, 0.80]],
        "misses a constraint": [[25.0, 0.90]],
        "front (1 trial)": [[10.0, 0.85]],
    }


def test_three_objectives_make_three_panels(tmp_path: Path) -> None:
    figure = draw_pareto(_state(search(tmp_path, 30, dimensions=TWELVE, objectives=(DICE, LATENCY, PARAMETERS))))
    assert figure is not None
    assert len(figure.axes) == 3


def test_reruns_show_what_the_search_had_promised(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    study.add(C, {"optimizer.lr": 0.01}, values=[0.9])
    rows = [RerunRow(0, (Rerun(1, None, (0.80,)), Rerun(2, None, (0.84,)))), RerunRow(9, (Rerun(1, None, (0.7,)),))]
    figure = draw_reruns(_state(study), [*rows, RerunRow(5, (), 2)])
    assert figure is not None
    axes = figure.axes[0]
    points = [c.get_offsets().tolist() for c in axes.collections if c.get_label() == "one run"]
    assert points == [[[0.80, 0], [0.84, 0]], [[0.7, 1]]]
    (promised,) = [c.get_offsets().tolist() for c in axes.collections if c.get_label() == "value in the search"]
    assert promised == [[0.9, 0]]
    (spread,) = axes.patches  # one run has none
    assert spread.get_x() + spread.get_width() / 2 == pytest.approx(0.82)
    assert draw_reruns(_state(study), [RerunRow(5, (), 2)]) is None


# ------------------------------------------------------------------------------------------------------- everything


_LONG = Dimension(
    key="model.decoder.a_very_long_parameter_name_indeed",
    kind="choice",
    choices=tuple(
        f"{{name: ${{alpha$beta}}, with: [1,2,3,4,5,6], number: {index}, 'a \"quote\"\n <b>'}}" for index in range(6)
    ),
)
_ONE = Dimension(key="optimizer", kind="choice", choices=("adamw",))
_FIXED = Dimension(key="model.width", kind="int", low=8, high=8)
_MANY = Dimension(key="data.patch_size", kind="choice", choices=tuple(f"[{n},{n},{n}]" for n in range(16, 400, 16)))


def _broken(folder: Path) -> FakeStudy:
    study = FakeStudy(define(folder, (LR,)))
    for index in range(4):
        study.add(F, {"optimizer.lr": 0.01}, failure="error", message="no such file", start_s=index, end_s=index + 0.1)
    study.add(W)
    return study


def _empty_metrics(folder: Path) -> FakeStudy:
    study = FakeStudy(define(folder, (LR,)))
    for index in range(12):
        nan = {"val/dice": 0.5, "val/hd95_mm": math.nan}
        study.add(C, {"optimizer.lr": 0.01}, values=[0.5], metrics=nan, curve={50: math.nan, 100: 0.5}, start_s=index)
    return study


_EVERYWHERE = ["history", "slice", "curves", "timeline"]
_CASES: dict[str, tuple[Callable[[Path], FakeStudy], list[str]]] = {
    "no trial": (lambda f: search(f, 0), []),
    "one trial": (lambda f: search(f, 1), _EVERYWHERE),
    "two trials": (lambda f: search(f, 2, failures=False), [*_EVERYWHERE, "parallel"]),
    "one running": (lambda f: search(f, 0, running=1), []),
    "only failures": (_broken, ["timeline"]),
    "all equal, with NaN": (_empty_metrics, [*_EVERYWHERE, "parallel"]),
    "everything": (
        lambda f: search(f, 60, dimensions=TWELVE, running=3),
        [*_EVERYWHERE, "parallel", "importance", "contour"],
    ),
    "odd choices": (
        lambda f: search(f, 60, dimensions=(LR, _LONG, _ONE, _FIXED, _MANY), workers=50),
        [*_EVERYWHERE, "parallel", "importance", "contour"],
    ),
    "two objectives": (
        lambda f: search(f, 30, objectives=(DICE, PARAMETERS), constraints=("latency_ms <= 20",)),
        ["history", "pareto", "importance", "slice", "slice_2", "contour", "contour_2", "parallel", "timeline"],
    ),
    "nobody may win": (
        lambda f: search(f, 5, constraints=("val/dice >= 2",), failures=False),
        [*_EVERYWHERE, "parallel"],
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_everything_there_is_enough_for_is_drawn(tmp_path: Path, case: str) -> None:
    make, expected = _CASES[case]
    sweep = _state(make(tmp_path))
    pictures = draw_pictures(sweep, rate(sweep), [])
    assert sorted(picture.path.stem for picture in pictures) == sorted(expected)
    for picture in pictures:
        pixels = imread(picture.path)
        assert pixels.shape[0] < 2000
        assert pixels.shape[1] < 2200
        ink = (pixels[..., :3] < 0.99).any(-1)
        assert ink.any()
        # nothing runs out of the picture
        assert not ink[0].any()
        assert not ink[-1].any()
        assert not ink[:, -1].any()
        assert picture.caption


def test_the_same_sweep_gives_the_same_pictures(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "s", tmp_path / "b" / "s"
    for folder in (first, second):
        folder.mkdir(parents=True)
        sweep = _state(search(folder, 12))
        draw_pictures(sweep, rate(sweep), [])
    names = sorted(path.name for path in (first / "plots").iterdir())
    assert names == sorted(path.name for path in (second / "plots").iterdir())
    for name in names:
        assert (first / "plots" / name).read_bytes() == (second / "plots" / name).read_bytes()


def test_a_picture_that_no_longer_holds_is_removed(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in ("rerun.png", "mine.png"):
        (tmp_path / "plots" / name).write_bytes(b"old")
    sweep = _state(search(tmp_path, 1))
    draw_pictures(sweep, rate(sweep), [])
    assert not (tmp_path / "plots" / "rerun.png").exists()
    assert (tmp_path / "plots" / "mine.png").exists()


def test_names_in_a_script_without_glyphs_are_drawn(tmp_path: Path) -> None:
    dimension = Dimension(key="model.x", kind="choice", choices=("\u809d\u81d3", "\u8107"))
    study = FakeStudy(define(tmp_path, (dimension,)))
    study.add(C, {"model.x": "\u8107"}, values=[0.5])
    sweep = _state(study)
    assert "slice" in {picture.path.stem for picture in draw_pictures(sweep, rate(sweep), [])}


def test_dollars_are_no_formula() -> None:
    assert plain("${a} $x$") == r"\${a} \$x\$"


def test_no_global_figures_and_no_torch() -> None:
    code = (
        "import sys, medtrain.sweep.report.write, medtrain.sweep.table\n"
        "print([name for name in ('matplotlib.pyplot', 'torch', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_of_the_made_up_studies_is_a_point() -> None:
    assert set(DEFAULT) <= {dimension.key for dimension in TWELVE}
