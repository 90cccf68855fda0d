"""Segmentation of regions and of partly annotated cases: steps, outputs, and how whole cases are judged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medtrain.data.geometry import CaseGeometry
from medtrain.data.plan import Plan
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.losses.base import SegmentationLoss
from medtrain.losses.dice import DiceBCELoss, DiceCELoss
from medtrain.tasks.segmentation import Segmentation
from tests.data.small_data import grid_of, small_plan

NESTED = ((1, 2), (2,))
CPU = torch.device("cpu")


def task_of(plan: Plan, loss: SegmentationLoss) -> Segmentation:
    return Segmentation(loss=loss, inference=SlidingWindow(mirror=False), plan=plan, device=CPU)


def regions() -> Segmentation:
    plan = replace(small_plan(), regions=NESTED, region_names=("all", "tumour"))
    return task_of(plan, DiceBCELoss(num_classes=3, regions=NESTED))


def classes() -> Segmentation:
    return task_of(small_plan(ignore_index=3), DiceCELoss(num_classes=3))


class Painter(nn.Module):
    """Answers with the logits that its input's one channel asks for: a label map of classes 0, 1, 2."""

    def __init__(self, members: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.members = members

    def forward(self, image: Tensor) -> Tensor:
        inside = [sum((image == index for index in members), start=image < -1) for members in self.members]
        return torch.cat(inside, dim=1).float() * 20 - 10


def item(label: np.ndarray, image: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    geometry = CaseGeometry.between(grid_of(label.shape, (1, 1, 1)), tuple((0, n) for n in label.shape), None)
    shown = label if image is None else image
    return {
        "case_id": "a",
        "image": torch.from_numpy(shown[None].astype(np.float32)),
        "label": label,
        "geometry": geometry,
        "source_label": label,
        "spacing": (1.0, 1.0, 1.0),
        **more,
    }


def nested_label() -> np.ndarray:
    label = np.zeros((12, 12, 12), dtype=np.uint8)
    label[2:10, 2:10, 2:10] = 1
    label[4:7, 4:7, 4:7] = 2
    return label


def test_outputs_and_metrics_are_those_of_the_regions() -> None:
    task = regions()
    assert task.runtime()["num_outputs"] == 2
    assert {"dice", "dice/all", "dice/tumour"} <= task.metrics().keys()
    assert not any(key.endswith("/organ") for key in task.metrics())


def test_perfect_regions_have_dice_1_and_their_map_is_the_label() -> None:
    task = regions()
    seen = []
    task.on_prediction = lambda _, prediction: seen.append(prediction)
    (record,) = task.evaluation_step(Painter(NESTED), item(nested_label()), final=True)
    assert record["dice/all"] == record["dice/tumour"] == 1.0
    np.testing.assert_array_equal(seen[0], nested_label())


def test_a_missed_core_does_not_cost_the_whole() -> None:
    wrong = np.where(nested_label() == 2, 1, nested_label())
    (record,) = regions().evaluation_step(Painter(NESTED), item(nested_label(), wrong), final=True)
    assert record["dice/all"] == 1.0
    assert record["dice/tumour"] == 0.0


def test_what_was_not_annotated_in_a_case_is_not_judged() -> None:
    painter = Painter(((0,), (1,), (2,)))
    (record,) = classes().evaluation_step(painter, item(nested_label(), annotated=(True, True, False)), final=True)
    assert record["dice/organ"] == 1.0
    assert math.isnan(record["dice/tumour"])
    (record,) = regions().evaluation_step(Painter(NESTED), item(nested_label(), annotated=(False, True)), final=True)
    assert math.isnan(record["dice/all"])
    assert record["dice/tumour"] == 1.0


@pytest.mark.parametrize("make", [regions, classes])
def test_parts_of_a_batch_give_its_gradient(make: Any) -> None:
    """Of gradient accumulation: micro-batches weighted by their patches, some annotated in part, one ignored."""
    task = make()
    outputs = task.runtime()["num_outputs"]
    torch.manual_seed(0)
    model = nn.Conv3d(1, outputs, 3, padding=1).double()
    image = torch.randn(4, 1, 8, 8, 8).double()
    label = torch.randint(0, 3, (4, 8, 8, 8))
    if task.plan.ignore_index is not None:
        label[0], label[1, :4] = task.plan.ignore_index, task.plan.ignore_index
    annotated = torch.tensor([[True] * outputs, [True, *[False] * (outputs - 1)], [True] * outputs, [True] * outputs])
    annotated[3, -1] = False

    def gradient(parts: list[slice]) -> tuple[float, Tensor]:
        model.zero_grad()
        total = 0.0
        for part in parts:
            batch = {"image": image[part], "label": label[part], "annotated": annotated[part]}
            batch["weight"] = len(batch["image"])
            loss = task.training_step(model, batch).loss * (task.batch_weight(batch) / 4)
            loss.backward()
            total += float(loss.detach())
        assert model.weight.grad is not None
        return total, model.weight.grad.clone()

    whole, parts = gradient([slice(0, 4)]), gradient([slice(0, 1), slice(1, 4)])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-7)
