"""A segmented case as a picture: planes through the worst error, with label, prediction and their differences.

Columns: input, label, prediction, expected (label over image), actual (prediction over image) and errors. Rows of a
volume: the axial, coronal and sagittal plane through the densest errors, and a frontal maximum projection. All but the
input are zoomed to the structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from medtrain.errors import UsageError
from medtrain.pictures.colors import EXTRA, IGNORED, MISSED, WRONG_CLASS, Color, class_color
from medtrain.pictures.sheet import Panel, Sheet, fit_size, grey, overlay, paint, scale_labels, show_errors
from medtrain.pictures.views import (
    AXIAL,
    CORONAL,
    PICTURE,
    PROJECTION,
    SAGITTAL,
    Box,
    Plane,
    field_of_view,
    find_focus,
    window_of,
)

COLUMNS = ("input", "label", "prediction", "expected", "actual", "errors")


class WorstCase(TypedDict):
    """The case with the lowest score of an evaluation; the three arrays share one grid.

    `image` is float32 [C, D, H, W] (or [C, H, W] for a picture), `label` and `prediction` hold class indices
    [D, H, W] (or [H, W]) and `spacing` has one mm value per axis.
    """

    case_id: str
    score: float
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    spacing: Sequence[float]


@dataclass(frozen=True)
class _Case:
    image: np.ndarray  # [D, H, W], or [D, H, W, 3] in colour
    label: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    flat: bool  # a 2-D picture, D = 1


def draw_case(
    case: WorstCase,
    class_names: list[str],
    *,
    title: str,
    channel: int = 0,
    panel_size: int = 300,
    opacity: float = 0.35,
) -> np.ndarray:
    """Draw a case with its label and prediction; uint8 [H, W, 3].

    Args:
        case: Volume or picture; arrays on one grid.
        class_names: Names by class index, background first.
        title: Heading.
        channel: Channel of the image to show.
        panel_size: Pixels of the longer side of a panel.
        opacity: Strength of the overlays' areas.

    Raises:
        UsageError: The image has no such channel.
    """
    volume = _as_volume(case, channel)
    num_classes = len(class_names)
    valid = (volume.label >= 0) & (volume.label < num_classes)
    window = window_of(volume.image)
    box = field_of_view((valid & (volume.label > 0)) | (volume.prediction > 0), volume.spacing)
    sheet = Sheet(title, COLUMNS)
    draw = _Painter(volume, window, box, num_classes, panel_size, opacity)
    if volume.flat:
        plane = AXIAL if case["image"].ndim == 4 else PICTURE
        sheet.rows.append(draw.row(plane, 0))
    else:
        focus = find_focus(volume.label, volume.prediction, valid)
        sheet.rows += [draw.row(plane, focus[plane.axis]) for plane in (AXIAL, CORONAL, SAGITTAL)]
        sheet.rows.append(draw.row(PROJECTION, None))
    sheet.legend = _legend(volume, valid, class_names)
    return sheet.draw()


def check_channel(channel: int, channels: int) -> None:
    """Refuse a channel that the images do not have.

    Raises:
        UsageError: There are fewer channels.
    """
    if not channels:
        raise UsageError(
            f"callbacks.previews.channel={channel}: the data have no images", hint="leave callbacks.previews.channel=0"
        )
    if channel >= channels:
        raise UsageError(
            f"callbacks.previews.channel={channel}: the images have {channels} channel(s), counted from 0",
            hint=f"callbacks.previews.channel={channels - 1} is the last one",
        )


def _as_volume(case: WorstCase, channel: int) -> _Case:
    image, label, prediction = case["image"], np.asarray(case["label"]), np.asarray(case["prediction"])
    assert image.shape[1:] == label.shape == prediction.shape, (image.shape, label.shape, prediction.shape)
    spacing = tuple(float(value) for value in case["spacing"])
    assert len(spacing) == label.ndim, (spacing, label.shape)
    check_channel(channel, image.shape[0])
    picture = label.ndim == 2
    if picture:
        label, prediction, spacing = label[None], prediction[None], (1.0, *spacing)
        shown = np.moveaxis(image, 0, -1)[None] if image.shape[0] == 3 else image[channel][None]
    else:
        shown = image[channel]
    return _Case(shown, label, prediction, spacing, flat=label.shape[0] == 1)


@dataclass(frozen=True)
class _Painter:
    case: _Case
    window: tuple[float, float]
    box: Box
    num_classes: int
    panel_size: int
    opacity: float

    def row(self, plane: Plane, index: int | None) -> tuple[str, list[Panel]]:
        """Heading and panels of a plane; index None projects the maximum along the plane's axis."""
        case, axis = self.case, plane.axis
        whole = tuple(slice(0, size) for size in case.label.shape)
        full = plane.show(_cut(case.image, axis, index))
        image = plane.show(_cut(case.image[self.box], axis, _shift(index, self.box[axis])))
        label = plane.show(_cut(case.label[self.box], axis, _shift(index, self.box[axis])))
        prediction = plane.show(_cut(case.prediction[self.box], axis, _shift(index, self.box[axis])))
        spacing = plane.aspect(case.spacing)

        size = fit_size(image.shape[:2], spacing, self.panel_size)
        window = self.window if index is not None else window_of(full)
        background = grey(image, window, size)
        label, prediction = scale_labels(label, size), scale_labels(prediction, size)
        full_size = fit_size(full.shape[:2], spacing, self.panel_size)
        frame = None if self.box == whole else _frame(plane, self.box, case.label.shape, full_size)
        pictures = [
            paint(label, self.num_classes),
            paint(prediction, self.num_classes),
            overlay(background, label, self.num_classes, opacity=self.opacity),
            overlay(background, prediction, self.num_classes, opacity=self.opacity),
            show_errors(background, label, prediction, self.num_classes),
        ]
        first = Panel(grey(full, window, full_size), plane.letters, frame)
        heading = (
            plane.name if index is None or not plane.name else f"{plane.name} {index + 1}/{case.label.shape[axis]}"
        )
        return heading, [first, *map(Panel, pictures)]


def _cut(volume: np.ndarray, axis: int, index: int | None) -> np.ndarray:
    return volume.max(axis=axis) if index is None else volume.take(index, axis=axis)


def _shift(index: int | None, part: slice) -> int | None:
    return None if index is None else index - part.start


def _frame(plane: Plane, box: Box, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in the pixels of the whole slice: left, top, right, bottom."""
    edges = []
    axes = [axis for axis in range(3) if axis != plane.axis]
    for axis, flipped, pixels in zip(axes, plane.flip, size, strict=True):
        low, high = box[axis].start, box[axis].stop
        if flipped:
            low, high = shape[axis] - high, shape[axis] - low
        edges.append((round(low * pixels / shape[axis]), round(high * pixels / shape[axis])))
    (top, bottom), (left, right) = edges
    return left, top, right, bottom


def _legend(case: _Case, valid: np.ndarray, class_names: list[str]) -> list[tuple[str, Color]]:
    """The classes that occur in the case, then the kinds of errors."""
    present = set(np.unique(case.label[valid]).tolist()) | set(np.unique(case.prediction).tolist())
    entries = [(name, class_color(index)) for index, name in enumerate(class_names) if index in present and index > 0]
    entries += [("missed", MISSED), ("extra", EXTRA)]
    if len(class_names) > 2:
        entries.append(("wrong class", WRONG_CLASS))
    return [*entries, ("ignored", IGNORED)] if not valid.all() else entries
