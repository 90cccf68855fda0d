"""Cross-entropy, BCE and focal losses of whole images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.losses.base import SegmentationLoss
from medtrain.losses.entropy import build_bce, build_ce, build_focal
from medtrain.losses.units import ImageLoss
from tests.losses.targets import NAN, Target, classes, labels, scores


def image_loss(name: str, *targets: Target, **settings: object) -> ImageLoss:
    loss = registry.build("loss", {"name": name, **settings}, targets=targets, num_classes=2)
    assert isinstance(loss, ImageLoss)
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_equals_torch_on_the_labelled_samples(smoothing: float) -> None:
    target, logits = labels(4, 12), scores(12, 4)
    known = ~target[:, 0].isnan()
    expected = F.cross_entropy(logits[known], target[known, 0].long(), label_smoothing=smoothing)
    torch.testing.assert_close(image_loss("ce", classes(4), label_smoothing=smoothing)(logits, target), expected)


def test_weighted_ce_equals_torch() -> None:
    target, logits = labels(3, 12), scores(12, 3)
    known = ~target[:, 0].isnan()
    weights = (0.2, 1.0, 3.0)
    expected = F.cross_entropy(logits[known], target[known, 0].long(), torch.tensor(weights, dtype=torch.float64))
    loss = image_loss("ce", classes(3), class_weights=weights)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=1e-6)
    assert loss.weight(target) == pytest.approx(sum(weights[int(y)] for y in target[known, 0]))


def test_balanced_ce_follows_the_training_part() -> None:
    # weights 40 / (2 * 30) and 40 / (2 * 10); two samples of equal logits but for the truth
    loss = image_loss("ce", classes(2, counts=(30, 10)), class_weights="balanced")
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # p = 3/4, 1/4
    expected = (2 / 3 * -math.log(3 / 4) + 2 * -math.log(1 / 4)) / (2 / 3 + 2)
    assert loss(logits, torch.tensor([[0.0], [1.0]])).item() == pytest.approx(expected)


def test_ce_of_zones_is_the_mean_over_all_labelled_zones() -> None:
    zones = [classes(4, name=f"zone{index}") for index in range(3)]
    target, logits = labels(4, 5, targets=3), scores(5, 12)
    flat, known = target.flatten(), ~target.flatten().isnan()
    expected = F.cross_entropy(logits.view(15, 4)[known], flat[known].long())
    torch.testing.assert_close(image_loss("ce", *zones)(logits, target), expected)


def test_bce_equals_torch_on_the_labelled_entries() -> None:
    findings = [classes(2, name=f"finding{index}", counts=(80, 20 * (index + 1))) for index in range(3)]
    target, logits = labels(2, 7, targets=3), scores(7, 3)
    known = ~target.isnan()
    weight = torch.tensor([4.0, 2.0, 80 / 60])
    terms = F.binary_cross_entropy_with_logits(
        logits, target.nan_to_num(0).double(), pos_weight=weight, reduction="none"
    )
    loss = image_loss("bce", *findings, pos_weight="balanced")
    torch.testing.assert_close(loss(logits, target), terms[known].mean(), rtol=1e-6, atol=1e-6)
    assert loss.weight(target) == known.sum()


def test_bce_by_hand() -> None:
    # -log sigmoid(0) = log 2 with weight 3; sigmoid(log 3) = 3/4 for a negative: -log(1/4)
    loss = image_loss("bce", classes(2), pos_weight=3.0)
    value = loss(torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[1.0], [0.0]]))
    assert value.item() == pytest.approx((3 * math.log(2) + math.log(4)) / 2)


def test_focal_by_hand() -> None:
    # p of the target 3/4: (1/4)^2 * -log(3/4); softmax over three classes
    three = image_loss("focal", classes(3))
    logits = torch.tensor([[math.log(6), 0.0, 0.0]])
    assert three(logits, torch.tensor([[0.0]])).item() == pytest.approx(-math.log(0.75) / 16)
    # one target of two classes has one logit
    two = image_loss("focal", classes(2), class_weights=(1.0, 4.0))
    assert two.num_outputs == 1
    value = two(torch.tensor([[math.log(3)], [0.0]]), torch.tensor([[1.0], [0.0]]))
    assert value.item() == pytest.approx((4 * -math.log(0.75) / 16 + math.log(2) / 4) / 5)


@pytest.mark.parametrize(("name", "count"), [("ce", 3), ("bce", 2)])
def test_focal_without_focus_is_cross_entropy(name: str, count: int) -> None:
    target, plain = labels(count, 9), image_loss(name, classes(count))
    logits = scores(9, plain.num_outputs)
    focal = image_loss("focal", classes(count), gamma=0.0)
    torch.testing.assert_close(focal(logits, target), plain(logits, target))


@pytest.mark.parametrize(("name", "count"), [("ce", 3), ("bce", 2), ("focal", 2), ("focal", 3)])
def test_probabilities_are_those_the_loss_trains(name: str, count: int) -> None:
    targets = [classes(count, name="a"), classes(count, name="b")]
    loss = image_loss(name, *targets, **({"gamma": 0.0} if name == "focal" else {}))
    logits, target = scores(6, loss.num_outputs), labels(count, 6, targets=2, missing=0)
    probs = loss.predict(logits)  # [B, T, K]
    assert probs.shape == (6, 2, count)
    torch.testing.assert_close(probs.sum(-1), torch.ones(6, 2, dtype=torch.float64))
    chosen = probs.gather(-1, target.long().unsqueeze(-1))
    torch.testing.assert_close(loss(logits, target), -chosen.log().mean())


def test_probabilities_of_certain_logits_are_exact() -> None:
    no, yes = image_loss("bce", classes(2)).predict(torch.tensor([[50.0]], dtype=torch.float64))[0, 0]
    assert no.item() == pytest.approx(math.exp(-50))
    assert yes.item() == 1.0


def test_evidence_is_the_logit_of_the_truth() -> None:
    loss = image_loss("ce", classes(3, name="a"), classes(3, name="b"))
    logits = torch.arange(12.0).view(2, 6)
    found = loss.evidence(logits, torch.tensor([[2.0, 0.0], [1.0, NAN]]))
    torch.testing.assert_close(found, torch.tensor([2.0 + 3.0, 7.0]))


def test_targets_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="are numbers: age") as error:
        image_loss("ce", classes(3), Target("age"))
    assert "multitask" in str(error.value.hint)
    with pytest.raises(UsageError, match="a has 2, b has 3"):
        image_loss("ce", classes(2, name="a"), classes(3, name="b"))
    with pytest.raises(UsageError, match="two classes, but grade has 3"):
        image_loss("bce", classes(3))
    with pytest.raises(UsageError, match="needs a target column"):
        image_loss("ce")


def test_voxels_have_no_counts() -> None:
    # the same components without target columns are losses of voxels
    assert isinstance(build_ce(num_classes=3, class_weights=(1.0, 1.0, 2.0)), SegmentationLoss)
    assert isinstance(build_focal(num_classes=3, class_weights="none"), SegmentationLoss)
    with pytest.raises(UsageError, match="class_weights=balanced"):
        build_ce(num_classes=3, class_weights="balanced")
    with pytest.raises(UsageError, match="class_weights=effective_num"):
        build_focal(num_classes=3, class_weights="effective_num")
    with pytest.raises(UsageError, match=r"loss\.beta"):
        build_focal(num_classes=3, beta=0.9)
    with pytest.raises(UsageError, match="pos_weight=balanced"):
        build_bce(num_classes=1, pos_weight="balanced")


def test_positive_voxels_can_weigh_more() -> None:
    loss = build_bce(num_classes=1, pos_weight=3.0)
    value = loss(torch.zeros(1, 1, 2), torch.tensor([[0, 1]]))
    assert value.item() == pytest.approx((1 + 3) / 2 * math.log(2))
    one_ignored = loss(torch.zeros(1, 1, 3), torch.tensor([[0, 1, 255]]), ignore_index=255)
    torch.testing.assert_close(one_ignored, value)
