"""Contact sheets: every case of a data set as a small tile, so that one look finds the label that is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.pictures.colors import class_color
from medtrain.pictures.sheet import Panel, Sheet, fit_size, grey, paint, scale_labels
from medtrain.pictures.thumbnails import BACKGROUND, DIM, TEXT, WRONG, Line, captioned, centred
from medtrain.pictures.views import AXIAL, CORONAL, SAGITTAL, field_of_view, find_focus, window_of

_PLANES = (AXIAL, CORONAL, SAGITTAL)
_LOOKED_AT = 96  # voxels per axis by which the place to show is chosen
_GAP = 2
_FRAME = 2
_OPACITY = 0.3
_SHOWN_FLAGS = 2
_NARROW = 300  # pixels of a tile whose remark gets a line of its own


def draw_tile(
    image: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    *,
    num_classes: int,
    window: tuple[float, float] | None = None,
    size: int = 150,
) -> np.ndarray:
    """Three planes through a case with its label, and the scan alone, close to the label; uint8 [size, 4 size, 3].

    Args:
        image: One channel [D, H, W].
        label: Class indices [D, H, W]; what is not a class is grey.
        spacing: mm per axis.
        num_classes: Number of classes.
        window: Values shown as black and white; found from the image if None.
        size: Pixels of a panel.
    """
    window = window_of(image) if window is None else window
    steps = [max(1, n // _LOOKED_AT) for n in label.shape]
    sparse = label[tuple(slice(None, None, step) for step in steps)]
    known = sparse < num_classes
    focus = [i * step for i, step in zip(find_focus(sparse, np.where(known, sparse, 0), known), steps)]
    panels = []
    for plane in _PLANES:
        cut = plane.show(image.take(focus[plane.axis], axis=plane.axis))
        shape = fit_size(cut.shape, plane.aspect(spacing), size)
        truth = scale_labels(plane.show(label.take(focus[plane.axis], axis=plane.axis)), shape)
        panels.append(centred(_marked(grey(cut, window, shape), truth, num_classes), size, size))
    near = field_of_view((sparse > 0) & known, [mm * step for mm, step in zip(spacing, steps)])
    box = tuple(slice(side.start * step, side.stop * step) for side, step in zip(near, steps))
    cut = AXIAL.show(image[focus[0]][box[1:]])
    panels.append(centred(grey(cut, window, fit_size(cut.shape, AXIAL.aspect(spacing), size)), size, size))
    gap = np.full((size, _GAP, 3), BACKGROUND, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(parts[:-1], axis=1)


def draw_blank(width: int, height: int) -> np.ndarray:
    """What stands for a case that cannot be read; uint8 [height, width, 3]."""
    return np.full((height, width, 3), (60, 30, 30), np.uint8)


def caption(tile: np.ndarray, name: str, remark: str, flags: Sequence[str]) -> np.ndarray:
    """A tile with its name and what is suspicious about it; uint8 [H, W, 3].

    Args:
        tile: Of `draw_tile`.
        name: The case.
        remark: A few words that every case has.
        flags: The worst first; the first two are shown.
    """
    narrow = tile.shape[1] < _NARROW
    joined = f"{name}: {remark}" if remark and not narrow else name
    lines: list[Line] = [(joined, WRONG if flags else TEXT)]
    if narrow:
        lines.append((remark, DIM))
    shown = list(flags[:_SHOWN_FLAGS])
    if len(flags) > _SHOWN_FLAGS:
        shown[-1] += f" (and {len(flags) - _SHOWN_FLAGS} more)"
    lines += [(flag, WRONG if row == 0 else DIM) for row, flag in enumerate(shown)]
    framed = tile.copy()
    if flags:
        framed[:_FRAME], framed[-_FRAME:], framed[:, :_FRAME], framed[:, -_FRAME:] = WRONG, WRONG, WRONG, WRONG
    return captioned(framed, lines, longest=1 + narrow + _SHOWN_FLAGS)


def draw_page(title: str, tiles: Sequence[np.ndarray], class_names: Sequence[str], *, columns: int) -> np.ndarray:
    """Put captioned tiles on a page; uint8 [H, W, 3].

    Args:
        title: Heading.
        tiles: All of one size.
        class_names: By index, background first; the legend.
        columns: Tiles side by side.
    """
    sheet = Sheet(title, [""] * columns, legend=[(n, class_color(i)) for i, n in enumerate(class_names) if i])
    blank = np.full_like(tiles[0], BACKGROUND[0])
    for start in range(0, len(tiles), columns):
        row = [*tiles[start : start + columns]]
        sheet.rows.append(("", [Panel(tile) for tile in (*row, *[blank] * (columns - len(row)))]))
    return sheet.draw()


def _marked(background: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes as tinted areas with an outline one pixel wide."""
    edge = np.zeros(label.shape, bool)
    for axis in (0, 1):
        near, far = np.moveaxis(label, axis, 0)[1:], np.moveaxis(label, axis, 0)[:-1]
        side = np.moveaxis(edge, axis, 0)
        side[1:] |= near != far
        side[:-1] |= near != far
    strength = np.where(label == 0, 0.0, np.where(edge, 1.0, _OPACITY))[..., None]
    return (background * (1 - strength) + paint(label, num_classes) * strength + 0.5).astype(np.uint8)
