"""Which samples are explained, of what, and that explaining leaves the model as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medtrain.engine.explaining import draw_evaluation
from medtrain.errors import UsageError
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.losses.multitask import MultitaskLoss
from medtrain.losses.ordinal import OrdinalLoss
from medtrain.losses.regression import MSELoss
from medtrain.losses.survival import CoxLoss
from medtrain.models.cnn import Cnn
from medtrain.pictures.heat import Explained
from medtrain.tasks import explaining
from medtrain.tasks.base import PictureStyle
from medtrain.tasks.classification import Classification
from medtrain.tasks.explaining import ask, choose, explain_samples
from medtrain.tasks.images import ImageTask
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

TWO, THREE = target("no", "yes"), target("a", "b", "c")
ZONES = [target("0", "1", "unknown", name=f"{side}_zone") for side in ("right", "left")]
LABELS = [target("no", "yes", name="oedema"), target("no", "yes", name="nodule")]
TIMES = [number("months"), target("0", "1", name="died")]


def settings(*targets: Any, **changes: Any) -> dict[str, Any]:
    values = {"image_size": (8, 8), **changes}
    return {"plan": plan(*targets, **values)}


def classes(report: Report | None = None, **changes: Any) -> Classification:
    report = report or Report(resamples=0, explained=2)
    return made("classification", loss=ClassCrossEntropy([TWO]), report=report, **settings(TWO, **changes))


def said(task: ImageTask, probs: Sequence[float], labels: Sequence[float]) -> list[dict[str, Any]]:
    """Records with the probability of the second class."""
    rows = task.outcome.rows(
        np.stack([1 - np.array(probs), np.array(probs)], axis=1), np.array(labels, dtype=np.float64)[:, None], {}
    )
    return [{"case_id": f"c{i:03d}", "group": f"c{i:03d}", **row} for i, row in enumerate(rows)]


def test_the_worst_the_least_sure_and_the_best_of_different_classes() -> None:
    outcome = classes().outcome
    probs = [0.9, 0.05, 0.5, 0.45, 0.99, 0.98, 0.03, 0.97, 0.6]
    labels = [0, 1, 1, 0, 1, 1, 0, 1, NAN]
    found = choose(outcome, said(classes(), probs, labels), 2)
    # truth at 0.05 and 0.1; of the others, 0.5 and 0.45 are nearest to a half; best is 0.99 for yes, 0.97 for no
    assert found == {"worst": [1, 0], "uncertain": [2, 3], "best": [4, 6]}
    assert choose(outcome, said(classes(), probs[:2], labels[:2]), 2) == {"": [0, 1]}
    assert choose(outcome, [], 2) == {}
    unlabelled = choose(outcome, said(classes(), [0.9, 0.6, 0.8], [NAN] * 3), 1)
    assert unlabelled == {"uncertain": [1]}


def test_none_of_the_best_is_wrong() -> None:
    outcome = classes().outcome
    found = choose(outcome, said(classes(), [0.2, 0.4, 0.3], [1, 1, 1]), 1)
    assert found == {"worst": [0], "uncertain": [1]}


ASKED: list[tuple[ImageTask, list[float], list[float], dict[str, list[float]]]] = [
    (classes(), [0, 3], [0], {"for the prediction": [1], "for the truth": [0]}),
    (made("ordinal", loss=OrdinalLoss(targets=[THREE]), **settings(THREE)), [2, 2], [0], {"for a higher grade": [2]}),
    (made("ordinal", loss=ClassCrossEntropy([THREE]), **settings(THREE)), [0, 0, 5], [0],
        {"for the prediction": [2], "for the truth": [0]}),
    (made("multilabel", loss=LabelCrossEntropy(LABELS), **settings(*LABELS)), [-2, 2], [0, NAN],
        {"oedema": [1, NAN], "nodule": [NAN, 1]}),
    (made("zones", loss=ClassCrossEntropy(ZONES), **settings(*ZONES)), [0, 2, 0, 0, 0, 3], [0, 1],
        {"right_zone": [1, NAN], "left_zone": [NAN, 2]}),
    (made("regression", loss=MSELoss(targets=[number()]), **settings(number())), [3], [1],
        {"for a larger number": [0]}),
    (made("survival", loss=CoxLoss(targets=TIMES), **settings(*TIMES)), [1], [2, 1], {"for a higher risk": [0, 0]}),
    (made("multitask", loss=MultitaskLoss(targets=[TWO, number()]), **settings(TWO, number())), [3, 1], [0, 2],
        {"finding": [1, NAN], "age": [NAN, 0]}),
]  # fmt: skip


@pytest.mark.parametrize(("task", "logits", "truth", "expected"), ASKED)
def test_what_is_asked_of_a_sample(
    task: ImageTask, logits: list[float], truth: list[float], expected: dict[str, list[float]]
) -> None:
    records = task.evaluation_step(Echo(), batch([logits], [truth]), final=True)
    found = ask(task, records)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], [values])
        evidence = task.loss.evidence(torch.tensor([logits]), torch.tensor([values]))
        assert evidence.isfinite().all()


class Corners(nn.Module):
    """Class 0 is what is bright above, class 1 what is bright below."""

    inputs = ("image",)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        nn.init.ones_(self.features.weight)
        where = torch.zeros(2, 8, 8)
        where[0, :4], where[1, 4:] = 1, 1
        self.register_buffer("where", where)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(2))

    def feature_layer(self) -> nn.Module:
        return self.where_layer

    @property
    def where_layer(self) -> nn.Module:
        if not hasattr(self, "_layer"):
            self._layer = nn.Identity()
        return self._layer

    def forward(self, image: Tensor) -> Tensor:
        maps = self.where_layer(self.features(image) * self.where)
        return self.head(maps.mean((2, 3)))


def reader(data: dict[str, Any], asked: list[list[str]]) -> Any:
    """Reads cases of a batch, two at a time."""

    def read(cases: Sequence[str]) -> Iterator[dict[str, Any]]:
        asked.append(list(cases))
        for start in range(0, len(cases), 2):
            rows = [data["case_id"].index(case) for case in cases[start : start + 2]]
            yield {
                key: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
                for key, value in data.items()
                if key != "weight"
            }

    return read


def pictures_of(count: int) -> dict[str, Any]:
    """The first half bright above, the second below; the last is called wrong."""
    image = torch.zeros(count, 1, 8, 8)
    image[: count // 2, :, 1, 2], image[count // 2 :, :, 6, 5] = 1, 1
    label = (torch.arange(count) >= count // 2).float()
    label[-1] = 0
    return {**batch([[0.0]] * count, label[:, None]), "image": image}


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "cam"])
def test_maps_show_where_the_evidence_is(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, data = classes(Report(resamples=0, explained=1, explain=method)), Corners(), pictures_of(6)
    records = task.evaluation_step(model.eval(), data, final=True)
    drawn: list[Sequence[Explained]] = []
    original = explaining.draw_heat_maps
    monkeypatch.setattr(explaining, "draw_heat_maps", lambda rows, **k: (drawn.append(rows), original(rows, **k))[1])
    asked: list[list[str]] = []
    found = explain_samples(task, model, reader(data, asked), records, PictureStyle(title="step 3"))
    assert set(found) == {"explained"}
    assert found["explained"].dtype == np.uint8
    (chosen,) = asked
    assert chosen[0] == "c005"
    rows = {row.heading: row for row in drawn[0]}
    assert list(rows) == ["worst", "uncertain", "best"]
    worst = rows["worst"].maps
    hot = np.zeros((8, 8))
    hot[6, 5] = 1
    np.testing.assert_allclose(worst["for the prediction"], hot, atol=1e-6)  # called class 1: what is bright below
    assert worst["for the truth"] is not None
    assert not worst["for the truth"].any()  # nothing is bright above
    assert rows["worst"].captions["for the truth"][0] == "no: nowhere"
    assert rows["best"].maps["for the truth"] is None
    assert rows["best"].captions["for the truth"][0] == "the same"


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Cnn(in_channels=1, image_size=(8, 8), num_outputs=2, channels=(4, 6))
    task, data = classes(), pictures_of(8)
    data["image"] = torch.rand(8, 1, 8, 8)
    model.train()
    model(data["image"]).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    records = task.evaluation_step(model.eval(), data, final=True)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    assert explain_samples(task, model, reader(data, []), records, PictureStyle())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for before, parameter in zip(grads, model.parameters(), strict=True):
        assert before is None or torch.equal(before, parameter.grad)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(p.requires_grad for p in model.parameters())


def test_as_many_as_are_asked_for_and_none_without_asking() -> None:
    data, model = pictures_of(20), Corners().eval()
    for count in (1, 3):
        task, asked = classes(Report(resamples=0, explained=count)), []
        explain_samples(task, model, reader(data, asked), task.evaluation_step(model, data, final=True), PictureStyle())
        assert len(asked[0]) == 3 * count
    task = classes(Report(resamples=0, explain="none"))
    records = task.evaluation_step(model, data, final=True)
    assert explain_samples(task, model, reader(data, asked), records, PictureStyle()) == {}
    assert len(asked) == 1
    assert explain_samples(classes(), model, reader(data, asked), [], PictureStyle()) == {}


def test_what_cannot_be_explained_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    task, data = classes(), pictures_of(4)

    class Blind(Corners):
        feature_layer = None  # type: ignore[assignment]

    records = task.evaluation_step(Corners(), data, final=True)
    with pytest.raises(UsageError, match="no feature map"):
        explain_samples(task, Blind(), reader(data, []), records, PictureStyle())
    with caplog.at_level(logging.INFO):
        seen = draw_evaluation(task, Blind(), reader(data, []), records, step=1)
        failed = draw_evaluation(task, Corners(), lambda _: 1 / 0, records, step=1)  # type: ignore[arg-type, return-value]
    assert set(seen) == set(failed) == set(task.pictures(records, PictureStyle()))
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("no pictures of what the model saw: Blind has no feature map")
    assert messages[1] == "pictures of what the model saw failed: ZeroDivisionError: division by zero"
    assert len(messages) == 2


def test_views_have_maps_and_attention_is_drawn_even_where_maps_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from medtrain.models.instances import EncoderSettings
    from medtrain.models.multiview import MultipleInstance

    torch.manual_seed(0)
    model = MultipleInstance(
        in_channels=1,
        image_size=(8, 8),
        view_names=(),
        max_instances=5,
        num_outputs=2,
        image_encoder=EncoderSettings(arch="cnn"),
        aggregator="attention",
    )
    task = classes(max_instances=5)
    present = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    data = {**batch([[0.0]] * 3, [0, 1, 1]), "image": torch.rand(3, 5, 1, 8, 8), "present": present}
    records = task.evaluation_step(model.eval(), data, final=True)
    with caplog.at_level(logging.INFO):
        found = explain_samples(task, model, reader(data, []), records, PictureStyle())
    assert set(found) == {"attention"}  # five layers of pooling leave one place of 8 x 8
    assert "have a single place" in caplog.text
    assert found["attention"].shape[2] == 3
