"""Cross-entropy of zones with an unknown class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medtrain.errors import UsageError
from medtrain.losses.zones import WeightedZoneCrossEntropy
from tests.losses.targets import NAN, Target, labels, scores

GRADES = ("normal", "mild", "moderate", "severe", "unknown")


def zones(count: int, names: tuple[str, ...] = GRADES) -> list[Target]:
    return [Target(f"zone{index}", names, (10,) * len(names)) for index in range(count)]


@pytest.mark.parametrize(("normalize", "expected"), [("weights", 0.541618), ("entries", 0.352051)])
def test_golden_numbers(normalize: str, expected: float) -> None:
    # losses 0.43265 and 0.90483: (0.43265 + 0.3 * 0.90483) / 1.3, or / 2
    logits = torch.tensor([[2.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]])
    loss = WeightedZoneCrossEntropy(targets=zones(1), normalize=normalize)  # type: ignore[arg-type]
    assert loss(logits, torch.tensor([[0.0], [4.0]])).item() == pytest.approx(expected, abs=1e-6)
    # the same as two zones of one image
    both = WeightedZoneCrossEntropy(targets=zones(2), normalize=normalize)  # type: ignore[arg-type]
    assert both(logits.view(1, 10), torch.tensor([[0.0, 4.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_weights_equal_torch_on_the_flattened_zones() -> None:
    target, logits = labels(5, 6, targets=6, missing=0), scores(6, 30)
    weight = torch.tensor([1, 1, 1, 1, 0.3], dtype=torch.float64)
    expected = F.cross_entropy(logits.view(36, 5), target.flatten().long(), weight)
    found = WeightedZoneCrossEntropy(targets=zones(6))(logits.view(6, 6, 5), target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_unknown_weight_cancels_out_only_where_weights_divide() -> None:
    target, logits = torch.full((3, 2), 4.0), scores(3, 10)

    def value(weight: float, normalize: str) -> float:
        loss = WeightedZoneCrossEntropy(targets=zones(2), unknown_weight=weight, normalize=normalize)  # type: ignore[arg-type]
        return loss(logits, target).item()

    assert value(0.3, "weights") == pytest.approx(value(1.0, "weights"))
    assert value(0.3, "entries") == pytest.approx(0.3 * value(1.0, "entries"))


def test_unknown_is_learnt_and_unlabelled_is_not() -> None:
    loss = WeightedZoneCrossEntropy(targets=zones(1))
    logits = torch.zeros(2, 5, requires_grad=True)
    loss(logits, torch.tensor([[4.0], [NAN]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 4] < 0
    assert not logits.grad[1].any()


def test_weight_0_leaves_the_unknown_out() -> None:
    loss = WeightedZoneCrossEntropy(targets=zones(1), unknown_weight=0.0)
    assert loss.weight(torch.tensor([[4.0], [0.0]])) == 1
    assert loss(torch.zeros(1, 5), torch.tensor([[4.0]])).item() == 0


def test_the_unknown_class_is_found_by_name() -> None:
    first = ("ungraded", "normal", "severe")
    loss = WeightedZoneCrossEntropy(targets=zones(1, first), unknown_class="ungraded")
    assert loss.weight(torch.tensor([[0.0], [1.0]])) == pytest.approx(1.3)
    assert WeightedZoneCrossEntropy(targets=zones(1, ("0", "1", "Unknown"))).weight(torch.tensor([[2.0]])) == (
        pytest.approx(0.3)
    )
    # the most severe grade is not taken for the unknown class
    with pytest.raises(UsageError, match="none of 0, 1, 2, 3 is called") as error:
        WeightedZoneCrossEntropy(targets=zones(6, ("0", "1", "2", "3")))
    assert "loss=ce" in str(error.value.hint)
    with pytest.raises(UsageError, match="unknown_class=unknwn is not a class") as error:
        WeightedZoneCrossEntropy(targets=zones(1), unknown_class="unknwn")
    assert "unknown" in str(error.value.hint)
    mixed = [Target("a", ("u", "x"), (1, 1)), Target("b", ("x", "u"), (1, 1))]
    with pytest.raises(UsageError, match="different indices"):
        WeightedZoneCrossEntropy(targets=mixed, unknown_class="u")
