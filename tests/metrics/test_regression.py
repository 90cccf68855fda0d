"""Metrics of quantities against scikit-learn and scipy, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from medtrain.metrics.regression import regression_metrics, regression_specs


def test_parity() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(60, 10, 200)
    said = np.round(true + rng.normal(0, 5, 200))
    found = regression_metrics(said, true)
    expected = {
        "mae": sk.mean_absolute_error(true, said),
        "rmse": sk.root_mean_squared_error(true, said),
        "r2": sk.r2_score(true, said),
        "pearson": stats.pearsonr(said, true).statistic,
        "spearman": stats.spearmanr(said, true).statistic,
        "n_undefined": 0,
    }
    assert found == pytest.approx(expected)
    assert list(found) == list(regression_specs())
    assert next(iter(found)) == "mae"


def test_by_hand_and_unlabelled() -> None:
    said, true = np.array([1.0, 2.0, 5.0, 9.0]), np.array([1.0, 3.0, 3.0, np.nan])
    found = regression_metrics(said, true)
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(1 - 5 / (8 / 3))
    assert regression_metrics(said, np.nan_to_num(true, nan=-1), ignore_value=-1) == found


@pytest.mark.parametrize("constant", [0.1, 1e6 / 3, 0.0])
def test_constants_do_not_correlate(constant: float) -> None:
    """The mean of equal numbers is rounded: what is left must not pass for a signal."""
    true = np.random.default_rng(1).normal(size=77)
    found = regression_metrics(np.full(77, constant), true)
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])
    assert found["r2"] <= 0
    assert found["n_undefined"] == 2
    found = regression_metrics(true, np.full(77, constant))
    assert {key for key, value in found.items() if math.isnan(value)} == {"r2", "pearson", "spearman"}


def test_one_sample_and_none() -> None:
    found = regression_metrics(np.array([1.0]), np.array([3.0]))
    assert (found["mae"], found["rmse"], found["n_undefined"]) == (2.0, 2.0, 3.0)
    found = regression_metrics(np.empty(0), np.empty(0))
    assert found["n_undefined"] == 5


def test_several_targets() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(size=(50, 2))
    said = true + rng.normal(size=(50, 2))
    true[:10, 1] = np.nan
    found = regression_metrics(said, true, ["age", "volume"])
    assert list(found) == list(regression_specs(["age", "volume"]))
    for index, name in enumerate(("age", "volume")):
        alone = regression_metrics(said[:, index], true[:, index])
        assert {key: found[f"{key}/{name}"] for key in ("mae", "r2", "spearman")} == {
            key: alone[key] for key in ("mae", "r2", "spearman")
        }
    assert found["mae"] == pytest.approx((found["mae/age"] + found["mae/volume"]) / 2)
    specs = regression_specs(["age"], unit="years")
    assert (specs["rmse/age"].unit, specs["r2/age"].unit, specs["r2/age"].mode) == ("years", "", "max")
