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
    image = torch.zeros((1, *engine.task.example_input()), device=engine.device)
    if engine.memory_format is not None:
        image = image.to(memory_format=engine.memory_format)
    seconds = []
    with engine.evaluation_weights(), torch.inference_mode(), engine.precision.autocast():
        for _ in range(_WARM_UP + _REPEATS):
            _wait(engine.device)
            started = time.perf_counter()
            engine.model(image)
            _wait(engine.device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[_WARM_UP:]) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
