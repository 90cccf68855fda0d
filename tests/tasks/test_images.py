"""What all tasks on labelled images share: steps, records, decisions, reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from medtrain.data.images.mixing import Mix
from medtrain.data.tabular import CategoryState, NumericState, TabularEncoder
from medtrain.errors import NonFiniteError, UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.losses.multitask import LossPart, MultitaskLoss
from medtrain.losses.ordinal import OrdinalLoss, QuadraticKappaLoss
from medtrain.losses.regression import MSELoss
from medtrain.losses.supervision import InstanceEntropy, MapSupervision
from medtrain.models.cam import explain
from medtrain.tasks.classification import Classification
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

QUICK = Report(resamples=0)
PLAIN = SimpleNamespace(mirrors=False, mixup=0.0, cutmix=0.0)
THREE = target("a", "b", "c")
TWO = target("no", "yes")


def three_classes(**changes: Any) -> Classification:
    settings = {"plan": plan(THREE, width=3), "report": QUICK}
    return made("classification", **{"loss": ClassCrossEntropy([THREE]), **settings, **changes})


def two_classes(**changes: Any) -> Classification:
    settings = {"plan": plan(TWO, width=1), "report": QUICK}
    return made("classification", **{"loss": LabelCrossEntropy([TWO]), **settings, **changes})


def random_logits(count: int, outputs: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, outputs, generator=torch.Generator().manual_seed(seed))


def random_labels(count: int, classes: int, *, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, (count, 1), generator=torch.Generator().manual_seed(seed)).float()


# ------------------------------------------------------------------------------------------------------------ training


def test_the_weight_of_a_batch_is_that_of_its_labels() -> None:
    task = three_classes(loss=ClassCrossEntropy([THREE], class_weights=(1.0, 2.0, 4.0)))
    assert task.batch_weight(batch([[0, 0, 0]] * 3, [0, 2, NAN])) == 5.0
    assert task.batch_weight(batch([[0, 0, 0]], [NAN])) == 0.0


@pytest.mark.parametrize(
    ("balance", "loss", "key"),
    [
        ("classes", ClassCrossEntropy([THREE], class_weights=(1.0, 2.0, 4.0)), "class_weights"),
        ("sqrt", OrdinalLoss(targets=[THREE], class_weights="balanced"), "class_weights"),
        ("classes", ClassCrossEntropy([THREE], class_weights="none"), None),
        ("none", ClassCrossEntropy([THREE], class_weights="balanced"), None),
    ],
)
def test_rare_classes_that_are_made_up_for_twice_are_told_of(
    balance: str, loss: Any, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    three_classes(loss=loss).check_training({"balance": balance}, PLAIN)
    told = [
        record.getMessage().partition(" both")[0] for record in caplog.records if "corrected" in record.getMessage()
    ]
    assert told == ([] if key is None else [f"data.balance={balance} and loss.{key}"])


def test_parts_and_labels_tell_whether_they_make_up_for_rare_classes() -> None:
    assert LabelCrossEntropy([TWO], pos_weight="balanced").reweighs == "pos_weight"
    parts = [LossPart(loss="ce", targets=("finding",), class_weights="balanced")]
    assert MultitaskLoss(targets=[THREE], parts=parts).reweighs == "class_weights"
    assert MultitaskLoss(targets=[THREE]).reweighs == ""


def test_micro_batches_add_up_to_the_gradient_of_the_batch() -> None:
    task = three_classes(loss=ClassCrossEntropy([THREE], class_weights=(1.0, 2.0, 4.0)))
    logits, labels = random_logits(7, 3), random_labels(7, 3)
    labels[2] = NAN
    whole, parts = Echo(aux={"image": 0.5}), Echo(aux={"image": 0.5})
    task.training_step(whole, batch(logits, labels)).loss.backward()
    pieces = [batch(logits[:4], labels[:4]), batch(logits[4:6], labels[4:6]), batch(logits[6:], labels[6:])]
    total = sum(task.batch_weight(piece) for piece in pieces)
    for piece in pieces:
        (task.training_step(parts, piece).loss * task.batch_weight(piece) / total).backward()
    assert parts.scale.grad is not None
    assert whole.scale.grad is not None
    torch.testing.assert_close(parts.scale.grad, whole.scale.grad)


def test_auxiliary_heads_weigh_a_third_and_are_logged() -> None:
    task = three_classes()
    data = batch([[2, 0, 0], [0, 1, 0]], [0, 1])
    main = task.training_step(Echo(), data).loss
    half = task.loss(torch.tensor([[1.0, 0, 0], [0, 0.5, 0]]), data["target"])
    zero = task.loss(torch.zeros(2, 3), data["target"])
    step = task.training_step(Echo(aux={"image": 0.5, "table": 0.0}), data)
    torch.testing.assert_close(step.loss, main + 0.3 * half + 0.3 * zero)
    assert float(step.logs["train/loss/aux/image"]) == pytest.approx(float(half))
    weighted = three_classes(aux_weights=1.0).training_step(Echo(aux={"image": 0.5}), data)
    torch.testing.assert_close(weighted.loss, main + half)
    assert task.training_step(Echo(), data).logs == {}


def test_a_weight_for_heads_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(UsageError, match="no auxiliary heads"):
        three_classes(aux_weights=0.5).training_step(Echo(), batch([[0, 0, 0]], [1]))


def test_the_model_gets_what_it_names_and_the_batch_has() -> None:
    class Both(nn.Module):
        inputs = ("image", "numeric", "present")

        def forward(self, image: Tensor, numeric: Tensor, present: Tensor | None = None) -> Tensor:
            assert present is None
            return image.flatten(1) + numeric

    data = {**batch([[1, 2, 3]], [0]), "numeric": torch.tensor([[1.0, 0, 0]]), "categorical": torch.zeros(1, 0)}
    assert three_classes().forward(Both(), data).tolist() == [[2, 2, 3]]

    class Wrapped(nn.parallel.DistributedDataParallel):  # without other processes
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.module(**inputs)

    assert three_classes().forward(Wrapped(Both()), data).tolist() == [[2, 2, 3]]


def test_a_loss_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="this task judges classes, but the loss is one of numbers") as error:
        three_classes(loss=MSELoss(targets=[number()]))
    assert error.value.hint == "choose task=regression for this loss, or for this task loss=ce, bce, focal or ordinal"


def test_several_targets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"predicts one target; the data have 2: finding, other"):
        three_classes(plan=plan(THREE, target("x", "y", "z", name="other")))


class Looking(nn.Module):
    """One convolution whose map is averaged."""

    inputs = ("image",)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def feature_layer(self) -> nn.Module:
        return self.features

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))


def looking_plan(**changes: Any) -> Any:
    return plan(THREE, image_size=(6, 6), annotated=True, **changes)


def test_attention_follows_the_mask() -> None:
    torch.manual_seed(0)
    task = three_classes(plan=looking_plan(), attention=MapSupervision(mask="kl", weight=1.0))
    model, image = Looking(), torch.rand(2, 1, 6, 6)
    mask = torch.zeros(2, 6, 6)
    mask[0, :3] = 1
    mask[1] = NAN  # no mask: left alone
    data = {**batch([[0.0]] * 2, [0, 1]), "image": image, "annotation": mask}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    terms = []
    for _ in range(40):
        step = task.training_step(model, data)
        terms.append(float(step.logs["train/loss/attention_mask"]))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
    assert terms[-1] < 0.7 * terms[0]
    bare = three_classes().training_step(model, data).loss
    step = task.training_step(model, data)
    torch.testing.assert_close(step.loss, bare + step.logs["train/loss/attention_mask"])


def corner_data(count: int = 32, *, seed: int = 0) -> dict[str, Any]:
    """The class is told by a patch in the middle, and more clearly by a corner; the masks are of the patch."""
    rng = torch.Generator().manual_seed(seed)
    image = 0.1 * torch.rand(count, 1, 16, 16, generator=rng)
    label = torch.arange(count) % 2
    mask = torch.zeros(count, 16, 16)
    mask[:, 6:10, 6:10] = 1
    image[:, 0, 6:10, 6:10] += 0.6 * label[:, None, None]
    image[:, 0, :4, :4] += 1.0 * label[:, None, None]
    return {**batch([[0.0]] * count, label.float()[:, None]), "image": image, "annotation": mask}


def mass_inside(source: Any) -> float:
    """Share of the maps of class 1 that lies on the patch, after some steps with supervision or without."""
    from medtrain.models.cnn import Cnn

    torch.manual_seed(1)
    model = Cnn(in_channels=1, image_size=(16, 16), num_outputs=2, channels=(6, 8))
    attention = None if source is None else MapSupervision(source=source, mask="kl", weight=1.0)
    changes = {"plan": plan(TWO, image_size=(16, 16), annotated=True), "loss": ClassCrossEntropy([TWO])}
    task = three_classes(attention=attention, **changes)
    data, optimizer = corner_data(), torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        task.training_step(model.train(), data).loss.backward()
        optimizer.step()
    fresh = corner_data(seed=1)
    with torch.no_grad():
        logits = model.eval()(fresh["image"])
    assert (logits.argmax(1) == fresh["target"][:, 0]).float().mean() > 0.9
    ill = fresh["target"][:, 0] == 1
    maps = explain(model, {"image": fresh["image"][ill]}, 1)
    return float((maps * fresh["annotation"][ill]).sum() / maps.sum())


def test_supervision_moves_what_the_model_sees_into_the_mask() -> None:
    bare = mass_inside(None)
    for source in ("gradcam", "cam"):
        assert mass_inside(source) > max(0.3, 1.5 * bare), (source, bare)


def test_maps_of_the_linear_head_are_those_of_grad_cam() -> None:
    torch.manual_seed(0)
    model, data = Looking(), {**batch([[0.0]] * 3, [0, 1, 2]), "image": torch.rand(3, 1, 6, 6)}
    data["annotation"] = torch.rand(3, 6, 6)
    found = []
    for source in ("gradcam", "cam"):
        step = three_classes(plan=looking_plan(), attention=MapSupervision(source=source)).training_step(model, data)  # type: ignore[arg-type]
        model.zero_grad()
        step.loss.backward()
        found.append((step.loss, model.features.weight.grad.clone(), model.head.weight.grad.clone()))  # type: ignore[union-attr]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": plan(THREE), "attention": MapSupervision()}, "the data have none"),
        ({"plan": looking_plan(view_names=("l", "r")), "attention": MapSupervision()}, "one image per sample"),
        ({"plan": plan(THREE), "instance_entropy": InstanceEntropy()}, "for bags and views"),
    ],
)
def test_attention_that_the_data_cannot_give_is_an_error_before_the_first_step(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        three_classes(**changes)


def test_a_model_without_a_feature_map_cannot_be_supervised() -> None:
    task = three_classes(plan=plan(THREE, annotated=True), attention=MapSupervision())
    with pytest.raises(UsageError, match="no feature map"):
        task.training_step(Echo(), {**batch([[0, 0, 0]], [1]), "annotation": torch.zeros(1, 1, 3)})


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_metrics_are_those_of_the_whole_split_and_not_means_of_batch_means() -> None:
    task = three_classes()
    logits, labels = random_logits(30, 3), random_labels(30, 3)
    batches = [(0, 12), (12, 24), (24, 29), (29, 30)]
    parts = [task.evaluation_step(Echo(), batch(logits[a:b], labels[a:b], first=a), final=False) for a, b in batches]
    whole = task.summarize([record for part in parts for record in part])
    truth, said = labels[:, 0].numpy(), logits.argmax(1).numpy()
    assert whole["f1_macro"] == pytest.approx(f1_score(truth, said, average="macro"))
    probs = logits.double().softmax(1).numpy()
    assert whole["auroc"] == pytest.approx(roc_auc_score(truth, probs, multi_class="ovr", average="macro"))
    means = np.mean([task.summarize(part)["f1_macro"] for part in parts])
    assert abs(means - whole["f1_macro"]) > 0.01


def test_any_number_of_ranks_gives_the_same_metrics() -> None:
    task = three_classes()
    logits, labels = random_logits(11, 3), random_labels(11, 3)
    once = task.evaluation_step(Echo(), batch(logits, labels), final=False)
    ranks = []
    for rank in range(3):
        piece = batch(logits[rank::3], labels[rank::3])
        piece["case_id"] = piece["group"] = [f"c{index:03d}" for index in range(rank, 11, 3)]
        ranks += task.evaluation_step(Echo(), piece, final=False)
    gathered = sorted(ranks, key=lambda record: record["case_id"])
    assert gathered == once
    assert task.summarize(gathered) == pytest.approx(task.summarize(once), rel=0, abs=0, nan_ok=True)


def test_the_loss_of_a_split_is_that_of_one_batch() -> None:
    task = three_classes(loss=ClassCrossEntropy([THREE], class_weights=(1.0, 2.0, 4.0), label_smoothing=0.1))
    logits, labels = random_logits(9, 3), random_labels(9, 3)
    labels[4] = NAN
    records = task.evaluation_step(Echo(), batch(logits, labels), final=False)
    expected = float(task.loss(logits, labels))
    assert task.summarize(records)["loss"] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(records[4]["loss"])
    assert "loss" in task.metrics()


def test_records_are_plain_and_say_what_is_known() -> None:
    task = three_classes()
    data = batch([[2, 0, 0], [0, 0, 5]], [1, NAN], groups=["p", "q"])
    first, second = task.evaluation_step(Echo(), data, final=False)
    exps = np.exp([2.0, 0, 0])
    assert first["prob/a"] == pytest.approx(exps[0] / exps.sum(), rel=1e-12)
    assert (first["case_id"], first["group"], first["label"], first["predicted"]) == ("c000", "p", 1, 0)
    assert np.isnan(second["label"])
    assert second["predicted"] == 2
    assert {type(value) for record in (first, second) for value in record.values()} <= {str, int, float}
    assert task.readable([first, second])[1] | {"label": ""} == task.readable([first, second])[1]
    assert task.readable([first])[0]["predicted"] == "a"


def test_saturated_logits_are_still_told_apart() -> None:
    task = two_classes()
    data = batch([[30.0], [35.0], [-110.0], [-120.0]], [0, 1, 1, 0])
    records = task.evaluation_step(Echo(), data, final=False)
    probs = [record["prob/yes"] for record in records]
    assert probs[1] > probs[0]
    assert probs[2] > probs[3] > 0
    assert task.summarize(records)["auroc"] == 0.75


def test_prediction_needs_no_target() -> None:
    task = three_classes()
    (record,) = task.evaluation_step(Echo(), batch([[0, 3, 0]]), final=True)
    assert "label" not in record
    assert "loss" not in record
    assert record["predicted"] == 1


def test_logits_that_are_not_finite_end_the_evaluation() -> None:
    with pytest.raises(NonFiniteError):
        three_classes().evaluation_step(Echo(), batch([[NAN, 0, 0]], [1]), final=False)


def test_half_precision_logits_are_read_in_full() -> None:
    class Half(Echo):
        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1).bfloat16()

    (record,) = three_classes().evaluation_step(Half(), batch([[1, 2, 3]], [1]), final=False)
    assert sum(record[f"prob/{name}"] for name in "abc") == pytest.approx(1, abs=1e-14)


def test_images_are_normalised_as_in_training() -> None:
    task = three_classes(plan=plan(THREE, width=3, mean=(0.5,), std=(0.25,)))
    data = batch([[0, 0, 0]], [1])
    data["image"] = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    (record,) = task.evaluation_step(Echo(), data, final=False)
    logits = (np.array([0, 0.2, 1.0]) - 0.5) / 0.25
    assert record["prob/c"] == pytest.approx(np.exp(logits[2]) / np.exp(logits).sum(), rel=1e-5)


def test_attention_over_instances_is_kept_and_written() -> None:
    class Attending(Echo):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            weights = torch.tensor([[0.25, 0.75, 0.0]]).expand(len(image), -1)
            return {"logits": image.flatten(1), "attention": weights}

    task = three_classes()
    records = task.evaluation_step(Attending(), batch([[0, 3, 0]], [1]), final=False)
    assert records[0]["attention"] == "0.25 0.75 0"
    rows = task.final_tables(records)["attention"]
    assert [row["attention"] for row in rows] == [0.25, 0.75, 0.0]


# ------------------------------------------------------------------------------------------------------------- monitor


def test_the_monitor_is_not_raised_by_a_common_class() -> None:
    assert two_classes().monitor.name == "val/auroc"
    assert three_classes().monitor.name == "val/f1_macro"
    common = three_classes().evaluation_step(Echo(), batch([[5, 0, 0]] * 10, [[0]] * 8 + [[1], [2]]), final=False)
    summary = three_classes().summarize(common)
    assert summary["accuracy"] == 0.8
    assert summary["f1_macro"] < 0.3


@pytest.mark.parametrize("name", ["recall/b", "val/recall/b", "loss", "balanced_accuracy"])
def test_any_metric_can_be_monitored(name: str) -> None:
    monitor = three_classes(monitor=name).monitor
    assert monitor.name == f"val/{name.removeprefix('val/')}"
    assert monitor.mode == ("min" if name == "loss" else "max")


def test_an_unknown_monitor_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"task.monitor=f1_makro is not a metric .*available: f1_macro, ") as caught:
        three_classes(monitor="f1_makro")
    assert caught.value.hint == "did you mean task.monitor=f1_macro?"


def test_everything_that_is_announced_is_computed() -> None:
    task = three_classes()
    records = task.evaluation_step(Echo(), batch(random_logits(9, 3), random_labels(9, 3)), final=False)
    assert list(task.summarize(records)) == list(task.metrics())


# ----------------------------------------------------------------------------------------------------------- decisions


def shifted(threshold: float, *, count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose best threshold, as a probability, is near a given one."""
    logits = 2 * random_logits(count, 1, seed=seed)
    labels = (logits.sigmoid() > threshold).float()
    return logits, labels


def test_the_threshold_is_chosen_on_validation_and_applied_unchanged_to_the_test_part() -> None:
    task = two_classes(inference=ImageInference(threshold="youden"))
    val = task.evaluation_step(Echo(), batch(*shifted(0.3)), final=True)
    decision = task.fit_decision(val)
    assert decision == json.loads(json.dumps(decision))
    assert list(decision) == ["threshold/yes"]
    assert decision["threshold/yes"] == pytest.approx(0.3, abs=0.06)
    assert task.summarize(task.decide(val))["accuracy"] == 1.0

    later = two_classes(inference=ImageInference(threshold="youden"))
    later.use_decision(decision)
    logits, labels = shifted(0.8, seed=3)
    test = later.evaluation_step(Echo(), batch(logits, labels), final=True)
    said = (logits.double().sigmoid()[:, 0] >= decision["threshold/yes"]).long().tolist()
    assert [record["predicted"] for record in test] == said
    assert later.summarize(test)["accuracy"] == pytest.approx(np.mean(np.array(said) == labels[:, 0].numpy()))
    assert later.summarize(test)["accuracy"] < 1  # its own best threshold would reach 1


def test_during_training_and_without_asking_the_threshold_is_a_half() -> None:
    task = two_classes(inference=ImageInference(threshold="youden"))
    records = task.evaluation_step(Echo(), batch([[0.1], [-0.1]], [1, 0]), final=False)
    assert [record["predicted"] for record in records] == [1, 0]
    plain = two_classes()
    plain.use_decision({"threshold/yes": 0.9, "temperature": 3.0})
    assert plain.decision == {}
    assert two_classes().fit_decision(records) == {}


def test_a_threshold_by_hand() -> None:
    task = two_classes(inference=ImageInference(threshold=0.2))
    records = task.evaluation_step(Echo(), batch([[-1.0], [-2.0]], [1, 0]), final=False)  # 0.27, 0.12
    assert [record["predicted"] for record in records] == [1, 0]
    assert task.summarize(records)["accuracy"] == 1.0


def test_the_threshold_that_finds_the_positives() -> None:
    task = two_classes(inference=ImageInference(min_sensitivity=0.75))
    labels = [[1], [1], [1], [1], [0], [0]]
    val = task.evaluation_step(Echo(), batch([[3.0], [2.0], [0.0], [-3.0], [1.0], [-4.0]], labels), final=True)
    task.fit_decision(val)
    summary = task.summarize(task.decide(val))
    assert summary["sensitivity"] == 0.75
    assert summary["specificity"] == 0.5


def test_the_temperature_is_fitted_and_orders_nothing_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).float()
    task = three_classes(inference=ImageInference(calibrate=True))
    raw = task.evaluation_step(Echo(), batch(4 * logits, labels), final=True)  # four times too sure
    decision = task.fit_decision(raw)
    assert decision["temperature"] == pytest.approx(4, rel=0.15)
    calibrated = task.decide(raw)
    assert task.summarize(calibrated)["nll"] < 0.7 * task.summarize(raw)["nll"]
    assert [record["predicted"] for record in calibrated] == [record["predicted"] for record in raw]
    again = task.evaluation_step(Echo(), batch(4 * logits, labels), final=True)
    for one, other in zip(again, calibrated, strict=True):
        assert one["prob/a"] == pytest.approx(other["prob/a"], rel=1e-9)


def test_what_is_left_to_the_validation_part_and_not_chosen_is_lacking() -> None:
    task = two_classes(inference=ImageInference(threshold="youden"))
    assert task.lacks_decision
    task.use_decision({"temperature": 2.0})
    assert task.lacks_decision
    task.use_decision({"threshold/yes": 0.3})
    assert not task.lacks_decision
    task.use_decision({})
    assert task.lacks_decision
    both = two_classes(inference=ImageInference(threshold="youden", calibrate=True))
    both.use_decision({"threshold/yes": 0.3})
    assert both.lacks_decision
    assert not two_classes(inference=ImageInference(threshold=0.3)).lacks_decision


def test_one_class_alone_tells_no_threshold(caplog: pytest.LogCaptureFixture) -> None:
    task = two_classes(inference=ImageInference(threshold="youden"))
    val = task.evaluation_step(Echo(), batch([[0.0], [1.0]], [1, 1]), final=True)
    assert task.fit_decision(val) == {}
    assert "threshold/yes" in caplog.text


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(UsageError, match="choose between two classes; this task has 3 classes"):
        three_classes(inference=ImageInference(threshold=0.4))
    with pytest.raises(UsageError, match="the data have no images"):
        three_classes(plan=plan(THREE, in_channels=0, image_size=()), inference=ImageInference(mirror=True))


# ------------------------------------------------------------------------------------------------------------- reports


def tabular() -> TabularEncoder:
    age = NumericState("age", fill=60.0, mean=60.0, scale=10.0)
    return TabularEncoder((age,), (CategoryState("sex", ("f", "m")),), indicators=True)


def with_table(data: dict[str, Any], ages: list[float], codes: list[int]) -> dict[str, Any]:
    known = torch.tensor([[age == age, code > 0] for age, code in zip(ages, codes, strict=True)])
    numeric = torch.tensor([[(age - 60) / 10 if age == age else 0.0, float(age != age)] for age in ages])
    return {**data, "numeric": numeric, "categorical": torch.tensor(codes)[:, None], "observed": known}


def test_subgroups_are_told_as_they_were_written() -> None:
    report = Report(resamples=0, subgroups=("sex", "age"), bins={"age": (50.0, 70.0)})
    task = two_classes(plan=plan(TWO, width=1, tabular=tabular()), report=report)
    data = with_table(
        batch([[1.0], [1.0], [-1.0], [1.0], [-1.0]], [1, 0, 0, 1, 1]), [40, 70, NAN, 55, 69.9], [2, 3, 3, 0, 1]
    )
    records = task.evaluation_step(Echo(), data, final=True)
    assert [record["column/sex"] for record in records] == ["f", "m", "m", "", "unseen"]
    rows = task.final_tables(records)["subgroups"]
    found = {
        (row["column"], row["subgroup"]): (row["n_samples"], row["value"])
        for row in rows
        if row["metric"] == "accuracy"
    }
    assert found == {
        ("all", "all"): (5, 0.6),
        ("sex", "f"): (1, 1.0),
        ("sex", "m"): (2, 0.5),
        ("sex", "unseen"): (1, 0.0),
        ("sex", "missing"): (1, 1.0),
        ("age", "<50"): (1, 1.0),
        ("age", "50-70"): (2, 0.5),
        ("age", ">=70"): (1, 0.0),
        ("age", "missing"): (1, 1.0),
    }


def test_metadata_divide_the_metrics_and_stand_in_every_record() -> None:
    report = Report(resamples=0, subgroups=("site", "dose"), bins={"dose": (1.0,)})
    task = two_classes(plan=plan(TWO, width=1, metadata_names=("site", "dose", "scanner")), report=report)
    data = batch([[1.0], [1.0], [-1.0], [1.0]], [1, 0, 0, 1])
    data |= {"column/site": ["n", "n", "s", ""], "column/dose": ["0.5", "", "1", "2"], "column/scanner": list("abcd")}
    records = task.evaluation_step(Echo(), data, final=True)
    assert [record["column/scanner"] for record in records] == list("abcd")
    assert [record["column/site"] for record in records] == ["n", "n", "s", ""]
    rows = task.final_tables(records)["subgroups"]
    found = {
        (row["column"], row["subgroup"]): (row["n_samples"], row["value"])
        for row in rows
        if row["metric"] == "accuracy"
    }
    assert found == {
        ("all", "all"): (4, 0.75),
        ("site", "n"): (2, 0.5),
        ("site", "s"): (1, 1.0),
        ("site", "missing"): (1, 1.0),
        ("dose", "<1"): (1, 1.0),
        ("dose", ">=1"): (2, 1.0),
        ("dose", "missing"): (1, 0.0),
    }
    with pytest.raises(UsageError, match="the column dose holds 'much'"):
        task.evaluation_step(Echo(), {**data, "column/dose": ["much", "", "1", "2"]}, final=False)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (Report(subgroups=("sx",)), "sx is no column of the table; available: age, sex"),
        (Report(subgroups=("sex",), bins={"sex": (1.0,)}), "sex is no column of numbers"),
        (Report(subgroups=("age",), bins={"aeg": (1.0,)}), "aeg is no column of the table; available: age, sex"),
        (Report(subgroups=("age",), bins={"age": ()}), "must ascend"),
        (Report(subgroups=("age",), bins={"age": (2.0, 1.0)}), "must ascend"),
    ],
)
def test_subgroups_that_do_not_exist(report: Report, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        two_classes(plan=plan(TWO, width=1, tabular=tabular()), report=report)


def test_bins_of_training_can_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """`medtrain evaluate` merges its values into those of the run, and cannot take a key away."""
    given = plan(TWO, width=1, tabular=tabular(), metadata_names=("dose",))
    bins = {"age": (50.0,), "dose": (1.0,)}
    data = with_table(batch([[1.0], [1.0]], [1, 0]), [40, 70], [2, 3]) | {"column/dose": ["much", "2"]}
    task = two_classes(plan=given, report=Report(resamples=0, subgroups=("sex",), bins=bins))
    rows = task.final_tables(task.evaluation_step(Echo(), data, final=True))["subgroups"]
    assert {row["column"] for row in rows} == {"all", "sex"}
    assert "task.report.bins.age has no effect: age is not among task.report.subgroups" in caplog.text
    assert "task.report.bins.dose has no effect" in caplog.text
    caplog.clear()
    report = Report(resamples=0, subgroups=("age", "dose"), bins={"age": None, "dose": None})
    task = two_classes(plan=given, report=report)
    rows = task.final_tables(task.evaluation_step(Echo(), data, final=True))["subgroups"]
    # the quartiles of 40 and 70 are 47.5, 55 and 62.5
    assert {row["subgroup"] for row in rows} == {"all", "<47.5", ">=62.5", "much", "2"}
    assert not caplog.text


def test_intervals_draw_patients_with_all_their_samples() -> None:
    logits, labels = random_logits(24, 1), random_labels(24, 2)
    eyes = batch(logits.repeat_interleave(2, 0), labels.repeat_interleave(2, 0))
    apart, together = two_classes(report=Report(resamples=200)), two_classes(report=Report(resamples=200))
    alone = apart.evaluation_step(Echo(), batch(logits, labels), final=True)
    eyes["group"] = [f"p{index // 2:03d}" for index in range(48)]
    twice = together.evaluation_step(Echo(), eyes, final=True)
    single = {row["metric"]: row for row in apart.final_tables(alone)["intervals"]}
    double = {row["metric"]: row for row in together.final_tables(twice)["intervals"]}
    for name in ("auroc", "accuracy"):  # a patient's second eye adds no certainty
        assert double[name]["low"] == pytest.approx(single[name]["low"])
        assert double[name]["high"] == pytest.approx(single[name]["high"])
        assert single[name]["low"] < single[name]["value"] < single[name]["high"]


def test_an_evaluation_is_written(tmp_path: Path) -> None:
    task = two_classes(report=Report(resamples=50), inference=ImageInference(threshold="youden"))
    records = task.evaluation_step(Echo(), batch([[1.0], [0.2], [-1.0], [3.0]], [1, 0, 0, 1]), final=True)
    task.fit_decision(records)
    records = task.decide(records)
    summary = task.summarize(records)
    task.write_evaluation(tmp_path, records, summary, extra={"part": "val"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cases.csv", "confusion.csv", "intervals.csv", "summary.json",
    ]  # fmt: skip
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["prob/yes"]) for row in rows] == [record["prob/yes"] for record in records]
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["metrics"]["auroc"] == 1.0
    assert facts["part"] == "val"
    assert facts["num_cases"] == 4
    assert facts["decision"] == {"threshold/yes": task.decision["threshold/yes"]}
    assert facts["worst"][0]["case_id"] == "c001"
    assert len(facts["intervals"]["auroc"]) == 2
    with (tmp_path / "confusion.csv").open() as file:
        confusion = list(csv.DictReader(file))
    assert [row["predicted yes"] for row in confusion] == ["0", "2"]


def test_the_table_for_the_console_has_every_class(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    task = three_classes()
    records = task.evaluation_step(Echo(), batch(random_logits(9, 3), random_labels(9, 3)), final=False)
    table = task.summary_table(records, task.summarize(records), title="run")
    Console(width=100).print(table)
    text = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:] if line.split()}
    assert len(lines["f1"]) == 3
    assert len(lines["balanced_accuracy"]) == 1
    assert len(lines["auroc"]) == 4


def test_the_worst_come_first_and_the_unlabelled_not_at_all() -> None:
    task = three_classes()
    data = batch([[3, 0, 0], [3, 0, 0], [0, 0, 0], [9, 9, 9]], [0, 1, 2, NAN])
    worst = task.worst_cases(task.evaluation_step(Echo(), data, final=False))
    assert [case for case, _ in worst] == ["c001", "c002", "c000"]
    assert worst[1][1] == pytest.approx(1 / 3)
    assert task.worst_cases([]) == []


def test_an_example_has_every_entry_that_the_data_give() -> None:
    shapes = {
        key: (tuple(value.shape), value.dtype)
        for key, value in two_classes(
            plan=plan(TWO, image_size=(8, 6), in_channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, view_names=("l", "r"),
                      tabular=tabular())
        ).example_batch().items()
    }  # fmt: skip
    assert shapes == {
        "image": ((1, 2, 3, 8, 6), torch.float32),
        "present": ((1, 2), torch.bool),
        "numeric": ((1, 2), torch.float32),
        "categorical": ((1, 1), torch.int64),
        "observed": ((1, 2), torch.bool),
    }
    assert tuple(three_classes().example_batch()["image"].shape) == (1, 1, 1, 3)


def test_models_get_the_size_of_their_output() -> None:
    assert three_classes().runtime() == {"num_outputs": 3, "cumulative_targets": 0}
    assert two_classes().runtime() == {"num_outputs": 1, "cumulative_targets": 0}


def test_the_most_uncertain_are_nearest_to_the_threshold() -> None:
    probs = np.array([0.05, 0.2, 0.5, 0.9])
    records = [{"prob/no": 1 - p, "prob/yes": p} for p in probs]
    task = two_classes()
    assert task.outcome.doubts(records, {}).argmax() == 2
    half = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
    assert task.outcome.doubts(records, {})[1] == pytest.approx(half)  # the entropy, where the threshold is 0.5
    assert task.outcome.doubts(records, {"threshold/yes": 0.18}).argmax() == 1
    fixed = two_classes(inference=ImageInference(threshold=0.93))
    assert fixed.outcome.doubts(records, {}).argmax() == 3
    assert fixed.outcome.doubts(records, {"threshold/yes": 1.0}).argmax() == 3


def test_of_two_classes_nothing_is_printed_twice() -> None:
    task = two_classes()
    found = task.evaluation_step(Echo(), batch(random_logits(30, 1), random_labels(30, 2)), final=True)
    summary = task.summarize(found)
    printed = task.outcome.printed(summary)
    assert printed[:4] == ["auroc", "f1_macro", "balanced_accuracy", "accuracy"]
    assert {"sensitivity", "specificity", "ppv", "npv", "loss"} < set(printed)
    values = [round(summary[name], 12) for name in printed if name not in ("n_undefined", "loss")]
    assert len(set(values)) == len(values)
    monitored = two_classes(monitor="recall_macro")
    assert "recall_macro" in str(list(monitored.summary_table(found, summary, title="t").columns[0].cells))
    three = three_classes()
    assert three.outcome.printed(three.metrics()) == list(three.metrics())


def test_a_model_that_says_the_same_of_all_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = two_classes()
    found = task.evaluation_step(Echo(), batch([[2.0], [1.0], [3.0], [1.5]], [1, 1, 0, 1]), final=True)
    task.write_evaluation(tmp_path, found, task.summarize(found), extra={})
    (told,) = [record.getMessage() for record in caplog.records if "says the same" in record.getMessage()]
    expected = "of all 4 samples: yes, and the accuracy is the share of these samples, 0.7500"
    assert told == f"the model says the same {expected}"
    summary = json.loads((tmp_path / "summary.json").read_text())
    right = 1 - 1 / (1 + np.exp(-3))
    assert summary["worst"][0] == {"case_id": "c002", "probability of the truth": pytest.approx(right)}
    assert task.told(found[2]) == "truth no (4.7%), predicted yes (95.3%): wrong"
    caplog.clear()
    alike = task.evaluation_step(Echo(), batch([[2.0], [1.0]], [1, 1]), final=True)  # and so are the labels
    task.write_evaluation(tmp_path, alike, task.summarize(alike), extra={})
    assert "says the same" not in caplog.text


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_loss_of_mixed_images_is_that_of_mixed_targets(share: float) -> None:
    logits, labels = random_logits(5, 3), random_labels(5, 3)
    labels[1] = NAN
    task = three_classes(loss=ClassCrossEntropy([THREE], class_weights=(1.0, 2.0, 4.0)))
    data = {**batch(logits, labels), "mix": Mix(share)}
    found = float(task.training_step(Echo(), data).loss.detach())
    mixed = share * logits + (1 - share) * logits.flip(0)
    each = -torch.log_softmax(mixed, dim=1)
    weights = torch.tensor([1.0, 2.0, 4.0])
    hot = torch.nn.functional.one_hot(labels.nan_to_num(0).long()[:, 0], 3) * ~labels.isnan()
    soft = (share * hot + (1 - share) * hot.flip(0)) * weights
    assert found == pytest.approx(float((soft * each).sum() / soft.sum()), rel=1e-6)
    assert task.batch_weight(data) == pytest.approx(float(soft.sum()))  # for accumulation and several processes

    binary = two_classes()
    logits, labels = random_logits(4, 1), random_labels(4, 2)
    mixed, soft = (share * part + (1 - share) * part.flip(0) for part in (logits, labels))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(mixed, soft)
    found = float(binary.training_step(Echo(), {**batch(logits, labels), "mix": Mix(share)}).loss.detach())
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_mixing_is_refused_where_it_means_nothing() -> None:
    mixing = SimpleNamespace(mirrors=False, mixup=0.2, cutmix=0.0)
    three_classes().check_training({}, mixing)
    with pytest.raises(UsageError, match=r"augment\.mixup mixes single images"):
        three_classes(plan=plan(THREE, width=3, max_instances=4)).check_training({}, mixing)
    with pytest.raises(UsageError, match=r"augment\.mixup needs a loss of single samples"):
        three_classes(loss=QuadraticKappaLoss(targets=[THREE])).check_training({}, mixing)
    encoder = TabularEncoder((NumericState("age", 0.0, 1.0, 0.0),), (), indicators=False)
    with pytest.raises(UsageError, match="not the columns of a table"):
        three_classes(plan=plan(THREE, width=3, tabular=encoder)).check_training({}, mixing)
