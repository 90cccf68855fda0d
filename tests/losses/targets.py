"""Target columns for the tests of losses of whole images, and a check that all of them must pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAN = math.nan


@dataclass(frozen=True)
class Target:
    """A target column as a plan describes it."""

    target_name: str = "grade"
    classes: tuple[str, ...] | None = None
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0


def classes(count: int, *, name: str = "grade", counts: tuple[int, ...] | None = None) -> Target:
    """A target of classes c0, c1, ..., each with 10 training samples if nothing is said."""
    return Target(name, tuple(f"c{index}" for index in range(count)), counts or (10,) * count)


def labels(count: int, size: int, *, targets: int = 1, missing: float = 0.3, seed: int = 0) -> Tensor:
    """Class indices [size, targets], some of them unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, count, (size, targets), generator=generator).float()
    return found.masked_fill(torch.rand(size, targets, generator=generator) < missing, NAN)


def scores(size: int, outputs: int, *, seed: int = 1) -> Tensor:
    """Random logits [size, outputs], float64."""
    return torch.randn(size, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def survival(*, event_classes: bool = True) -> tuple[Target, Target]:
    """A time and an event."""
    event = classes(2, name="event") if event_classes else Target("event", None)
    return Target("time", None, mean=10.0, std=5.0), event


def times(size: int, *, missing: float = 0.2, seed: int = 0) -> Tensor:
    """Times 1 to 6, so that many are tied, and events [size, 2]; some unlabelled in either column."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.randint(1, 7, (size, 1), generator=generator).float()
    event = torch.randint(0, 2, (size, 1), generator=generator).float()
    found = torch.cat([time, event], 1)
    return found.masked_fill(torch.rand(size, 2, generator=generator) < missing, NAN)
