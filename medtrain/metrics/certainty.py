"""How sure a model is of a lesion, in a byte per voxel.

Bytes are equally spaced in log odds, not in probability: candidates are ranked by their highest probability, and those
of a trained network lie so close to 1 that 255 equal steps would make most of them alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

FLOOR = 1 / 16
"""The lowest probability that is told from 0."""

_LOW = math.log(FLOOR / (1 - FLOOR))
_HIGH = 12.0  # 0.999994
_STEP = (_HIGH - _LOW) / 254
_EPS = 1e-7

PROBABILITIES = np.concatenate([[0.0], 1 / (1 + np.exp(-(_LOW + _STEP * np.arange(255))))])
"""The lowest probability of each byte; 0 stands for all below FLOOR."""


def encode(probabilities: Tensor) -> Tensor:
    """Bytes of probabilities.

    Args:
        probabilities: In [0, 1], of any shape and float type.

    Returns:
        uint8 of the same shape.
    """
    odds = probabilities.float().clamp(_EPS, 1 - _EPS).logit()
    return odds.sub_(_LOW).div_(_STEP).add_(1 + 1e-4).clamp_(0, 255).to(torch.uint8)


def at_least(probability: float) -> int:
    """The lowest byte whose probabilities are all at least this one."""
    return int(np.searchsorted(PROBABILITIES, probability * (1 - 1e-9)))
