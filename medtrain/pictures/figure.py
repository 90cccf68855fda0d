"""What the charts share: a figure of a size in pixels, colours told apart on white, texts that always fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medtrain.pictures.fonts import font, font_file

DPI = 110
INK = "#222222"
FAINT = "#767676"
GRID = "#dddddd"
MAIN = "#0072b2"
SECOND = "#d55e00"
EMPTY = "#eeeeee"
SIZE = 9.0
"""Font size in points of everything but headings."""

# Okabe and Ito, Color Universal Design (2008), without the yellow, which white swallows
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#8a6d3b")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
_MISSING_LETTER = "\u25a1"
_ELLIPSIS = "\u2026"


def new_figure(width: int, height: int, title: str, subtitle: str = "") -> Figure:
    """A white figure with a heading at the top left; `TOP` pixels are the heading's.

    Args:
        width: Pixels.
        height: Pixels.
        title: Heading.
        subtitle: A second, smaller line.
    """
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    figure.text(12 / width, 1 - 24 / height, fit(title, width - 24, 12, bold=True), size=12, weight="bold", color=INK)
    figure.text(12 / width, 1 - 44 / height, fit(subtitle, width - 24), size=SIZE, color=FAINT)
    return figure


TOP = 56


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Axes at a place in pixels from the top left; found by no layout engine, as those draw everything twice.

    Args:
        figure: Of `new_figure`.
        left: Pixels.
        top: Pixels.
        width: Pixels.
        height: Pixels.
    """
    whole_width, whole_height = figure.get_size_inches() * DPI
    axes = figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )
    axes.tick_params(labelsize=SIZE, labelcolor=INK, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(size=SIZE, color=INK)
    axes.yaxis.label.set(size=SIZE, color=INK)
    return axes


def render(figure: Figure) -> np.ndarray:
    """Draw a figure; uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_sentence(title: str, sentence: str, *, size: tuple[int, int] = (560, 130)) -> np.ndarray:
    """Say, where a chart would be, why there is none; uint8 [H, W, 3].

    Args:
        title: Heading of the chart.
        sentence: The reason.
        size: Width and height in pixels.
    """
    figure = new_figure(*size, title)
    write_sentence(figure, sentence, TOP, size[1] - TOP)
    return render(figure)


def write_sentence(figure: Figure, sentence: str, top: int, height: int) -> None:
    """Write a sentence, in lines, in the middle of a strip of the figure.

    Args:
        figure: Of `new_figure`.
        sentence: Any length.
        top: Of the strip, in pixels.
        height: Of the strip, in pixels.
    """
    whole_width, whole_height = (figure.get_size_inches() * DPI).tolist()
    lines: list[str] = [""]
    for word in plain(sentence).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, 10) > whole_width - 24:
            lines.append(word)
        else:
            lines[-1] = longer
    y = 1 - (top + height / 2) / whole_height
    text = "\n".join(fit(line, whole_width - 24, 10) for line in lines)
    figure.text(12 / whole_width, y, text, size=10, color=FAINT, va="center", ha="left", linespacing=1.5)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of a line: 40 lines differ in one of them, 8 in their colour.

    Args:
        index: Of the class, >= 0.
    """
    return {"color": class_paint(index), "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)]}


def class_paint(index: int) -> str:
    """A colour on white that people with colour-blindness tell apart from those before it.

    Args:
        index: Of the class, >= 0; colours come again after 8.
    """
    return _COLORS[index % len(_COLORS)]


def plain(text: str) -> str:
    """One line without what cannot be drawn: letters that the font lacks become boxes.

    Args:
        text: A name from the user's data.
    """
    return "".join(letter if ord(letter) in _letters() else _MISSING_LETTER for letter in " ".join(text.split()))


def cut(text: str, width: float, size: float = SIZE) -> str:
    """Make a name one plain line, and shorten it in its middle to a width.

    Args:
        text: A name from the user's data.
        width: Pixels there are.
        size: Font size in points.
    """
    return shorten(plain(text), width, size * DPI / 72)


def distinct(names: Sequence[str], width: float) -> list[str]:
    """Shorten names to a width; those that would become equal are numbered, from 0 like their class.

    Args:
        names: From the user's data.
        width: Pixels there are.
    """
    shorter = [cut(name, width) for name in names]
    again = {name for name in shorter if shorter.count(name) > 1}
    return [
        cut(f"{index}: {name}", width) if short in again else short
        for index, (name, short) in enumerate(zip(names, shorter, strict=True))
    ]


def fit(text: str, width: float, size: float = SIZE, *, bold: bool = False) -> str:
    """Like `cut`, for Matplotlib: no sign of the name is read as mathematics.

    Args:
        text: A name from the user's data.
        width: Pixels there are.
        size: Font size in points.
        bold: Whether it is drawn in bold.
    """
    return shorten(plain(text), width, size * DPI / 72, bold=bold).replace("$", r"\$")


def shorten(text: str, width: float, pixels: float, *, bold: bool = False) -> str:
    """Cut out the middle of a text so that it fits; its end often is what tells names apart.

    Args:
        text: One line.
        width: Pixels there are.
        pixels: Font size in pixels.
        bold: Whether it is drawn in bold.
    """
    if font(pixels, bold=bold).getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = (kept + 1) // 2
        shorter = text[:head].rstrip() + _ELLIPSIS + text[len(text) - (kept - head) :].lstrip()
        if font(pixels, bold=bold).getlength(shorter) <= width:
            return shorter
    return _ELLIPSIS


def text_width(text: str, size: float = SIZE) -> float:
    """Pixels that a text takes in a figure.

    Args:
        text: One line.
        size: Font size in points.
    """
    return font(size * DPI / 72).getlength(text)


def widest(texts: Sequence[str]) -> int:
    """Whole pixels that the widest of some texts takes.

    Args:
        texts: One line each.
    """
    return math.ceil(max((text_width(plain(text)) for text in texts), default=0.0))


@functools.cache
@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_file(bold=False))).get_charmap())
