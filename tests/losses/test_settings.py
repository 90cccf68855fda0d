"""Losses as they are written in a config."""

from __future__ import annotations

from typing import Any

import pytest

from medtrain import registry
from medtrain.config.annotations import check_params
from medtrain.losses.classes import ClassCrossEntropy, LabelCrossEntropy
from medtrain.losses.entropy import CrossEntropyLoss
from medtrain.losses.multitask import LossPart, MultitaskLoss
from tests.conftest import REPOSITORY
from tests.losses.targets import Target, classes

TARGETS = [classes(3, name="stage", counts=(60, 30, 10)), Target("age", None, mean=50.0, std=20.0)]


def build(name: str, given: dict[str, Any], **runtime: Any) -> Any:
    """Check what a user wrote as the command line does, then construct."""
    settings, issues = check_params(registry.get("loss", name).params, given, "loss")
    assert not issues, issues
    return registry.build("loss", {"name": name, **settings}, **runtime)


def issue(name: str, given: dict[str, Any]) -> str:
    _, issues = check_params(registry.get("loss", name).params, given, "loss")
    assert len(issues) == 1, issues
    return f"{issues[0].path}: {issues[0].message} {issues[0].hint or ''}"


def test_one_component_serves_both_families() -> None:
    assert set(registry.get("loss", "ce").tags) == {"segmentation", "images"}
    given = {"class_weights": [1, 2, 3], "label_smoothing": 0.1}
    voxels = build("ce", given, num_classes=3)
    assert isinstance(voxels, CrossEntropyLoss)
    images = build("ce", given, num_classes=3, targets=TARGETS[:1])
    assert isinstance(images, ClassCrossEntropy)
    for loss in (voxels, images):
        assert loss.label_smoothing == 0.1
    assert images.weights.on_cpu.tolist() == voxels.class_weights.tolist() == [1, 2, 3]


@pytest.mark.parametrize("weights", ["none", None])
def test_equal_weights(weights: str | None) -> None:
    assert build("ce", {"class_weights": weights}, targets=TARGETS[:1]).weights.on_cpu is None


def test_weights_by_name_and_number() -> None:
    assert build("ce", {"class_weights": "balanced"}, targets=TARGETS[:1]).weights.on_cpu.tolist() == pytest.approx(
        [100 / 180, 100 / 90, 100 / 30]
    )
    found = build("bce", {"pos_weight": 2}, targets=[classes(2)])
    assert isinstance(found, LabelCrossEntropy)
    assert found.pos_weight is not None
    assert found.pos_weight.tolist() == [2]
    assert build("bce", {"pos_weight": [3]}, targets=[classes(2)]).pos_weight.tolist() == [3]


def test_mistakes_are_explained() -> None:
    assert "balanced" in issue("ce", {"class_weights": "balance"})
    assert "> 0" in issue("bce", {"pos_weight": -1})
    assert "< 1" in issue("ce", {"class_weights": "effective_num", "beta": 1.0})
    assert "loss.parts[0].targets: required" in issue("multitask", {"parts": [{"loss": "ce"}]})
    assert "ordinal" in issue("multitask", {"parts": [{"targets": ["stage"], "loss": "ordinl"}]})
    assert "did you mean" in issue("multitask", {"parts": [{"targets": ["a"], "loss": "ce", "wieght": 2}]})


def test_parts_of_a_multitask_loss() -> None:
    parts = [
        {"targets": ["stage"], "loss": "ce", "weight": 2, "class_weights": "balanced"},
        {"targets": ["age"], "loss": "huber", "delta": 0.5},
    ]
    loss = build("multitask", {"parts": parts}, targets=TARGETS)
    assert isinstance(loss, MultitaskLoss)
    assert loss.part_weights == (2.0, 1.0)
    assert loss.losses[1].delta == 0.5
    part = LossPart(targets=("stage",), loss="ce")
    assert part.settings() == {}


def test_every_loss_has_a_file_and_a_family() -> None:
    files = {path.stem for path in (REPOSITORY / "conf" / "loss").glob("*.yaml")}
    assert files - {"ordered"} == set(registry.names("loss"))  # the last is a preset of `ordinal`
    for name in registry.names("loss"):
        assert {"segmentation", "images"} & set(registry.get("loss", name).tags), name
