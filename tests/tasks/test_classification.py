"""Classification: parity with scikit-learn, and the same numbers for one logit as for two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from medtrain.errors import UsageError
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.tasks.classification import Classification
from tests.tasks.stubs import Echo, batch, made, number, plan, target

TWO = target("no", "yes")


def two(loss: ClassCrossEntropy | LabelCrossEntropy) -> Classification:
    return made("classification", loss=loss, plan=plan(TWO))


def test_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 1, generator=generator), torch.randint(0, 2, (60, 1), generator=generator).float()
    task = two(LabelCrossEntropy([TWO]))
    summary = task.summarize(task.evaluation_step(Echo(), batch(logits, labels), final=True))
    true, prob = labels[:, 0].numpy(), logits[:, 0].double().sigmoid().numpy()
    said = prob >= 0.5
    assert summary["auroc"] == pytest.approx(roc_auc_score(true, prob))
    assert summary["accuracy"] == pytest.approx(accuracy_score(true, said))
    assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, said))
    assert summary["f1"] == pytest.approx(f1_score(true, said))
    assert summary["kappa"] == pytest.approx(cohen_kappa_score(true, said))


def test_one_logit_says_what_two_say() -> None:
    one, both = two(LabelCrossEntropy([TWO])), two(ClassCrossEntropy([TWO]))
    single = one.evaluation_step(Echo(), batch([[1.5], [-0.5]], [1, 1]), final=False)
    double = both.evaluation_step(Echo(), batch([[0.5, 2.0], [0.0, -0.5]], [1, 1]), final=False)
    for first, second in zip(single, double, strict=True):
        assert first["prob/yes"] == pytest.approx(second["prob/yes"], rel=1e-12)
        assert first["predicted"] == second["predicted"]
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)


def test_fractions_not_percent() -> None:
    task = two(ClassCrossEntropy([TWO]))
    summary = task.summarize(task.evaluation_step(Echo(), batch([[0, 1], [1, 0]], [1, 0]), final=False))
    assert summary["accuracy"] == 1.0
    assert summary["accuracy/yes"] == 1.0


def test_the_confusion_matrix_leaves_out_the_unlabelled() -> None:
    task = two(ClassCrossEntropy([TWO]))
    data = batch([[0, 1], [1, 0], [0, 1], [0, 1]], [1, 1, 0, np.nan])
    rows = task.outcome.tables(task.evaluation_step(Echo(), data, final=False))["confusion"]
    assert rows == [
        {"label": "no", "predicted no": 0, "predicted yes": 1},
        {"label": "yes", "predicted no": 1, "predicted yes": 1},
    ]


def test_a_number_is_no_class() -> None:
    with pytest.raises(UsageError, match="needs classes, but age is a number"):
        made("classification", loss=LabelCrossEntropy([TWO]), plan=plan(number()))
