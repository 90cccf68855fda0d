"""What is measured between two logs: means that accumulate on the device, so that no step waits for the host; speed."""

from __future__ import annotations

import torch
from torch import Tensor

from medtrain.engine.distributed import Dist


class Meter:
    """Weighted means of named scalars since the last read.

    Args:
        device: Where the scalars live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, scalars: dict[str, Tensor], weight: float) -> None:
        """Add detached scalars that are means over `weight` units."""
        for name, value in scalars.items():
            term = value.detach().to(torch.float32) * weight
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self, dist: Dist) -> dict[str, float]:
        """Means over every process since the last read, then start anew. Waits for the device."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        weights = torch.tensor([self._weights[name] for name in names], device=self.device)
        means = (dist.sum_(sums) / dist.sum_(weights)).tolist()
        self._sums.clear()
        self._weights.clear()
        return dict(zip(names, means, strict=True))

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The unread sums (exact in float64) and weights."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Continue where `state_dict` was taken."""
        self._sums = {name: torch.tensor(value, device=self.device) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])


class Speed:
    """Samples and seconds of training steps since the last read."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._samples, self._steps = 0, 0
        self._seconds, self._data_seconds = 0.0, 0.0

    def add_step(self, samples: int, seconds: float, data_seconds: float) -> None:
        """Count a step.

        Args:
            samples: Of all processes.
            seconds: Of the whole step.
            data_seconds: For which it waited for its batches.
        """
        self._samples += samples
        self._steps += 1
        self._seconds += seconds
        self._data_seconds += data_seconds

    def add_wait(self, seconds: float) -> None:
        """Count time that the device still had to work for steps."""
        self._seconds += seconds

    def read(self) -> dict[str, float]:
        """Scalars since the last read, then start anew."""
        seconds = max(self._seconds, 1e-9)
        found = {
            "perf/samples_per_s": self._samples / seconds,
            "perf/step_s": self._seconds / max(self._steps, 1),
            "perf/data_wait": self._data_seconds / seconds,
        }
        self._start()
        return found
