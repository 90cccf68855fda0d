"""Heat maps, such as Grad-CAM, laid over the images they explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from medtrain.pictures.figure import draw_sentence, font
from medtrain.pictures.sheet import Panel, Sheet, fit_size, grey
from medtrain.pictures.thumbnails import BACKGROUND, TEXT, Line, centred, plane_of, thumbnail, write
from medtrain.pictures.views import AXIAL

_SCALE = "plasma"
_BAR_WIDTH, _BAR_HEIGHT = 220, 12


@dataclass(frozen=True)
class Explained:
    """An image and maps of it.

    Args:
        image: [C, *S].
        maps: Values in [0, 1] by name, such as the class or the zone explained; [*s], any size of the same aspect.
        lines: Text and colour beside the row, as `describe` gives them.
    """

    image: np.ndarray
    maps: Mapping[str, np.ndarray]
    lines: Sequence[Line] = ()


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
    texts = any(row.lines for row in rows)
    sheet = Sheet(title, [*([""] if texts else []), "image", *names])
    for row in rows:
        index = _hottest(row)
        plane, window = plane_of(row.image, channel=channel, index=index)
        picture = grey(plane, window, fit_size(plane.shape[:2], (1.0, 1.0), panel_size))
        panels = [Panel(write(row.lines, panel_size, panel_size))] if texts else []
        panels.append(Panel(thumbnail(row.image, panel_size, channel=channel, index=index)))
        for heat in row.maps.values():
            laid = lay_heat(picture, _slice(np.asarray(heat), index, row.image.shape), opacity=opacity)
            panels.append(Panel(centred(laid, panel_size, panel_size)))
        sheet.rows.append(("", panels))
    parts = [sheet.draw(), _scale()]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([_widen(part, width) for part in parts])


def _hottest(row: Explained) -> int | None:
    """The slice [D] of a volume with the most heat in all maps together; None for a picture."""
    if row.image.ndim == 3:
        return None
    depth = row.image.shape[1]
    total = np.zeros(depth)
    for heat in row.maps.values():
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


def _widen(pixels: np.ndarray, width: int) -> np.ndarray:
    """Add dark columns at the right."""
    whole = np.full((pixels.shape[0], width, 3), BACKGROUND, np.uint8)
    whole[:, : pixels.shape[1]] = pixels
    return whole
