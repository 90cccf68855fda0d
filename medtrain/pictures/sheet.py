"""A sheet of labelled pictures with a title and a legend, drawn pixel by pixel with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from medtrain.pictures.colors import EXTRA, IGNORED, MISSED, WRONG_CLASS, Color, class_color
from medtrain.pictures.fonts import font

_BACKGROUND: Color = (24, 24, 26)
_TEXT: Color = (235, 235, 235)
_FAINT: Color = (150, 150, 155)
_GAP = 8
_TITLE, _COLUMN_HEADING, _ROW_HEADING, _LEGEND_LINE = 38, 26, 24, 26


@dataclass
class Panel:
    """One picture of a sheet.

    Args:
        pixels: uint8 [H, W, 3] at its final size.
        letters: Letters at the top, right, bottom and left edge.
        frame: Rectangle to mark: left, top, right, bottom in pixels.
    """

    pixels: np.ndarray
    letters: str = ""
    frame: tuple[int, int, int, int] | None = None


@dataclass
class Sheet:
    """Rows of panels.

    Args:
        title: Heading.
        columns: Headings of the columns.
        rows: Heading and panels, as many per row as there are columns.
        legend: Names and colours.
    """

    title: str
    columns: Sequence[str]
    rows: list[tuple[str, list[Panel]]] = field(default_factory=list)
    legend: Sequence[tuple[str, Color]] = ()

    def draw(self) -> np.ndarray:
        """Draw everything; uint8 [H, W, 3]."""
        widths = [max(row[c].pixels.shape[1] for _, row in self.rows) for c in range(len(self.columns))]
        heights = [max(panel.pixels.shape[0] for panel in row) for _, row in self.rows]
        margin = _GAP + (_ROW_HEADING if any(heading for heading, _ in self.rows) else 0)
        width = max(margin + sum(widths) + _GAP * len(widths), int(_text_width(self.title, 19, bold=True)) + 2 * _GAP)
        legend = _wrap(self.legend, width - 2 * _GAP)
        top = _TITLE + _COLUMN_HEADING
        height = top + sum(heights) + _GAP * (len(heights) + 1) + _LEGEND_LINE * len(legend)
        image = Image.new("RGB", (width, height), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        draw.text((_GAP, 9), self.title, font=font(19, bold=True), fill=_TEXT)
        x = margin
        for heading, column_width in zip(self.columns, widths, strict=True):
            draw.text((x + column_width // 2, top - 7), heading, font=font(16), fill=_TEXT, anchor="ms")
            x += column_width + _GAP
        y = top
        for (heading, row), row_height in zip(self.rows, heights, strict=True):
            _draw_upright(image, heading, _GAP, y, row_height)
            x = margin
            for panel, column_width in zip(row, widths, strict=True):
                panel_height, panel_width = panel.pixels.shape[:2]
                left, upper = x + (column_width - panel_width) // 2, y + (row_height - panel_height) // 2
                _draw_panel(image, draw, panel, left, upper)
                x += column_width + _GAP
            y += row_height + _GAP
        for line in legend:
            x = _GAP
            for name, color in line:
                draw.rectangle((x, y + 5, x + 13, y + 18), fill=color, outline=_FAINT)
                draw.text((x + 20, y + 12), name, font=font(15), fill=_TEXT, anchor="lm")
                x += _entry_width(name)
            y += _LEGEND_LINE
        return np.asarray(image)


def fit_size(shape: tuple[int, int], spacing: tuple[float, float], longest: int) -> tuple[int, int]:
    """Rows and columns of a picture whose longer side, in mm, is `longest` pixels.

    Args:
        shape: Rows and columns of the slice.
        spacing: mm per row and per column.
        longest: Pixels of the longer side.
    """
    rows, columns = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = longest / max(rows, columns)
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def grey(plane: np.ndarray, window: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Scale a slice to `size` and its window to grey levels; uint8 [H, W, 3].

    Args:
        plane: Values [rows, columns], or [rows, columns, 3] for a colour picture.
        window: Values shown as black and as white.
        size: Rows and columns of the result.
    """
    low, high = window
    levels = np.nan_to_num((plane - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.clip(255 * levels + 0.5, 0, 255).astype(np.uint8)
    grows = size[0] >= plane.shape[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC if grows else Image.Resampling.BOX)
    return np.asarray(picture.convert("RGB"))


def scale_labels(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale class indices [rows, columns] to `size` without mixing them."""
    rows = ((np.arange(size[0]) + 0.5) * plane.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * plane.shape[1] / size[1]).astype(np.int64)
    return plane[rows[:, None], columns]


def paint(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices [H, W] as colours on black; what is not a class is grey. uint8 [H, W, 3]."""
    table = np.array([class_color(index) for index in range(num_classes)] + [IGNORED], np.uint8)
    known = (labels >= 0) & (labels < num_classes)
    return table[np.where(known, labels, num_classes)]


def overlay(background: np.ndarray, labels: np.ndarray, num_classes: int, *, opacity: float) -> np.ndarray:
    """Lay class colours over a picture, outlines opaque; uint8 [H, W, 3]."""
    colors = paint(labels, num_classes)
    strength = np.where(labels == 0, 0.0, np.where(outline(labels), 1.0, opacity))[..., None]
    return (background * (1 - strength) + colors * strength + 0.5).astype(np.uint8)


def outline(labels: np.ndarray) -> np.ndarray:
    """Pixels of a region with a neighbour outside it, two pixels wide; bool [H, W]."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for shift in (1, 2):
            near = labels.take(range(shift, labels.shape[axis]), axis)
            far = labels.take(range(labels.shape[axis] - shift), axis)
            differs = near != far
            first = (slice(None),) * axis
            edge[(*first, slice(shift, None))] |= differs
            edge[(*first, slice(None, labels.shape[axis] - shift))] |= differs
    return edge & (labels != 0)


def show_errors(background: np.ndarray, label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Mark missed, extra and confused foreground on a dimmed picture; uint8 [H, W, 3]."""
    pixels = (background * 0.45).astype(np.uint8)
    ignored = (label < 0) | (label >= num_classes)
    differs = (label != prediction) & ~ignored
    pixels[ignored] = IGNORED
    pixels[differs & (prediction == 0)] = MISSED
    pixels[differs & (label == 0)] = EXTRA
    pixels[differs & (label != 0) & (prediction != 0)] = WRONG_CLASS
    return pixels


def _draw_panel(image: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    height, width = panel.pixels.shape[:2]
    image.paste(Image.fromarray(np.ascontiguousarray(panel.pixels)), (left, top))
    if panel.frame is not None:
        a, b, c, d = panel.frame
        draw.rectangle((left + a, top + b, left + c - 1, top + d - 1), outline=(255, 255, 255))
    if panel.letters:
        places = (
            ((left + width // 2, top + 4), "ma"),
            ((left + width - 5, top + height // 2), "rm"),
            ((left + width // 2, top + height - 4), "md"),
            ((left + 5, top + height // 2), "lm"),
        )
        for letter, (place, anchor) in zip(panel.letters, places, strict=True):
            _draw_text(draw, place, letter, anchor)


def _draw_upright(image: Image.Image, text: str, left: int, top: int, height: int) -> None:
    """Write upwards, centred on `height`; nothing when there is no room."""
    length = int(_text_width(text, 16)) + 2
    if not text or length > height:
        return
    strip = Image.new("RGB", (length, _ROW_HEADING), _BACKGROUND)
    ImageDraw.Draw(strip).text((length // 2, _ROW_HEADING // 2), text, font=font(16), fill=_TEXT, anchor="mm")
    image.paste(strip.transpose(Image.Transpose.ROTATE_90), (left - 4, top + (height - length) // 2))


def _draw_text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str) -> None:
    draw.text(place, text, font=font(14), fill=_TEXT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _text_width(text: str, size: int, *, bold: bool = False) -> float:
    return font(size, bold=bold).getlength(text)


def _entry_width(name: str) -> int:
    return 20 + int(_text_width(name, 15)) + 22


def _wrap(legend: Sequence[tuple[str, Color]], width: int) -> list[list[tuple[str, Color]]]:
    lines: list[list[tuple[str, Color]]] = []
    used = width
    for entry in legend:
        needed = _entry_width(entry[0])
        if used + needed > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += needed
    return lines
