"""The parity check by hand-made differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medtrain.errors import MedtrainError
from medtrain.export.parity import ParityInput, compare, make_inputs

CPU = torch.device("cpu")
# [1, 2, 2]: two classes, two voxels; the largest logit is 4
LOGITS = torch.tensor([[[4.0, -1.0], [1.0, 2.0]]])
INPUT = ParityInput("random", (torch.zeros(1, 1, 2),), (LOGITS,))


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
    item = ParityInput("random", (torch.zeros(1, 1, 2),), (LOGITS / 100,))
    (result,) = compare(lambda image: item.outputs, [item], tolerance=1e-2, device=CPU)
    assert result.allowed == 1e-2


def test_nan_and_another_shape_fail() -> None:
    spoiled = LOGITS.clone()
    spoiled[0, 0, 0] = float("nan")
    assert _compare(spoiled) == (float("inf"), 0.04, 0.0, False)
    assert _compare(LOGITS[:, :1]) == (float("inf"), 0.04, 0.0, False)


def test_every_output_is_compared() -> None:
    item = ParityInput("random", (torch.zeros(1, 3),), (torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])))
    outputs = (item.outputs[0].clone(), torch.tensor([[0.25, 0.25]]))
    (result,) = compare(lambda image: outputs, [item], tolerance=1e-2, device=CPU)
    assert (result.max_abs_error, result.label_agreement, result.passed) == (0.5, 1.0, False)


def test_a_file_that_does_not_run_says_on_what() -> None:
    def fail(image: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("first line\ncannot reshape {6, 2} to {1, 34, 2}")

    with pytest.raises(MedtrainError, match=r"does not run on random input of the shapes \[1, 1, 2\]: cannot reshape"):
        compare(fail, [INPUT], tolerance=1e-2, device=CPU)


def test_the_network_in_memory_is_run_on_every_input() -> None:
    network = torch.nn.Conv2d(1, 2, 1)
    images = [("random", (torch.randn(batch, 1, 4, 4),)) for batch in (1, 2)]
    found = make_inputs(network, images, lambda given: (len(given[0]), 2, 4, 4), device=CPU)
    with torch.no_grad():
        assert all(torch.equal(item.outputs[0], network(item.inputs[0])) for item in found)
    with pytest.raises(MedtrainError, match=r"logits \[1, 3\], it returned \[1, 2, 4, 4\]"):
        make_inputs(network, images, lambda given: (1, 3), device=CPU)
