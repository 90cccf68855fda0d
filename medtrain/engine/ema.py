"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn


class EMA:
    """A true exponential moving average: shadow = d * shadow + (1 - d) * weights after each step.

    Floating-point parameters are averaged in float32; buffers are copied. With warm-up, d is
    min(decay, (1 + n) / (10 + n)) after n updates (Tensorflow's ExponentialMovingAverage with num_updates).

    Args:
        model: The model whose weights are followed.
        decay: Decay d in [0, 1).
        warmup: Whether early averages use a smaller decay.
        locked: Names of parameters that never change, which are their own average and cost nothing here.
    """

    def __init__(
        self, model: nn.Module, *, decay: float, warmup: bool = True, locked: Collection[str] = frozenset()
    ) -> None:
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._model = model
        with torch.no_grad():
            self.shadow = {
                name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in locked
            }
        parameters = dict(model.named_parameters())
        self._names = [name for name in self.shadow if name in parameters]
        self._buffers = [name for name in self.shadow if name not in parameters]
        self._live: list[Tensor] = [parameters[name] for name in self._names]

    def decay_now(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model after an optimizer step."""
        weight = 1.0 - self.decay_now()
        torch._foreach_lerp_([self.shadow[name] for name in self._names], self._live, weight)
        if self._buffers:
            state = self._model.state_dict()
            for name in self._buffers:
                self.shadow[name].copy_(state[name])
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Evaluate with the averaged weights: parameters point at the shadow inside the context, at their own after."""
        live = [parameter.data for parameter in self._live]
        try:
            for name, parameter in zip(self._names, self._live, strict=True):
                parameter.data = self.shadow[name]
            yield
        finally:
            for parameter, data in zip(self._live, live, strict=True):
                parameter.data = data

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights and copied buffers under the model's own names."""
        return {name: self.shadow.get(name, tensor) for name, tensor in self._model.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor], *, updates: int) -> None:
        """Continue from saved weights after `updates` updates; those of locked parameters need not be there."""
        for name, tensor in self.shadow.items():
            tensor.copy_(state[name])
        self.updates = updates
