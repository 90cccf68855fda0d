"""Cross-entropy and focal losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medtrain.errors import UsageError
from medtrain.losses.dice import DiceCELoss
from medtrain.losses.entropy import BinaryCrossEntropyLoss, CrossEntropyLoss, FocalLoss


def random_case(classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, classes, 5, 6, generator=generator)  # [B, K, H, W]
    return logits, torch.randint(0, max(2, classes), (2, 5, 6), generator=generator)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms only; cross-entropy refuses on a CPU too, as it does on CUDA then."""

    def refuse(*args: Any, **settings: Any) -> None:
        raise RuntimeError("nll_loss2d_forward_out_cuda_template does not have a deterministic implementation")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", refuse)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "ce": lambda: CrossEntropyLoss(num_classes=4),
    "smoothed": lambda: CrossEntropyLoss(num_classes=4, label_smoothing=0.2),
    "weighted": lambda: CrossEntropyLoss(num_classes=4, class_weights=(0.1, 1.0, 2.0, 5.0), label_smoothing=0.1),
    "dice_ce": lambda: DiceCELoss(num_classes=4, class_weights=(0.1, 1.0, 2.0, 5.0)),
    "focal": lambda: FocalLoss(num_classes=4),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ignore_index", [None, 4])
def test_deterministic_algorithms_give_the_same_loss_and_gradient(name: str, ignore_index: int | None) -> None:
    logits, label = random_case()
    logits[0, :, 0, 0] = torch.tensor([500.0, -500.0, 0.0, 0.0])  # a certain voxel
    if ignore_index is not None:
        label[1, 2:] = ignore_index
    results = []
    for context in (nullcontext, deterministic):
        scores = logits.clone().requires_grad_()
        with context():
            loss = LOSSES[name]()(scores, label, ignore_index=ignore_index)
            loss.backward()
        results.append((loss.detach(), scores.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ce_equals_torch(smoothing: float) -> None:
    logits, label = random_case()
    loss = CrossEntropyLoss(num_classes=4, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, label), F.cross_entropy(logits, label, label_smoothing=smoothing))


def test_weighted_ce_equals_torch_sample_by_sample() -> None:
    logits, label = random_case()
    weights = (0.1, 1.0, 2.0, 5.0)
    loss = CrossEntropyLoss(num_classes=4, class_weights=weights)
    each = [F.cross_entropy(logits[i : i + 1], label[i : i + 1], torch.tensor(weights)) for i in range(2)]
    torch.testing.assert_close(loss(logits, label), torch.stack(each).mean())


def test_weighted_ce_golden_number() -> None:
    # one sample of two voxels: logits [2,0,0,0,0] -> 0 with weight 1 and [0,0,0,0,1] -> 4 with weight 0.3
    logits = torch.tensor([[2.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]).t().unsqueeze(0)  # [1, 5, 2]
    loss = CrossEntropyLoss(num_classes=5, class_weights=(1.0, 1.0, 1.0, 1.0, 0.3))
    assert loss(logits, torch.tensor([[0, 4]])).item() == pytest.approx(0.541618, abs=1e-6)


def test_bce_of_regions() -> None:
    logits, label = random_case()
    target = torch.stack([label >= 1, label >= 2, label == 3, label == 0], 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    loss = BinaryCrossEntropyLoss(num_classes=4, regions=((1, 2, 3), (2, 3), (3,), (0,)))
    torch.testing.assert_close(loss(logits, label), expected)


@pytest.mark.parametrize("classes", [1, 4])
def test_focal_without_focus_is_cross_entropy(classes: int) -> None:
    logits, label = random_case(classes)
    plain = BinaryCrossEntropyLoss(num_classes=1) if classes == 1 else CrossEntropyLoss(num_classes=4)
    torch.testing.assert_close(FocalLoss(num_classes=classes, gamma=0.0)(logits, label), plain(logits, label))


@pytest.mark.parametrize("classes", [1, 2])
def test_focal_by_hand(classes: int) -> None:
    # p of the target 0.75: (1 - 0.75)^2 * -log 0.75
    shape = (1, classes, 1)
    logits = torch.full(shape, math.log(3)) if classes == 1 else torch.tensor([0.0, math.log(3)]).view(shape)
    loss = FocalLoss(num_classes=classes, gamma=2.0)(logits, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(0.0625 * -math.log(0.75))


def test_focal_class_weights() -> None:
    # two voxels of equal logits: background 0.5^2 log 2 with weight 1, foreground the same with weight 3
    logits, label = torch.zeros(1, 1, 2), torch.tensor([[0, 1]])
    loss = FocalLoss(num_classes=1, class_weights=(1.0, 3.0))
    assert loss(logits, label).item() == pytest.approx(0.25 * math.log(2))
    sure = torch.tensor([[[0.0, math.log(3)]]])
    expected = (0.25 * math.log(2) + 3 * 0.0625 * -math.log(0.75)) / 4
    assert loss(sure, label).item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_finite_for_certain_voxels(gamma: float) -> None:
    logits = torch.tensor([[[100.0, -100.0, 0.0]]], requires_grad=True)  # [1, 1, 3]
    FocalLoss(num_classes=1, gamma=gamma)(logits, torch.tensor([[1, 1, 1]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_class_weights_move_with_the_module_but_are_not_saved() -> None:
    loss = CrossEntropyLoss(num_classes=2, class_weights=(1.0, 2.0))
    assert [name for name, _ in loss.named_buffers()] == ["class_weights"]
    assert not loss.state_dict()


def test_one_class_needs_a_sigmoid() -> None:
    with pytest.raises(UsageError, match="two classes") as error:
        CrossEntropyLoss(num_classes=1)
    assert error.value.hint is not None
    assert "loss=bce" in error.value.hint
