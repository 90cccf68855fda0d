"""Multilabel: entries that nobody labelled count nowhere, and every label has a threshold of its own."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.tasks.multilabel import Multilabel
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, plan, target

TARGETS = [target("no", "yes", name="oedema"), target("no", "yes", name="nodule")]


def task(inference: ImageInference | None = None, *, softmax: bool = False) -> Multilabel:
    loss = (ClassCrossEntropy if softmax else LabelCrossEntropy)(TARGETS)
    settings = inference or ImageInference()
    report = Report(resamples=0)
    return made("multilabel", loss=loss, inference=settings, plan=plan(*TARGETS), report=report)


def test_unlabelled_entries_count_nowhere() -> None:
    logits = [[1.0, -1.0], [2.0, 3.0], [-1.0, 0.5], [-2.0, 9.0]]
    labels = [[1, 0], [0, NAN], [1, 1], [0, NAN]]
    found = task()
    records = found.evaluation_step(Echo(), batch(logits, labels), final=False)
    summary = found.summarize(records)
    assert summary["auroc/oedema"] == roc_auc_score([1, 0, 1, 0], [1, 2, -1, -2])
    assert summary["auroc/nodule"] == roc_auc_score([0, 1], [-1, 0.5])
    assert summary["auroc"] == (summary["auroc/oedema"] + summary["auroc/nodule"]) / 2
    assert summary["accuracy/nodule"] == 1.0
    assert found.batch_weight(batch(logits, labels)) == 6
    assert found.monitor.name == "val/auroc"
    assert list(summary) == list(found.metrics())


def test_the_positive_probability_is_that_of_the_second_class() -> None:
    (sigmoid,) = task().evaluation_step(Echo(), batch([[1.0, -2.0]], [[1, 0]]), final=False)
    (softmax,) = task(softmax=True).evaluation_step(Echo(), batch([[0, 1.0, 2.0, 0]], [[1, 0]]), final=False)
    for record in (sigmoid, softmax):
        assert record["prob/oedema"] == pytest.approx(torch.tensor(1.0).double().sigmoid().item(), rel=1e-12)
        assert record["prob/nodule"] == pytest.approx(torch.tensor(-2.0).double().sigmoid().item(), rel=1e-12)
        assert (record["predicted/oedema"], record["predicted/nodule"]) == (1, 0)
    assert task().readable([sigmoid])[0]["predicted"] == "oedema"


def test_every_label_has_its_threshold() -> None:
    found = task(ImageInference(threshold="youden"))
    logits = [[3.0, -1.0], [2.0, -2.0], [1.0, -3.0], [0.5, -4.0], [9.0, 9.0]]
    labels = [[1, 1], [1, 1], [0, 0], [0, 0], [NAN, NAN]]
    records = found.evaluation_step(Echo(), batch(logits, labels), final=True)
    decision = found.fit_decision(records)
    sigmoid = torch.tensor([1.0, 2.0, -3.0, -2.0]).double().sigmoid().tolist()
    assert sigmoid[0] < decision["threshold/oedema"] <= sigmoid[1]
    assert sigmoid[2] < decision["threshold/nodule"] <= sigmoid[3]
    summary = found.summarize(found.decide(records))
    assert summary["accuracy/oedema"] == summary["accuracy/nodule"] == 1.0


def test_one_temperature_for_all_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 2, generator=generator)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator)
    labels[:200, 1] = NAN
    found = task(ImageInference(calibrate=True))
    records = found.evaluation_step(Echo(), batch(3 * logits, labels), final=True)
    assert found.fit_decision(records)["temperature"] == pytest.approx(3, rel=0.2)
    assert found.summarize(found.decide(records))["nll"] < found.summarize(records)["nll"]


def test_the_worst_is_least_right_on_what_is_known() -> None:
    data = batch([[2.0, -9.0], [-1.0, 9.0], [0.0, 0.0]], [[1, NAN], [1, 1], [NAN, NAN]])
    found = task()
    worst = found.worst_cases(found.evaluation_step(Echo(), data, final=False))
    assert [case for case, _ in worst] == ["c001", "c000"]


def test_three_classes_are_no_label() -> None:
    three = target("a", "b", "c")
    with pytest.raises(UsageError, match="finding has 3 classes, not two"):
        made("multilabel", loss=ClassCrossEntropy([three]), plan=plan(three))


def test_a_mirrored_image_has_its_findings_swapped_back() -> None:
    class Sides(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image[:, 0, 0, :1] - image[:, 0, 0, -1:]) * torch.tensor([[8.0, -8.0]])

    sides = [target("no", "yes", name=f"{side}_effusion") for side in ("left", "right")]
    found = made(
        "multilabel",
        loss=LabelCrossEntropy(sides),
        inference=ImageInference(mirror=True),
        plan=plan(*sides, paired_targets=((0, 1),)),
    )
    (plain,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[1, 0]]), final=False)
    (mirrored,) = found.evaluation_step(Sides(), batch([[1.0, 0.0]], [[1, 0]]), final=True)
    assert plain["prob/left_effusion"] > 0.99
    for side in ("left", "right"):
        assert mirrored[f"prob/{side}_effusion"] == pytest.approx(plain[f"prob/{side}_effusion"])
