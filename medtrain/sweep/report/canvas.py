"""The look that all pictures of a sweep share: colours, axes, limits, labels. No global state, no display.

Darker is better wherever a value is told by colour; the best is a red star; pruned is grey and failed is violet.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from medtrain.config.space import Dimension
from medtrain.pictures.colors import WRONG_CLASS, class_color
from medtrain.run.atomic import atomic_write
from medtrain.sweep.report.names import elide, elide_all, format_number, format_value
from medtrain.sweep.report.records import Record
from medtrain.sweep.report.values import Mode, is_wide, robust_limits

MAIN = "#1f4e79"
BEST = "#c0504d"
GREY = "#666666"
PRUNED = "#a3acb5"
BOUND = "#b06a00"
FAILED = tuple(channel / 255 * 0.85 for channel in WRONG_CLASS)
RUNNING = tuple(channel / 255 for channel in class_color(3))
GRID = "#dddddd"
BETTER = LinearSegmentedColormap.from_list("better", ["#dde6ee", "#a9c5dd", "#5f93bf", MAIN, "#0a1d33"])
"""From bad to good."""

ROUND = (1, 2, 2.5, 5, 10)
"""Steps between ticks."""

_DPI = 110
_NOTE_DENSITY = 15.5  # characters on an inch of a note
_MOST_SLOTS = 10  # numbers of a range that are drawn like choices
_MOST_LABELS = 9
_MOST_BEYOND = 5
_ROOM = 26  # characters below an axis before they touch


def new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """A figure with a heading, and a line below it in grey that says how to read it.

    Args:
        width: Inches.
        height: Inches.
        title: What it shows.
        note: How to read it.
    """
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.text(0.16 / width, 1 - 0.12 / height, plain(title), ha="left", va="top", fontsize=11, fontweight="bold")
    if note:
        add_note(figure, note)
    return figure


def add_note(figure: Figure, note: str) -> None:
    """Write the grey lines below the heading of a figure that was made without."""
    width, height = figure.get_size_inches()
    lines = [elide(line, int(width * _NOTE_DENSITY)) for line in note.splitlines()]
    text = plain("\n".join(lines))
    figure.text(0.16 / width, 1 - 0.36 / height, text, ha="left", va="top", fontsize=8.5, color=GREY)


def place(figure: Figure, *, left: float, right: float, top: float, bottom: float, **spaces: float) -> None:
    """Set the margins in inches; finding them by drawing, as Matplotlib's layouts do, would double the time."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height, **spaces
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one step."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a name in a script that the font does not have is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        FigureCanvasAgg(figure).print_png(buffer)
    atomic_write(path, buffer.getvalue(), sync=False)


def plain(text: str) -> str:
    """A text that Matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def style(axes: Any, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Quiet axes: a pale grid, no frame at the top and right, grey numbers."""
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=8.5, labelcolor=GREY, color="#999999")


def legend(axes: Any, **options: Any) -> None:
    """A frameless legend, if there is anything to explain."""
    if axes.get_legend_handles_labels()[0]:
        made = axes.legend(**{"fontsize": 8.5, "frameon": False, "loc": "best", **options})
        for handle in made.legend_handles:
            handle.set_alpha(1.0)


def corner_legend(figure: Figure, panels: Iterable[Any]) -> None:
    """One legend for several axes, beside the heading, where it hides nothing."""
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    width, height = figure.get_size_inches()
    corner = (1 - 0.1 / width, 1 - 0.02 / height)
    style = {"ncols": 3, "fontsize": 8.5, "frameon": False}
    figure.legend(labels.values(), labels.keys(), loc="upper right", bbox_to_anchor=corner, **style)


def foot_legend(figure: Figure, panels: Iterable[Any]) -> None:
    """One legend for several axes, below them in two lines, where many entries hide nothing."""
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    columns = max(math.ceil(len(labels) / 2), min(len(labels), 4))
    style = {"ncols": columns, "fontsize": 8.5, "frameon": False}
    figure.legend(labels.values(), labels.keys(), loc="lower center", **style)


def draw_bound(axes: Any, way: Literal["x", "y"], bound: float, label: str) -> None:
    """A line at the limit that a constraint sets; where it lies beyond the axes, the legend says so.

    Args:
        axes: With their limits set.
        way: Along which axis the constrained metric runs.
        bound: The limit.
        label: The constraint.
    """
    low, high = axes.get_xlim() if way == "x" else axes.get_ylim()
    dashes = {"color": BOUND, "linewidth": 1.2, "linestyle": (0, (1, 1.5)), "zorder": 2.5}
    if low <= bound <= high:
        (axes.axvline if way == "x" else axes.axhline)(bound, label=plain(label), **dashes)
    else:
        axes.plot([], [], label=plain(f"{label} (beyond the axis)"), **dashes)


def beyond(records: Sequence[Record], index: int, limits: tuple[float, float]) -> str:
    """Which trials have values that lie beyond an axis, for a caption; empty when none has.

    Args:
        records: With finite values.
        index: Of the objective.
        limits: Of its axis.
    """
    low, high = limits
    found = [(record.number, record.values[index]) for record in records if not low <= record.values[index] <= high]
    if not found:
        return ""
    named = ", ".join(f"{number} ({format_number(value, 3)})" for number, value in found[:_MOST_BEYOND])
    more = ", ..." if len(found) > _MOST_BEYOND else ""
    return f"triangles: beyond the axis, {'trial' if len(found) == 1 else 'trials'} {named}{more}"


def integer_axis(axis: Any) -> None:
    """Ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1, steps=(1, 2, 5, 10)))


def value_limits(axis: Any, values: Sequence[float], mode: Mode, *, keep: Sequence[float] = ()) -> tuple[float, float]:
    """Set the scale of an axis of objective values, logarithmic when they span decades; return its limits.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        values: Finite; may be empty.
        mode: Which way is better.
        keep: Some of them that must lie inside.
    """
    axes, letter = axis.axes, axis.axis_name
    if not values:
        return (0.0, 1.0)
    if is_wide(values):
        getattr(axes, f"set_{letter}scale")("log")
        low, high = min(values) / 1.3, max(values) * 1.3
        number_ticks(axis, low, high, log=True)
    else:
        low, high = robust_limits(values, mode)
        margin = 0.04 * (high - low)
        low, high = min([low, *(value - margin for value in keep)]), max([high, *(value + margin for value in keep)])
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    getattr(axes, f"set_{letter}lim")(low, high)
    return low, high


def number_ticks(axis: Any, low: float, high: float, *, log: bool, most: int = 5, integer: bool = False) -> None:
    """A few ticks with short labels; on a logarithmic axis at 1, 2 and 5 or at powers of ten.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: Lower limit.
        high: Upper limit.
        log: Whether the axis is logarithmic.
        most: Ticks at most.
        integer: Whether they must be whole numbers.
    """
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    if not log:
        axis.set_major_locator(MaxNLocator(nbins=most, steps=(1, 2, 5, 10) if integer else ROUND, integer=integer))
        return
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two positive ones: powers of ten, or also 2 and 5 times them where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks or [low, high]
    return ticks[:: math.ceil(len(ticks) / most)]


class Scale:
    """Where the values of a parameter lie on an axis; few values get slots of equal width.

    Args:
        dimension: The parameter.
        width: Most characters of a slot's label.
    """

    def __init__(self, dimension: Dimension, width: int = 14) -> None:
        values = dimension.values() or []
        self.dimension = dimension
        self.slots = values if dimension.kind == "choice" or len(values) <= _MOST_SLOTS else []
        self.labels = [plain(text) for text in elide_all([format_value(slot) or "''" for slot in self.slots], width)]
        self.log = dimension.log and not self.slots

    @property
    def is_named(self) -> bool:
        """Whether its values are names, between which a point may lie; a listed number has its exact place."""
        return bool(self.slots) and self.dimension.kind == "choice" and not all(map(_is_number, self.slots))

    @property
    def is_crowded(self) -> bool:
        """Whether the labels of its slots would touch below an axis."""
        return sum(map(len, self.labels)) > _ROOM

    @property
    def limits(self) -> tuple[float, float]:
        """Of the axis, in its own units."""
        low, high = self._ends
        if self.slots:
            return low, high
        if self.log:
            margin = (high / low) ** 0.03
            return low / margin, high * margin
        margin = 0.03 * (high - low)
        return low - margin, high + margin

    def edges(self, parts: int) -> np.ndarray:
        """Of parts of equal width, in its own units: one for each slot, or some of a range [parts + 1]."""
        low, high = self._ends
        if self.slots:
            return np.arange(len(self.slots) + 1) - 0.5
        return np.geomspace(low, high, parts + 1) if self.log else np.linspace(low, high, parts + 1)

    @property
    def _ends(self) -> tuple[float, float]:
        if self.slots:
            return -0.5, len(self.slots) - 0.5
        assert self.dimension.low is not None
        assert self.dimension.high is not None
        return float(self.dimension.low), float(self.dimension.high)

    def position(self, value: Any) -> float:
        """Of one value: the number itself, or the index of its slot; NaN for a choice that there is not."""
        if not self.slots:
            return float(value)
        nearest = self.dimension.nearest(value)
        return math.nan if nearest is None else float(self.slots.index(nearest))

    def unit(self, value: Any) -> float:
        """Of one value, with the axis from 0 to 1; a slot is in the middle of its part."""
        low, high = self._ends
        position = self.position(value)
        if self.log:
            return (math.log(position) - math.log(low)) / (math.log(high) - math.log(low))
        return (position - low) / (high - low)

    def apply(self, axis: Any, *, most: int = 4, rotate: bool = False) -> None:
        """Set up an axis for it.

        Args:
            axis: `axes.xaxis` or `axes.yaxis`.
            most: Ticks at most, of a range.
            rotate: Turn the labels of slots when they would touch.
        """
        axes, letter = axis.axes, axis.axis_name
        if self.log:
            getattr(axes, f"set_{letter}scale")("log")
        low, high = self.limits
        getattr(axes, f"set_{letter}lim")(low, high)
        if not self.slots:
            number_ticks(axis, low, high, log=self.log, most=most, integer=self.dimension.kind == "int")
            return
        step = math.ceil(len(self.slots) / _MOST_LABELS)
        axis.set_ticks(range(0, len(self.slots), step), self.labels[::step])
        axis.set_minor_locator(NullLocator())
        if rotate and self.is_crowded:
            for text in axis.get_ticklabels():
                text.set(rotation=25, ha="right", rotation_mode="anchor")


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def jitter(count: int, seed: int, width: float = 0.22) -> np.ndarray:
    """Small offsets that keep points of one choice apart, the same at every drawing."""
    return np.random.default_rng(seed).uniform(-width, width, count)


def axis_name(key: str, short: Mapping[str, str], width: int = 24) -> str:
    """A parameter's name for an axis."""
    return plain(elide(short.get(key, key), width))
