"""The parity check by hand-made differences."""

from __future__ import annotations

import torch
from torch import Tensor

from medtrain.export.parity import ParityInput, compare, make_inputs

CPU = torch.device("cpu")
# [1, 2, 2]: two classes, two voxels; the largest logit is 4
LOGITS = torch.tensor([[[4.0, -1.0], [1.0, 2.0]]])
INPUT = ParityInput("random", torch.zeros(1, 1, 2), LOGITS)


def _compare(logits: Tensor) -> tuple[float, float, float, bool]:
    (result,) = compare(lambda image: logits, [INPUT], tolerance=1e-2, device=CPU)
    return result.max_abs_error, result.allowed, result.label_agreement, result.passed


def test_an_equal_file_passes() -> None:
    assert _compare(LOGITS.clone()) == (0.0, 0.04, 1.0, True)


def test_the_tolerance_is_relative_to_the_largest_logit() -> None:
    assert _compare(LOGITS + torch.tensor([[[0.0, 0.03125], [0.0, 0.0]]])) == (0.03125, 0.04, 1.0, True)
    assert _compare(LOGITS + torch.tensor([[[0.0, 0.0625], [0.0, 0.0]]])) == (0.0625, 0.04, 1.0, False)


def test_label_agreement_counts_voxels() -> None:
    assert _compare(LOGITS + torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])) == (4.0, 0.04, 0.5, False)


def test_small_logits_are_compared_absolutely() -> None:
    item = ParityInput("random", torch.zeros(1, 1, 2), LOGITS / 100)
    (result,) = compare(lambda image: item.logits, [item], tolerance=1e-2, device=CPU)
    assert result.allowed == 1e-2


def test_nan_and_another_shape_fail() -> None:
    spoiled = LOGITS.clone()
    spoiled[0, 0, 0] = float("nan")
    assert _compare(spoiled) == (float("inf"), 0.04, 0.0, False)
    assert _compare(LOGITS[:, :1]) == (float("inf"), 0.04, 0.0, False)


def test_inputs_are_the_same_every_time_and_have_two_batch_sizes() -> None:
    network = torch.nn.Conv2d(1, 2, 1)
    first, second = (make_inputs(network, (1, 4, 4), 2, device=CPU) for _ in range(2))
    assert [tuple(item.image.shape) for item in first] == [(1, 1, 4, 4), (2, 1, 4, 4)]
    assert all(torch.equal(a.image, b.image) and torch.equal(a.logits, b.logits) for a, b in zip(first, second))
