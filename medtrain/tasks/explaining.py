"""Why a model judged some samples as it did: where it saw the evidence, and which instances it looked at."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.cam import explain_each
from medtrain.pictures.attention import draw_attention
from medtrain.pictures.heat import Explained, draw_heat_maps, draw_instance_maps
from medtrain.pictures.samples import Sample, describe
from medtrain.pictures.thumbnails import DIM, RIGHT, WRONG, Line
from medtrain.tasks.base import PictureStyle, ReadCases, Record
from medtrain.tasks.gallery import sample_of
from medtrain.tasks.outcome import FOR_THE_PREDICTION, FOR_THE_TRUTH, NO_DECISION, Decision, Outcome

if TYPE_CHECKING:
    from medtrain.tasks.images import ImageTask

log = logging.getLogger(__name__)

MOST_QUESTIONS = 8
"""Maps of a sample that fit beside each other."""

_BARS_OF_EACH = 2
"""Samples of each kind whose attention is drawn as bars."""

_INSTANCES = 6


@dataclass(frozen=True)
class _Looked:
    """A sample that was looked at again.

    Args:
        heading: What it was chosen for; empty where there was no choice.
        record: What was said of it.
        sample: Its images and caption.
        maps: By question [*s], or [V, *s] with views; empty where the model was not asked.
    """

    heading: str
    record: Record
    sample: Sample
    maps: Mapping[str, np.ndarray]


def choose(
    outcome: Outcome, records: Sequence[Record], count: int, *, decision: Decision = NO_DECISION
) -> dict[str, list[int]]:
    """The samples to explain by kind: `worst`, the most `uncertain` of the others, the `best` of the rest.

    The best are of different predictions, as far as there are, and none that was predicted wrong is among them.

    Args:
        outcome: Tells how good and how sure a prediction is.
        records: Of all samples.
        count: At most as many of each kind.
        decision: What was chosen on the validation part.

    Returns:
        Indices; of so few samples that there is nothing to choose, all under an empty name.
    """
    if len(records) <= count:
        return {"": list(range(len(records)))} if records else {}
    scores, doubts = outcome.scores(records), outcome.doubts(records, decision)
    worst = _lowest(scores, (), count)
    uncertain = _lowest(-doubts, worst, count)
    best: list[int] = []
    others: list[int] = []
    seen: set[str] = set()
    for index in _lowest(-scores, [*worst, *uncertain], len(records)):
        caption = outcome.caption(records[index])
        if caption.correct is False:
            continue
        (others if caption.predicted in seen else best).append(index)
        seen.add(caption.predicted)
        if len(best) == count:
            break
    chosen = {"worst": worst, "uncertain": uncertain, "best": [*best, *others][:count]}
    return {kind: found for kind, found in chosen.items() if found}


def explain_samples(
    task: ImageTask, model: nn.Module, read: ReadCases, records: Sequence[Record], style: PictureStyle
) -> dict[str, np.ndarray]:
    """The sheet `explained`, and `attention` where the model weighs several images; see `Task.explanations`.

    Raises:
        UsageError: The model has no such maps.
    """
    method = task.report.explain
    if method == "none" or not task.plan.has_images or not records:
        return {}
    kinds = choose(task.outcome, records, task.report.explained, decision=task.decision)
    order = [index for found in kinds.values() for index in found]
    chosen = [records[index] for index in order]
    asked = ask(task, chosen)
    headings = [kind for kind, found in kinds.items() for _ in found]
    looked = list(_look(task, model, read, chosen, headings, asked))
    pictures = {}
    dims = task.plan.spatial_dims
    if any(_tells_places(heat, dims) for one in looked for heat in one.maps.values()):
        pictures["explained"] = _draw_maps(task, looked, list(asked), style)
    else:
        log.info("no pictures of what the model saw: its maps are even, or have a single place")
    if task.plan.several_images and any(one.sample.attention is not None for one in looked):
        pictures["attention"] = _draw_bars(task, looked, style)
    return pictures


def ask(task: ImageTask, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Of which targets [N, T] the evidence is shown, by name; with several images only one question fits.

    Args:
        task: Knows targets and loss.
        records: Of the samples.
    """
    asked = task.outcome.questions(records)
    if task.loss.always_for and set(asked) == {FOR_THE_PREDICTION, FOR_THE_TRUTH}:
        asked = {f"for {task.loss.always_for}": asked[FOR_THE_PREDICTION]}
    names = list(asked)[: 1 if task.plan.several_images else MOST_QUESTIONS]
    return {name: asked[name] for name in names}


def _look(
    task: ImageTask,
    model: nn.Module,
    read: ReadCases,
    records: Sequence[Record],
    headings: Sequence[str],
    asked: Mapping[str, np.ndarray],
) -> Iterator[_Looked]:
    """Read the samples again and ask the model; samples without an image are left out."""
    place = {str(record["case_id"]): index for index, record in enumerate(records)}
    several = task.plan.several_images
    for item in read(list(place)):
        rows = [place[str(case)] for case in item["case_id"]]
        moved = task.normalizer(item, task.device, task.memory_format)
        inputs = _inputs(task, model, moved)
        evidences = [_Evidence(task.loss, values[rows]) for values in asked.values()]
        found = [maps.cpu().numpy() for maps in explain_each(model, inputs, evidences, method=task.report.explain)]  # type: ignore[arg-type]
        for index, row in enumerate(rows):
            if "present" in item and not bool(item["present"][index].any()):
                continue
            sample = sample_of(item, index, records[row], task.outcome.caption(records[row]), several=several)
            maps = {name: maps[index] for name, maps in zip(asked, found, strict=True)}
            yield _Looked(headings[row], records[row], sample, maps)


def _inputs(task: ImageTask, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    inputs = task.inputs(model, batch)
    if "image" not in inputs:
        raise UsageError(f"{type(model).__name__} looks at no image")
    return inputs


class _Evidence:
    """What speaks for targets.

    Args:
        loss: Says what that is.
        targets: [B, T].
    """

    def __init__(self, loss: Any, targets: np.ndarray) -> None:
        self.loss = loss
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32))

    def __call__(self, logits: Tensor) -> Tensor:
        found: Tensor = self.loss.evidence(logits, self.targets.to(logits.device))
        return found


def _draw_maps(task: ImageTask, looked: Sequence[_Looked], names: Sequence[str], style: PictureStyle) -> np.ndarray:
    title = f"what the model saw ({task.report.explain})   {style.title}".rstrip()
    size = max(60, style.panel_size * 3 // 5)
    if task.plan.several_images:
        rows = [(one.heading, one.sample, one.maps[names[0]]) for one in looked]
        return draw_instance_maps(
            rows,
            title=f"{title}   evidence {names[0]}" if names[0].startswith("for ") else f"{title}   {names[0]}",
            view_names=task.plan.view_names,
            columns=_INSTANCES,
            panel_size=size,
            channel=style.channel,
        )
    shown = [
        Explained(
            image=np.asarray(one.sample.image),
            maps={name: None if _is_repeated(task, one, name) else heat for name, heat in one.maps.items()},
            lines=describe(one.sample),
            heading=one.heading,
            captions=_captions(task, one),
        )
        for one in looked
    ]
    return draw_heat_maps(shown, title=title, panel_size=size, channel=style.channel)


def _tells_places(heat: np.ndarray, spatial_dims: int) -> bool:
    """Whether the map of any image differs between places."""
    return bool(np.ptp(heat, axis=tuple(range(-spatial_dims, 0))).any())


def _is_repeated(task: ImageTask, one: _Looked, name: str) -> bool:
    """Whether a map of the truth would be that of the prediction again, or of nothing."""
    return name == FOR_THE_TRUTH and (not one.sample.truth or one.sample.truth == one.sample.predicted)


def _captions(task: ImageTask, one: _Looked) -> dict[str, Line]:
    """Below each map, what it is of."""
    named = {**one.record, **task.outcome.readable(one.record)}
    found: dict[str, Line] = {}
    for name in one.maps:
        said, true = named.get(f"predicted/{name}"), named.get(f"label/{name}")
        if name in (FOR_THE_PREDICTION, FOR_THE_TRUTH):
            text = one.sample.predicted if name == FOR_THE_PREDICTION else one.sample.truth
            if _is_repeated(task, one, name):
                text = "the same" if text else ""
            elif not one.maps[name].any():
                text = f"{text}: nowhere"
            found[name] = (text, DIM)
        elif said is not None:
            known = true is not None and true == true and true != ""
            color = DIM if not known else RIGHT if said == true else WRONG
            judged = "" if not known else ": right" if said == true else f", truth {_text(true)}"
            chance = one.record.get(f"prob/{name}")  # of labels that are yes or no
            text = f"said {_text(said)}{judged}" if chance is None else f"{chance:.0%}{judged}"
            found[name] = (text, color)
    return found


def _draw_bars(task: ImageTask, looked: Sequence[_Looked], style: PictureStyle) -> np.ndarray:
    """The attention of some samples of each kind, below each other."""
    drawn: list[np.ndarray] = []
    count: Counter[str] = Counter()
    for one in looked:
        if one.sample.attention is None or count[one.heading] == _BARS_OF_EACH:
            continue
        count[one.heading] += 1
        title = ", ".join(part for part in (style.title, one.heading) if part)
        drawn.append(
            draw_attention(
                one.sample,
                title=f"{title}: attention" if title else "attention",
                top=_INSTANCES,
                panel_size=max(60, style.panel_size // 2),
                names=task.plan.view_names,
                channel=style.channel,
            )
        )
    width = max(picture.shape[1] for picture in drawn)
    return np.concatenate([_widen(picture, width) for picture in drawn])


def _lowest(values: np.ndarray, taken: Sequence[int], count: int) -> list[int]:
    """Indices of the lowest values that are known, of equals the first."""
    order = [int(index) for index in np.argsort(values, kind="stable") if not np.isnan(values[index])]
    return [index for index in order if index not in set(taken)][:count]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _widen(pixels: np.ndarray, width: int) -> np.ndarray:
    whole = np.empty((pixels.shape[0], width, 3), np.uint8)
    whole[:] = pixels[0, 0]
    whole[:, : pixels.shape[1]] = pixels
    return whole
