"""Line plots, drawn with Matplotlib's objects: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medtrain.pictures.colors import class_color
from medtrain.run.atomic import atomic_write

if TYPE_CHECKING:
    from medtrain.callbacks.forecast import Forecast

_MAIN = "#1f4e79"
_SECOND = "#c0504d"
_GREY = "#666666"


@dataclass(frozen=True)
class Line:
    """A named curve.

    Args:
        name: The metric's key.
        steps: Optimizer steps, rising.
        values: One finite value per step.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def draw_lines(
    path: Path, lines: Sequence[Line], *, class_names: Sequence[str], mode: Literal["min", "max"] | None = None
) -> None:
    """Draw one metric: its mean where it has one, and thinner its classes.

    Args:
        path: The PNG file.
        lines: The metric first, then its classes; or the classes alone.
        class_names: All class names; they choose the colours.
        mode: Mark the best point; None for no mark.
    """
    figure = Figure(figsize=(8, 4.5), dpi=110)
    axes = figure.add_axes((0.09, 0.11, 0.89, 0.81))
    axes.set_title(family_name(lines, class_names), loc="left", fontsize=11, fontweight="bold")
    if len(lines) == 1 and mode is None:
        _draw_smoothed(axes, lines[0], _MAIN)
        _style(axes, lines[0].values, legend=False)
    else:
        _draw_family(axes, lines, class_names, mode)
    axes.set_xlabel("step")
    _save(figure, path)


def draw_progress(
    path: Path,
    *,
    losses: Sequence[Line],
    metric: Sequence[Line],
    mode: Literal["min", "max"],
    lr: Line | None,
    class_names: Sequence[str],
    title: str,
    forecast: Forecast | None = None,
) -> None:
    """Draw the whole run at a glance: loss, monitored metric and learning rate above each other.

    Args:
        path: The PNG file.
        losses: Training loss, and the validation loss if there is one.
        metric: The monitored metric, then its classes; empty before the first evaluation.
        mode: Which way the metric is better.
        lr: Learning rate.
        class_names: All class names; they choose the colours.
        title: Heading.
        forecast: Where the metric is expected to end, if that is known.
    """
    figure = Figure(figsize=(9, 9), dpi=110)
    # fixed places: finding them by drawing, as Matplotlib's layouts do, would double the time
    figure.subplots_adjust(left=0.085, right=0.985, top=0.93, bottom=0.06, hspace=0.16)
    figure.suptitle(title, x=0.015, y=0.985, ha="left", fontsize=12, fontweight="bold")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    top.set_title("loss", loc="left", fontsize=10)
    for line, color in zip(losses, (_MAIN, _SECOND)):
        _draw_smoothed(top, line, color)
    if losses:
        _style(top, [value for line in losses for value in line.values], legend=True)
    heading = family_name(metric, class_names) if metric else "no evaluation yet"
    middle.set_title(heading, loc="left", fontsize=10)
    _draw_family(middle, metric, class_names, mode)
    if forecast is not None and metric:
        _draw_forecast(middle, metric[0], forecast)
    bottom.set_title("learning rate", loc="left", fontsize=10)
    if lr is not None:
        bottom.plot(lr.steps, lr.values, color=_MAIN, linewidth=1.5)
        _style(bottom, [], legend=False)
    bottom.set_xlabel("step")
    _save(figure, path)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving average over a fiftieth of the curve; the window shrinks at the ends."""
    array = np.asarray(values, dtype=np.float64)
    half = len(array) // 100
    total = np.concatenate([[0.0], np.cumsum(array)])
    index = np.arange(len(array))
    reach = np.minimum(np.minimum(index, len(array) - 1 - index), half)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _draw_smoothed(axes: Any, line: Line, color: str) -> None:
    if len(line.values) >= 100:
        axes.plot(line.steps, line.values, color=color, linewidth=0.7, alpha=0.3)
    few = len(line.values) <= 40
    axes.plot(
        line.steps,
        smooth(line.values),
        color=color,
        linewidth=1.6,
        marker="o" if few else None,
        markersize=3.5,
        label=line.name,
    )


def family_name(lines: Sequence[Line], class_names: Sequence[str]) -> str:
    """What the lines of a metric show together: its name, or that of the classes' metric.

    Args:
        lines: The metric first, then its classes; or the classes alone.
        class_names: All class names.
    """
    first = lines[0]
    if len(lines) > 1 and _is_of_class(first, class_names):
        return first.name.rpartition("/")[0]
    return first.name


def _is_of_class(line: Line, class_names: Sequence[str]) -> bool:
    return line.name.rpartition("/")[2] in class_names


def _draw_family(
    axes: Any, lines: Sequence[Line], class_names: Sequence[str], mode: Literal["min", "max"] | None
) -> None:
    if not lines:
        return
    classes = lines if _is_of_class(lines[0], class_names) and len(lines) > 1 else lines[1:]
    for line in classes:
        name = line.name.rpartition("/")[2]
        red, green, blue = class_color(list(class_names).index(name) if name in class_names else 1)
        axes.plot(line.steps, line.values, color=(red / 255, green / 255, blue / 255), linewidth=1.2, label=name)
    main = lines[0]
    few = len(main.steps) <= 40
    if classes is not lines:
        axes.plot(
            main.steps,
            main.values,
            color=_MAIN,
            linewidth=1.8,
            marker="o" if few else None,
            markersize=3.5,
            label="mean" if len(lines) > 1 else main.name,
        )
    if mode is not None:
        best = int(np.argmax(main.values) if mode == "max" else np.argmin(main.values))
        axes.plot(
            main.steps[best],
            main.values[best],
            marker="*",
            markersize=13,
            color=_SECOND,
            linestyle="none",
            label=f"best {main.values[best]:.4f} at step {main.steps[best]:.0f}",
            zorder=5,
        )
    _style(axes, [value for line in lines for value in line.values], legend=len(lines) > 1 or mode is not None)


def _draw_forecast(axes: Any, line: Line, forecast: Forecast) -> None:
    """The end that is expected, with twice its spread."""
    ends = ([line.steps[-1], forecast.end_step], [line.values[-1], forecast.value])
    axes.plot(*ends, color=_GREY, linewidth=1.0, linestyle=(0, (2, 2)))
    axes.errorbar(
        [forecast.end_step],
        [forecast.value],
        yerr=None if forecast.spread is None else [2 * forecast.spread],
        color=_GREY,
        marker="o",
        markersize=4,
        capsize=3,
        linestyle="none",
        label=f"forecast {forecast.value:.4f}" + ("" if forecast.spread is None else f" +- {forecast.spread:.4f}"),
    )
    axes.legend(fontsize=8, frameon=False, loc="best")


def _style(axes: Any, values: Sequence[float], *, legend: bool) -> None:
    """Grid, ticks and legend; a logarithmic axis when the values span more than two decades."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.tick_params(labelsize=9, labelcolor=_GREY)
    axes.margins(x=0.02)
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    if legend:
        columns = 1 + (len(axes.get_legend_handles_labels()[0]) - 1) // 12
        axes.legend(fontsize=8, frameon=False, ncols=columns, loc="best")


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    atomic_write(path, buffer.getvalue(), sync=False)
