"""Which instances of a bag, or which views, a model looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.pictures.figure import SIZE, add_axes, distinct, draw_sentence, new_figure, render
from medtrain.pictures.samples import Sample, attention_shares, describe, top_instances
from medtrain.pictures.sheet import Panel, Sheet
from medtrain.pictures.thumbnails import BACKGROUND, DIM, TEXT, absent, captioned, thumbnail

_LIGHT, _FAINT = "#ebebeb", "#8f8f94"
_BAR, _TOP_BAR, _MARK = "#56b4e9", "#e69f00", "#ebebeb"
_HEIGHT, _LEFT, _TOP = 170, 62, 66


def draw_attention(
    sample: Sample,
    *,
    title: str = "attention",
    top: int = 6,
    panel_size: int = 180,
    channel: int = 0,
    names: Sequence[str] = (),
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the attention of every instance as a bar, and below the bars the instances with the most of it.

    The bars of the instances shown are orange. A dotted line is the share that all would have if all were alike.

    Args:
        sample: A sample with views or instances, and attention.
        title: Heading; the name follows it, truth and prediction are written below.
        top: At most as many instances are shown.
        panel_size: Pixels of a thumbnail.
        channel: The channel to show where an image is not in colour.
        names: Names of the views [V]; numbers from 1 when empty.
        marked: Instances known to matter, bool [V]: a triangle stands above each.

    Returns:
        uint8 [H, W, 3].
    """
    shares = attention_shares(sample)
    if shares is None or sample.present is None:
        return draw_sentence(title, "The model gave no attention over instances.")
    if not sample.present.any():
        return draw_sentence(title, f"{sample.sample_id} has no instance: there is nothing to look at.")
    order = top_instances(sample, top)
    labels = distinct(list(names), 120) if names else [str(index + 1) for index in range(len(shares))]
    columns = max(len(order), 3)
    sheet = Sheet("", [""] * columns)
    panels = []
    for index in order:
        image = (
            absent(panel_size) if sample.image is None else thumbnail(sample.image[index], panel_size, channel=channel)
        )
        known = marked is not None and bool(marked[index])
        lines = [
            (f"{labels[index] if names else f'instance {index + 1}'}: {shares[index]:.1%}", TEXT),
            ("known to matter" if known else "", DIM),
        ]
        panels.append(Panel(captioned(image, lines if marked is not None else lines[:1])))
    blank = np.full((panel_size, panel_size, 3), BACKGROUND, np.uint8)
    panels += [Panel(blank)] * (columns - len(panels))
    sheet.rows.append(("", panels))
    pictures = sheet.draw()[34:]  # without the line of the empty title
    said = "; ".join(text for text, _ in describe(sample)[1:])
    heading = f"{title} of {sample.sample_id}", said
    bars = _draw_bars(shares, sample.present, labels, order, marked, heading, pictures.shape[1], named=bool(names))
    return np.concatenate([bars, pictures])


def _draw_bars(
    shares: np.ndarray,
    present: np.ndarray,
    labels: Sequence[str],
    shown: Sequence[int],
    marked: np.ndarray | None,
    heading: tuple[str, str],
    width: int,
    *,
    named: bool,
) -> np.ndarray:
    """Bars of all instances that exist, in their order; uint8 [H, width, 3]."""
    found = np.flatnonzero(present)
    figure = new_figure(width, _TOP + _HEIGHT + 46, *heading)
    ground = "#{:02x}{:02x}{:02x}".format(*BACKGROUND)
    figure.set_facecolor(ground)
    for text in figure.texts:
        text.set_color(_LIGHT)
    axes = add_axes(figure, _LEFT, _TOP, width - _LEFT - 16, _HEIGHT)
    axes.set_facecolor(ground)
    axes.tick_params(labelcolor=_LIGHT, color=_FAINT)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    colors = [_TOP_BAR if index in set(shown) else _BAR for index in found]
    axes.bar(range(len(found)), shares[found], width=0.85 if len(found) <= 60 else 1.0, color=colors)
    axes.axhline(1 / len(found), color=_FAINT, linewidth=1, linestyle=(0, (2, 3)))
    highest = float(shares.max()) or 1.0
    axes.set_ylim(0, highest * 1.18)
    axes.set_xlim(-0.7, max(len(found) - 0.3, 3))
    if marked is not None:
        places = np.flatnonzero(np.asarray(marked, bool)[found])
        axes.plot(places, shares[found][places] + 0.07 * highest, "v", color=_MARK, markersize=6)
    room = (width - _LEFT - 16) / max(len(found), 4)
    if named:
        ticks = list(range(len(found)))
    else:
        step = int(np.ceil(34 / room))
        ticks = [place for place in range(len(found)) if (found[place] + 1) % step == 0 or step == 1]
    texts = [
        distinct([labels[found[place]]], room - 4)[0].replace("$", r"\$") if named else labels[found[place]]
        for place in ticks
    ]
    axes.set_xticks(ticks, texts, size=SIZE)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_xlabel("" if named else "instance", color=_LIGHT)
    return render(figure)
