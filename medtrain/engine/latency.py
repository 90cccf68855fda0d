"""How long a forward pass takes."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from medtrain.engine.loop import Engine

_WARM_UP = 2
_REPEATS = 10


def forward_ms(engine: Engine) -> float:
    """Median time of a forward pass of one input of the training size, in milliseconds.

    In evaluation mode, with the run's precision and memory format, on its device, batch size 1.

    Args:
        engine: The engine; its state does not change.
    """
    batch = {name: value.to(engine.device) for name, value in engine.task.example_batch().items()}
    if engine.memory_format is not None:
        same_axes = 4 if engine.memory_format == torch.channels_last else 5
        batch = {n: v.to(memory_format=engine.memory_format) if v.ndim == same_axes else v for n, v in batch.items()}
    seconds = []
    with engine.evaluation_weights(), torch.inference_mode(), engine.precision.autocast():
        for _ in range(_WARM_UP + _REPEATS):
            _wait(engine.device)
            started = time.perf_counter()
            engine.task.forward(engine.model, batch)
            _wait(engine.device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[_WARM_UP:]) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
