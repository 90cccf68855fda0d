"""Terms that tell a network where to look."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from medtrain.data.marks import Box
from medtrain.losses.attention import (
    AttentionForm,
    entropy,
    entropy_term,
    mask_term,
    resize_mask,
    roughness,
    sharpness_term,
)

FORMS: list[AttentionForm] = ["kl", "bce", "dice", "mse"]


def boxed(left: int, top: int, right: int, bottom: int, *, size: int = 8) -> torch.Tensor:
    """A mask of a box [size, size]."""
    return torch.from_numpy(Box(left, top, right, bottom).mask((size, size), (size, size)))


def test_mask_forms_by_hand() -> None:
    maps = torch.tensor([[[0.5, 0.1], [0.3, 0.1]]])
    mask = torch.tensor([[[1.0, 0], [0, 0]]])

    def value(form: AttentionForm) -> float:
        return mask_term(maps, mask, form).item()

    assert value("bce") == pytest.approx(-(math.log(0.5) + 2 * math.log(0.9) + math.log(0.7)) / 4)
    assert value("dice") == pytest.approx(1 - 2 * 0.5 / 2, abs=1e-6)
    goal = [math.exp(10) / (math.exp(10) + 3)] + [1 / (math.exp(10) + 3)] * 3
    shares = [0.5, 0.1, 0.3, 0.1]
    kl = sum(g * math.log(g / s) for g, s in zip(goal, shares, strict=True))
    assert value("kl") == pytest.approx(kl, rel=1e-4)
    assert value("mse") == pytest.approx(sum((g - s) ** 2 for g, s in zip(goal, shares, strict=True)), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_map_on_the_mask_costs_less_and_is_learnt(form: AttentionForm) -> None:
    mask = boxed(2, 2, 4, 4).unsqueeze(0)
    hit, miss = mask * 0.9 + 0.02, mask.flip(1, 2) * 0.9 + 0.02
    assert mask_term(hit, mask, form) < mask_term(miss, mask, form)
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    step = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        step.zero_grad()
        mask_term(logits.sigmoid(), mask, form).sum().backward()
        step.step()
    found = logits.detach().sigmoid()
    assert found[mask > 0].min() > found[mask == 0].max()


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_0_and_1_have_finite_gradients(form: AttentionForm) -> None:
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    mask_term(maps, torch.tensor([[[1.0, 0], [0, 1]], [[1.0, 0], [0, 0]]]), form).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_maps_under_autocast(form: AttentionForm, device: str) -> None:
    # PyTorch's binary cross-entropy of probabilities raises under autocast on CUDA
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).to(device).bfloat16()
    mask = torch.eye(4, device=device).expand(2, 4, 4)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = mask_term(maps, mask, form)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mask_term(maps.float(), mask, form))


@pytest.mark.parametrize("form", FORMS)
def test_samples_without_a_mask_cost_nothing(form: AttentionForm) -> None:
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.zeros(2, 4, 4)
    mask[0, 1, 1] = 1
    mask[1] = math.nan
    found = mask_term(maps, mask, form)
    found.sum().backward()
    assert found[0] > 0
    assert found[1] == 0
    assert maps.grad is not None
    assert not maps.grad[1].any()


def test_masks_are_averaged_over_the_area_of_a_place() -> None:
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, :3] = 1
    mask[0, 3, 5] = 1
    assert resize_mask(mask, (2, 2))[0].tolist() == [[1, 0], [0, pytest.approx(1 / 6)]]
    volume = torch.zeros(1, 2, 4, 4)
    volume[0, 0] = 1
    assert resize_mask(volume, (2, 1, 1)).flatten().tolist() == [1, 0]
    assert mask_term(torch.rand(1, 2, 2, 2), volume[:, :, :2, :2], "kl").shape == (1,)


def test_roughness_by_hand() -> None:
    maps = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.5]]])
    # down: 0, 0, 0.5 -> mean 1/6; across: 1, 1, 1, 0.5 -> mean 7/8
    assert roughness(maps).item() == pytest.approx(1 / 6 + 7 / 8)
    assert roughness(torch.ones(2, 1, 1)).tolist() == [0, 0]


def test_entropy_counts_present_instances() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    present = torch.tensor([[True, True, False, False], [True] * 4])
    torch.testing.assert_close(entropy(weights, present), torch.tensor([math.log(2), math.log(4)]))
    # towards half of log N: (log 2 / 2)^2 and (log 4 / 2)^2
    expected = torch.tensor([(math.log(2) / 2) ** 2, math.log(2) ** 2])
    torch.testing.assert_close(entropy_term(weights, present), expected, rtol=1e-4, atol=1e-5)
    assert entropy_term(weights, present, share=1.0).tolist() == pytest.approx([0, 0], abs=1e-8)


def test_entropy_does_not_see_the_padding_of_bags() -> None:
    weights = torch.softmax(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), 1)
    padded = F.pad(weights, (0, 7))
    present = F.pad(torch.ones(3, 5, dtype=torch.bool), (0, 7))
    torch.testing.assert_close(entropy_term(padded, present), entropy_term(weights))


def test_bags_of_one_and_of_none_cost_nothing() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    present = torch.tensor([[True, False], [False, False]])
    found = entropy_term(weights, present)
    found.sum().backward()
    assert found.tolist() == pytest.approx([0, 0])
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("form", ["entropy", "variance", "gini"])
def test_sharp_maps_cost_less(form) -> None:  # type: ignore[no-untyped-def]
    even, spot = torch.full((1, 4, 4), 0.5), torch.zeros(1, 4, 4)
    spot[0, 1, 2] = 1
    between = spot.clone()
    between[0, 1, 1] = 0.5
    costs = [sharpness_term(maps, form).item() for maps in (spot, between, even)]
    assert costs[2] > max(costs[:2])
    assert form == "variance" or costs[0] < costs[1]
    assert costs[2] == pytest.approx({"entropy": 1, "variance": 0, "gini": 1}[form], abs=1e-5)
    if form == "entropy":
        assert costs[0] == pytest.approx(0, abs=1e-3)
    maps = spot.requires_grad_()
    sharpness_term(maps, form).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
