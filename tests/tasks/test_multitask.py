"""Multitask: every part is judged as it would be alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import LabelCrossEntropy
from medtrain.losses.multitask import LossPart, MultitaskLoss
from medtrain.losses.regression import HuberLoss
from medtrain.tasks.multitask import Multitask
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

ILL = target("no", "yes", name="ill")
AGE = number("age", mean=50.0, std=10.0)
GRADE = target("0", "1", "2", name="grade")
ZONES = [target("0", "1", "2", "unknown", name=f"{side}_zone") for side in ("left", "right")]
QUICK = Report(resamples=0)


def task(*targets: Any, parts: list[LossPart] | None = None, inference: ImageInference | None = None) -> Multitask:
    loss = MultitaskLoss(targets=targets, parts=parts or [])
    return made("multitask", loss=loss, inference=inference, plan=plan(*targets), report=QUICK)


def test_every_part_has_the_numbers_it_would_have_alone() -> None:
    logits, truth = torch.randn(20, 2), torch.stack([torch.arange(20) % 2, 40.0 + torch.arange(20)], 1)
    truth[3, 0], truth[7, 1] = NAN, NAN
    both = task(ILL, AGE)
    together = both.summarize(both.evaluation_step(Echo(), batch(logits, truth), final=False))
    ill = made("classification", loss=LabelCrossEntropy([ILL]), plan=plan(ILL), report=QUICK)
    age = made("regression", loss=HuberLoss(targets=[AGE]), plan=plan(AGE))
    alone = {
        "ill": ill.summarize(ill.evaluation_step(Echo(), batch(logits[:, :1], truth[:, :1]), final=False)),
        "age": age.summarize(age.evaluation_step(Echo(), batch(logits[:, 1:], truth[:, 1:]), final=False)),
    }
    for name, metrics in alone.items():
        for key, value in metrics.items():
            if key != "loss":
                assert together[f"{name}/{key}"] == pytest.approx(value, nan_ok=True), (name, key)
    assert together["score"] == pytest.approx((alone["ill"]["auroc"] + alone["age"]["r2"]) / 2)
    assert both.monitor.name == "val/score"
    assert list(together) == list(both.metrics())


def test_parts_are_of_the_kind_that_their_loss_says() -> None:
    time, died = number("months"), target("0", "1", name="died")
    nodule, oedema = target("no", "yes", name="nodule"), target("no", "yes", name="oedema")
    found = task(
        GRADE, *ZONES, time, died, nodule, oedema,
        parts=[
            LossPart(targets=("grade",), loss="ordinal"),
            LossPart(targets=("left_zone", "right_zone"), loss="weighted_zone_ce"),
            LossPart(targets=("months", "died"), loss="cox"),
            LossPart(targets=("nodule", "oedema"), loss="bce"),
        ],
    )  # fmt: skip
    logits = [[9.0, -9, *[0, 0, 5, 0], *[0, 0, 0, 5], 0.7, 1, -1]]
    (record,) = found.evaluation_step(Echo(), batch(logits, [[1, 2, 3, 6, 1, 1, NAN]]), final=False)
    assert record["grade/predicted"] == record["grade/label"] == 1
    assert record["left_zone/predicted/left_zone"] == 2
    assert record["left_zone/predicted/right_zone"] == 3
    assert record["left_zone/score"] == 2.0
    assert record["months/risk"] == pytest.approx(0.7)
    assert (record["months/label/months"], record["months/label/died"]) == (6, 1)
    assert (record["nodule/predicted/nodule"], record["nodule/predicted/oedema"]) == (1, 0)
    specs = found.metrics()
    for key in ("grade/qwk", "left_zone/unknown_recall", "months/c_index", "nodule/auroc/oedema"):
        assert key in specs
    assert found.runtime() == {"num_outputs": 2 + 8 + 1 + 2, "cumulative_targets": 0}
    readable = found.readable([record])[0]
    assert readable["left_zone/predicted/right_zone"] == "unknown"
    assert readable["nodule/predicted"] == "nodule"


def test_decisions_are_kept_by_part() -> None:
    inference = ImageInference(threshold="youden", calibrate=True)
    found = task(ILL, AGE, inference=inference)
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(3000, 1, generator=generator)
    truth = torch.bernoulli(said.sigmoid(), generator=generator)
    data = batch(torch.cat([2 * said, said], 1), torch.cat([truth, 50 + 10 * said], 1))
    raw = found.evaluation_step(Echo(), data, final=True)
    decision = json.loads(json.dumps(found.fit_decision(raw)))
    assert list(decision) == ["ill/temperature", "ill/threshold/yes"]
    assert decision["ill/temperature"] == pytest.approx(2, rel=0.1)
    decided = found.decide(raw)
    later = task(ILL, AGE, inference=inference)
    later.use_decision(decision)
    again = later.evaluation_step(Echo(), data, final=True)
    assert [record["ill/predicted"] for record in again] == [record["ill/predicted"] for record in decided]
    assert found.summarize(decided)["ill/nll"] < found.summarize(raw)["ill/nll"]
    assert found.summarize(decided)["age/mae"] == found.summarize(raw)["age/mae"]


def test_mirrored_images_swap_the_zones_of_their_part() -> None:
    targets = (ILL, *ZONES)
    parts = [LossPart(targets=("ill",), loss="bce"), LossPart(targets=("left_zone", "right_zone"), loss="ce")]

    class Sides(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            left = (image[:, 0, 0, 0] > image[:, 0, 0, -1]).float()[:, None]
            none = torch.zeros(len(image), 3)
            return torch.cat([none[:, :1], 6 * left, none, 6 * (1 - left), none], 1)

    found = made(
        "multitask",
        loss=MultitaskLoss(targets=targets, parts=parts),
        inference=ImageInference(mirror=True),
        plan=plan(*targets, paired_targets=((1, 2),)),
    )
    (record,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[0, 0, 0]]), final=True)
    (plain,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[0, 0, 0]]), final=False)
    assert record["left_zone/prob/left_zone/0"] == pytest.approx(plain["left_zone/prob/left_zone/0"])
    assert record["left_zone/prob/left_zone/0"] > 0.9


def test_pairs_are_swapped_back_also_between_parts() -> None:
    sides = [target("no", "yes", name=f"{side}_rib") for side in ("left", "right")]
    sizes = [number(f"{side}_size") for side in ("left", "right")]
    targets = (sides[0], ILL, sides[1], *sizes)

    class Sides(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            left = (image[:, 0, 0, 0] > image[:, 0, 0, -1]).float()[:, None]
            return torch.cat([8 * left, torch.ones_like(left), 8 * (1 - left), 5 * left, 5 * (1 - left)], 1)

    found = made(
        "multitask",
        loss=MultitaskLoss(targets=targets),  # each target is a part
        inference=ImageInference(mirror=True),
        plan=plan(*targets, paired_targets=((0, 2), (3, 4))),
    )
    (record,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[0] * 5]), final=True)
    (plain,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[0] * 5]), final=False)
    assert plain["left_rib/prob/yes"] > 0.99
    assert plain["left_size/predicted"] == pytest.approx(5)
    for key in ("left_rib/prob/yes", "right_rib/prob/yes", "ill/prob/yes", "left_size/predicted"):
        assert record[key] == pytest.approx(plain[key]), key


def test_pairs_of_different_kinds_cannot_be_swapped_back() -> None:
    targets = [number("left_months"), target("0", "1", name="died"), number("right_months")]
    parts = [
        LossPart(targets=("left_months", "died"), loss="cox"),
        LossPart(targets=("right_months",), loss="huber"),
    ]

    def build(*, mirror: bool) -> Multitask:
        its_plan = plan(*targets, paired_targets=((0, 2),))
        loss = MultitaskLoss(targets=targets, parts=parts)
        return made("multitask", loss=loss, inference=ImageInference(mirror=mirror), plan=its_plan)

    build(mirror=False)
    with pytest.raises(UsageError, match=r"left_months and right_months cannot be .* numbers and survival"):
        build(mirror=True)


def test_zones_beside_other_targets_need_pairs() -> None:
    targets = [ILL, target("no", "yes", name="left_rib"), target("no", "yes", name="right_rib"), *ZONES]
    parts = [LossPart(targets=("ill", "left_rib", "right_rib"), loss="bce")]
    parts.append(LossPart(targets=("left_zone", "right_zone"), loss="ce"))

    def build(*pairs: tuple[int, int], mirror: bool = False) -> Multitask:
        loss = MultitaskLoss(targets=targets, parts=parts)
        its_plan = plan(*targets, paired_targets=pairs)
        return made("multitask", loss=loss, inference=ImageInference(mirror=mirror), plan=its_plan)

    assert build((1, 2)).lacks_pairs  # those of the ribs are not those of the zones
    assert not build((1, 2), (3, 4)).lacks_pairs
    with pytest.raises(UsageError, match="which zones form pairs"):
        build((1, 2), mirror=True)


def test_the_tables_and_the_worst_of_all_parts() -> None:
    found = task(ILL, AGE)
    data = batch([[3.0, 0.0], [-3.0, 5.0], [3.0, 1.0]], [[1, 50], [1, 50], [1, NAN]])
    records = found.evaluation_step(Echo(), data, final=False)
    assert found.worst_cases(records)[0] == ("c001", 0.0)
    assert set(found.final_tables(records)) == {"ill_confusion"}
    assert found.final_tables(records)["ill_confusion"][1] == {"label": "yes", "predicted no": 1, "predicted yes": 2}
