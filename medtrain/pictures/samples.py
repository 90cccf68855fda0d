"""A sheet of the samples that a model gets most wrong, and of those it is least sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medtrain.metrics.arrays import ratio
from medtrain.pictures.figure import draw_sentence
from medtrain.pictures.sheet import Panel, Sheet
from medtrain.pictures.thumbnails import (
    BACKGROUND,
    DIM,
    RIGHT,
    TEXT,
    WRONG,
    Line,
    absent,
    captioned,
    thumbnail,
    write,
)

_LINES = 3


@dataclass(frozen=True)
class Sample:
    """One sample and what was said of it.

    Args:
        sample_id: Its name.
        image: [C, *S]; with views or instances [V, C, *S]; None where it has none.
        truth: The true class, or number, as text.
        predicted: The predicted one as text.
        correct: Whether that is right; None where it is not a matter of right and wrong.
        truth_probability: Of the true class, or None.
        predicted_probability: Of the predicted class, or None.
        present: Which views exist, bool [V]; None without views.
        attention: Weight of every view [V], or None.
    """

    sample_id: str
    image: np.ndarray | None
    truth: str
    predicted: str
    correct: bool | None = None
    truth_probability: float | None = None
    predicted_probability: float | None = None
    present: np.ndarray | None = None
    attention: np.ndarray | None = None


def draw_samples(
    sections: Mapping[str, Sequence[Sample]],
    *,
    title: str,
    columns: int = 6,
    panel_size: int = 180,
    channel: int = 0,
    view_names: Sequence[str] = (),
) -> np.ndarray:
    """Draw thumbnails of samples, each with its name, the truth and what was said.

    Samples of one image stand side by side; one of several views, or a bag, is a row: of all its views, or of the
    instances with the largest attention (the first ones where there is none).

    Args:
        sections: Samples by heading, such as `worst` and `uncertain`; all with views, or all without.
        title: Heading.
        columns: Thumbnails side by side; named views are all shown.
        panel_size: Pixels of a thumbnail.
        channel: The channel to show where an image is not in colour.
        view_names: Names of the views; empty for bags.

    Returns:
        uint8 [H, W, 3].
    """
    shown = {heading: list(samples) for heading, samples in sections.items() if samples}
    every = [sample for samples in shown.values() for sample in samples]
    if not every:
        return draw_sentence(title, "There is no sample to show.")
    several = [sample.present is not None for sample in every]
    assert all(several) or not any(several), "samples with and without views on one sheet"
    if all(several):
        return _draw_rows(shown, title, columns, panel_size, channel, view_names)
    columns = min(columns, max(map(len, shown.values())))
    sheet = Sheet(title, [""] * columns)
    blank = np.full((panel_size, panel_size, 3), BACKGROUND, np.uint8)
    for heading, samples in shown.items():
        for start in range(0, len(samples), columns):
            part = samples[start : start + columns]
            panels = [Panel(_with_caption(sample, panel_size, channel)) for sample in part]
            panels += [Panel(captioned(blank, (), longest=_LINES))] * (columns - len(part))
            sheet.rows.append((heading, panels))
    return sheet.draw()


def describe(sample: Sample) -> list[Line]:
    """Name, truth and prediction, with their probabilities, as lines; wrong predictions are orange, right ones blue.

    Args:
        sample: The sample.
    """
    color = TEXT if sample.correct is None else RIGHT if sample.correct else WRONG
    return [
        (sample.sample_id, TEXT),
        (f"truth: {sample.truth}{_share(sample.truth_probability)}", DIM),
        (f"said: {sample.predicted}{_share(sample.predicted_probability)}", color),
    ]


def top_instances(sample: Sample, count: int) -> list[int]:
    """The present instances with the largest attention, largest first; the first ones where there is none.

    Args:
        sample: Has views.
        count: At most as many.
    """
    assert sample.present is not None
    found = np.flatnonzero(sample.present)
    if sample.attention is not None:
        found = found[np.argsort(-np.asarray(sample.attention)[found], kind="stable")]
    return [int(index) for index in found[:count]]


def attention_shares(sample: Sample) -> np.ndarray | None:
    """Attention over the present instances, summing to 1 [V]; None where there is none.

    Args:
        sample: Has views.
    """
    if sample.attention is None or sample.present is None:
        return None
    weights = np.where(sample.present, np.asarray(sample.attention, np.float64), 0.0)
    return np.nan_to_num(ratio(weights, weights.sum()))


def _draw_rows(
    shown: Mapping[str, Sequence[Sample]],
    title: str,
    columns: int,
    size: int,
    channel: int,
    view_names: Sequence[str],
) -> np.ndarray:
    """One row per sample: its description, then its views or the instances that count most."""
    most = max(len(top_instances(sample, columns)) for samples in shown.values() for sample in samples)
    width = len(view_names) or max(most, 1)
    sheet = Sheet(title, ["", *(view_names or [""] * width)])
    for heading, samples in shown.items():
        for sample in samples:
            assert sample.present is not None
            order = list(range(width)) if view_names else top_instances(sample, width)
            lines = describe(sample)
            if not view_names:
                lines.append((f"{len(order)} of {int(np.sum(sample.present))} instances", DIM))
            panels = [Panel(write(lines, max(size, 150), size))]
            panels += [Panel(_view(sample, index, size, channel, named=bool(view_names))) for index in order]
            panels += [Panel(np.full((size, size, 3), BACKGROUND, np.uint8))] * (width + 1 - len(panels))
            sheet.rows.append((heading, panels))
    return sheet.draw()


def _view(sample: Sample, index: int, size: int, channel: int, *, named: bool) -> np.ndarray:
    assert sample.present is not None
    exists = sample.image is not None and bool(sample.present[index])
    pixels = (
        thumbnail(sample.image[index], size, channel=channel) if exists and sample.image is not None else absent(size)
    )
    shares = attention_shares(sample)
    if named and shares is None:
        return pixels
    weight = "" if shares is None or not exists else f"{shares[index]:.0%}"
    name = "attention" if named else f"instance {index + 1}"
    return captioned(pixels, [(f"{name}: {weight}" if weight else "" if named else name, DIM)])


def _with_caption(sample: Sample, size: int, channel: int) -> np.ndarray:
    missing = sample.image is None
    pixels = absent(size, "no image") if missing else thumbnail(np.asarray(sample.image), size, channel=channel)
    return captioned(pixels, describe(sample), longest=_LINES)


def _share(probability: float | None) -> str:
    return "" if probability is None else f" ({probability:.0%})"
