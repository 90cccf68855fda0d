"""Several losses on the targets of one image."""

from __future__ import annotations

import pytest
import torch

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.losses.multitask import LossPart, MultitaskLoss, PartName
from medtrain.losses.ordinal import OrdinalLoss
from medtrain.losses.regression import HuberLoss, MAELoss
from tests.losses.targets import NAN, Target, classes, scores, survival

STAGE = classes(4, name="stage", counts=(50, 30, 15, 5))
OEDEMA = classes(2, name="oedema", counts=(80, 20))
AGE = Target("age", None, mean=50.0, std=20.0)
TARGETS = [STAGE, OEDEMA, AGE]
PARTS = [
    LossPart(targets=("stage",), loss="ordinal", weight=2.0),
    LossPart(targets=("age",), loss="mae", weight=0.5),
    LossPart(targets=("oedema",), loss="bce", pos_weight="balanced"),
]
FULL = torch.tensor([[0.0, 1, 30], [3, 0, 70], [1, 0, 55]])


def test_labelled_throughout_it_is_the_weighted_sum() -> None:
    loss = MultitaskLoss(targets=TARGETS, parts=PARTS)
    assert loss.num_outputs == 3 + 1 + 1
    logits = scores(3, 5)
    stage = OrdinalLoss(targets=[STAGE])(logits[:, :3], FULL[:, :1])
    age = MAELoss(targets=[AGE])(logits[:, 3:4], FULL[:, 2:])
    oedema = LabelCrossEntropy([OEDEMA], pos_weight="balanced")(logits[:, 4:], FULL[:, 1:2])
    torch.testing.assert_close(loss(logits, FULL), 2 * stage + 0.5 * age + oedema)


def test_a_part_counts_as_often_as_it_is_labelled() -> None:
    loss = MultitaskLoss(targets=TARGETS, parts=PARTS)
    target = FULL.clone()
    target[1:, 2] = NAN  # age is known once in three samples
    target = torch.cat([target, torch.full((2, 3), NAN)])  # and two samples have no label at all
    logits = scores(5, 5)
    assert loss.weight(target) == 3
    stage = OrdinalLoss(targets=[STAGE])(logits[:, :3], target[:, :1])
    age = MAELoss(targets=[AGE])(logits[:, 3:4], target[:, 2:])
    oedema = LabelCrossEntropy([OEDEMA], pos_weight="balanced")(logits[:, 4:], target[:, 1:2])
    torch.testing.assert_close(loss(logits, target), 2 * stage + 0.5 * age / 3 + oedema)


def test_parts_predict_their_own_targets() -> None:
    loss = MultitaskLoss(targets=TARGETS, parts=PARTS)
    logits = scores(3, 5)
    stage, age, oedema = [part.predict(said) for part, said in zip(loss.losses, loss.split(logits), strict=True)]
    assert (stage.shape, age.shape, oedema.shape) == ((3, 1, 4), (3, 1), (3, 1, 2))
    assert loss.columns == [[0], [2], [1]]
    with pytest.raises(TypeError, match="parts"):
        loss.predict(logits)


def test_targets_of_which_nothing_is_said() -> None:
    loss = MultitaskLoss(targets=TARGETS)
    assert [type(part) for part in loss.losses] == [ClassCrossEntropy, LabelCrossEntropy, HuberLoss]


def test_survival_beside_a_class() -> None:
    time, event = survival()
    parts = [LossPart(targets=("stage",), loss="ce"), LossPart(targets=("time", "event"), loss="discrete_survival")]
    loss = MultitaskLoss(targets=[event, STAGE, time], parts=parts, event_times=[1.0, 2.0, 3.0, 4.0])
    assert loss.columns == [[1], [2, 0]]
    assert loss.decomposable
    cox = [LossPart(targets=("stage",), loss="ce"), LossPart(targets=("time", "event"), loss="cox")]
    assert not MultitaskLoss(targets=[event, STAGE, time], parts=cox).decomposable


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([LossPart(targets=("stge",), loss="ce")], "stge is not a target; targets are: stage, oedema, age"),
        (PARTS[:2], "none has oedema"),
        ([*PARTS, LossPart(targets=("age",), loss="mse")], "more than one has age"),
        ([LossPart(targets=("stage",), loss="ce", gamma=2.0), *PARTS[1:]], "no setting gamma"),
        ([LossPart(targets=("stage",), loss="mse"), *PARTS[1:]], "these targets are classes: stage"),
    ],
)
def test_wrong_parts(parts: list[LossPart], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MultitaskLoss(targets=TARGETS, parts=parts)


def test_every_setting_of_a_part_belongs_to_some_loss() -> None:
    settings = set(LossPart.__dataclass_fields__) - {"targets", "loss", "weight"}
    known = {name: set(registry.get("loss", name).params) for name in PartName.__args__}  # type: ignore[attr-defined]
    assert settings <= set().union(*known.values())
