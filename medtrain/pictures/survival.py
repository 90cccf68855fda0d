"""Who survives how long, by predicted risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medtrain.metrics.survival import concordance, kaplan_meier
from medtrain.pictures.figure import (
    FAINT,
    GRID,
    INK,
    SIZE,
    TOP,
    add_axes,
    class_paint,
    cut,
    distinct,
    draw_sentence,
    fit,
    line_style,
    new_figure,
    render,
    text_width,
    widest,
)

_WIDTH, _HEIGHT, _ROW = 560, 330, 20
_CONFIDENCE = 1.959964
_NAMES = {2: ("low risk", "high risk"), 3: ("low risk", "medium risk", "high risk")}


def risk_groups(risks: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """The group of every risk, int64 [N]: 0 up to the first cut, 1 up to the second, ...

    Args:
        risks: [N], higher means earlier.
        cuts: Ascending; chosen on training or validation data, as `np.quantile(risks, ...)` of those.
    """
    return np.searchsorted(np.asarray(cuts, np.float64), np.asarray(risks, np.float64), side="left")


def draw_survival(
    times: np.ndarray,
    events: np.ndarray,
    risks: np.ndarray,
    *,
    cuts: Sequence[float] | None = None,
    group_names: Sequence[str] | None = None,
    title: str = "survival by predicted risk",
    unit: str = "",
) -> np.ndarray:
    """Draw the Kaplan-Meier estimate of every group of predicted risk, and below it who is still observed.

    The band is the pointwise 95 % interval on the log-log scale (Kalbfleisch & Prentice, 1980); censored subjects are
    small ticks.

    Args:
        times: Time of the event or of censoring [N]; NaN is unlabelled.
        events: Whether the event was seen [N].
        risks: Predicted risks [N], higher means earlier.
        cuts: Between the groups, ascending; the median of these risks when None.
        group_names: One more than cuts.
        title: Heading.
        unit: Of the times, such as `months`.

    Returns:
        uint8 [H, W, 3].
    """
    known = np.isfinite(times) & np.isfinite(np.asarray(events, np.float64))
    times, events, risks = (np.asarray(values, np.float64)[known] for values in (times, events, risks))
    if not times.size:
        return draw_sentence(title, "There is no subject with a known time: no survival can be estimated.")
    cuts = [float(np.median(risks))] if cuts is None else cuts
    default = _NAMES.get(len(cuts) + 1, tuple(f"risk group {index + 1}" for index in range(len(cuts) + 1)))
    names = distinct(list(group_names or default), 150)
    assert len(names) == len(cuts) + 1, f"{len(cuts)} cuts make {len(cuts) + 1} groups, not {len(names)}"
    group = risk_groups(risks, cuts)
    pairs = concordance(times, events, risks)
    ranking = "undefined: no two subjects can be ordered" if np.isnan(pairs.index) else f"{pairs.index:.3f}"
    subtitle = f"{times.size} subjects, {events.sum():.0f} events;  c-index {ranking}"
    left = int(max(84, 34 + 1.12 * widest(names) + text_width(str(times.size)) / 2))
    below = 62 + _ROW * len(names) + 12
    whole = int(left + _WIDTH + 28), int(TOP + _HEIGHT + below + 24)
    figure = new_figure(*whole, title, subtitle)
    axes = add_axes(figure, left, TOP, _WIDTH, _HEIGHT)
    axes.grid(True, color=GRID, linewidth=0.6)
    end = float(times.max()) or 1.0
    axes.set_xlim(0, end * 1.02)
    axes.set_ylim(-0.02, 1.02)
    for index in range(len(names)):
        chosen = group == index
        if chosen.any():
            _draw_group(axes, times[chosen], events[chosen], index)
    axes.set_xlabel(f"time{f' [{cut(unit, 80)}]' if unit else ''}".replace("$", r"\$"))
    axes.set_ylabel("share without the event")
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= end * 1.02]
    axes.set_xticks(ticks)
    _draw_numbers(figure, times, group, names, ticks, (left, TOP + _HEIGHT + 58), end * 1.02)
    return render(figure)


def survival_band(times: np.ndarray, events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The Kaplan-Meier estimate with its pointwise 95 % interval, from time 0.

    Args:
        times: [N].
        events: [N], 0 or 1.

    Returns:
        Times [T + 1], share beyond each, and the ends of the interval, which are the share itself where it is 0 or 1.
    """
    distinct_times, share = kaplan_meier(times, events)
    died = np.array([events[times == time].sum() for time in distinct_times])
    at_risk = np.array([(times >= time).sum() for time in distinct_times])
    left = at_risk - died
    # Greenwood's sum, the variance of log S
    variance = np.cumsum(np.divide(died, at_risk * left, out=np.zeros(died.size), where=left > 0))
    inside = (share > 0) & (share < 1)
    logs = np.log(np.where(inside, share, 0.5))
    factor = np.exp(_CONFIDENCE * np.sqrt(variance) / -logs)
    low = np.where(inside, np.exp(logs * factor), share)
    high = np.where(inside, np.exp(logs / factor), share)
    share, low, high = (np.concatenate([[1.0], values]) for values in (share, low, high))
    return np.concatenate([[0.0], distinct_times]), share, low, high


def _draw_group(axes: Any, times: np.ndarray, events: np.ndarray, index: int) -> None:
    x, share, low, high = survival_band(times, events)
    style = line_style(index)
    axes.step(x, share, where="post", linewidth=1.9, zorder=3 + index, **style)
    axes.fill_between(x, low, high, step="post", color=style["color"], alpha=0.13, linewidth=0)
    censored = np.unique(times[events == 0])
    at = share[np.searchsorted(x, censored, side="right") - 1]
    axes.plot(censored, at, "|", color=style["color"], markersize=7, markeredgewidth=1.1, zorder=3 + index)


def _draw_numbers(
    figure: Any,
    times: np.ndarray,
    group: np.ndarray,
    names: Sequence[str],
    ticks: Sequence[float],
    place: tuple[float, float],
    end: float,
) -> None:
    """The numbers at risk under the ticks, each group's in a row that begins with its line and name."""
    width, height = figure.get_size_inches() * figure.dpi
    left, top = place

    def write(x: float, y: float, text: str, align: str, **how: Any) -> None:
        figure.text(x / width, 1 - y / height, text, size=SIZE, ha=align, va="center_baseline", **how)

    write(12, top, "still observed", "left", color=FAINT)
    spaced = max((text_width(str(times.size)) + 12) * len(ticks) / _WIDTH, 1)
    for row, name in enumerate(names):
        y = top + (row + 1) * _ROW
        write(
            left - 10 - text_width(str(times.size)) / 2,
            y,
            fit(name, np.inf),
            "right",
            color=class_paint(row),
            weight="bold",
        )
        for order, tick in enumerate(ticks):
            if order % int(np.ceil(spaced)) == 0:
                count = np.count_nonzero(times[group == row] >= tick)
                write(left + tick / end * _WIDTH, y, str(count), "center", color=INK)
