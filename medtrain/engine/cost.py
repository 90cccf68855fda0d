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
from medtrain.engine.device import out_of_memory
from medtrain.engine.memory import MemoryEstimate, available_gib, empty_forward, memory_hint, try_estimate
from medtrain.engine.precision import Precision
from medtrain.registry import build
from medtrain.run.threads import available_threads
from medtrain.tasks.base import Task

QUICK_S = 10.0
"""Real steps are measured without being asked for where they should take no longer."""

_LEAST_MACS_PER_S = {"cpu": 1e10, "cuda": 1e12, "mps": 1e11}  # what a slow one of its kind does in training
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
    """Seconds of forward and backward pass, and of the optimizer."""

    model_s: float
    optimizer_s: float


def step_cost(derivation: Derivation, *, measure: bool) -> StepCost:
    """Find what a step costs: by real steps on random data where that was asked for or is quick, else by estimates.

    Args:
        derivation: Of a configuration.
        measure: Measure, however long it takes.
    """
    config, device = derivation.config, derivation.device
    plan: Any = derivation.plan
    task = build_task(config, plan, device if derivation.gpu_gib is None else torch.device("cpu"), None)
    model = build_model(config, plan, task, read_weights=False)
    batch_size = config["data"]["batch_size"]
    memory = try_estimate(model, task, config, batch_size=batch_size, precision=config["trainer"]["precision"])
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = StepCost(parameters, _count_macs(model, task, batch_size), memory, None, "not measured")
    if derivation.plan.family != "segmentation":
        return replace(cost, how="only steps of segmentations are measured on random data; see debug=speed")
    if derivation.gpu_gib is not None:
        return replace(cost, how="not measured: the GPU that is planned for is not used")
    if memory is not None and memory.gib > available_gib(device):
        return replace(cost, how=f"not measured: {available_gib(device):.1f} GiB of memory are free")
    torch.set_num_threads(config["trainer"]["num_threads"] or available_threads())
    if not measure and (cost.macs is None or 3 * cost.macs > QUICK_S * _LEAST_MACS_PER_S[device.type]):
        return _estimate(cost, derivation)
    limit = math.inf if measure else QUICK_S
    try:
        times, peak = _time_steps(config, plan, device, patch=plan.patch_size, batch_size=batch_size, limit_s=limit)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return replace(cost, how=f"a real step does not fit the memory: {memory_hint(config)}")
    counted = times[1:] or times
    what = f"median of {len(counted)} steps" if len(counted) > 1 else "one step"
    how = f"measured: {what} on random data, without reading and augmenting"
    seconds = statistics.median(step.model_s + step.optimizer_s for step in counted)
    return replace(cost, seconds=seconds, how=how, peak_gib=peak)


def _estimate(cost: StepCost, derivation: Derivation) -> StepCost:
    """The time of a step from one on a part of a patch."""
    config, device = derivation.config, derivation.device
    plan: Any = derivation.plan
    small = _smaller(plan.patch_size, plan.strides)
    share = math.prod(small) / math.prod(plan.patch_size) / config["data"]["batch_size"]
    try:
        times, _ = _time_steps(config, plan, device, patch=small, batch_size=1, limit_s=QUICK_S)
    except Exception as error:  # a model for one size only
        return replace(cost, how=f"not estimated ({type(error).__name__}); --measure makes real steps")
    last = times[-1]
    how = f"estimated from a step on one patch of {' x '.join(map(str, small))}; --measure makes real steps"
    return replace(cost, seconds=last.model_s / share + last.optimizer_s, how=how)


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
    limit_s: float,
) -> tuple[list[_Timing], float | None]:
    """Time a first training step, which is slower, and some more within a limit; and a GPU's peak memory in GiB."""
    plan = replace(plan, patch_size=tuple(patch), batch_size=batch_size)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config["trainer"]["deterministic"]  # as in training
    memory_format = memory_format_of(config, plan)
    task = build_task(config, plan, device, memory_format)
    model = build_model(config, plan, task, read_weights=False).to(device)
    if memory_format is not None:
        model = model.to(memory_format=memory_format)
    optimizer = build("optimizer", config["optimizer"], model=model)
    precision = Precision(config["trainer"]["precision"], device)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((batch_size, plan.input_channels, *patch), generator=generator)
    label = torch.randint(0, plan.num_classes, (batch_size, *patch), generator=generator)
    batch: dict[str, Any] = {"image": image.to(device), "label": label.to(device)}
    if memory_format is not None:
        batch["image"] = batch["image"].contiguous(memory_format=memory_format)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    times: list[_Timing] = []
    begun = _now(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    while not times or (len(times) <= _STEPS and _now(device) - begun < limit_s):
        started = _now(device)
        model.train()
        with precision.autocast():
            output = task.training_step(model, batch)
        precision.backward(output.loss)
        between = _now(device)
        norm = precision.clip(optimizer, parameters, norm=config["trainer"]["clip_norm"], value=None)
        precision.step(optimizer, norm)
        optimizer.zero_grad(set_to_none=True)
        times.append(_Timing(between - started, _now(device) - between))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return times, peak


def _now(device: torch.device) -> float:
    """The time, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
