"""What is kept for pictures, and the pictures of every outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.losses.multitask import MultitaskLoss
from medtrain.losses.ordinal import OrdinalLoss
from medtrain.losses.regression import MSELoss
from medtrain.losses.survival import CoxLoss
from medtrain.tasks.base import PictureStyle
from medtrain.tasks.gallery import Caption, Gallery
from medtrain.tasks.images import ImageTask
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

TWO = target("no", "yes")
LABELS = [target("no", "yes", name="oedema"), target("no", "yes", name="nodule")]
ZONES = [target("0", "1", "unknown", name=f"{side}_zone") for side in ("right", "left")]
TIMES = [number("months"), target("0", "1", name="died")]
MIXED = [TWO, number()]


def ids(kept: list[Any]) -> list[str]:
    return [one.rank[1] for one in kept]


def offered(gallery: Gallery, scores: list[float], doubts: list[float], *, first: int = 0) -> None:
    data = batch([[float(index)] for index in range(len(scores))], first=first)
    records = [{"case_id": case} for case in data["case_id"]]
    captions = [Caption(truth="a", predicted="b")] * len(scores)
    gallery.offer(data, records, captions, scores=np.array(scores), doubts=np.array(doubts))


def test_the_worst_and_the_least_sure_of_all_batches_are_kept() -> None:
    gallery = Gallery(several=False, count=2)
    offered(gallery, [0.5, 0.1, NAN], [0.0, 0.3, 0.9])
    offered(gallery, [0.3, 0.1], [0.6, 0.95], first=3)
    assert ids(gallery._worst) == ["c001", "c004"]  # of equals, the first; c004 is shown once
    assert ids(gallery.uncertain()) == ["c002", "c003"]
    picture = gallery.draw(PictureStyle(title="step 3"))
    assert picture is not None
    assert picture.dtype == np.uint8
    assert Gallery(several=False).draw(PictureStyle()) is None


def test_what_is_kept_does_not_depend_on_the_batches() -> None:
    scores, doubts = np.random.default_rng(0).permutation(20) / 20, np.random.default_rng(1).permutation(20) / 20
    whole, parts = Gallery(several=False, count=5), Gallery(several=False, count=5)
    offered(whole, list(scores), list(doubts))
    for start in (15, 0, 5, 10):
        offered(parts, list(scores[start : start + 5]), list(doubts[start : start + 5]), first=start)
    assert ids(parts._worst) == ids(whole._worst)
    assert ids(parts.uncertain()) == ids(whole.uncertain())


def test_of_a_large_bag_the_instances_that_count_are_kept() -> None:
    gallery = Gallery(several=True)
    data = {
        "case_id": ["bag"],
        "image": torch.arange(20, dtype=torch.uint8).reshape(1, 20, 1, 1, 1).expand(1, 20, 1, 4, 4),
        "present": torch.tensor([[True] * 19 + [False]]),
    }
    weights = np.linspace(0, 1, 20)
    record = {"case_id": "bag", "attention": " ".join(f"{weight:.4f}" for weight in weights)}
    caption = Caption(truth="a", predicted="b", correct=False)
    gallery.offer(data, [record], [caption], scores=np.array([0.1]), doubts=np.array([NAN]))
    (kept,) = gallery._worst
    assert kept.image[:, 0, 0, 0].tolist() == list(range(11, 19))  # the last is not there
    assert kept.attention is not None
    np.testing.assert_allclose(kept.attention, weights[11:19], atol=1e-4)
    assert gallery.draw(PictureStyle()) is not None


def settings(*targets: Any) -> dict[str, Any]:
    return {"plan": plan(*targets, image_size=(8, 8))}


TASKS: dict[str, tuple[ImageTask, int, list[list[float]], set[str]]] = {
    "classification": (
        made("classification", loss=ClassCrossEntropy([TWO]), **settings(TWO)), 2, [[0], [1], [1], [NAN]],
        {"worst", "confusion", "roc", "precision_recall", "calibration"},
    ),
    "multilabel": (
        made("multilabel", loss=LabelCrossEntropy(LABELS), **settings(*LABELS)), 2,
        [[0, 1], [1, NAN], [1, 0], [NAN, NAN]],
        {"worst", "roc", "precision_recall", "calibration"},
    ),
    "ordinal": (
        made("ordinal", loss=OrdinalLoss(targets=[target("a", "b", "c")]), **settings(target("a", "b", "c"))),
        2, [[0], [1], [2], [NAN]], {"worst", "grades", "confusion", "roc", "precision_recall", "calibration"},
    ),
    "zones": (
        made("zones", loss=ClassCrossEntropy(ZONES), **settings(*ZONES)), 6, [[0, 1], [1, 2], [2, 2], [NAN, NAN]],
        {"worst", "score", "confusion"},
    ),
    "regression": (made("regression", loss=MSELoss(targets=[number()]), **settings(number())), 1,
        [[0], [1], [2], [NAN]], {"worst", "agreement"},
    ),
    "survival": (made("survival", loss=CoxLoss(targets=TIMES), **settings(*TIMES)), 1,
        [[1, 1], [2, 0], [3, 1], [NAN, 1]],
        {"survival"},
    ),
    "multitask": (
        made("multitask", loss=MultitaskLoss(targets=MIXED), **settings(*MIXED)), 2,
        [[0, 1], [1, 2], [1, 5], [NAN, NAN]],
        {"worst", "finding_confusion", "finding_roc", "finding_precision_recall", "finding_calibration",
         "age_agreement"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_task_draws_its_evaluation(name: str) -> None:
    task, outputs, truth, expected = TASKS[name]

    class Summing(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :outputs] * torch.linspace(-1, 1, outputs + 1)[1:]

    data = batch(torch.randn(4, 64), truth)
    data["image"] = data["image"].reshape(4, 1, 8, 8)
    task.begin_evaluation()
    records = task.evaluation_step(Summing(), data, final=True)
    pictures = task.pictures(records, PictureStyle(title="step 5"))
    assert set(pictures) == expected
    assert not {"worst"} & expected or next(iter(pictures)) == "worst"
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert len(np.unique(picture)) > 10
    task.begin_evaluation()
    assert "worst" not in task.pictures(records, PictureStyle())
    assert task.pictures([], PictureStyle()) == {}


def test_captions_say_what_was_right() -> None:
    task, _, _, _ = TASKS["zones"]
    (record,) = task.evaluation_step(Echo(), batch([[9, 0, 0, 0, 0, 9]], [[0, 1]]), final=False)
    assert task.outcome.caption(record) == Caption(truth="0 1  0.50", predicted="0 2  0.00", correct=False)
    task, _, _, _ = TASKS["classification"]
    yes, unknown = task.evaluation_step(Echo(), batch([[0, 2], [1, 0]], [1, NAN]), final=False)
    caption = task.outcome.caption(yes)
    assert (caption.truth, caption.predicted, caption.correct) == ("yes", "yes", True)
    assert caption.truth_probability == caption.predicted_probability == yes["prob/yes"]
    assert task.outcome.caption(unknown).correct is None


def test_uncertain_samples_are_those_near_the_threshold_that_was_chosen_afterwards() -> None:
    sick = target("no", "yes")
    inference = ImageInference(threshold="youden")
    task = made("classification", loss=LabelCrossEntropy([sick]), **{**settings(sick), "inference": inference})
    logits = np.linspace(-3, 3, 40)
    data = batch(torch.zeros(40, 64), [[int(logit > 1.9)] for logit in logits])
    data["image"] = (torch.tensor(logits, dtype=torch.float32).reshape(40, 1, 1, 1)).expand(40, 1, 8, 8)

    class First(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :1]

    records = task.evaluation_step(First(), data, final=True)
    assert not task.decision
    decision = task.fit_decision(records)
    records = task.decide(records)
    assert "worst" in task.pictures(records, PictureStyle())
    threshold = decision["threshold/yes"]
    shown = {one.rank[1] for one in task.gallery.uncertain()}
    others = {record["case_id"]: record["prob/yes"] for record in records}
    taken = {one.rank[1] for one in task.gallery._worst}
    free = [case for case in others if case not in taken]
    apart = {
        case: abs(np.log(others[case] / (1 - others[case])) - np.log(threshold / (1 - threshold))) for case in free
    }
    assert shown == set(sorted(free, key=lambda case: (apart[case], case))[:6])
    assert all(one.caption == task.outcome.caption(records[int(one.rank[1][1:])]) for one in task.gallery._worst)
