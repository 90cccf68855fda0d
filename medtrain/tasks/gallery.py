"""The samples worth looking at: kept while a part is judged, drawn afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medtrain.tasks.base import PictureStyle, Record

if TYPE_CHECKING:
    from medtrain.pictures.samples import Sample

_MOST_INSTANCES = 8


@dataclass(frozen=True)
class Caption:
    """What is written below a sample.

    Args:
        truth: The true class, grade or number; empty where unlabelled.
        predicted: The predicted one.
        correct: Whether that is right; None where it is not a matter of right and wrong.
        truth_probability: Of the true class, or None.
        predicted_probability: Of the predicted class, or None.
    """

    truth: str
    predicted: str
    correct: bool | None = None
    truth_probability: float | None = None
    predicted_probability: float | None = None

    def line(self) -> str:
        """All of it in a line."""
        truth = f"truth {self.truth}" if self.truth else "no label"
        chances = (self.truth_probability, self.predicted_probability)
        true, said = ("" if chance is None else f" ({chance:.1%})" for chance in chances)
        judged = {None: "", True: ": right", False: ": wrong"}[self.correct]
        return f"{truth}{true}, predicted {self.predicted}{said}{judged}"


@dataclass(frozen=True)
class _Kept:
    rank: tuple[float, str]
    caption: Caption
    image: np.ndarray
    present: np.ndarray | None
    attention: np.ndarray | None


class Gallery:
    """Keeps the images of the worst samples, and of those the model is least sure of.

    Args:
        several: Whether samples have views or instances.
        view_names: Names of the views.
        count: How many of each are shown.
        candidates: How many uncertain ones are kept: some may be among the worst, and more are looked at again where a
            threshold is chosen afterwards.
    """

    def __init__(
        self, *, several: bool, view_names: Sequence[str] = (), count: int = 6, candidates: int | None = None
    ) -> None:
        self.several = several
        self.view_names = tuple(view_names)
        self.count = count
        self.candidates = 2 * count if candidates is None else candidates
        self._worst: list[_Kept] = []
        self._unsure: list[_Kept] = []

    def offer(
        self,
        batch: Mapping[str, Any],
        records: Sequence[Record],
        captions: Sequence[Caption],
        *,
        scores: np.ndarray,
        doubts: np.ndarray,
    ) -> None:
        """Look at judged samples and keep those that belong here.

        Args:
            batch: As read.
            records: One per sample.
            captions: One per sample.
            scores: Lower is worse [B]; NaN keeps a sample out of the worst.
            doubts: Higher is less sure [B]; NaN keeps a sample out of the uncertain.
        """
        if batch.get("image") is None:
            return
        for index, (record, caption) in enumerate(zip(records, captions, strict=True)):
            places = ((self._worst, scores[index], self.count), (self._unsure, -doubts[index], self.candidates))
            for kept, value, count in places:
                rank = (float(value), str(record["case_id"]))
                if math.isnan(value) or (len(kept) == count and rank >= kept[-1].rank):
                    continue
                kept.append(_keep(batch, index, record, caption, rank, several=self.several))
                kept.sort(key=lambda one: one.rank)
                del kept[count:]

    def judge_again(self, captions: Mapping[str, Caption], doubts: Mapping[str, float]) -> None:
        """Tell what was kept under a decision that was taken afterwards.

        Args:
            captions: By sample.
            doubts: By sample, higher is less sure.
        """
        self._worst, unsure = (
            [replace(one, caption=captions.get(one.rank[1], one.caption)) for one in kept]
            for kept in (self._worst, self._unsure)
        )
        ranked = [replace(one, rank=(-doubts.get(one.rank[1], -one.rank[0]), one.rank[1])) for one in unsure]
        self._unsure = sorted(ranked, key=lambda one: one.rank)

    def uncertain(self) -> list[_Kept]:
        """The least sure samples that are not among the worst."""
        shown = {one.rank[1] for one in self._worst}
        return [one for one in self._unsure if one.rank[1] not in shown][: self.count]

    def draw(self, style: PictureStyle) -> np.ndarray | None:
        """A sheet of what was kept, uint8 [H, W, 3]; None if that is nothing."""
        from medtrain.pictures.samples import draw_samples  # matplotlib takes its time to import

        sections = {
            "worst": [_sample(one, several=self.several) for one in self._worst],
            "uncertain": [_sample(one, several=self.several) for one in self.uncertain()],
        }
        if not any(sections.values()):
            return None
        title = f"samples   {style.title}".rstrip()
        size = max(60, style.panel_size * 3 // 5)
        return draw_samples(sections, title=title, panel_size=size, channel=style.channel, view_names=self.view_names)


def _keep(
    batch: Mapping[str, Any], index: int, record: Record, caption: Caption, rank: tuple[float, str], *, several: bool
) -> _Kept:
    image, present, attention = _images_of(batch, index, record, several=several)
    if several and len(image) > _MOST_INSTANCES:  # of a bag, those that count
        assert present is not None
        order = np.argsort(-np.where(present, 1.0 if attention is None else attention, -1.0), kind="stable")
        chosen = np.sort(order[:_MOST_INSTANCES])
        image, present = image[torch.from_numpy(chosen)], present[chosen]
        attention = None if attention is None else attention[chosen]
    return _Kept(rank, caption, image.cpu().numpy().copy(), present, attention)


def _images_of(
    batch: Mapping[str, Any], index: int, record: Record, *, several: bool
) -> tuple[torch.Tensor, np.ndarray | None, np.ndarray | None]:
    """The image or images of a sample, which of them exist, and the attention that each was given."""
    image = batch["image"][index]
    present = batch["present"][index].cpu().numpy() if "present" in batch else None
    if not several:
        return image, present, None
    weights = np.array([float(text) for text in str(record.get("attention", "")).split()])
    present = np.ones(len(image), dtype=bool) if present is None else present
    return image, present, weights if len(weights) == len(image) else None


def sample_of(batch: Mapping[str, Any], index: int, record: Record, caption: Caption, *, several: bool) -> Sample:
    """A judged sample as pictures take it, with all of its images.

    Args:
        batch: As read.
        index: Of the sample in it.
        record: Of the sample.
        caption: Of the sample.
        several: Whether samples have views or instances.
    """
    image, present, attention = _images_of(batch, index, record, several=several)
    kept = _Kept((0.0, str(record["case_id"])), caption, image.cpu().numpy(), present, attention)
    return _sample(kept, several=several)


def _sample(kept: _Kept, *, several: bool) -> Sample:
    from medtrain.pictures.samples import Sample

    caption = kept.caption
    missing = not several and kept.present is not None and not kept.present.any()
    return Sample(
        sample_id=kept.rank[1],
        image=None if missing else kept.image,
        truth=caption.truth,
        predicted=caption.predicted,
        correct=caption.correct,
        truth_probability=caption.truth_probability,
        predicted_probability=caption.predicted_probability,
        present=kept.present if several else None,
        attention=kept.attention,
    )
