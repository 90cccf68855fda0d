"""What a training step of a planned network costs on this machine: parameters, operations, memory, seconds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medtrain.data.topology import divisor, round_up
from medtrain.engine.build import build_model, build_task, memory_format_of
from medtrain.engine.derive import Derivation
from medtrain.engine.memory import MemoryEstimate, available_gib, empty_forward, try_estimate
from medtrain.engine.precision import Precision
from medtrain.registry import build
from medtrain.tasks.base import Task

QUICK_S = 10.0
"""Real steps are measured without being asked for where they take no longer."""

_STEPS = 3


@dataclass(frozen=True)
class StepCost:
    """What a step costs.

    Args:
        parameters: Trainable parameters.
        macs: Multiply-accumulate operations of the forward pass of a batch; None where the model cannot tell.
        memory: Estimate; None where the model cannot tell.
        seconds: Time of a step of network, loss and optimizer; None where it is not known.
        how: How the time was found, in words.
        peak_gib: Memory that the measured steps took on a GPU.
    """

    parameters: int
    macs: int | None
    memory: MemoryEstimate | None
    seconds: float | None
    how: str
    peak_gib: float | None = None


@dataclass(frozen=True)
class _Timing:
    """Seconds of forward and backward pass and of the optimizer, and the peak of a GPU's memory in GiB."""

    model_s: float
    optimizer_s: float
    peak_gib: float | None


def step_cost(derivation: Derivation, *, measure: bool) -> StepCost:
    """Find what a step costs: by real steps on random data where that was asked for or is quick, else by estimates.

    Args:
        derivation: Of a configuration.
        measure: Measure, however long it takes.
    """
    config, device = derivation.config, derivation.device
    plan: Any = derivation.plan
    task = build_task(config, plan, device, None)
    model = build_model(config, plan, task, read_weights=False)
    batch_size = config["data"]["batch_size"]
    memory = try_estimate(model, task, config, batch_size=batch_size, precision=config["trainer"]["precision"])
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = StepCost(parameters, _count_macs(model, task, batch_size), memory, None, "not measured")
    if derivation.plan.family != "segmentation":
        return replace(cost, how="only steps of segmentations are measured on random data; see debug=speed")
    if memory is not None and memory.gib > available_gib(device):
        return replace(cost, how=f"not measured: {available_gib(device):.1f} GiB of memory are free")
    torch.set_num_threads(config["trainer"]["num_threads"] or torch.get_num_threads())
    small = _smaller(plan.patch_size, plan.strides)
    share = math.prod(small) / math.prod(plan.patch_size) / batch_size
    expected: float | None = None
    if share < 1 and not measure:
        try:
            timing = _time_steps(config, plan, device, patch=small, batch_size=1, steps=1)
            expected = timing.model_s / share + timing.optimizer_s
        except Exception as error:  # a model of one size only: it is measured whole or not at all
            return replace(cost, how=f"not estimated ({type(error).__name__}); --measure makes real steps")
        if expected * (_STEPS + 1) > QUICK_S:
            shown = " x ".join(map(str, small))
            how = f"estimated from a step on one patch of {shown}; --measure makes real steps"
            return replace(cost, seconds=expected, how=how)
    timing = _time_steps(config, plan, device, patch=plan.patch_size, batch_size=batch_size, steps=_STEPS)
    how = f"measured: median of {_STEPS} steps on random data, without reading and augmenting"
    return replace(cost, seconds=timing.model_s + timing.optimizer_s, how=how, peak_gib=timing.peak_gib)


def _count_macs(model: nn.Module, task: Task, batch_size: int) -> int | None:
    try:
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            empty_forward(model, task, batch_size=batch_size, half=None)
    except Exception:  # a model that looks at values, which tensors without data do not have
        return None
    return int(flops.get_total_flops()) // 2


def _smaller(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Half a patch along every axis, as far as the network takes it."""
    return tuple(
        min(size, max(2 * step, round_up(size / 2, step))) for size, step in zip(patch, divisor(strides), strict=True)
    )


def _time_steps(
    config: Mapping[str, Any],
    plan: Any,
    device: torch.device,
    *,
    patch: Sequence[int],
    batch_size: int,
    steps: int,
) -> _Timing:
    """Time training steps, after a first one that is not counted."""
    plan = replace(plan, patch_size=tuple(patch), batch_size=batch_size)
    memory_format = memory_format_of(config, plan)
    task = build_task(config, plan, device, memory_format)
    model = build_model(config, plan, task, read_weights=False).to(device)
    if memory_format is not None:
        model = model.to(memory_format=memory_format)
    optimizer = build("optimizer", config["optimizer"], model=model)
    precision = Precision(config["trainer"]["precision"], device)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((batch_size, plan.in_channels, *patch), generator=generator)
    label = torch.randint(0, plan.num_classes, (batch_size, *patch), generator=generator)
    batch: dict[str, Any] = {"image": image.to(device), "label": label.to(device)}
    if memory_format is not None:
        batch["image"] = batch["image"].contiguous(memory_format=memory_format)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(steps + 1):
        started = _now(device)
        model.train()
        with precision.autocast():
            output = task.training_step(model, batch)
        precision.backward(output.loss)
        between = _now(device)
        norm = precision.clip(optimizer, parameters, norm=config["trainer"]["clip_norm"], value=None)
        precision.step(optimizer, norm)
        optimizer.zero_grad(set_to_none=True)
        times.append((between - started, _now(device) - between))
    model_s, optimizer_s = (statistics.median(part) for part in zip(*times[1:], strict=True))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return _Timing(model_s, optimizer_s, peak)


def _now(device: torch.device) -> float:
    """The time, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
