"""Metrics of regions, and of cases that were annotated in part."""

import math

import numpy as np
import pytest

from medtrain.metrics.cases import evaluate_case
from medtrain.metrics.regions import evaluate_regions, forget_unannotated

NESTED = ((1, 2), (2,))
NAMES = ("whole", "core")


def test_regions_by_hand() -> None:
    label = np.array([[1, 1, 2, 2, 0, 0]])  # [1, 6]
    prediction = np.array([[1, 2, 2, 0, 0, 2]])

    row = evaluate_regions(prediction, label, (1.0, 1.0), NESTED, NAMES, surface=False)

    assert row["dice/whole"] == pytest.approx(2 * 3 / (4 + 4))
    assert row["dice/core"] == pytest.approx(2 * 1 / (2 + 3))


def test_a_region_is_what_joined_classes_would_be() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 6, 7, 8)), rng.integers(0, 3, (2, 6, 7, 8))  # 3 is ignored
    label, prediction = label[0], prediction[0]

    row = evaluate_regions(prediction, label, (1.0, 2.0, 1.5), NESTED, NAMES, ignore_index=3)

    joined = np.array([0, 1, 1, 3])
    spacing = (1.0, 2.0, 1.5)
    whole = evaluate_case(joined[prediction], joined[label], spacing, ("background", "whole"), ignore_index=3)
    assert row == {**row, **whole}
    core = evaluate_case(prediction, label, spacing, ("background", "rest", "core"), ignore_index=3)
    assert row["dice/core"] == core["dice/core"]
    assert row["volume_error_ml/core"] == core["volume_error_ml/core"]


def test_what_nobody_annotated_has_no_value() -> None:
    row = forget_unannotated({"dice/whole": 0.5, "dice/core": 0.0, "nsd/core": 0.1}, NAMES, (True, False))
    assert row["dice/whole"] == 0.5
    assert math.isnan(row["dice/core"])
    assert math.isnan(row["nsd/core"])
