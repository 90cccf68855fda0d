"""Heat maps, such as Grad-CAM, laid over the images they explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from medtrain.pictures.figure import draw_sentence
from medtrain.pictures.fonts import font
from medtrain.pictures.samples import Sample, attention_shares, describe, top_instances
from medtrain.pictures.sheet import Panel, Sheet, fit_size, grey
from medtrain.pictures.thumbnails import (
    BACKGROUND,
    DIM,
    TEXT,
    Line,
    absent,
    captioned,
    centred,
    plane_of,
    thumbnail,
    write,
)
from medtrain.pictures.views import AXIAL

_SCALE = "plasma"
_BAR_WIDTH, _BAR_HEIGHT = 220, 12
_FEW_MAPS, _MANY_ROWS = 2, 6


@dataclass(frozen=True)
class Explained:
    """An image and maps of it.

    Args:
        image: [C, *S].
        maps: Values in [0, 1] by name, such as the class or the zone explained; [*s], any size of the same aspect.
            None where there is nothing to explain.
        lines: Text and colour beside the row, as `describe` gives them.
        heading: Written upwards before the row.
        captions: Below each map, by its name; empty for none in any row.
    """

    image: np.ndarray
    maps: Mapping[str, np.ndarray | None]
    lines: Sequence[Line] = ()
    heading: str = ""
    captions: Mapping[str, Line] = field(default_factory=dict)


def heat_colors(heat: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1], from violet over orange to yellow; uint8 [*s, 3].

    Args:
        heat: [*s].
    """
    values = np.clip(np.nan_to_num(heat), 0, 1)
    return np.asarray((matplotlib.colormaps[_SCALE](values)[..., :3] * 255 + 0.5).astype(np.uint8))


def lay_heat(background: np.ndarray, heat: np.ndarray, *, opacity: float = 0.65) -> np.ndarray:
    """Lay a heat map over a picture, which is shown in grey: the more heat, the less of the picture.

    Args:
        background: uint8 [H, W, 3].
        heat: Values in [0, 1] [h, w]; enlarged linearly to the picture.
        opacity: Of the colour where the heat is 1; where it is 0 the picture is as it was.

    Returns:
        uint8 [H, W, 3].
    """
    values = np.clip(np.nan_to_num(heat), 0, 1).astype(np.float32)
    size = (background.shape[1], background.shape[0])
    values = np.clip(np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)), 0, 1)
    shade = np.asarray(Image.fromarray(background).convert("L"))[..., None].astype(np.float32)
    strength = opacity * values[..., None]
    return (shade * (1 - strength) + heat_colors(values) * strength + 0.5).astype(np.uint8)


def draw_heat_maps(
    rows: Sequence[Explained], *, title: str, panel_size: int = 220, opacity: float = 0.65, channel: int = 0
) -> np.ndarray:
    """Draw images beside their heat maps, and below them the scale; of a volume the slice with the most heat.

    Args:
        rows: All with maps of the same names.
        title: Heading.
        panel_size: Pixels of the longer side of a picture.
        opacity: Of the heat's colour where it is 1.
        channel: The channel to show where an image is not in colour.

    Returns:
        uint8 [H, W, 3].
    """
    if not rows:
        return draw_sentence(title, "There is no image to explain.")
    names = list(rows[0].maps)
    assert all(list(row.maps) == names for row in rows), "rows with maps of different names"
    if len(names) <= _FEW_MAPS and len(rows) > _MANY_ROWS:  # two columns of rows
        half = -(-len(rows) // 2)
        sheets = [_map_rows(title, rows[:half], panel_size, opacity, channel)]
        sheets.append(_map_rows("", rows[half:], panel_size, opacity, channel))
        height = max(len(sheet) for sheet in sheets)
        return _with_scale(np.concatenate([_pad(sheet, height, sheet.shape[1]) for sheet in sheets], axis=1))
    return _with_scale(_map_rows(title, rows, panel_size, opacity, channel))


def _map_rows(title: str, rows: Sequence[Explained], panel_size: int, opacity: float, channel: int) -> np.ndarray:
    """Rows of images beside their maps; uint8 [H, W, 3]."""
    texts = any(row.lines for row in rows)
    below = 1 if any(row.captions for row in rows) else 0
    sheet = Sheet(title, [*([""] if texts else []), "image", *rows[0].maps])
    for row in rows:
        index = _hottest(row.image, list(row.maps.values()))
        bare = thumbnail(row.image, panel_size, channel=channel, index=index)
        panels = [Panel(write(row.lines, panel_size, panel_size))] if texts else []
        panels.append(Panel(captioned(bare, (), longest=below)))
        for name, heat in row.maps.items():
            if heat is None:
                pixels = centred(np.zeros((0, 0, 3), np.uint8), panel_size, panel_size)
            else:
                pixels = _laid(row.image, heat, panel_size, index, channel, opacity)
            lines = [row.captions[name]] if name in row.captions else []
            panels.append(Panel(captioned(pixels, lines, longest=below)))
        sheet.rows.append((row.heading, panels))
    return sheet.draw()


def draw_instance_maps(
    rows: Sequence[tuple[str, Sample, np.ndarray]],
    *,
    title: str,
    view_names: Sequence[str] = (),
    columns: int = 6,
    panel_size: int = 180,
    opacity: float = 0.65,
    channel: int = 0,
) -> np.ndarray:
    """Draw the views of samples, or the instances with the largest attention, each under its heat map.

    Args:
        rows: Heading, sample with views, and its maps [V, *s]; the heat of views is not comparable.
        title: Heading.
        view_names: Names of the views, all of which are shown; empty for bags.
        columns: Instances of a bag that are shown.
        panel_size: Pixels of the longer side of a picture.
        opacity: Of the heat's colour where it is 1.
        channel: The channel to show where an image is not in colour.

    Returns:
        uint8 [H, W, 3].
    """
    if not rows:
        return draw_sentence(title, "There is no image to explain.")
    orders = [list(range(len(view_names))) or top_instances(sample, columns) for _, sample, _ in rows]
    width = max(1, *(len(order) for order in orders))
    sheet = Sheet(title, ["", *(view_names or [""] * width)])
    for (heading, sample, maps), order in zip(rows, orders, strict=True):
        shares = attention_shares(sample)
        panels = [Panel(write(describe(sample), max(panel_size, 150), panel_size))]
        for place in order:
            name = "" if view_names else f"instance {place + 1}"
            weight = "" if shares is None else f"{shares[place]:.0%}"
            line = ": ".join(part for part in (name or "attention" * bool(weight), weight) if part)
            assert sample.present is not None
            if sample.image is None or not sample.present[place]:
                pixels, line = absent(panel_size), ""
            else:
                image = sample.image[place]
                pixels = _laid(image, maps[place], panel_size, _hottest(image, [maps[place]]), channel, opacity)
            panels.append(Panel(captioned(pixels, [(line, DIM)], longest=1)))
        blank = centred(np.zeros((0, 0, 3), np.uint8), panel_size, panel_size)
        panels += [Panel(captioned(blank, (), longest=1))] * (width + 1 - len(panels))
        sheet.rows.append((heading, panels))
    return _with_scale(sheet.draw())


def _laid(
    image: np.ndarray, heat: np.ndarray, size: int, index: int | None, channel: int, opacity: float
) -> np.ndarray:
    """An image in a square under its heat; uint8 [size, size, 3]."""
    plane, window = plane_of(image, channel=channel, index=index)
    picture = grey(plane, window, fit_size(plane.shape[:2], (1.0, 1.0), size))
    return centred(lay_heat(picture, _slice(np.asarray(heat), index, image.shape), opacity=opacity), size, size)


def _hottest(image: np.ndarray, maps: Sequence[np.ndarray | None]) -> int | None:
    """The slice [D] of a volume with the most heat in all maps together; None for a picture."""
    if image.ndim == 3:
        return None
    depth = image.shape[1]
    total = np.zeros(depth)
    for heat in maps:
        if heat is not None:
            amount = np.nan_to_num(np.asarray(heat, np.float64)).sum(axis=(1, 2))
            total += np.interp((np.arange(depth) + 0.5) / depth, (np.arange(len(amount)) + 0.5) / len(amount), amount)
    return int(total.argmax()) if total.max() > 0 else depth // 2


def _slice(heat: np.ndarray, index: int | None, shape: tuple[int, ...]) -> np.ndarray:
    return heat if index is None else AXIAL.show(heat[index * len(heat) // shape[1]])


def _scale() -> np.ndarray:
    """The colours of the heat between the names of their ends; uint8 [h, w, 3]."""
    low, high = "no evidence", "strongest in the image"
    start = 10 + int(font(14).getlength(low)) + 8
    end = start + _BAR_WIDTH + 8
    image = Image.new("RGB", (end + int(font(14).getlength(high)) + 10, 36), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((10, 14), low, font=font(14), fill=TEXT, anchor="lm")
    draw.text((end, 14), high, font=font(14), fill=TEXT, anchor="lm")
    bar = heat_colors(np.linspace(0, 1, _BAR_WIDTH))[None].repeat(_BAR_HEIGHT, axis=0)
    image.paste(Image.fromarray(bar), (start, 8))
    return np.asarray(image)


def _with_scale(sheet: np.ndarray) -> np.ndarray:
    """A sheet with the colours of the heat below it."""
    parts = [sheet, _scale()]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([_pad(part, len(part), width) for part in parts])


def _pad(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Add dark rows below and dark columns at the right."""
    whole = np.full((height, width, 3), BACKGROUND, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole
