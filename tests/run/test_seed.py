from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from medtrain.run.seed import rng_state, seed_everything, set_rng_state


def _draw() -> tuple[float, float, float, float]:
    return random.random(), float(np.random.standard_normal()), float(torch.rand(())), random.gauss(0, 1)


def test_the_same_seed_gives_the_same_numbers() -> None:
    seed_everything(3)
    first = [_draw() for _ in range(3)]
    seed_everything(3)
    assert [_draw() for _ in range(3)] == first
    seed_everything(4)
    assert [_draw() for _ in range(3)] != first


def test_state_goes_through_a_safe_file_and_continues_the_streams(tmp_path: Path) -> None:
    seed_everything(2**32 - 1)
    _draw()  # leaves a cached second normal in both Python and NumPy
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [_draw() for _ in range(3)]
    seed_everything(0)
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [_draw() for _ in range(3)] == expected


def test_taking_the_state_does_not_advance_it() -> None:
    seed_everything(1)
    expected = _draw()
    seed_everything(1)
    rng_state()
    assert _draw() == expected
