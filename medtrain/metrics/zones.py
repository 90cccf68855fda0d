"""Metrics of images graded zone by zone, some zones of which nobody could grade.

The class `unknown` (ungradable) is a prediction like any other, but no grade: grades are judged where the true class is
known, where predicting `unknown` is a miss; whether unknown zones are found is judged on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtrain.metrics.arrays import (
    Values,
    count_undefined,
    defined_mean,
    finite_values,
    label_values,
    pearson,
    ratio,
)
from medtrain.metrics.confusion import class_averages, class_confusion, class_scores, cohen_kappa
from medtrain.metrics.spec import MetricSpec

RISK_CUTS = (1.3, 2.2)
RISK_NAMES = ("low", "medium", "high")

_MAX = (
    "f1_macro",
    "f1_weighted",
    "f1_overall",
    "f1_weighted_overall",
    "accuracy",
    "balanced_accuracy",
    "precision_overall",
    "recall_overall",
    "qwk",
)
_ZONE = ("f1_macro", "accuracy", "mae", "qwk")
_UNKNOWN = ("f1_macro_all", "unknown_precision", "unknown_recall", "unknown_f1")


def zone_metrics(
    predicted: Values,
    labels: Values,
    class_names: Sequence[str],
    zone_names: Sequence[str],
    *,
    unknown_index: int | None = None,
    ignore_index: int | None = None,
    grades: Values | None = None,
    cuts: Sequence[float] = RISK_CUTS,
    risk_names: Sequence[str] = RISK_NAMES,
) -> dict[str, float]:
    """Judge the graded zones of a whole split; keys are those of `zone_specs`.

    Of zones whose grade is known: `f1_macro` and `f1_weighted` are means over zones, `f1_overall`,
    `f1_weighted_overall`, `precision_overall`, `recall_overall`, `accuracy`, `balanced_accuracy` and
    `precision|recall|f1/<class>` pool all zones, `mae` and `qwk` are means over zones where both grades are known,
    `abstained` is the share predicted unknown. F1 is averaged over the grades that occur. `f1_macro_all` counts
    the unknown class as one more class, `unknown_*` judge its detection. `score_*` compare the images' average scores
    and `risk_*` their risk classes: see `score_metrics` and `risk_metrics`.

    Args:
        predicted: Class indices [N, Z].
        labels: Class indices [N, Z]; NaN is unlabelled.
        class_names: K names; grades in order, 0 first, then possibly unknown.
        zone_names: Z names.
        unknown_index: The index of the class unknown, which must be the last one, or None if every zone has a grade.
        ignore_index: Zones with this label are left out everywhere, also of the predicted average.
        grades: Expected grades [N, Z] for `mae` and the average score, e.g. the mean under the probabilities; the
            predicted classes when None.
        cuts: Upper ends, included, of the risk classes but the last.
        risk_names: One name more than cuts.
    """
    chosen, true = label_values(predicted), label_values(labels).astype(np.float64)
    assert chosen.shape == true.shape, f"predictions {chosen.shape}, labels {true.shape}"
    assert chosen.shape[1:] == (len(zone_names),), f"predictions {chosen.shape} for {len(zone_names)} zones"
    num_grades = _num_grades(class_names, unknown_index)
    labelled = ~np.isnan(true) if ignore_index is None else ~np.isnan(true) & (true != ignore_index)
    confusions = zone_confusions(chosen, labels, len(class_names), ignore_index=ignore_index)
    metrics = _known_metrics(confusions, class_names, zone_names, num_grades)
    if unknown_index is not None:
        metrics |= _unknown_metrics(confusions, unknown_index)
    values = chosen.astype(np.float64) if grades is None else finite_values(grades, "grades")
    assert values.shape == true.shape, f"grades {values.shape}, labels {true.shape}"
    said = np.where(labelled & (chosen < num_grades), values, np.nan)
    truth = np.where(labelled & (true < num_grades), true, np.nan)
    errors = np.abs(said - truth)
    by_zone = np.array([defined_mean(errors[:, zone]) for zone in range(len(zone_names))])
    metrics |= {f"mae/{name}": float(value) for name, value in zip(zone_names, by_zone, strict=True)}
    metrics["mae"] = defined_mean(by_zone)
    averages = average_scores(said), average_scores(truth)
    metrics |= score_metrics(*averages)
    metrics |= risk_metrics(*averages, cuts=cuts, risk_names=risk_names)
    metrics = count_undefined(metrics)
    specs = zone_specs(class_names, zone_names, unknown_index=unknown_index, risk_names=risk_names)
    return {name: metrics[name] for name in specs}


def zone_specs(
    class_names: Sequence[str],
    zone_names: Sequence[str],
    *,
    unknown_index: int | None = None,
    risk_names: Sequence[str] = RISK_NAMES,
) -> dict[str, MetricSpec]:
    """The metrics of `zone_metrics`; the default monitor, `f1_macro`, first.

    Args:
        class_names: K names.
        zone_names: Z names.
        unknown_index: The index of the class unknown, or None.
        risk_names: Names of the risk classes.
    """
    specs = {name: MetricSpec(name, "max") for name in _MAX}
    specs |= {name: MetricSpec(name, "min") for name in ("mae", "score_mae", "score_rmse")}
    specs |= {name: MetricSpec(name, "max") for name in ("score_pearson", "risk_accuracy", "risk_f1_macro")}
    if unknown_index is not None:
        specs |= {name: MetricSpec(name, "max") for name in _UNKNOWN}
        specs["abstained"] = MetricSpec("abstained", "min")
    counts = ("score_abstained", "n_score_abstained", "n_score_undefined", "n_undefined")
    specs |= {name: MetricSpec(name, "min") for name in counts}
    for zone in zone_names:
        specs |= {f"{name}/{zone}": MetricSpec(f"{name}/{zone}", specs[name].mode) for name in _ZONE}
    grades = class_names[: _num_grades(class_names, unknown_index)]
    keys = [f"{name}/{label}" for name in ("precision", "recall", "f1") for label in grades]
    keys += [f"{name}/{risk}" for name in ("risk_precision", "risk_recall", "risk_f1") for risk in risk_names]
    return specs | {key: MetricSpec(key, "max") for key in keys}


def zone_confusions(
    predicted: Values, labels: Values, num_classes: int, *, ignore_index: int | None = None
) -> np.ndarray:
    """One confusion matrix per zone.

    Args:
        predicted: Class indices [N, Z].
        labels: Class indices [N, Z]; NaN is unlabelled.
        num_classes: K, the class unknown included.
        ignore_index: Zones with this label are left out.

    Returns:
        Counts [Z, K, K], float64: rows are true classes, columns predicted classes.
    """
    chosen, true = label_values(predicted), label_values(labels)
    known = np.isfinite(true) if ignore_index is None else np.isfinite(true) & (true != ignore_index)
    columns = [class_confusion(chosen[kept, z], true[kept, z], num_classes) for z, kept in enumerate(known.T)]
    return np.stack(columns)


def average_scores(grades: np.ndarray) -> np.ndarray:
    """Average each image's grades over its known zones.

    Args:
        grades: [N, Z]; NaN where unknown.

    Returns:
        [N]; NaN, not 0, for an image with no known zone.
    """
    known = ~np.isnan(grades)
    return ratio(np.where(known, grades, 0.0).sum(axis=1), known.sum(axis=1))


def score_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compare average scores where both are defined: `score_mae`, `score_rmse`, `score_pearson`.

    `n_score_undefined` counts the images whose true score is undefined: they are left out. `n_score_abstained` counts
    those whose true score is defined and whose predicted one is not; `score_abstained` is their share.

    Args:
        predicted: [N]; NaN where undefined.
        true: [N]; NaN where undefined.
    """
    defined = ~np.isnan(true)
    both = defined & ~np.isnan(predicted)
    errors = predicted[both] - true[both]
    abstained = float(defined.sum() - both.sum())
    return {
        "score_mae": float(ratio(np.abs(errors).sum(), errors.size)),
        "score_rmse": float(np.sqrt(ratio((errors**2).sum(), errors.size))),
        "score_pearson": pearson(predicted[both], true[both]),
        "score_abstained": float(ratio(abstained, defined.sum())),
        "n_score_abstained": abstained,
        "n_score_undefined": float((~defined).sum()),
    }


def risk_class(scores: np.ndarray, cuts: Sequence[float] = RISK_CUTS) -> np.ndarray:
    """The risk class of average scores: 0 up to the first cut, 1 up to the second, ...; -1 where undefined.

    Args:
        scores: [N]; NaN where undefined.
        cuts: Ascending upper ends, each belonging to the lower class.

    Returns:
        int64 [N].
    """
    values = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(values), -1, np.searchsorted(np.asarray(cuts, dtype=np.float64), values, side="left"))


def risk_confusion(predicted: np.ndarray, true: np.ndarray, cuts: Sequence[float] = RISK_CUTS) -> np.ndarray:
    """Count the images of every pair of risk classes; those whose true score is undefined are left out.

    Args:
        predicted: Average scores [N]; NaN where undefined.
        true: Average scores [N]; NaN where undefined.
        cuts: Upper ends of the classes but the last.

    Returns:
        Counts [R + 1, R + 1], float64; the last column holds those without a predicted score, the last row is 0.
    """
    classes = len(cuts) + 1
    defined = ~np.isnan(true)
    chosen, truth = risk_class(predicted, cuts)[defined], risk_class(true, cuts)[defined]
    return class_confusion(np.where(chosen < 0, classes, chosen), truth, classes + 1)


def risk_metrics(
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    cuts: Sequence[float] = RISK_CUTS,
    risk_names: Sequence[str] = RISK_NAMES,
) -> dict[str, float]:
    """Judge risk classes: `risk_accuracy`, `risk_f1_macro`, and `risk_precision|risk_recall|risk_f1/<risk>`.

    An image without a predicted score, whose true one is defined, counts as wrong.

    Args:
        predicted: Average scores [N]; NaN where undefined.
        true: Average scores [N]; NaN where undefined.
        cuts: Upper ends of the classes but the last.
        risk_names: One name more than cuts.
    """
    assert len(risk_names) == len(cuts) + 1, f"{len(cuts)} cuts make {len(cuts) + 1} classes, not {len(risk_names)}"
    confusion = risk_confusion(predicted, true, cuts)
    scores = class_scores(confusion)
    metrics = {
        "risk_accuracy": float(ratio(np.trace(confusion), confusion.sum())),
        "risk_f1_macro": class_averages(confusion, range(len(risk_names)))["f1_macro"],
    }
    for name in ("precision", "recall", "f1"):
        metrics |= {f"risk_{name}/{risk}": float(scores[name][index]) for index, risk in enumerate(risk_names)}
    return metrics


def _known_metrics(
    confusions: np.ndarray, class_names: Sequence[str], zone_names: Sequence[str], num_grades: int
) -> dict[str, float]:
    """Metrics of the zones whose true grade is known; predictions of unknown are misses, not classes of their own."""
    known = confusions.copy()
    known[:, num_grades:] = 0.0
    grades = range(num_grades)
    averages = [class_averages(confusion, grades) for confusion in known]
    pooled = known.sum(axis=0)
    overall, scores = class_averages(pooled, grades), class_scores(pooled)
    kappas = [cohen_kappa(confusion[:num_grades, :num_grades], "quadratic") for confusion in known]
    metrics = {
        "f1_macro": defined_mean(np.array([found["f1_macro"] for found in averages])),
        "f1_weighted": defined_mean(np.array([found["f1_weighted"] for found in averages])),
        "f1_overall": overall["f1_macro"],
        "f1_weighted_overall": overall["f1_weighted"],
        "precision_overall": overall["precision_macro"],
        "recall_overall": overall["recall_macro"],
        "accuracy": float(ratio(np.trace(pooled), pooled.sum())),
        "balanced_accuracy": defined_mean(scores["recall"][:num_grades]),
        "qwk": defined_mean(np.array(kappas)),
    }
    for index, zone in enumerate(zone_names):
        metrics[f"f1_macro/{zone}"] = averages[index]["f1_macro"]
        metrics[f"accuracy/{zone}"] = float(ratio(np.trace(known[index]), known[index].sum()))
        metrics[f"qwk/{zone}"] = kappas[index]
    for name in ("precision", "recall", "f1"):
        metrics |= {f"{name}/{class_names[k]}": float(scores[name][k]) for k in grades}
    return metrics


def _unknown_metrics(confusions: np.ndarray, unknown_index: int) -> dict[str, float]:
    pooled = confusions.sum(axis=0)
    scores, known = class_scores(pooled), pooled[:unknown_index]
    metrics = {f"unknown_{name}": float(scores[name][unknown_index]) for name in ("precision", "recall", "f1")}
    over_all = [class_averages(confusion)["f1_macro"] for confusion in confusions]
    metrics["f1_macro_all"] = defined_mean(np.array(over_all))
    metrics["abstained"] = float(ratio(known[:, unknown_index:].sum(), known.sum()))
    return metrics


def _num_grades(class_names: Sequence[str], unknown_index: int | None) -> int:
    assert unknown_index in (None, len(class_names) - 1), f"unknown must be the last class, not index {unknown_index}"
    return len(class_names) if unknown_index is None else len(class_names) - 1
