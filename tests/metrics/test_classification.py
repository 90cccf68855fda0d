"""The whole report of a classification: keys, default monitor, ignored samples, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from medtrain.metrics.classification import (
    classification_metrics,
    classification_specs,
    labelled_samples,
    predicted_classes,
)

NAMES = ["a", "b", "c", "d"]


def _random(seed: int, classes: int = 4, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    probs = rng.dirichlet(np.ones(classes), count) + 0.5 * np.eye(classes)[labels]
    return probs / probs.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("names", [["healthy", "ill"], NAMES])
def test_keys_are_those_of_the_specs_and_the_monitor_is_not_accuracy(names: list[str]) -> None:
    found = classification_metrics(*_random(0, len(names)), names)
    specs = classification_specs(names)
    assert list(found) == list(specs)
    assert next(iter(specs)) == ("auroc" if len(names) == 2 else "f1_macro")
    assert all(spec.name == key for key, spec in specs.items())
    assert {key for key, spec in specs.items() if spec.mode == "min"} == {"ece", "brier", "nll", "n_undefined"}
    assert found["n_undefined"] == 0


def test_parity_with_scikit_learn() -> None:
    probs, labels = _random(1)
    found = classification_metrics(probs, labels, NAMES)
    chosen = probs.argmax(axis=1)
    expected = {
        "auroc": sk.roc_auc_score(labels, probs, multi_class="ovr"),
        "average_precision": sk.average_precision_score(np.eye(4)[labels], probs),
        "f1_macro": sk.f1_score(labels, chosen, average="macro"),
        "kappa": sk.cohen_kappa_score(labels, chosen),
        "brier": sk.brier_score_loss(labels, probs),
        "nll": sk.log_loss(labels, probs),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_two_classes_have_a_positive_one_and_a_threshold() -> None:
    said, labels = np.array([0.9, 0.6, 0.4, 0.3, 0.1]), np.array([1, 1, 1, 0, 0])
    low = classification_metrics(said, labels, ["no", "yes"], threshold=0.35)
    assert (low["sensitivity"], low["specificity"], low["auroc"]) == (1.0, 1.0, 1.0)
    high = classification_metrics(said, labels, ["no", "yes"])
    assert high["sensitivity"] == pytest.approx(2 / 3)
    assert high["auroc"] == low["auroc"]
    assert predicted_classes(np.array([0.5, 0.49])).tolist() == [1, 0]
    columns = np.stack([1 - said, said], axis=1)
    assert classification_metrics(columns, labels, ["no", "yes"]) == high


def test_a_threshold_that_does_not_exist_is_not_applied() -> None:
    with pytest.raises(AssertionError, match="threshold is NaN"):
        predicted_classes(np.array([0.5]), threshold=math.nan)


def test_unlabelled_samples_are_left_out() -> None:
    probs, labels = _random(2)
    weights = np.random.default_rng(0).random(labels.size)
    known = np.arange(labels.size) % 3 != 0
    expected = classification_metrics(probs[known], labels[known], NAMES, weights=weights[known])
    ignored = np.where(known, labels, -1)
    assert classification_metrics(probs, ignored, NAMES, ignore_index=-1, weights=weights) == expected
    missing = np.where(known, labels, np.nan)
    assert classification_metrics(probs, missing, NAMES, weights=weights) == expected
    assert labelled_samples(probs, missing, ignore_index=None)[1].dtype == np.int64


def test_a_class_without_samples_is_undefined_counted_and_left_out_of_the_means() -> None:
    probs, labels = _random(3)
    labels = np.where(labels == 3, 0, labels)
    found = classification_metrics(probs, labels, NAMES)
    undefined = {key for key, value in found.items() if math.isnan(value)}
    assert undefined == {"accuracy/d", "recall/d", "auroc/d", "average_precision/d"}
    assert found["n_undefined"] == 4
    assert found["auroc"] == pytest.approx(np.mean([found[f"auroc/{name}"] for name in "abc"]))


def test_one_class_only_and_nothing_at_all() -> None:
    probs, labels = _random(4, 2)
    found = classification_metrics(probs, np.zeros_like(labels), ["no", "yes"])
    assert math.isnan(found["auroc"])
    assert math.isnan(found["sensitivity"])
    assert found["specificity"] == found["accuracy"]
    found = classification_metrics(probs[:0], labels[:0], ["no", "yes"])
    assert all(math.isnan(value) for key, value in found.items() if key != "n_undefined")
    assert found["n_undefined"] == len(found) - 1


def test_neither_order_nor_shards_matter() -> None:
    probs, labels = _random(5)
    expected = classification_metrics(probs, labels, NAMES)
    shards = np.concatenate([np.arange(rank, labels.size, 3) for rank in range(3)])
    assert classification_metrics(probs[shards], labels[shards], NAMES) == pytest.approx(expected, abs=1e-12)
    halves = [classification_metrics(probs[k::2], labels[k::2], NAMES)["f1_macro"] for k in range(2)]
    assert np.mean(halves) != pytest.approx(expected["f1_macro"], abs=1e-6)
