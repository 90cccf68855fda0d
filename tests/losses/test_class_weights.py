"""Weights of classes from the counts of the training part."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from medtrain.errors import UsageError
from medtrain.losses.class_weights import (
    WeightTable,
    balanced_weights,
    effective_number_weights,
    positive_weights,
    weights_of_classes,
)
from tests.losses.targets import NAN, Target, classes


def test_balanced_by_hand_and_as_in_scikit_learn() -> None:
    # n = 100, K = 3: 100 / (3 * 60), 100 / (3 * 30), 100 / (3 * 10)
    counts = (60, 30, 10)
    assert balanced_weights(counts) == pytest.approx((0.5555556, 1.1111111, 3.3333333))
    labels = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    np.testing.assert_allclose(balanced_weights(counts), expected, rtol=1e-12)


def test_balanced_weights_are_1_on_average_over_the_samples() -> None:
    counts = (60, 30, 0, 10)
    weighted = sum(weight * count for weight, count in zip(balanced_weights(counts), counts, strict=True))
    assert weighted == pytest.approx(100)


def test_effective_number_by_hand() -> None:
    # beta 0.5: (1 - 0.5) / (1 - 0.5^n) is 1 for n = 1, 2/3 for n = 2, 4/7 for n = 3
    raw = np.array([1, 2 / 3, 4 / 7])
    expected = raw * 3 / raw.sum()
    np.testing.assert_allclose(effective_number_weights((1, 2, 3), beta=0.5), expected, rtol=1e-12)


def test_effective_number_lies_between_equal_and_balanced() -> None:
    counts = (1000, 100, 10)
    equal = effective_number_weights(counts, beta=1e-9)
    np.testing.assert_allclose(equal, 1, rtol=1e-6)
    nearly = effective_number_weights(counts, beta=1 - 1e-9)
    balanced = np.array(balanced_weights(counts))
    np.testing.assert_allclose(nearly, balanced * 3 / balanced.sum(), rtol=1e-4)


@pytest.mark.parametrize("weighting", ["balanced", "effective_num"])
def test_a_class_absent_from_training_weighs_1_and_is_named(weighting: str, caplog: pytest.LogCaptureFixture) -> None:
    target = classes(3, counts=(30, 0, 10))
    with caplog.at_level(logging.WARNING):
        found = weights_of_classes(weighting, [target], num_classes=3, beta=None)  # type: ignore[arg-type]
    assert found is not None
    assert found[1] == 1.0
    assert all(math.isfinite(weight) and weight > 0 for weight in found)
    # the other two are as if it did not exist
    without = weights_of_classes(weighting, [classes(2, counts=(30, 10))], num_classes=2, beta=None)  # type: ignore[arg-type]
    assert (found[0], found[2]) == pytest.approx(without)
    assert "c1" in caplog.text


def test_counts_of_zones_are_added_up() -> None:
    zones = [classes(2, counts=(30, 0)), classes(2, counts=(30, 20))]
    assert weights_of_classes("balanced", zones, num_classes=2, beta=None) == balanced_weights((60, 20))


@pytest.mark.parametrize("weighting", ["none", None])
def test_no_weights(weighting: None) -> None:
    assert weights_of_classes(weighting, [classes(2)], num_classes=2, beta=None) is None


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match="2 values, but there are 3 classes") as error:
        weights_of_classes((1.0, 2.0), [classes(3)], num_classes=3, beta=None)
    assert "c0, c1, c2" in str(error.value.hint)
    with pytest.raises(UsageError, match="must not be negative"):
        weights_of_classes((1.0, -2.0, 1.0), [classes(3)], num_classes=3, beta=None)
    with pytest.raises(UsageError, match=r"loss\.beta"):
        weights_of_classes("balanced", [classes(3)], num_classes=3, beta=0.9)


def test_table_gives_0_where_unlabelled() -> None:
    table = WeightTable((0.5, 2.0))
    label = torch.tensor([[0.0, 1.0], [NAN, 1.0]])
    torch.testing.assert_close(table(label), torch.tensor([[0.5, 2.0], [0.0, 2.0]]))
    torch.testing.assert_close(WeightTable(None)(label), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_positive_weights(caplog: pytest.LogCaptureFixture) -> None:
    findings = [classes(2, name="a", counts=(90, 10)), classes(2, name="b", counts=(50, 0))]
    with caplog.at_level(logging.WARNING):
        assert positive_weights("balanced", findings) == (9.0, 1.0)
    assert "positive for b" in caplog.text
    assert positive_weights("none", findings) is None
    assert positive_weights(2.5, findings) == (2.5, 2.5)
    assert positive_weights((1.0, 2.0), findings) == (1.0, 2.0)
    with pytest.raises(UsageError, match="1 values, but there are 2 targets"):
        positive_weights((1.0,), findings)
    with pytest.raises(UsageError, match="must be positive"):
        positive_weights((1.0, 0.0), findings)


def test_a_plan_is_what_the_losses_expect() -> None:
    from medtrain.data.images.plan import TargetPlan
    from medtrain.losses.classes import ClassCrossEntropy
    from medtrain.losses.units import TargetInfo

    plan: TargetInfo = TargetPlan("grade", ("a", "b"), (3, 1))
    assert ClassCrossEntropy([plan], class_weights="balanced").num_outputs == 2
    assert Target("grade", ("a", "b"), (3, 1)).counts == plan.counts
