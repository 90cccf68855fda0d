"""Metrics of graded zones: the golden averages and risk classes, unknown zones, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from medtrain.metrics.zones import (
    average_scores,
    risk_class,
    risk_confusion,
    risk_metrics,
    score_metrics,
    zone_confusions,
    zone_metrics,
    zone_specs,
)

CLASSES = ["normal", "mild", "moderate", "severe", "unknown"]
ZONES = ["right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf"]


def _random(seed: int, count: int = 200, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, 6))
    return np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, classes, labels.shape)), labels


def _scores(classes: list[list[int]], unknown: int = 4) -> np.ndarray:
    array = np.array(classes, dtype=np.float64)
    return average_scores(np.where(array == unknown, np.nan, array))


def test_average_and_risk_class_golden() -> None:
    averages = _scores([[0, 1, 2, 3, 4, 4], [4] * 6])
    assert averages[0] == 1.5
    assert math.isnan(averages[1])
    scores = np.array([1.5, 1.3, 2.2, 2.21, 0, np.nan])
    assert risk_class(scores).tolist() == [1, 0, 1, 2, 0, -1]
    thirteen, twenty_two = [1] * 7 + [2] * 3, [2] * 8 + [3] * 2
    assert risk_class(_scores([thirteen, twenty_two])).tolist() == [0, 1]  # 1.3 and 2.2 as averages of ten


@pytest.mark.parametrize("unknown_share", [0.0, 0.3, 1.0])
def test_a_perfect_prediction_scores_one_however_many_zones_are_unknown(unknown_share: float) -> None:
    """Golden, trap 004-T2: F1 divided by five classes with the unknown one masked out gave 0.8."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (50, 6))
    labels[rng.random(labels.shape) < unknown_share] = 4
    found = zone_metrics(labels, labels, CLASSES, ZONES, unknown_index=4)
    names = ("f1_macro", "f1_weighted", "f1_overall", "f1_weighted_overall", "accuracy", "qwk", "f1_macro/left_mid")
    expected = math.nan if unknown_share == 1 else 1.0
    assert [found[name] for name in names] == pytest.approx([expected] * len(names), nan_ok=True)
    assert found["f1_macro_all"] == 1.0
    assert found["unknown_recall"] == pytest.approx(math.nan if unknown_share == 0 else 1.0, nan_ok=True)


def test_known_zones_agree_with_scikit_learn() -> None:
    predicted, labels = _random(1)
    found = zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)
    assert list(found) == list(zone_specs(CLASSES, ZONES, unknown_index=4))
    assert next(iter(found)) == "f1_macro"
    assert found["n_undefined"] == 0
    grades = [0, 1, 2, 3]
    by_zone, weighted, distances = [], [], []
    for zone in range(6):
        known = labels[:, zone] < 4
        pair = labels[known, zone], predicted[known, zone]
        by_zone.append(sk.f1_score(*pair, labels=grades, average="macro"))
        weighted.append(sk.f1_score(*pair, labels=grades, average="weighted"))
        both = known & (predicted[:, zone] < 4)
        distances.append(np.abs(labels - predicted)[both, zone].mean())
        assert found[f"f1_macro/{ZONES[zone]}"] == pytest.approx(by_zone[-1])
        assert found[f"accuracy/{ZONES[zone]}"] == pytest.approx(sk.accuracy_score(*pair))
        kappa = sk.cohen_kappa_score(labels[both, zone], predicted[both, zone], weights="quadratic", labels=grades)
        assert found[f"qwk/{ZONES[zone]}"] == pytest.approx(kappa)
    assert found["f1_macro"] == pytest.approx(np.mean(by_zone))
    assert found["f1_weighted"] == pytest.approx(np.mean(weighted))
    assert found["mae"] == pytest.approx(np.mean(distances))
    known = labels < 4
    pair = labels[known], predicted[known]
    assert found["f1_overall"] == pytest.approx(sk.f1_score(*pair, labels=grades, average="macro"))
    assert found["precision_overall"] == pytest.approx(sk.precision_score(*pair, labels=grades, average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(*pair))
    per_class = sk.recall_score(*pair, labels=grades, average=None)
    assert [found[f"recall/{name}"] for name in CLASSES[:4]] == pytest.approx(per_class)
    assert found["abstained"] == pytest.approx((predicted[known] == 4).mean())


def test_finding_unknown_zones() -> None:
    predicted, labels = _random(2)
    found = zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)
    pair = (labels == 4).ravel(), (predicted == 4).ravel()
    assert found["unknown_precision"] == pytest.approx(sk.precision_score(*pair))
    assert found["unknown_recall"] == pytest.approx(sk.recall_score(*pair))
    assert found["unknown_f1"] == pytest.approx(sk.f1_score(*pair))
    every = [sk.f1_score(labels[:, zone], predicted[:, zone], average="macro") for zone in range(6)]
    assert found["f1_macro_all"] == pytest.approx(np.mean(every))


def test_what_is_predicted_where_nobody_could_grade_does_not_matter_for_grades() -> None:
    predicted, labels = _random(3)
    other = np.where(labels == 4, (predicted + 1) % 4, predicted)
    first, second = (zone_metrics(p, labels, CLASSES, ZONES, unknown_index=4) for p in (predicted, other))
    for name in ("f1_macro", "accuracy", "mae", "f1/severe", "precision/mild", "qwk", "abstained"):
        assert first[name] == second[name], name
    assert first["unknown_f1"] != second["unknown_f1"]


def test_an_image_of_unknown_zones_is_not_healthy() -> None:
    """Trap 004-T3: its average counted as 0.0, low risk."""
    labels = np.array([[4, 4, 4, 4, 4, 4], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 0, 0]])
    predicted = np.array([[0, 0, 0, 0, 0, 0], [4, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 4], [2, 2, 2, 0, 0, 0]])
    found = zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)
    assert found["n_score_undefined"] == 1
    assert found["n_score_abstained"] == 1
    assert found["score_abstained"] == pytest.approx(1 / 3)
    assert found["score_mae"] == pytest.approx((0 + 1) / 2)
    assert found["score_rmse"] == pytest.approx(math.sqrt(1 / 2))
    assert found["risk_accuracy"] == pytest.approx(2 / 3)  # low, low; high was abstained from
    assert found["risk_recall/high"] == 0
    assert math.isnan(found["risk_precision/high"])
    assert math.isnan(found["risk_f1/medium"])
    assert found["risk_f1_macro"] == pytest.approx(1 / 2)
    scores = [_scores(array.tolist()) for array in (predicted, labels)]
    # the last column: no score predicted
    assert risk_confusion(*scores).tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_scores_agree_with_numpy() -> None:
    rng = np.random.default_rng(4)
    true = rng.random(100) * 3
    said = true + rng.normal(size=100)
    found = score_metrics(said, true)
    assert found["score_pearson"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    assert found["score_mae"] == pytest.approx(np.abs(said - true).mean())
    risks = risk_metrics(said, true)
    assert risks["risk_f1_macro"] == pytest.approx(sk.f1_score(risk_class(true), risk_class(said), average="macro"))


def test_constant_scores_do_not_correlate() -> None:
    labels = _random(5)[1]
    found = zone_metrics(np.ones_like(labels), labels, CLASSES, ZONES, unknown_index=4)
    assert math.isnan(found["score_pearson"])
    assert found["qwk"] == pytest.approx(0)
    assert found["n_undefined"] == sum(math.isnan(value) for value in found.values()) > 0


def test_zones_without_an_unknown_class() -> None:
    predicted, labels = _random(6, classes=4)
    found = zone_metrics(predicted, labels, CLASSES[:4], ZONES)
    assert list(found) == list(zone_specs(CLASSES[:4], ZONES))
    assert not any(key.startswith("unknown") or key == "abstained" for key in found)
    assert found["score_pearson"] == pytest.approx(np.corrcoef(predicted.sum(axis=1), labels.sum(axis=1))[0, 1])


def test_unlabelled_zones_count_nowhere() -> None:
    predicted, labels = _random(7)
    gaps = np.random.default_rng(0).random(labels.shape) < 0.2
    first = zone_metrics(predicted, np.where(gaps, -1, labels), CLASSES, ZONES, unknown_index=4, ignore_index=-1)
    other = np.where(gaps, 3, predicted)
    second = zone_metrics(other, np.where(gaps, np.nan, labels), CLASSES, ZONES, unknown_index=4)
    assert first == second
    assert zone_confusions(predicted, np.where(gaps, -1, labels), 5, ignore_index=-1).sum() == (~gaps).sum()


def test_expected_grades_give_finer_scores() -> None:
    predicted, labels = _random(8, classes=4)
    grades = labels + 0.25
    found = zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4, grades=grades)
    assert found["mae"] == pytest.approx(0.25)
    assert found["score_mae"] == pytest.approx(0.25)
    assert found["score_pearson"] == pytest.approx(1)
    assert found["accuracy"] == zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)["accuracy"]


def test_own_cuts() -> None:
    predicted, labels = _random(9, classes=4)
    found = zone_metrics(predicted, labels, CLASSES[:4], ZONES, cuts=[1.5], risk_names=["ok", "ill"])
    agree = (predicted.mean(axis=1) > 1.5) == (labels.mean(axis=1) > 1.5)
    assert found["risk_accuracy"] == pytest.approx(agree.mean())
    with pytest.raises(AssertionError, match="1 cuts make 2 classes, not 3"):
        risk_metrics(np.zeros(2), np.zeros(2), cuts=[1.5])


def test_no_images_at_all() -> None:
    empty = np.empty((0, 6), dtype=np.int64)
    found = zone_metrics(empty, empty, CLASSES, ZONES, unknown_index=4)
    counts = {key: value for key, value in found.items() if not math.isnan(value)}
    assert counts == {"n_score_abstained": 0, "n_score_undefined": 0, "n_undefined": len(found) - 3}


def test_neither_order_nor_shards_matter() -> None:
    predicted, labels = _random(10)
    expected = zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)
    order = np.random.default_rng(0).permutation(len(labels))
    found = zone_metrics(predicted[order], labels[order], CLASSES, ZONES, unknown_index=4)
    assert found == pytest.approx(expected, abs=1e-12)
    parts = [zone_confusions(predicted[k::4], labels[k::4], 5) for k in range(4)]
    assert (sum(parts) == zone_confusions(predicted, labels, 5)).all()


def test_a_hundred_thousand_images() -> None:
    predicted, labels = _random(11, 100_000)
    assert zone_metrics(predicted, labels, CLASSES, ZONES, unknown_index=4)["n_undefined"] == 0
