"""Regions that lie within each other, and classes or regions that nobody annotated in a sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import SegmentationLoss, marginal
from medtrain.losses.deep_supervision import DeepSupervisionLoss
from medtrain.losses.dice import DiceBCELoss, DiceCELoss, DiceLoss
from medtrain.losses.entropy import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    FocalLoss,
    build_bce,
    build_ce,
    build_focal,
)
from medtrain.losses.tversky import TverskyLoss

NESTED = ((1, 2, 3), (2, 3), (3,))  # whole, core, enhancing
IGNORE = 4

SOFTMAX: list[SegmentationLoss] = [
    DiceLoss(num_classes=3),
    DiceLoss(num_classes=3, include_background=True),
    DiceCELoss(num_classes=3, class_weights=(0.5, 1.0, 2.0), label_smoothing=0.1),
    CrossEntropyLoss(num_classes=3),
    FocalLoss(num_classes=3),
    TverskyLoss(num_classes=3),
]
SIGMOID: list[SegmentationLoss] = [
    DiceLoss(num_classes=4, regions=NESTED),
    DiceBCELoss(num_classes=4, regions=NESTED),
    BinaryCrossEntropyLoss(num_classes=4, regions=NESTED, pos_weight=2.0),
    FocalLoss(num_classes=4, regions=NESTED, class_weights=(1.0, 3.0)),
    TverskyLoss(num_classes=4, regions=NESTED),
]


def loss_id(loss: SegmentationLoss) -> str:
    return type(loss).__name__


def random_case(outputs: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, outputs, 4, 6, generator=generator) * 2  # [B, K, H, W]
    return logits, torch.randint(0, classes, (3, 4, 6), generator=generator)


def by_hand() -> tuple[Tensor, Tensor]:
    """One sample of two voxels with the probabilities of three classes, labelled 0 and 1."""
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]])
    return probs.log().t().unsqueeze(0), torch.tensor([[0, 1]])  # [1, 3, 2], [1, 2]


def test_marginal_loss_by_hand() -> None:
    # class 2 was not annotated: the background is 0.7 and 0.3, class 1 is 0.3 and 0.7
    logits, label = by_hand()
    annotated = torch.tensor([[True, True, False]])

    joined, same = marginal(logits, label, annotated, None)
    torch.testing.assert_close(joined.softmax(1)[0].t(), torch.tensor([[0.7, 0.3, 0.0], [0.3, 0.7, 0.0]]))
    assert torch.equal(same, label)

    ce = CrossEntropyLoss(num_classes=3)(logits, label, annotated=annotated)
    assert ce.item() == pytest.approx(-math.log(0.7))
    dice = DiceLoss(num_classes=3, smooth=0.0)(logits, label, annotated=annotated)
    assert dice.item() == pytest.approx(1 - 2 * 0.7 / 2)  # of class 1 alone
    both = DiceCELoss(num_classes=3, smooth=0.0)(logits, label, annotated=annotated)
    assert both.item() == pytest.approx(0.3 - math.log(0.7))
    smoothed = CrossEntropyLoss(num_classes=3, label_smoothing=0.2)(logits, label, annotated=annotated)
    assert smoothed.item() == pytest.approx(-0.8 * math.log(0.7) - 0.2 * (math.log(0.7) + math.log(0.3)) / 2)


def test_voxels_of_a_class_that_was_not_annotated_are_background() -> None:
    logits, _ = by_hand()
    annotated = torch.tensor([[True, False, True]])
    with_label = CrossEntropyLoss(num_classes=3)(logits, torch.tensor([[0, 1]]), annotated=annotated)
    without = CrossEntropyLoss(num_classes=3)(logits, torch.tensor([[0, 0]]), annotated=annotated)
    assert with_label.item() == without.item() == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2)


def test_unannotated_regions_count_nowhere() -> None:
    logits, label = random_case(3, 4)
    annotated = torch.tensor([[True, False, True]]).expand(3, -1)
    for loss, part in (
        (DiceBCELoss(num_classes=4, regions=NESTED), DiceBCELoss(num_classes=4, regions=(NESTED[0], NESTED[2]))),
        (
            FocalLoss(num_classes=4, regions=NESTED, class_weights=(1.0, 3.0)),
            FocalLoss(num_classes=4, regions=(NESTED[0], NESTED[2]), class_weights=(1.0, 3.0)),
        ),
        (TverskyLoss(num_classes=4, regions=NESTED), TverskyLoss(num_classes=4, regions=(NESTED[0], NESTED[2]))),
    ):
        scores = logits.clone().requires_grad_()
        value = loss(scores, label, annotated=annotated)
        value.backward()
        torch.testing.assert_close(value.detach(), part(logits[:, [0, 2]], label))
        assert scores.grad is not None
        assert (scores.grad[:, 1] == 0).all()
        assert (scores.grad[:, [0, 2]] != 0).any()


def test_dice_and_bce_of_regions_by_hand() -> None:
    # two voxels of classes 2 and 0, regions {1, 2} and {2}; all probabilities are 0.5
    loss = DiceBCELoss(num_classes=3, regions=((1, 2), (2,)), smooth=0.0)
    # Dice of both regions: 2 * 0.5 / (1 + 1) = 0.5; binary cross-entropy: log 2
    assert loss(torch.zeros(1, 2, 2), torch.tensor([[2, 0]])).item() == pytest.approx(0.5 + 0.5 * math.log(2))


@pytest.mark.parametrize("loss", [*SOFTMAX, *SIGMOID], ids=loss_id)
def test_everything_annotated_is_as_nothing_said(loss: SegmentationLoss) -> None:
    logits, label = random_case(3, 3)
    everything = torch.ones(3, 3, dtype=torch.bool)
    torch.testing.assert_close(loss(logits, label, annotated=everything), loss(logits, label))


@pytest.mark.parametrize("loss", [*SOFTMAX, *SIGMOID], ids=loss_id)
def test_a_batch_of_partly_annotated_samples_is_the_mean_of_its_samples(loss: SegmentationLoss) -> None:
    logits, label = random_case(3, 3)
    label[0, 0] = IGNORE
    annotated = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert loss.decomposable
    whole = loss(logits, label, ignore_index=IGNORE, annotated=annotated)
    each = [
        loss(logits[i : i + 1], label[i : i + 1], ignore_index=IGNORE, annotated=annotated[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(each).mean())


@pytest.mark.parametrize("loss", [*SOFTMAX, *SIGMOID], ids=loss_id)
def test_gradient_of_partly_annotated_samples_equals_finite_differences(loss: SegmentationLoss) -> None:
    logits, label = random_case(3, 3)
    small = logits[:2, :, :2, :2].double().requires_grad_()
    labels = label[:2, :2, :2].clone()
    labels[0, 0, 0] = IGNORE
    annotated = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.autograd.gradcheck(lambda x: loss.compute(x, labels, IGNORE, annotated), (small,))


@pytest.mark.parametrize("loss", [*SOFTMAX, *SIGMOID], ids=loss_id)
def test_a_sample_in_which_nothing_was_annotated_is_harmless(loss: SegmentationLoss) -> None:
    logits, label = random_case(3, 3)
    logits.requires_grad_()
    value = loss(logits, label, annotated=torch.zeros(3, 3, dtype=torch.bool))
    value.backward()
    assert logits.grad is not None
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() < 1e-6


def test_batch_dice_leaves_out_samples_without_annotation() -> None:
    logits, label = random_case(3, 3)
    loss = DiceLoss(num_classes=3, batch_dice=True)
    annotated = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])
    value = loss(logits, label, annotated=annotated)
    torch.testing.assert_close(value, loss(logits[:2], label[:2]))


def test_deep_supervision_passes_on_what_was_annotated() -> None:
    logits, label = random_case(3, 3)
    annotated = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    inner = DiceCELoss(num_classes=3)
    outputs = [logits, logits[..., ::2, ::2]]
    expected = 2 * inner(logits, label, annotated=annotated)
    expected = (expected + inner(outputs[1], label[:, ::2, ::2], annotated=annotated)) / 3
    torch.testing.assert_close(DeepSupervisionLoss(inner)(outputs, label, annotated=annotated), expected)


def test_focal_of_regions_without_focus_is_bce() -> None:
    logits, label = random_case(3, 4)
    focal = FocalLoss(num_classes=4, regions=NESTED, gamma=0.0)
    target = torch.stack([label >= 1, label >= 2, label == 3], 1).float()
    torch.testing.assert_close(focal(logits, label), F.binary_cross_entropy_with_logits(logits, target))


def test_softmax_losses_refuse_regions_and_say_what_fits() -> None:
    for name, make in (
        ("dice_ce", lambda: DiceCELoss(num_classes=4, regions=NESTED)),
        ("ce", lambda: build_ce(num_classes=4, regions=NESTED)),
    ):
        with pytest.raises(UsageError, match=f"loss={name} is a softmax") as error:
            make()
        assert error.value.hint is not None
        assert "loss=dice_bce" in error.value.hint


def test_sigmoid_losses_refuse_classes_that_exclude_each_other() -> None:
    for name, instead, make in (
        ("dice_bce", "dice_ce", lambda: DiceBCELoss(num_classes=3)),
        ("bce", "ce", lambda: build_bce(num_classes=3)),
    ):
        with pytest.raises(UsageError, match=f"loss={name} judges every output on its own") as error:
            make()
        assert error.value.hint is not None
        assert f"loss={instead}" in error.value.hint
        assert "data.regions" in error.value.hint


def test_builders_pass_regions_on() -> None:
    logits, label = random_case(3, 4)
    assert build_bce(num_classes=4, regions=NESTED)(logits, label).isfinite()
    assert build_focal(num_classes=4, regions=NESTED)(logits, label).isfinite()
