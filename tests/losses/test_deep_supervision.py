"""Deep supervision: weights, label sizes, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medtrain.errors import MedtrainError
from medtrain.losses.deep_supervision import DeepSupervisionLoss, downsample_label, supervision_weights
from medtrain.losses.dice import DiceCELoss, DiceLoss


def test_weights() -> None:
    assert supervision_weights(1) == [1.0]
    assert supervision_weights(2) == pytest.approx([2 / 3, 1 / 3])
    assert supervision_weights(4) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_weights_are_those_of_nnunet() -> None:
    # nnU-Net: 2^-i for five resolutions, the coarsest set to zero, normalised
    raw = [1, 1 / 2, 1 / 4, 1 / 8, 0.0]
    assert supervision_weights(4) == pytest.approx([weight / sum(raw) for weight in raw[:4]])


@pytest.mark.parametrize("size", [(2, 4, 3), (4, 4, 1), (4, 8, 3)])
def test_labels_are_downsampled_to_the_nearest(size: tuple[int, int, int]) -> None:
    label = torch.arange(2 * 4 * 8 * 3).view(2, 4, 8, 3)
    expected = F.interpolate(label[:, None].double(), size=size, mode="nearest")[:, 0].long()
    steps = [full // part for full, part in zip((4, 8, 3), size)]
    assert torch.equal(downsample_label(label, steps), expected)


def test_the_last_label_may_stand_for_less_than_a_step() -> None:
    assert downsample_label(torch.arange(9).view(1, 9), (4,)).tolist() == [[0, 4, 8]]


@pytest.mark.parametrize("sizes", [(9, 4), (6, 3)])
def test_outputs_that_do_not_fit(sizes: tuple[int, int]) -> None:
    label, outputs = torch.zeros(1, 8, dtype=torch.long), [torch.zeros(1, 2, n) for n in sizes]
    with pytest.raises(MedtrainError, match=r"do not fit labels of \[8\]") as error:
        DeepSupervisionLoss(DiceLoss(num_classes=2))(outputs, label)
    assert "must divide" in str(error.value.hint)


def test_sum_over_resolutions() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 8, 8, 8), generator=generator)
    outputs = [torch.randn(2, 3, *[8 // f] * 3, generator=generator, requires_grad=True) for f in (1, 2, 4)]
    inner = DiceCELoss(num_classes=3)
    parts = [inner(output, label[:, ::f, ::f, ::f]) for f, output in zip((1, 2, 4), outputs)]
    total = DeepSupervisionLoss(inner)(outputs, label)
    torch.testing.assert_close(total, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    total.backward()
    assert all(output.grad is not None and output.grad.abs().sum() > 0 for output in outputs)


def test_a_single_tensor_passes_through() -> None:
    logits, label = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.ones(1, 4, 4).long()
    inner = DiceLoss(num_classes=2)
    assert torch.equal(DeepSupervisionLoss(inner)(logits, label), inner(logits, label))
    assert torch.equal(DeepSupervisionLoss(inner)([logits], label), inner(logits, label))


def test_ignored_voxels_stay_ignored_at_every_resolution() -> None:
    label = torch.ones(1, 4, 4, dtype=torch.long)
    label[:, :, 2:] = 9
    outputs = [torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 2, 2, 2, requires_grad=True)]
    DeepSupervisionLoss(DiceCELoss(num_classes=2))(outputs, label, ignore_index=9).backward()
    for output in outputs:
        assert output.grad is not None
        half = output.shape[-1] // 2
        assert (output.grad[..., half:] == 0).all()
        assert (output.grad[..., :half] != 0).all()


def test_decomposable_is_that_of_the_inner_loss() -> None:
    assert DeepSupervisionLoss(DiceLoss(num_classes=2)).decomposable
    assert not DeepSupervisionLoss(DiceLoss(num_classes=2, batch_dice=True)).decomposable
