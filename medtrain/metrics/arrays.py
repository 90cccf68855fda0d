"""What the metrics of a whole split share: checked inputs, and arithmetic in which the undefined is NaN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medtrain.errors import NonFiniteError

Values = np.ndarray | torch.Tensor
"""Numbers of a whole split; tensors are read on the CPU."""


def finite_values(values: Values, name: str) -> np.ndarray:
    """Bring predictions to the CPU as float64.

    Args:
        values: Predictions [*S].
        name: What they are, for the message.

    Raises:
        NonFiniteError: Some are NaN or infinite: sorted or averaged, they would pass for results.
    """
    array = np.asarray(_numpy(values), dtype=np.float64)
    if bad := int(array.size - np.count_nonzero(np.isfinite(array))):
        raise NonFiniteError(
            f"{bad} of {array.size} {name} are NaN or infinite: there is nothing to evaluate",
            hint="lower optimizer.lr, or use trainer.precision=fp32",
        )
    return array


def label_values(labels: Values) -> np.ndarray:
    """Bring labels to the CPU; the dtype stays.

    Args:
        labels: Labels [*S].
    """
    return np.asarray(_numpy(labels))


def sample_weights(weights: Values | None, count: int) -> np.ndarray:
    """Weights of the samples as float64, ones where none are given.

    Args:
        weights: [N], >= 0, or None.
        count: N.
    """
    if weights is None:
        return np.ones(count)
    array = np.asarray(_numpy(weights), dtype=np.float64)
    assert array.shape == (count,), f"weights {array.shape} for {count} samples"
    assert np.isfinite(array).all(), "weights must be finite"
    assert (array >= 0).all(), "weights must be >= 0"
    return array


def ratio(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """Divide; NaN where the denominator is 0.

    Args:
        numerator: Any shape.
        denominator: Of a shape that broadcasts.
    """
    top, bottom = np.broadcast_arrays(np.asarray(numerator, dtype=np.float64), np.asarray(denominator, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def defined_mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Average the values that are not NaN; NaN where there are none or their weights sum to 0.

    Args:
        values: [K], some may be NaN.
        weights: [K], >= 0; equal ones when None.
    """
    defined = ~np.isnan(values)
    if weights is None:
        return float(values[defined].mean()) if defined.any() else float("nan")
    return float(ratio((values[defined] * weights[defined]).sum(), weights[defined].sum()))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two variables; NaN for fewer than two samples or where one of them is constant.

    Args:
        first: [N].
        second: [N].
    """
    if first.size < 2:
        return float("nan")
    deviations = []
    for values in (first, second):
        centred = values - values.mean()
        norm = float(np.linalg.norm(centred))
        # The mean of equal numbers is rounded: what is left would correlate with anything.
        if norm <= 1e-13 * float(np.linalg.norm(values)):
            return float("nan")
        deviations.append(centred / norm)
    return float(np.clip(deviations[0] @ deviations[1], -1.0, 1.0))


def count_undefined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add `n_undefined`, the number of values that are NaN.

    Args:
        metrics: Values by key.
    """
    return {**metrics, "n_undefined": float(sum(value != value for value in metrics.values()))}


def _numpy(values: Values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return np.asarray(values)
