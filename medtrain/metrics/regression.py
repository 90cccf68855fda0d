"""Metrics of predicted quantities, over a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from medtrain.metrics.arrays import Values, count_undefined, defined_mean, finite_values, label_values, pearson, ratio
from medtrain.metrics.spec import MetricSpec

_MODES = {"mae": "min", "rmse": "min", "r2": "max", "pearson": "max", "spearman": "max"}


def regression_metrics(
    predicted: Values, targets: Values, target_names: Sequence[str] = (), *, ignore_value: float | None = None
) -> dict[str, float]:
    """Judge predicted quantities; keys are those of `regression_specs`.

    With several targets `mae` is the mean over them and `mae/<target>` that of one; so for all.

    Args:
        predicted: [N], or [N, T] for several targets.
        targets: The same shape; NaN is unlabelled.
        target_names: T names, or none for one target.
        ignore_value: Another value that stands for an unlabelled entry.
    """
    values, true = finite_values(predicted, "predictions"), label_values(targets).astype(np.float64)
    assert values.shape == true.shape, f"{values.shape} predictions for {true.shape} targets"
    known = ~np.isnan(true) if ignore_value is None else ~np.isnan(true) & (true != ignore_value)
    if not target_names:
        assert values.ndim == 1, "several targets need names"
        return count_undefined(scalar_metrics(values[known], true[known]))
    values, true, known = (array.reshape(len(true), len(target_names)) for array in (values, true, known))
    found = [scalar_metrics(values[known[:, t], t], true[known[:, t], t]) for t in range(len(target_names))]
    metrics: dict[str, float] = {}
    for name in _MODES:
        metrics[name] = defined_mean(np.array([scores[name] for scores in found]))
        metrics |= {f"{name}/{target}": scores[name] for target, scores in zip(target_names, found, strict=True)}
    metrics = count_undefined(metrics)
    return {name: metrics[name] for name in regression_specs(target_names)}


def regression_specs(target_names: Sequence[str] = (), *, unit: str = "") -> dict[str, MetricSpec]:
    """The metrics of `regression_metrics`; the default monitor, `mae`, first.

    Args:
        target_names: Names of several targets.
        unit: Unit of the target.
    """
    units = {"mae": unit, "rmse": unit}
    specs = {name: _spec(name, name, units) for name in _MODES}
    specs["n_undefined"] = MetricSpec("n_undefined", "min")
    return specs | {
        f"{name}/{target}": _spec(f"{name}/{target}", name, units) for name in _MODES for target in target_names
    }


def scalar_metrics(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Mean absolute and root mean squared error, R2 and the two correlations of one quantity.

    R2 = 1 - sum of squared errors / sum of squares about the mean: NaN for fewer than two samples or a constant target.
    Correlations are also NaN for constant predictions.

    Args:
        predicted: [N].
        targets: [N].
    """
    errors = predicted - targets
    count = errors.size
    constant = count < 2 or np.ptp(targets) == 0
    spread = 0.0 if constant else float(((targets - targets.mean()) ** 2).sum())
    return {
        "mae": float(ratio(np.abs(errors).sum(), count)),
        "rmse": float(np.sqrt(ratio((errors**2).sum(), count))),
        "r2": float(1.0 - ratio((errors**2).sum(), spread)),
        "pearson": pearson(predicted, targets),
        "spearman": pearson(rankdata(predicted), rankdata(targets)),
    }


def _spec(key: str, name: str, units: dict[str, str]) -> MetricSpec:
    return MetricSpec(key, "min" if _MODES[name] == "min" else "max", units.get(name, ""))
