"""Labels that do not exclude each other, some unknown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from medtrain.metrics.multilabel import multilabel_metrics, multilabel_specs
from medtrain.metrics.ranking import youden_threshold

NAMES = ["oedema", "effusion", "mass"]


def _random(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < [0.5, 0.3, 0.1]).astype(np.float64)
    return np.clip(rng.random((count, 3)) * 0.7 + 0.3 * labels, 0, 1), labels


def test_parity_with_scikit_learn() -> None:
    probs, labels = _random(0)
    found = multilabel_metrics(probs, labels, NAMES)
    assert list(found) == list(multilabel_specs(NAMES))
    assert next(iter(found)) == "auroc"
    chosen = probs >= 0.5
    expected = {
        "auroc": sk.roc_auc_score(labels, probs),
        "average_precision": sk.average_precision_score(labels, probs),
        "f1": sk.f1_score(labels, chosen, average="macro"),
        "f1_micro": sk.f1_score(labels, chosen, average="micro"),
        "precision": sk.precision_score(labels, chosen, average="macro"),
        "sensitivity": sk.recall_score(labels, chosen, average="macro"),
        "accuracy": 1 - sk.hamming_loss(labels, chosen),
        "brier": np.mean((probs - labels) ** 2),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found["auroc/mass"] == pytest.approx(sk.roc_auc_score(labels[:, 2], probs[:, 2]))
    balanced = sk.balanced_accuracy_score(labels[:, 0], chosen[:, 0])
    assert found["balanced_accuracy/oedema"] == pytest.approx(balanced)


def test_unlabelled_entries_count_for_their_label_only() -> None:
    probs, labels = _random(1)
    unknown = np.random.default_rng(0).random(labels.shape) < 0.3
    partly = np.where(unknown, np.nan, labels)
    found = multilabel_metrics(probs, partly, NAMES)
    for index, name in enumerate(NAMES):
        kept = ~unknown[:, index]
        expected = sk.roc_auc_score(labels[kept, index], probs[kept, index])
        assert found[f"auroc/{name}"] == pytest.approx(expected)
    assert multilabel_metrics(probs, np.where(unknown, -1, labels), NAMES, ignore_index=-1) == found
    worse = np.where(unknown, 1 - probs, probs)
    assert multilabel_metrics(worse, partly, NAMES) == found


def test_a_label_nobody_gave_is_undefined() -> None:
    probs, labels = _random(2)
    labels[:, 1] = np.nan
    found = multilabel_metrics(probs, labels, NAMES)
    undefined = {key for key, value in found.items() if math.isnan(value)}
    assert undefined == {key for key in found if key.endswith("/effusion")}
    assert found["n_undefined"] == len(undefined) == 11
    assert found["auroc"] == pytest.approx((found["auroc/oedema"] + found["auroc/mass"]) / 2)


def test_a_label_never_predicted_lowers_the_mean_precision() -> None:
    probs, labels = _random(3)
    probs[:, 2] = 0.1
    found = multilabel_metrics(probs, labels, NAMES)
    expected = sk.precision_score(labels, probs >= 0.5, average="macro", zero_division=0)
    assert found["precision"] == pytest.approx(expected)
    assert math.isnan(found["precision/mass"])
    assert found["f1/mass"] == 0


def test_thresholds_per_label() -> None:
    probs, labels = _random(4)
    labels[:, 2] = 0
    thresholds = np.array([youden_threshold(probs[:, k], labels[:, k]) for k in range(3)])
    assert np.isnan(thresholds).tolist() == [False, False, True]  # a label with one class only has none
    found = multilabel_metrics(probs, labels, NAMES, thresholds=thresholds)
    for index, name in enumerate(NAMES[:2]):
        false_rate, true_rate, _ = sk.roc_curve(labels[:, index], probs[:, index])
        index_at_best = found[f"sensitivity/{name}"] + found[f"specificity/{name}"] - 1
        assert index_at_best == pytest.approx((true_rate - false_rate).max())
    assert found["specificity/mass"] == pytest.approx((probs[:, 2] < 0.5).mean())
