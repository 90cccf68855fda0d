"""Optimizers, built with parameter groups from a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medtrain.errors import UsageError
from medtrain.optim.param_groups import ParamRule, make_param_groups
from medtrain.registry import Range, Spread, register


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The settings that every optimizer has.

    Args:
        lr: Learning rate.
        weight_decay: Factor of the weight added to its gradient; not applied to norms and biases.
        rules: Multipliers per parameter pattern, first match wins.
        layer_decay: Factor of the learning rate from each layer of an encoder of timm to the one below it; what is
            above has the full rate. 0.65 to 0.75 are usual for vision transformers; null is the same rate for all.
    """

    lr: Annotated[float, Range(gt=0)] = 1e-3
    weight_decay: Annotated[float, Range(ge=0)] = 0.0
    rules: list[ParamRule] = field(default_factory=list)
    layer_decay: Annotated[float, Range(gt=0, lt=1)] | None = None

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameters of a model; see `make_param_groups`."""
        return make_param_groups(
            model, lr=self.lr, weight_decay=self.weight_decay, rules=self.rules, layer_decay=self.layer_decay
        )


@register("optimizer", "adamw", runtime=("model",))
def adamw(
    *,
    model: nn.Module,
    rates: Annotated[Rates, Spread()] = Rates(weight_decay=0.01),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Annotated[float, Range(gt=0)] = 1e-8,
) -> Optimizer:
    """Adam with decoupled weight decay.

    I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, 2019.

    Args:
        model: The network, on its device.
        rates: Of learning and decay.
        weight_decay: Share of a weight removed per step and unit of learning rate; not applied to norms and biases.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second moment.
    """
    _check_betas(betas)
    groups = rates.groups(model)
    return _keep_layout(torch.optim.AdamW(groups, lr=rates.lr, betas=betas, eps=eps, fused=_can_fuse(model)))


@register("optimizer", "adam", runtime=("model",))
def adam(
    *,
    model: nn.Module,
    rates: Annotated[Rates, Spread()] = Rates(),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Annotated[float, Range(gt=0)] = 1e-8,
) -> Optimizer:
    """Adam; its weight decay is an L2 term of the gradient.

    D. Kingma and J. Ba, Adam, 2015.

    Args:
        model: The network, on its device.
        rates: Of learning and decay.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second moment.
    """
    _check_betas(betas)
    groups = rates.groups(model)
    return _keep_layout(torch.optim.Adam(groups, lr=rates.lr, betas=betas, eps=eps, fused=_can_fuse(model)))


@register("optimizer", "sgd", runtime=("model",))
def sgd(
    *,
    model: nn.Module,
    rates: Annotated[Rates, Spread()] = Rates(lr=1e-2, weight_decay=3e-5),
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.99,
    nesterov: bool = True,
) -> Optimizer:
    """Stochastic gradient descent with (Nesterov) momentum; the defaults are nnU-Net's.

    Args:
        model: The network, on its device.
        rates: Of learning and decay.
        momentum: Share of the previous update kept.
        nesterov: Look ahead along the momentum.
        rules: Multipliers per parameter pattern, first match wins.
        layer_decay: Factor of the learning rate from each layer of an encoder of timm to the one below it; what is
            above has the full rate. 0.65 to 0.75 are usual for vision transformers; null is the same rate for all.

    Raises:
        UsageError: Nesterov without momentum.
    """
    if nesterov and momentum == 0:
        raise UsageError(
            "optimizer.nesterov needs a momentum above 0",
            hint="set optimizer.nesterov=false or optimizer.momentum=0.9",
        )
    groups = rates.groups(model)
    # dampening is not offered: PyTorch leaves it out of the very first step, which zeros as momentum would not
    optimizer = torch.optim.SGD(groups, lr=rates.lr, momentum=momentum, nesterov=nesterov, fused=_can_fuse(model))
    return _start_momentum(_keep_layout(optimizer))


@register("optimizer", "rmsprop", runtime=("model",))
def rmsprop(
    *,
    model: nn.Module,
    rates: Annotated[Rates, Spread()] = Rates(),
    alpha: Annotated[float, Range(ge=0, lt=1)] = 0.99,
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    eps: Annotated[float, Range(gt=0)] = 1e-8,
    centered: bool = False,
) -> Optimizer:
    """RMSprop: the gradient divided by the root of the running mean of its square.

    Args:
        model: The network, on its device.
        rates: Of learning and decay.
        alpha: Decay of the running mean of the squared gradient.
        momentum: Share of the previous update kept.
        eps: Added to the root.
        centered: Subtract the running mean of the gradient, so that its variance divides.
    """
    groups = rates.groups(model)
    return torch.optim.RMSprop(groups, lr=rates.lr, alpha=alpha, eps=eps, momentum=momentum, centered=centered)


def _check_betas(betas: tuple[float, float]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"optimizer.betas must be two numbers >= 0 and < 1, got {list(betas)}")


def _can_fuse(model: nn.Module) -> bool:
    # one kernel for the whole update; it also skips non-finite steps on the device, without a sync
    return all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in model.parameters())


def _keep_layout(optimizer: Optimizer) -> Optimizer:
    """Give restored state the memory layout of its parameters, and let this device decide about fusing.

    The fused kernels walk parameter and state side by side through memory. Checkpoints hold contiguous tensors, so
    beside channels-last weights the moments would silently belong to other weights after a resume.
    """

    def keep_fused(target: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "fused": target.defaults["fused"]} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def relayout(restored: Optimizer) -> None:
        for parameter, state in restored.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    optimizer.register_load_state_dict_pre_hook(keep_fused)
    optimizer.register_load_state_dict_post_hook(relayout)
    return optimizer


def _start_momentum(optimizer: Optimizer) -> Optimizer:
    """Let every momentum of a fused SGD begin with zeros, where PyTorch begins with the first gradient.

    The first step is the same: momentum x 0 + gradient. But when the very first step is skipped because its gradient
    is not finite, PyTorch's fused SGD keeps uninitialised memory as momentum.
    """

    def fill(target: Optimizer) -> None:
        for group in target.param_groups:
            if not group["fused"] or group["momentum"] == 0:
                continue
            for parameter in group["params"]:
                if target.state[parameter].get("momentum_buffer") is None:
                    target.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    fill(optimizer)
    optimizer.register_load_state_dict_post_hook(fill)
    return optimizer
