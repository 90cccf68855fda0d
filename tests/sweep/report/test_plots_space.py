from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from optuna.trial import TrialState

from medtrain.config.space import Dimension
from medtrain.sweep.report.canvas import Scale, log_ticks
from medtrain.sweep.report.plots_space import draw_contour, draw_parallel, draw_slice
from medtrain.sweep.report.records import SweepState, read_sweep
from tests.sweep.report.studies import (
    BATCH,
    FIVE,
    GAMMA,
    LOSS,
    LR,
    FakeStudy,
    define,
    search,
)

C = TrialState.COMPLETE


def _state(study: FakeStudy) -> SweepState:
    return read_sweep(Path(study.definition.folder), study)


def _texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title(loc) for axes in figure.axes for loc in ("left", "right")]
    return [*found, *titles, *(text.get_text() for text in figure.texts)]


def test_positions_on_an_axis() -> None:
    rate = Scale(LR)  # 1e-4 .. 1e-1
    assert [rate.unit(value) for value in (1e-4, 1e-3, 1e-1)] == pytest.approx([0, 1 / 3, 1])
    assert not rate.slots
    batch = Scale(BATCH)  # 2, 4, 6, 8
    assert [batch.position(value) for value in (2, 8)] == [0, 3]
    assert [batch.unit(value) for value in (2, 8)] == pytest.approx([1 / 8, 7 / 8])
    steps = Scale(Dimension(key="p", kind="float", low=0.0, high=0.3, step=0.1))
    assert steps.position(0.30000000000000004) == 3
    assert steps.labels == ["0", "0.1", "0.2", "0.3"]
    loss = Scale(LOSS)
    assert loss.position("tversky") == 2
    assert math.isnan(loss.position("gone"))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-4, 1e-1, [1e-4, 1e-3, 1e-2, 1e-1]),
        (1e-3, 9e-3, [1e-3, 2e-3, 5e-3]),
        (2e-4, 8e-3, [2e-4, 5e-4, 1e-3, 2e-3, 5e-3]),
        (1e-3, 1e-1, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        (1e-9, 1e3, [1e-9, 1e-6, 1e-3, 1, 1e3]),
        (6e-3, 8e-3, [6e-3, 8e-3]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_a_slice_per_parameter_with_the_star_at_the_best(tmp_path: Path) -> None:
    sweep = _state(search(tmp_path, 40, dimensions=FIVE))
    figure = draw_slice(sweep, ["loss", "optimizer.lr"])
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["loss", "lr"]
    star = next(line for line in figure.axes[1].lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[sweep.best[0].params["optimizer.lr"], sweep.best[0].values[0]]]
    low, high = figure.axes[1].get_ylim()
    shown = [c for c in figure.axes[1].collections if not isinstance(c, LineCollection)]
    points = np.concatenate([c.get_offsets() for c in shown])
    assert len(points) == len(sweep.select("complete"))
    heights = (points[:, 1] - low) / (high - low)
    assert heights.min() >= 0.09 - 1e-9  # above the band with the ticks
    assert heights.max() < 1
    lines = [c for c in figure.axes[1].collections if isinstance(c, LineCollection)]
    assert sum(len(c.get_segments()) for c in lines if c.get_linewidth() == 1) == len(sweep.select("pruned", "failed"))


def _medians(figure: Figure) -> list[np.ndarray]:
    """The lines that are no ticks of trials without a value."""
    return [line for c in figure.axes[0].collections if isinstance(c, LineCollection) for line in c.get_segments()]


def test_slices_of_medians(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LOSS,)))
    for loss, value in (("focal", 0.7), ("focal", 0.9), ("focal", 0.75), ("dice_ce", 0.85), ("dice_ce", 0.86)):
        study.add(C, {"loss": loss}, values=[value])
    figure = draw_slice(_state(study), ["loss"])
    assert figure is not None
    (median,) = _medians(figure)  # of two values there is none to tell
    assert median[:, 1] == pytest.approx([0.75, 0.75])
    assert median[:, 0].mean() == pytest.approx(1.0)  # focal is the second choice


def test_medians_along_a_range(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))  # 1e-4 .. 1e-1, in 8 parts of 3/8 of a decade
    points = ((1e-4, 0.5), (2e-4, 0.6), (1.5e-4, 0.9), (1e-1, 0.7), (9e-2, 0.72), (8e-2, 0.71), (1e-2, 0.8))
    for lr, value in points:
        study.add(C, {"optimizer.lr": lr}, values=[value])
    figure = draw_slice(_state(study), ["optimizer.lr"])
    assert figure is not None
    low, high = _medians(figure)
    assert low.tolist() == [pytest.approx([1e-4, 0.6]), pytest.approx([10**-3.625, 0.6])]
    assert high.tolist() == [pytest.approx([10**-1.375, 0.71]), pytest.approx([1e-1, 0.71])]


def test_the_map_is_the_median_of_each_part(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR, LOSS)))  # 6 parts of half a decade
    for index in range(9):
        study.add(C, {"optimizer.lr": 1.5e-4, "loss": "focal"}, values=[0.8 + 0.01 * index])
    study.add(C, {"optimizer.lr": 1e-1, "loss": "dice_ce"}, values=[0.9])
    figure = draw_contour(_state(study), ["optimizer.lr", "loss"])
    assert figure is not None
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)]
    cells = mesh.get_array().filled(math.nan)  # [loss, lr]
    assert cells.shape == (3, 6)
    assert cells[1, 0] == pytest.approx(0.84)
    assert cells[0, 5] == pytest.approx(0.9)
    assert np.isnan(cells).sum() == 16


def test_contours_need_enough_trials_with_both(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR, LOSS, GAMMA)))
    for index in range(12):
        point = {"optimizer.lr": 0.001 * (index + 1), "loss": "focal" if index < 3 else "dice_ce"}
        study.add(C, {**point, "loss.gamma": 1.0 + index} if index < 3 else point, values=[0.1 * index])
    figure = draw_contour(_state(study), ["optimizer.lr", "loss.gamma", "loss"])
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [("lr", "loss")]


def test_parallel_lines_pass_below_what_they_do_not_have(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR, LOSS, GAMMA)))
    study.add(C, {"optimizer.lr": 1e-4, "loss": "focal", "loss.gamma": 5.0}, values=[0.8])
    study.add(C, {"optimizer.lr": 1e-1, "loss": "dice_ce"}, values=[0.9])
    figure = draw_parallel(_state(study), ["optimizer.lr", "loss.gamma"])
    assert figure is not None
    paths = sorted((patch.get_path().vertices for patch in figure.axes[0].patches), key=lambda path: path[0, 1])
    assert [path[0, 1] for path in paths] == pytest.approx([0.0, 1.0])
    assert [path[3, 1] for path in paths] == pytest.approx([1.0, -0.1])
    assert paths[1][-1, 1] > paths[0][-1, 1]
    assert {"lr", "gamma", "val/dice", "none"} <= set(_texts(figure))


def test_lines_pass_at_the_values(tmp_path: Path) -> None:
    listed = Dimension(key="data.patch", kind="choice", choices=("16", "32", "64"))
    study = FakeStudy(define(tmp_path, (BATCH, listed, LOSS)))
    for index in range(6):
        point = {"data.batch_size": 4, "data.patch": "64", "loss": "focal"}
        study.add(C, point, values=[0.8 + 0.01 * index])
    figure = draw_parallel(_state(study), ["data.batch_size", "data.patch", "loss"])
    assert figure is not None
    crossings = np.array([patch.get_path().vertices[[0, 3, 6], 1] for patch in figure.axes[0].patches])
    assert crossings[:, 0] == pytest.approx(3 / 8)  # the second of 2, 4, 6, 8
    assert crossings[:, 1] == pytest.approx(5 / 6)  # the third of three
    assert crossings[:, 2] == pytest.approx(1 / 2, abs=0.01)
    figure = draw_slice(_state(study), ["data.batch_size", "data.patch", "loss"])
    assert figure is not None
    places = [axes.collections[1].get_offsets()[:, 0] for axes in figure.axes]
    assert places[0].tolist() == [1.0] * 6
    assert places[1].tolist() == [2.0] * 6
    assert 0 < np.ptp(places[2]) <= 0.24


def test_what_may_not_win_is_faint(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), constraints=("parameters <= 5",)))
    for dice, parameters in ((0.99, 9.0), (0.8, 1.0), (0.7, 1.0)):
        study.add(C, {"optimizer.lr": 0.01}, values=[dice], metrics={"parameters": parameters})
    figure = draw_parallel(_state(study), ["optimizer.lr"])
    assert figure is not None
    by_end = {float(patch.get_path().vertices[-1, 1]): patch for patch in figure.axes[0].patches}
    highest = by_end.pop(max(by_end))
    assert highest.get_linestyle() != "solid"
    assert all(highest.get_zorder() < patch.get_zorder() for patch in by_end.values())
    assert by_end[max(by_end)].get_zorder() > by_end[min(by_end)].get_zorder()
    assert "Grey, dashed: misses a constraint" in figure.texts[1].get_text()


def test_values_beyond_the_axis_are_triangles_and_named(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    for dice in [0.01, *np.linspace(0.88, 0.92, 20).tolist()]:
        study.add(C, {"optimizer.lr": 0.01}, values=[dice])
    sweep = _state(study)
    for figure in (draw_slice(sweep, ["optimizer.lr"]), draw_parallel(sweep, ["optimizer.lr"])):
        assert figure is not None
        assert "riangles: beyond the axis, trial 0 (0.01)" in figure.texts[1].get_text()
    assert figure is not None
    (triangle,) = [line for line in figure.axes[0].lines if line.get_marker() == "v"]
    assert triangle.get_xydata().tolist() == [[1.0, 0.0]]
