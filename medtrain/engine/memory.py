"""How much memory training takes: estimated before a step is made, and said when it was too much.

The estimate runs the model once without data: on torch's meta device tensors have shapes but no values, so that what
autograd would keep for the backward pass is counted exactly and costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medtrain.engine.device import memory_gib, out_of_memory
from medtrain.errors import MedtrainError
from medtrain.models.activations import kept_for_backward, storages
from medtrain.tasks.base import Task

if TYPE_CHECKING:
    from medtrain.engine.loop import Engine

log = logging.getLogger(__name__)

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTS = {"sgd": 1, "rmsprop": 1}
_DEFAULT_MOMENTS = 2  # Adam and its relatives
_GIB = 2**30
_OWN_GIB = 1.0  # what CUDA itself may take of a GPU's memory for a process
_SIZES = (("data", "batch_size"), ("data", "patch_size"), ("data", "image_size"), ("model", "channels"))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step needs at its peak.

    Args:
        weights: The model's parameters and buffers.
        training: Gradients, the optimizer's moments and the moving average.
        activations: What autograd keeps from the forward pass of one micro-batch, the loss included.
        working: Gradients of activations that are in use at the same time, and copies of weights in lower precision.
    """

    weights: int
    training: int
    activations: int
    working: int

    @property
    def gib(self) -> float:
        """All of it in GiB."""
        return (self.weights + self.training + self.activations + self.working) / _GIB

    def __str__(self) -> str:
        return (
            f"about {self.gib:.2f} GiB ({self.activations / _GIB:.2f} of activations, "
            f"{self.working / _GIB:.2f} of their gradients, {(self.weights + self.training) / _GIB:.2f} of weights and "
            "optimizer)"
        )


def estimate_memory(
    model: nn.Module, task: Task, config: Mapping[str, Any], *, batch_size: int, precision: str
) -> MemoryEstimate:
    """Estimate the memory of a training step.

    Args:
        model: As built, on any device; it is not changed.
        task: What a batch means; its `example_batch` gives the shapes.
        config: The completed configuration.
        batch_size: Samples of a micro-batch on this device.
        precision: fp32, tf32, bf16 or fp16.

    Raises:
        Exception: The model looks at values, which tensors without data do not have.
    """
    half = _HALF.get(precision)
    known: set[int] = set()
    with kept_for_backward(known) as sizes:
        output = empty_forward(model, task, batch_size=batch_size, half=half, known=known)
    logits = list(_tensors(output))
    # softmax, log-softmax and the gradient of the logits, in float32
    loss = sum(3 * 4 * tensor.numel() for tensor in logits)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    learning = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    moments = _MOMENTS.get(config["optimizer"]["name"], _DEFAULT_MOMENTS)
    average = 1 if config["trainer"]["ema_decay"] else 0
    return MemoryEstimate(
        weights=weights,
        training=(1 + moments + average) * learning,
        activations=sum(sizes) + loss,
        working=2 * max(sizes, default=0) + (weights // 2 if half is not None else 0),
    )


def empty_forward(
    model: nn.Module, task: Task, *, batch_size: int, half: torch.dtype | None, known: set[int] | None = None
) -> Any:
    """Run a model in training mode on tensors without data, and give what it gives.

    Args:
        model: As built, on any device; it is not changed.
        task: What a batch means; its `example_batch` gives the shapes.
        batch_size: Samples.
        half: Type of weights and images in the place of float32.
        known: Gets the identities of the storages of the weights, if given.

    Raises:
        Exception: The model looks at values.
    """
    tensors = {name: _empty(tensor, half) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    if known is not None:
        known |= storages(tensors.values())

    def forward(*arguments: Any, **named: Any) -> Any:
        return torch.func.functional_call(model, tensors, arguments, named)

    batch = {name: _enlarge(tensor, batch_size, half) for name, tensor in task.example_batch().items()}
    training = model.training
    model.train()
    try:
        return task.forward(forward, batch)  # type: ignore[arg-type]
    finally:
        model.train(training)


def _empty(tensor: Tensor, half: torch.dtype | None) -> Tensor:
    dtype = half if half is not None and tensor.dtype == torch.float32 else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype).requires_grad_(tensor.requires_grad)


def _enlarge(tensor: Tensor, batch_size: int, half: torch.dtype | None) -> Tensor:
    dtype = half if half is not None and tensor.dtype == torch.float32 else tensor.dtype
    return torch.empty((batch_size, *tensor.shape[1:]), device="meta", dtype=dtype)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def try_estimate(
    model: nn.Module, task: Task, config: Mapping[str, Any], *, batch_size: int, precision: str
) -> MemoryEstimate | None:
    """The estimate, or None for a model that cannot be run without data; the log says why."""
    try:
        return estimate_memory(model, task, config, batch_size=batch_size, precision=precision)
    except Exception as error:  # whatever a model does with values that are not there
        log.debug("memory is not estimated: %s: %s", type(error).__name__, error)
        return None


def available_gib(device: torch.device) -> float:
    """Memory in GiB that nothing uses at the moment: of the GPU, or of the machine within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free / _GIB
    total = memory_gib(device)
    free_gib = total
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("MemAvailable:"))
        free_gib = int(line.split()[1]) * 1024 / _GIB
    with (
        contextlib.suppress(OSError, ValueError),
        open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit,
        open("/sys/fs/cgroup/memory.current", encoding="ascii") as used,
    ):
        free_gib = min(free_gib, (int(limit.read()) - int(used.read())) / _GIB)
    return min(total, free_gib)


def check_memory(
    estimate: MemoryEstimate | None, config: Mapping[str, Any], device: torch.device, processes: int
) -> None:
    """Refuse, before the first step, a training that this machine's main memory cannot hold; warn where it is tight.

    A GPU is asked by the sanity check's real step instead.

    Args:
        estimate: Of one process; None is unknown.
        config: The completed configuration.
        device: Where training runs.
        processes: Training processes on this machine.

    Raises:
        MedtrainError: It needs more than there is.
    """
    if estimate is None or device.type != "cpu":
        return
    needed, total, free = estimate.gib * processes, memory_gib(device), available_gib(device)
    if needed > total:
        raise MedtrainError(
            f"training needs {estimate}{f' in each of {processes} processes' if processes > 1 else ''}, and this "
            f"machine has {total:.1f} GiB of memory ({describe_sizes(config)})",
            hint=memory_hint(config),
        )
    if needed > free:
        log.warning(
            "training needs %s, and %.1f of this machine's %.1f GiB are free: it may be slow or be killed (%s)",
            estimate, free, total, describe_sizes(config),
        )  # fmt: skip


def describe_sizes(config: Mapping[str, Any]) -> str:
    """The settings that decide how much memory is needed, as they are typed."""
    shown = []
    for group, key in _SIZES:
        value = config[group].get(key)
        if value is not None:
            text = f"[{','.join(str(number) for number in value)}]" if isinstance(value, list | tuple) else str(value)
            shown.append(f"{group}.{key}={text}")
    return " ".join(shown)


def memory_hint(config: Mapping[str, Any]) -> str:
    """What to type for less memory."""
    steps = 2 * config["trainer"]["accumulate"]
    batch = config["data"].get("batch_size") or 1
    parts = []
    if batch > 1:
        parts.append(f"data.batch_size={batch // 2} trainer.accumulate={steps} for the same step in two parts")
    if "patch_size" in config["data"]:
        parts.append("a smaller data.patch_size")
    if "image_size" in config["data"]:
        parts.append("a smaller data.image_size")
    if "channels" in config["model"]:
        parts.append("fewer model.channels")
    return ", ".join(parts)


@contextlib.contextmanager
def memory_guard(engine: Engine, config: Mapping[str, Any]) -> Iterator[None]:
    """Check the memory before training, and say what was needed and what to type when it runs out inside.

    Args:
        engine: Before its fit.
        config: The completed configuration.

    Raises:
        MedtrainError: This machine cannot hold the training, or memory ran out.
    """
    device, dist = engine.device, engine.dist

    def estimate() -> MemoryEstimate | None:
        share = -(-(config["data"].get("batch_size") or 1) // dist.world_size)
        return try_estimate(engine.model, engine.task, config, batch_size=share, precision=engine.precision.name)

    if device.type == "cpu":
        check_memory(estimate(), config, device, dist.local_world_size)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        others = _taken_by_others(device)
        needs = estimate()
        expected = f"; a training step needs {needs}" if needs is not None else ""
        raise MedtrainError(
            f"out of memory: {_device_name(device)} has {memory_gib(device):.1f} GiB{others}{expected} "
            f"({describe_sizes(config)})",
            hint=memory_hint(config),
        ) from error


def _taken_by_others(device: torch.device) -> str:
    """What other programs keep of a GPU's memory, where it is much, in words."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    taken = (total - free - torch.cuda.memory_reserved(device)) / _GIB
    return f", of which others take {taken:.1f}" if taken > max(_OWN_GIB, 0.1 * total / _GIB) else ""


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
