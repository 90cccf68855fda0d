"""The loss of all that a model returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.attention import entropy_term, mask_term
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.losses.supervision import AuxWeights, InstanceEntropy, MapSupervision, SupervisedLoss
from medtrain.losses.survival import CoxLoss
from tests.losses.targets import NAN, classes, labels, scores, survival, times

ONE = [classes(3, counts=(50, 30, 20))]
ZONES = [classes(3, name=f"zone{index}") for index in range(2)]


def outputs(size: int, width: int = 3) -> dict[str, Tensor]:
    attention = torch.softmax(scores(size, 4, seed=7), 1)
    maps = torch.sigmoid(scores(size, 16, seed=8)).view(size, 4, 4)
    return {
        "logits": scores(size, width),
        "aux/image": scores(size, width, seed=2),
        "aux/table": scores(size, width, seed=3),
        "attention": attention,
        "attention_map": maps,
    }


def masks(size: int) -> Tensor:
    found = (torch.rand(size, 8, 8, generator=torch.Generator().manual_seed(4)) > 0.7).float()
    found[1::3] = NAN
    return found


def test_only_logits() -> None:
    loss = ClassCrossEntropy(ONE)
    target, logits = labels(3, 6), scores(6, 3)
    value, logs = SupervisedLoss(loss)({"logits": logits}, target)
    torch.testing.assert_close(value, loss(logits, target), rtol=0, atol=0)
    assert logs == {}


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, (0.3, 0.3)), (0.1, (0.1, 0.1)), ({"image": 1.0, "table": 0.0}, (1.0, 0.0))]
)
def test_auxiliary_heads(weights: AuxWeights, expected: tuple[float, float]) -> None:
    loss, said, target = ClassCrossEntropy(ONE), outputs(6), labels(3, 6)
    value, logs = SupervisedLoss(loss, aux_weights=weights)(said, target)
    image, table = loss(said["aux/image"], target), loss(said["aux/table"], target)
    torch.testing.assert_close(value, loss(said["logits"], target) + expected[0] * image + expected[1] * table)
    torch.testing.assert_close(logs, {"main": loss(said["logits"], target), "aux/image": image, "aux/table": table})


def test_attention_terms_are_means_over_samples() -> None:
    loss, said, target, annotation = ClassCrossEntropy(ONE), outputs(6), labels(3, 6, missing=0), masks(6)
    present = torch.ones(6, 4, dtype=torch.bool)
    supervised = SupervisedLoss(
        loss,
        aux_weights=0.0,
        attention=MapSupervision(source="model", mask="dice", weight=0.2),
        instance_entropy=InstanceEntropy(weight=0.5, share=0.25),
    )
    value, logs = supervised(said, target, annotation=annotation, present=present)
    mask = mask_term(said["attention_map"], annotation, "dice").sum() / 6
    spread = entropy_term(said["attention"], present, share=0.25).mean()
    torch.testing.assert_close(value, loss(said["logits"], target) + 0.2 * mask + 0.5 * spread)
    torch.testing.assert_close(logs["attention_mask"].float(), mask)
    torch.testing.assert_close(logs["attention_entropy"].float(), spread)


def test_maps_of_grad_cam_are_given() -> None:
    said, target = {"logits": scores(4, 3)}, labels(3, 4, missing=0)
    maps = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    supervised = SupervisedLoss(
        ClassCrossEntropy(ONE),
        attention=MapSupervision(mask=None, sharpness="gini", smoothness_weight=0.01),
    )
    value, logs = supervised(said, target, maps=maps)
    value.backward()
    assert set(logs) == {"main", "attention_sharpness", "attention_smoothness"}
    assert maps.grad is not None
    assert maps.grad.any()


@pytest.mark.parametrize("targets", [ONE, ZONES])
def test_micro_batches_add_up_to_the_whole_batch(targets: list[Any]) -> None:
    supervised = SupervisedLoss(
        ClassCrossEntropy(targets, class_weights=(0.5, 1.0, 2.0)),
        attention=MapSupervision(source="model", smoothness_weight=0.1),
        instance_entropy=InstanceEntropy(),
    )
    said, target, annotation = outputs(9, 3 * len(targets)), labels(3, 9, targets=len(targets)), masks(9)
    target[2] = NAN  # a micro-batch without any label
    whole = supervised(said, target, annotation=annotation)[0]
    total, found = supervised.weight(target), 0.0
    for part in (slice(0, 2), slice(2, 3), slice(3, 9)):
        piece = {key: value[part] for key, value in said.items()}
        value, _ = supervised(piece, target[part], annotation=annotation[part])
        found += float(value) * supervised.weight(target[part]) / total
    assert found == pytest.approx(float(whole), rel=1e-6)


def test_zones_do_not_thin_out_attention() -> None:
    # every sample has two labelled zones, so the units are twice the samples
    said, target, annotation = outputs(4, 6), labels(3, 4, targets=2, missing=0), masks(4)
    supervised = SupervisedLoss(ClassCrossEntropy(ZONES), attention=MapSupervision(source="model"))
    _, logs = supervised(said, target, annotation=annotation)
    expected = mask_term(said["attention_map"], annotation, "kl").mean()
    torch.testing.assert_close(logs["attention_mask"].float(), expected)


def test_nothing_labelled_costs_nothing() -> None:
    supervised = SupervisedLoss(
        ClassCrossEntropy(ONE), attention=MapSupervision(source="model"), instance_entropy=InstanceEntropy()
    )
    said = {key: value.requires_grad_() for key, value in outputs(3).items()}
    value, _ = supervised(said, torch.full((3, 1), NAN), annotation=masks(3))
    value.backward()
    assert value.item() == 0
    assert said["attention_map"].grad is not None
    assert not said["attention_map"].grad.any()


def test_losses_of_whole_batches_count_samples() -> None:
    supervised = SupervisedLoss(CoxLoss(targets=survival()), instance_entropy=InstanceEntropy())
    said = outputs(5, 1)
    _, logs = supervised(said, times(5, missing=0))
    torch.testing.assert_close(logs["attention_entropy"].float(), entropy_term(said["attention"]).mean())
    assert not supervised.decomposable


def test_what_cannot_be_done_is_refused() -> None:
    loss, target, plain = ClassCrossEntropy(ONE), labels(3, 4), {"logits": scores(4, 3)}
    with pytest.raises(UsageError, match="no auxiliary heads"):
        SupervisedLoss(loss, aux_weights=0.3)(plain, target)
    with pytest.raises(UsageError, match="heads are image, table"):
        SupervisedLoss(loss, aux_weights={"image": 0.3})(outputs(4), target)
    with pytest.raises(UsageError, match="returns `attention_map`; this one returns logits"):
        SupervisedLoss(loss, attention=MapSupervision(source="model"))(plain, target)
    with pytest.raises(UsageError, match="returns `attention`; this one returns logits"):
        SupervisedLoss(loss, instance_entropy=InstanceEntropy())(plain, target)
    with pytest.raises(UsageError, match="compares with masks, and the data have none"):
        SupervisedLoss(loss, attention=MapSupervision())(plain, target, maps=torch.rand(4, 2, 2))


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(UsageError, match="asks for nothing"):
        MapSupervision(mask=None)
    with pytest.raises(UsageError, match=r"weight has no effect with task\.attention\.mask=null"):
        MapSupervision(mask=None, weight=0.1, sharpness="entropy")
    with pytest.raises(UsageError, match="sharpness_weight has no effect"):
        MapSupervision(sharpness_weight=0.1)
