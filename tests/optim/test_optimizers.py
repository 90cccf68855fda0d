"""Optimizers: parity with PyTorch's, and what must never be combined."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from medtrain.errors import UsageError
from medtrain.registry import build, get, names


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def built(optimizer_name: str, model: nn.Module, **settings: Any) -> Optimizer:
    optimizer: Optimizer = build("optimizer", {"name": optimizer_name, **settings}, model=model)
    return optimizer


def train(model: nn.Module, optimizer: Optimizer, steps: int = 5) -> list[torch.Tensor]:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def by_hand(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


CASES: dict[str, tuple[Callable[[nn.Module], Optimizer], Callable[[nn.Module], Optimizer]]] = {
    "adamw": (
        lambda m: built("adamw", m, lr=0.02, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6),
        lambda m: torch.optim.AdamW(by_hand(m, 0.3), lr=0.02, betas=(0.8, 0.9), eps=1e-6),
    ),
    "adam": (
        lambda m: built("adam", m, lr=0.02, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6),
        lambda m: torch.optim.Adam(by_hand(m, 0.3), lr=0.02, betas=(0.8, 0.9), eps=1e-6),
    ),
    "sgd": (
        lambda m: built("sgd", m, lr=0.02, weight_decay=0.3, momentum=0.9, nesterov=True),
        lambda m: torch.optim.SGD(by_hand(m, 0.3), lr=0.02, momentum=0.9, nesterov=True),
    ),
    "rmsprop": (
        lambda m: built("rmsprop", m, lr=0.02, weight_decay=0.3, alpha=0.8, momentum=0.5, eps=1e-6, centered=True),
        lambda m: torch.optim.RMSprop(by_hand(m, 0.3), lr=0.02, alpha=0.8, momentum=0.5, eps=1e-6, centered=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_those_of_torch(name: str) -> None:
    make, twin = CASES[name]
    ours, theirs = net(), net()
    torch.testing.assert_close(train(ours, make(ours)), train(theirs, twin(theirs)))


def test_every_optimizer_is_covered() -> None:
    assert set(CASES) == set(names("optimizer"))
    for name in names("optimizer"):
        optimizer = get("optimizer", name).target(model=net())
        assert {"label", "lr_mult", "base_lr"} <= set(optimizer.param_groups[0])


@pytest.mark.parametrize("name", CASES)
def test_state_survives_a_round_trip(name: str) -> None:
    model = net()
    optimizer = CASES[name][0](model)
    train(model, optimizer)
    resumed = net()
    resumed.load_state_dict(model.state_dict())
    other = CASES[name][0](resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["label"] == optimizer.param_groups[0]["label"]
    for one, two in zip(train(model, optimizer), train(resumed, other)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_restored_moments_take_the_layout_of_channels_last_weights(name: str) -> None:
    # a checkpoint holds contiguous tensors; the fused kernel pairs weights and moments by their place in memory
    def fresh() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d)
        return model, CASES[name][0](model)

    def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        image = torch.randn(2, 3, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(image.to(memory_format=torch.channels_last_3d)).square().mean().backward()
        optimizer.step()

    model, optimizer = fresh()
    step(model, optimizer, seed=1)
    resumed, other = fresh()
    resumed.load_state_dict(model.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key, value in state.items():
            state[key] = value.contiguous()
    other.load_state_dict(saved)
    step(model, optimizer, seed=2)
    step(resumed, other, seed=2)
    assert torch.equal(resumed.weight, model.weight)


def test_sgd_is_fused_and_begins_with_zeros() -> None:
    # unfused, every step would wait for the device to learn whether its gradient is finite
    model = net()
    optimizer = built("sgd", model)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.zeros_like(parameter))
    assert not built("sgd", model, momentum=0.0, nesterov=False).state


@pytest.mark.parametrize("nesterov", [True, False])
def test_fused_sgd_follows_stock_sgd(nesterov: bool) -> None:
    ours, theirs = net(), net()
    optimizer = built("sgd", ours, lr=0.02, weight_decay=0.3, momentum=0.99, nesterov=nesterov)
    groups = by_hand(theirs, 0.3)
    stock = torch.optim.SGD(groups, lr=0.02, momentum=0.99, nesterov=nesterov, foreach=False, fused=False)
    for _ in range(10):
        train(ours, optimizer, steps=1)
        train(theirs, stock, steps=1)
        for one, two in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
            momenta = [o.state[p]["momentum_buffer"] for o, p in ((optimizer, one), (stock, two))]
            torch.testing.assert_close(*momenta, rtol=1e-5, atol=1e-6)


def test_sgd_momentum_survives_a_skipped_first_step() -> None:
    model, other = net(), net()
    optimizer = built("sgd", model, lr=0.01, weight_decay=0.0, momentum=0.9)
    stock = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for value in (float("inf"), 1.0, 1.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value * scaler.get_scale())
        scaler.scale(torch.zeros(()))  # initialises the scaler
        scaler.step(optimizer)
        scaler.update()
    for _ in range(2):  # the finite ones
        for parameter in other.parameters():
            parameter.grad = torch.ones_like(parameter)
        stock.step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))


def test_momentum_missing_in_a_checkpoint_begins_with_zeros() -> None:
    # a checkpoint of a run that was not fused and had frozen parameters, or of its step 0
    model = net()
    stock = torch.optim.SGD(by_hand(model, 0.0), lr=0.01, momentum=0.9)
    model[0].weight.requires_grad_(False)
    train(model, stock, steps=2)
    model[0].weight.requires_grad_(True)
    saved = stock.state_dict()
    optimizer = built("sgd", model, momentum=0.9)
    optimizer.load_state_dict(saved)
    assert all(group["fused"] for group in optimizer.param_groups)  # else a non-finite step would not be skipped
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], torch.zeros(8, 4))
    bias = model[0].bias
    assert torch.equal(optimizer.state[bias]["momentum_buffer"], stock.state[bias]["momentum_buffer"])
    train(model, optimizer, steps=1)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(UsageError, match="needs a momentum"):
        built("sgd", net(), momentum=0.0)
    built("sgd", net(), momentum=0.0, nesterov=False)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,)])
def test_betas_are_checked(betas: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="betas"):
        get("optimizer", "adamw").target(model=net(), betas=betas)
