"""The pictures of a sweep: all of them, and those of its history and of what mattered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from medtrain.sweep.report.canvas import (
    BEST,
    FAILED,
    GREY,
    MAIN,
    PRUNED,
    ROUND,
    RUNNING,
    corner_legend,
    integer_axis,
    legend,
    new_figure,
    place,
    plain,
    save,
    style,
    value_limits,
)
from medtrain.sweep.report.importance import Shares, ranked
from medtrain.sweep.report.names import elide, format_number
from medtrain.sweep.report.plots_progress import draw_curves, draw_timeline
from medtrain.sweep.report.plots_space import draw_contour, draw_parallel, draw_slice
from medtrain.sweep.report.plots_winners import draw_pareto, draw_reruns
from medtrain.sweep.report.records import Record, RecordState, SweepState
from medtrain.sweep.report.rerun_summary import RerunRow
from medtrain.sweep.report.values import best_so_far
from medtrain.sweep.result import Objective

FOLDER = "plots"
_MOST_OBJECTIVES = 3  # with a slice of their own
_OBJECTIVE_COLORS = (MAIN, "#d28a1c", "#3a9a6a", "#7b5ea7")
_MOST_BARS = 16
_MOST_HISTORIES = 4
_RUG: dict[RecordState, Any] = {"pruned": PRUNED, "failed": FAILED, "running": RUNNING}


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn.

    Args:
        path: The PNG file.
        title: What it shows.
        caption: A sentence on how to read it.
    """

    path: Path
    title: str
    caption: str


def draw_pictures(sweep: SweepState, found: Sequence[Shares], reruns: Sequence[RerunRow]) -> list[Picture]:
    """Draw everything there is enough for into plots/; pictures of an earlier state that no longer hold are removed.

    Args:
        sweep: The sweep.
        found: How much each parameter matters for each objective.
        reruns: What training the best again came to.

    Returns:
        The pictures, in the order in which they are best read.
    """
    folder = sweep.folder / FOLDER
    folder.mkdir(exist_ok=True)
    pictures = []
    for name, title, caption, figure in _figures(sweep, found, reruns):
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        save(figure, path)
        pictures.append(Picture(path, title, caption))
    return pictures


def _figures(
    sweep: SweepState, found: Sequence[Shares], reruns: Sequence[RerunRow]
) -> Iterator[tuple[str, str, str, Figure | None]]:
    """Name, title, caption and figure of every picture; one at a time, since each takes some memory."""
    others = [dimension.key for dimension in sweep.definition.space.dimensions]
    keys = list(dict.fromkeys([*ranked(found), *others]))
    yield "history", "History", _history_caption(sweep), draw_history(sweep)
    yield "pareto", "Pareto front", _CAPTIONS["pareto"], draw_pareto(sweep)
    yield "rerun", "The best, trained again", _CAPTIONS["rerun"], draw_reruns(sweep, reruns)
    yield "importance", "Importance", _CAPTIONS["importance"], draw_importance(sweep, found)
    for index, objective in enumerate(sweep.definition.objectives[:_MOST_OBJECTIVES]):
        suffix = "" if index == 0 else f"_{index + 1}"
        about = f" for {objective.metric}" if sweep.is_multi else ""
        order = list(dict.fromkeys([*found[index], *keys]))
        yield f"slice{suffix}", f"Each parameter{about}", _CAPTIONS["slice"], draw_slice(sweep, order, index)
        yield f"contour{suffix}", f"Two parameters{about}", _CAPTIONS["contour"], draw_contour(sweep, order, index)
    yield "parallel", "All parameters", _CAPTIONS["parallel"], draw_parallel(sweep, keys)
    yield "curves", "Curves", _CAPTIONS["curves"], draw_curves(sweep)
    yield "timeline", "Timeline", _CAPTIONS["timeline"], draw_timeline(sweep)


_CAPTIONS = {
    "history": "A best-so-far line that has long been flat says that more trials like these bring little",
    "pareto": "Take the trial of the front whose price you are willing to pay: every other trial is worse in all "
    "objectives than some trial on it.",
    "rerun": "Small differences vanish in the spread between seeds: prefer a configuration whose runs all lie beyond "
    "those of the others.",
    "importance": "What matters is worth a finer search; what does not can be fixed at a simple value. It "
    "holds for the searched ranges only. Small differences mean little, and a sampler that closes in gathers also "
    "values that do not matter: believe what the next picture confirms.",
    "slice": "A cloud that peaks at an edge asks for a wider range; a flat one says that the value hardly matters.",
    "contour": "A ridge that runs across says that the two must be chosen together; a smooth map can hide noise, so "
    "look at the dots.",
    "parallel": "Follow the dark lines: where they meet, the good trials agree; where they are spread, the value "
    "hardly matters.",
    "curves": "Where pruned trials end far below the others, pruning was right; where their curves cross those of "
    "complete ones, it may be too strict.",
    "timeline": "Gaps are time in which a place trained nothing.",
}


def draw_history(sweep: SweepState) -> Figure | None:
    """Every trial's value, the best so far, and which trials were pruned or failed; None without a complete trial."""
    objectives = sweep.definition.objectives[:_MOST_HISTORIES]
    if not sweep.select("complete"):
        return None
    rug = [state for state in _RUG if sweep.counts[state]]
    heights = [2.9] * len(objectives) + ([0.17 * len(rug) + 0.1] if rug else [])
    figure = new_figure(9, 1.15 + sum(heights) + 0.32 * len(objectives), "History", _history_note(sweep))
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False).ravel()
    place(figure, left=0.75, right=0.15, top=1.1 - 0.15, bottom=0.5, hspace=0.32 * len(heights) / sum(heights))
    for index, (panel, objective) in enumerate(zip(axes, objectives)):
        _history_panel(panel, sweep, index, objective)
    if rug:
        _rug(axes[-1], sweep, rug)
    last = max(record.number for record in sweep.records)
    axes[-1].set_xlim(-0.5 - 0.01 * last, last + 0.5 + 0.01 * last)
    integer_axis(axes[-1].xaxis)
    axes[-1].set_xlabel("trial", fontsize=9, color=GREY)
    corner_legend(figure, axes)
    return figure


def _history_caption(sweep: SweepState) -> str:
    if sweep.default is not None:
        return f"{_CAPTIONS['history']}; the dashed line is the configuration as it is, without any search."
    near = next((record for record in sweep.records if record.is_default and sweep.is_default_near), None)
    if near is None:
        return f"{_CAPTIONS['history']}."
    return (
        f"{_CAPTIONS['history']}. Trial {near.number} is the one nearest to the configuration as it is, which lies "
        "outside of the space and was not tried."
    )


def _history_note(sweep: SweepState) -> str:
    states: tuple[RecordState, ...] = ("complete", "pruned", "failed", "running")
    return ", ".join(f"{sweep.counts[state]} {state}" for state in states if sweep.counts[state])


def _history_panel(axes: Any, sweep: SweepState, index: int, objective: Objective) -> None:
    records = [record for record in sweep.select("complete") if math.isfinite(record.values[index])]
    style(axes)
    axes.tick_params(axis="x", length=0)
    axes.set_title(plain(elide(objective.metric, 40)), loc="left", fontsize=9.5, pad=5)
    if not records:
        return
    limits = value_limits(axes.yaxis, [record.values[index] for record in records], objective.mode)
    for allowed, face, label in ((True, MAIN, "complete"), (False, "white", "misses a constraint")):
        group = [record for record in records if record.is_candidate == allowed]
        if group:
            _points(axes, group, index, limits, objective.mode, face, label)
    candidates = [record for record in records if record.is_candidate]
    if candidates:
        numbers = [record.number for record in candidates]
        best = best_so_far([record.values[index] for record in candidates], objective.mode).tolist()
        last = max(record.number for record in sweep.records)
        line = {"where": "post", "color": BEST, "linewidth": 1.5, "zorder": 3, "label": "best so far"}
        axes.step([*numbers, last], [*best, best[-1]], **line)
        winner = next(record for record in candidates if record.values[index] == best[-1])
        axes.plot(
            winner.number, best[-1], marker="*", markersize=14, color=BEST, linestyle="none", label="best", zorder=5
        )
        text = f"best {format_number(best[-1])}, trial {winner.number}"
        axes.set_title(text, loc="right", fontsize=9.5, color=BEST, pad=5)
    if sweep.default is not None and math.isfinite(sweep.default.values[index]):
        dashes = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}
        axes.axhline(sweep.default.values[index], label="configuration as it is", **dashes)


def _points(
    axes: Any,
    group: Sequence[Record],
    index: int,
    limits: tuple[float, float],
    mode: str,
    face: str,
    label: str,
) -> None:
    """Points, those beyond the limits as triangles at the edge."""
    low, high = limits
    inside = [record for record in group if low <= record.values[index] <= high]
    outside = [record for record in group if not low <= record.values[index] <= high]
    axes.scatter(
        [record.number for record in inside],
        [record.values[index] for record in inside],
        s=24,
        facecolor=face,
        edgecolor=MAIN,
        linewidth=0.8,
        alpha=0.85,
        zorder=4,
        label=label,
    )
    if outside:
        edge = low if mode == "max" else high
        axes.scatter(
            [record.number for record in outside],
            [edge] * len(outside),
            s=30,
            marker="v" if mode == "max" else "^",
            facecolor=face,
            edgecolor=MAIN,
            linewidth=0.8,
            clip_on=False,
            zorder=4,
            label="beyond the axis",
        )


def _rug(axes: Any, sweep: SweepState, states: Sequence[RecordState]) -> None:
    """A strip with a tick for every trial that has no value."""
    for height, state in enumerate(reversed(states)):
        numbers = [record.number for record in sweep.select(state)]
        axes.vlines(numbers, height + 0.12, height + 0.88, color=_RUG[state], linewidth=1.8)
    axes.set_ylim(0, max(len(states), 0.01))
    axes.set_yticks([height + 0.5 for height in range(len(states))], list(reversed(states)))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    axes.tick_params(labelsize=8.5, labelcolor=GREY, color="#999999")
    axes.tick_params(axis="y", length=0)


def draw_importance(sweep: SweepState, found: Sequence[Shares]) -> Figure | None:
    """A bar for each parameter and objective; None without importances.

    Args:
        sweep: The sweep.
        found: How much each parameter matters for each objective.
    """
    rated = [index for index, shares in enumerate(found) if shares]
    shown = ranked(found)[:_MOST_BARS]
    if not rated:
        return None
    height = 0.75 + 0.5 + len(shown) * (0.16 + 0.2 * len(rated))
    note = "How far the values of the best quarter of the trials differ from those of all (PED-ANOVA)"
    figure = new_figure(9, height, "Importance", note)
    axes = figure.add_subplot()
    place(figure, left=2.4, right=0.7, top=0.7, bottom=0.5)
    style(axes, grid="x")
    thick = 0.76 / len(rated)
    for slot, index in enumerate(rated):
        color = _OBJECTIVE_COLORS[index % len(_OBJECTIVE_COLORS)]
        widths = [found[index].get(key) for key in shown]
        rows = [row + (slot - (len(rated) - 1) / 2) * thick for row in range(len(shown))]
        label = plain(sweep.definition.objectives[index].metric)
        bars = axes.barh(rows, [width or 0.0 for width in widths], thick * 0.9, color=color, zorder=2, label=label)
        texts = ["not rated" if width is None else f"{100 * width:.0f} %" for width in widths]
        axes.bar_label(bars, texts, padding=3, fontsize=8.5, color=GREY)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_yticks(range(len(shown)), [plain(elide(key, 30)) for key in shown])
    axes.tick_params(axis="y", length=0, labelcolor="black")
    axes.set_xlim(0, 1.05 * max(max(shares.values()) for shares in found if shares))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    if len(rated) > 1:
        legend(axes, loc="lower right")
    return figure
