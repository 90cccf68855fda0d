"""Dice losses: hand-computed values, an independent implementation, and the promises of the base class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.base import SegmentationLoss
from medtrain.losses.dice import DiceBCELoss, DiceCELoss, DiceLoss
from medtrain.losses.entropy import BinaryCrossEntropyLoss, CrossEntropyLoss, FocalLoss
from medtrain.losses.tversky import TverskyLoss

IGNORE = 3
NESTED = ((1, 2), (2,), (1,))  # as many outputs as classes, so that one random case serves all losses


def softmax_numpy(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def dice_loss_numpy(
    logits: np.ndarray, label: np.ndarray, *, background: bool, batch: bool, smooth: float = 1e-5
) -> float:
    """Soft Dice by explicit loops over samples and classes."""
    probs = softmax_numpy(logits.astype(np.float64))
    scores = []
    samples = [slice(None)] if batch else [slice(b, b + 1) for b in range(len(label))]
    for sample in samples:
        for k in range(0 if background else 1, probs.shape[1]):
            p, t = probs[sample, k], label[sample] == k
            scores.append((2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
    return 1 - float(np.mean(scores))


def random_case(seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, 4, 5, 6, generator=generator) * 2  # [B, K, D, H, W]
    label = torch.randint(0, classes, (3, 4, 5, 6), generator=generator)
    return logits, label


ALL_LOSSES: list[SegmentationLoss] = [
    DiceLoss(num_classes=3),
    DiceCELoss(num_classes=3, class_weights=(0.2, 1.0, 2.0), label_smoothing=0.1),
    DiceBCELoss(num_classes=3, regions=NESTED),
    CrossEntropyLoss(num_classes=3, class_weights=(0.2, 1.0, 2.0)),
    BinaryCrossEntropyLoss(num_classes=3, regions=NESTED),
    FocalLoss(num_classes=3, class_weights=(1.0, 2.0, 3.0)),
    FocalLoss(num_classes=3, class_weights=(1.0, 2.0), regions=NESTED),
    TverskyLoss(num_classes=3),
    TverskyLoss(num_classes=3, regions=NESTED),
]


def loss_id(loss: SegmentationLoss) -> str:
    return type(loss).__name__ + ("" if loss.regions is None else "-regions")


def test_dice_bce_golden_numbers() -> None:
    logits = torch.tensor([[[[0.0, 2.0], [-2.0, 1.0]]]])  # [1, 1, 2, 2]
    label = torch.tensor([[[0, 1], [0, 1]]])  # [1, 2, 2]
    assert BinaryCrossEntropyLoss(num_classes=1)(logits, label).item() == pytest.approx(0.315066, abs=1e-6)
    assert 1 - DiceLoss(num_classes=1)(logits, label).item() == pytest.approx(0.761917, abs=1e-6)
    assert DiceBCELoss(num_classes=1)(logits, label).item() == pytest.approx(0.395617, abs=1e-6)
    assert DiceBCELoss(num_classes=1, bce_weight=1.0)(logits, label).item() == pytest.approx(0.553150, abs=1e-6)


def test_dice_by_hand() -> None:
    # two voxels, p(class 1) = 0.75 and 0.25, label 1 and 0: (2 * 0.75) / (1 + 1) = 0.75
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])  # [1, 2, 2]
    label = torch.tensor([[1, 0]])  # [1, 2]
    assert DiceLoss(num_classes=2, smooth=0.0)(logits, label).item() == pytest.approx(0.25)
    # the background channel mirrors it; with smoothing 1 both scores are 2.5 / 3
    loss = DiceLoss(num_classes=2, smooth=1.0, include_background=True)
    assert loss(logits, label).item() == pytest.approx(1 - 2.5 / 3)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
def test_dice_equals_loops(background: bool, batch: bool) -> None:
    logits, label = random_case()
    loss = DiceLoss(num_classes=3, include_background=background, batch_dice=batch)
    expected = dice_loss_numpy(logits.numpy(), label.numpy(), background=background, batch=batch)
    assert loss(logits, label).item() == pytest.approx(expected, abs=1e-6)
    assert loss.decomposable is not batch


def test_dice_ce_is_the_weighted_sum() -> None:
    logits, label = random_case()
    dice = DiceLoss(num_classes=3)(logits, label)
    ce = torch.nn.functional.cross_entropy(logits, label)
    both = DiceCELoss(num_classes=3, dice_weight=0.3, ce_weight=0.7)(logits, label)
    torch.testing.assert_close(both, 0.3 * dice + 0.7 * ce)


def test_absent_class() -> None:
    label = torch.zeros(1, 8, dtype=torch.long)
    sure = torch.tensor([60.0, -60.0]).view(1, 2, 1).expand(1, 2, 8).contiguous()
    assert DiceLoss(num_classes=2)(sure, label).item() == pytest.approx(0, abs=1e-6)  # absent and not predicted
    unsure = torch.zeros(1, 2, 8)  # sum of probabilities 4: score s / (4 + s)
    assert DiceLoss(num_classes=2, smooth=1.0)(unsure, label).item() == pytest.approx(1 - 1 / 5)


def test_no_smoothing_stays_finite() -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1).expand(1, 2, 4).contiguous().requires_grad_()
    loss = DiceLoss(num_classes=2, smooth=0.0)(logits, torch.zeros(1, 4, dtype=torch.long))
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=loss_id)
def test_gradient_equals_finite_differences(loss: SegmentationLoss) -> None:
    logits, label = random_case()
    small = logits[:2, :, :2, :2, :2].double().requires_grad_()
    labels = label[:2, :2, :2, :2].clone()
    labels[0, 0, 0] = IGNORE
    assert torch.autograd.gradcheck(lambda x: loss.compute(x, labels, IGNORE), (small,))


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=loss_id)
def test_a_batch_is_the_mean_of_its_samples(loss: SegmentationLoss) -> None:
    logits, label = random_case()
    label[0, 0] = IGNORE  # samples with different numbers of voxels that count
    assert loss.decomposable
    whole = loss(logits, label, ignore_index=IGNORE)
    each = [loss(logits[i : i + 1], label[i : i + 1], ignore_index=IGNORE) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(each).mean())


@pytest.mark.parametrize("loss", [*ALL_LOSSES, DiceLoss(num_classes=3, batch_dice=True)], ids=loss_id)
def test_ignored_voxels_count_nowhere(loss: SegmentationLoss) -> None:
    logits, label = random_case()
    part = loss(logits[:, :, :2], label[:, :2])
    label[:, 2:] = IGNORE
    logits.requires_grad_()
    whole = loss(logits, label, ignore_index=IGNORE)
    torch.testing.assert_close(whole, part)
    whole.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).any()


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=loss_id)
def test_a_sample_without_labels_is_harmless(loss: SegmentationLoss) -> None:
    logits, label = random_case()
    label[0] = IGNORE
    logits.requires_grad_()
    value = loss(logits, label, ignore_index=IGNORE)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] == 0).all()


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=loss_id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(loss: SegmentationLoss, dtype: torch.dtype) -> None:
    logits, label = random_case()
    low = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, label)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(low.float(), label))


def test_float16_sums_do_not_overflow() -> None:
    logits = torch.zeros(1, 2, 64, 64, 64, dtype=torch.float16)  # the probabilities sum to 131072 > 65504
    label = torch.ones(1, 64, 64, 64, dtype=torch.uint8)
    assert DiceLoss(num_classes=2)(logits, label).item() == pytest.approx(1 - 2 * 0.5 / 1.5, abs=1e-6)


def test_memory_format_does_not_matter() -> None:
    logits, label = random_case()
    last = logits.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(DiceCELoss(num_classes=3)(last, label), DiceCELoss(num_classes=3)(logits, label))


def test_batch_dice_adds_up_the_batch() -> None:
    logits, label = random_case()
    loss = DiceLoss(num_classes=3, batch_dice=True)
    flat = logits.movedim(0, 1).flatten(1).unsqueeze(0)  # the batch as one long sample
    torch.testing.assert_close(loss(logits, label), DiceLoss(num_classes=3)(flat, label.flatten().unsqueeze(0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiceCELoss(num_classes=1), "two classes"),
        (lambda: DiceCELoss(num_classes=3, class_weights=(1.0, 2.0)), "2 values, but there are 3 classes"),
        (lambda: DiceCELoss(num_classes=2, class_weights=(0.0, 0.0)), "not be negative nor all zero"),
        (lambda: DiceCELoss(num_classes=2, dice_weight=0.0, ce_weight=0.0), "both 0"),
        (lambda: DiceBCELoss(num_classes=1, dice_weight=0.0, bce_weight=0.0), "both 0"),
    ],
)
def test_contradictions_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=message):
        make()
