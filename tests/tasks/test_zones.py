"""Zones: their order, the unknown class, the average score and its risk, mirrored images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.losses.zones import WeightedZoneCrossEntropy
from medtrain.tasks.report import Report
from medtrain.tasks.zones import Zones
from tests.tasks.stubs import NAN, Echo, batch, made, plan, target

NAMES = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")
CLASSES = ("normal", "mild", "moderate", "severe", "unknown")
ZONES = [target(*CLASSES, name=name) for name in NAMES]
PAIRS = ((0, 1), (2, 3), (4, 5))


def task(**changes: Any) -> Zones:
    settings: dict[str, Any] = {
        "loss": WeightedZoneCrossEntropy(targets=ZONES),
        "plan": plan(*ZONES, width=30),
        "report": Report(resamples=0),
    }
    return made("zones", **{**settings, **changes})


def saying(*classes: int, number: int = 5) -> list[float]:
    """Logits of one class per zone, zone by zone."""
    return [6.0 if index == chosen else 0.0 for chosen in classes for index in range(number)]


def test_logits_are_read_zone_by_zone() -> None:
    (record,) = task().evaluation_step(Echo(), batch([saying(0, 1, 2, 3, 4, 1)], [[0] * 6]), final=False)
    assert [record[f"predicted/{name}"] for name in NAMES] == [0, 1, 2, 3, 4, 1]
    assert record["prob/right_mid/moderate"] == pytest.approx(np.exp(6) / (np.exp(6) + 4), rel=1e-6)
    expected = {"num_outputs": 30, "cumulative_targets": 0, "num_zones": 6, "zone_names": NAMES}
    assert task().runtime() == expected


def test_a_model_may_give_zones_an_axis() -> None:
    class ByZone(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.reshape(-1, 6, 5)

    data = batch([saying(0, 1, 2, 3, 4, 1)], [[0, 1, 2, 3, 4, 4]])
    flat = task().evaluation_step(Echo(), data, final=False)
    assert task().evaluation_step(ByZone(), data, final=False) == flat
    assert float(task().training_step(ByZone(), data).loss) == pytest.approx(
        float(task().training_step(Echo(), data).loss.detach())
    )


def test_a_perfect_prediction_scores_one_although_unknown_is_no_grade() -> None:
    truth = [[0, 1, 2, 3, 4, 4], [3, 2, 1, 0, 4, 1]]
    found = task()
    summary = found.summarize(found.evaluation_step(Echo(), batch([saying(*row) for row in truth], truth), final=False))
    for name in ("f1_macro", "f1_overall", "accuracy", "unknown_recall", "f1_macro_all", "score_pearson"):
        assert summary[name] == pytest.approx(1.0)
    assert summary["score_mae"] == 0
    assert list(summary) == list(found.metrics())
    assert found.monitor.name == "val/f1_macro"


@pytest.mark.parametrize(
    ("classes", "score", "risk"),
    [
        ((0, 1, 2, 3, 4, 4), 1.5, "medium"),
        ((1, 1, 1, 1, 1, 2), 7 / 6, "low"),
        ((4, 4, 4, 4, 4, 4), NAN, ""),
        ((3, 3, 3, 3, 4, 0), 2.4, "high"),
    ],
)
def test_the_score_is_the_mean_of_the_known_zones(classes: tuple[int, ...], score: float, risk: str) -> None:
    (record,) = task().evaluation_step(Echo(), batch([saying(*classes)], [classes]), final=False)
    assert record["score"] == pytest.approx(score, nan_ok=True)
    assert record["label_score"] == pytest.approx(score, nan_ok=True)
    assert record["risk"] == record["label_risk"] == risk


def test_an_image_without_a_known_zone_is_not_at_low_risk() -> None:
    truth = [[4] * 6, [3] * 6, [0] * 6]
    said = [saying(0, 0, 0, 0, 0, 0), saying(4, 4, 4, 4, 4, 4), saying(0, 0, 0, 0, 0, 0)]
    found = task()
    records = found.evaluation_step(Echo(), batch(said, truth), final=False)
    summary = found.summarize(records)
    assert summary["n_score_undefined"] == 1
    assert summary["n_score_abstained"] == 1
    assert summary["risk_accuracy"] == 0.5  # the abstention is wrong, the undefined one is left out
    assert np.isnan(summary["score_pearson"])
    rows = found.outcome.tables(records)["risk_confusion"]
    assert rows[2] == {"label": "high", "predicted low": 0, "predicted medium": 0, "predicted high": 0,
                       "predicted undefined": 1}  # fmt: skip


def test_the_score_may_average_expected_grades() -> None:
    logits = np.log(np.array([0.3, 0.1, 0.1, 0.3, 0.2])).tolist() * 6  # expected grade 1.5 among the known
    data = batch([[*logits[:3], logits[3] + 1e-3, logits[4], *logits[5:]]], [[1] * 6])
    classes = task().evaluation_step(Echo(), data, final=False)
    expected = task(score="expected").evaluation_step(Echo(), data, final=False)
    assert classes[0]["score"] == 0.5  # one zone says 3, five say 0
    assert expected[0]["score"] == pytest.approx(1.5, abs=1e-3)
    assert expected[0]["grade/left_inf"] == pytest.approx(1.5, abs=1e-6)
    mae = {kind: task(score=kind).summarize(classes)["mae"] for kind in ("classes", "expected")}
    assert mae["expected"] == pytest.approx(0.5, abs=1e-3)
    assert mae["classes"] == pytest.approx((2 + 5) / 6)


def test_cuts_and_names_of_risks_are_settings() -> None:
    found = task(cuts=(1.0,), risk_names=("fine", "ill"))
    (record,) = found.evaluation_step(Echo(), batch([saying(1, 1, 1, 1, 1, 2)], [[1] * 6]), final=False)
    assert record["risk"] == "ill"
    assert record["label_risk"] == "fine"  # a cut belongs to the lower class
    with pytest.raises(UsageError, match="name one class more"):
        task(cuts=(1.0, 2.0), risk_names=("a", "b"))


def test_unlabelled_zones_count_nowhere_but_unknown_ones_are_learnt() -> None:
    truth = [[0, NAN, NAN, NAN, NAN, 4]]
    data = batch([saying(0, 3, 3, 3, 3, 4)], truth)
    found = task()
    assert found.batch_weight(data) == pytest.approx(1.3)
    summary = found.summarize(found.evaluation_step(Echo(), data, final=False))
    assert summary["accuracy"] == 1.0
    assert summary["unknown_recall"] == 1.0
    assert summary["score_mae"] == 0  # unlabelled zones are left out of the predicted average, too


def test_a_mirrored_image_has_its_zones_swapped_back() -> None:
    class Sides(Echo):
        """Says `severe` for the zones of the side that is bright."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            bright = image[:, 0, 0, 0] > image[:, 0, 0, -1]  # the image's left is the patient's right
            logits = torch.zeros(len(image), 6, 5)
            logits[bright, 0::2, 3] = 4.0
            logits[~bright, 1::2, 3] = 4.0
            return logits

    inference = ImageInference(mirror=True)
    paired = task(plan=plan(*ZONES, paired_targets=PAIRS), inference=inference)
    data = batch([[1.0, 0.0]], [[3, 0] * 3])
    (plain,) = paired.evaluation_step(Sides(), data, final=False)
    (mirrored,) = paired.evaluation_step(Sides(), data, final=True)
    assert mirrored["prob/right_sup/severe"] == pytest.approx(plain["prob/right_sup/severe"])
    assert [mirrored[f"predicted/{name}"] for name in NAMES] == [3, 0] * 3
    with pytest.raises(UsageError, match="which zones form pairs"):
        task(inference=inference)
    assert task().lacks_pairs
    assert not paired.lacks_pairs
    task(inference=ImageInference(mirror=True, mirror_axes=(0,)))  # upside down swaps no sides


@pytest.mark.parametrize(
    ("classes", "name", "words"),
    [
        (CLASSES, "unknwon", r"task.unknown_class=unknwon is not a class"),
        (("unknown", "normal", "mild"), "unknown", "must be the last one"),
    ],
)
def test_the_unknown_class_must_be_there_and_last(classes: tuple[str, ...], name: str, words: str) -> None:
    zones = [target(*classes, name=zone) for zone in NAMES]
    with pytest.raises(UsageError, match=words):
        task(plan=plan(*zones), loss=ClassCrossEntropy(zones), unknown_class=name)


def test_without_unknown_every_class_is_a_grade() -> None:
    zones = [target("0", "1", "2", "3", name=name) for name in NAMES]
    found = task(plan=plan(*zones, width=24), loss=ClassCrossEntropy(zones))
    (record,) = found.evaluation_step(Echo(), batch([saying(3, 3, 3, 3, 3, 3, number=4)], [[3] * 6]), final=False)
    assert record["score"] == 3.0
    assert "unknown_recall" not in found.metrics()
    named = task(unknown_class="unknown")
    assert "unknown_recall" in named.metrics()


def test_zones_with_different_classes_are_refused() -> None:
    zones = [target("a", "b", name="one"), target("c", "d", name="two")]
    with pytest.raises(UsageError, match="zones with the same classes; found one: a, b; two: c, d"):
        task(plan=plan(*zones), loss=ClassCrossEntropy(zones))


def test_one_temperature_for_all_zones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 6, 5, generator=generator)
    labels = torch.multinomial(logits.flatten(0, 1).softmax(1), 1, generator=generator).reshape(100, 6).float()
    labels[0] = NAN
    found = task(inference=ImageInference(calibrate=True), loss=ClassCrossEntropy(ZONES))
    records = found.evaluation_step(Echo(), batch(5 * logits.flatten(1), labels), final=True)
    assert found.fit_decision(records)["temperature"] == pytest.approx(5, rel=0.15)
    assert found.decide(records)[3]["prob/left_inf/mild"] == pytest.approx(
        float((5 * logits[3, 5].double() / found.decision["temperature"]).softmax(0)[1]), rel=1e-6
    )


def test_the_worst_and_the_names() -> None:
    found = task()
    records = found.evaluation_step(
        Echo(), batch([saying(0, 0, 0, 0, 0, 0), saying(3, 3, 3, 0, 0, 0)], [[0] * 6, [0] * 6]), final=False
    )
    assert [case for case, _ in found.worst_cases(records)] == ["c001", "c000"]
    named = found.readable(records)[1]
    assert (named["predicted/right_sup"], named["label/right_sup"]) == ("severe", "normal")
    assert len(found.outcome.tables(records)["confusion"]) == 30


@pytest.mark.parametrize(
    ("pairs", "mirrors", "given", "refused"),
    [
        ((), True, None, True),
        ((), True, [["a", "b"]], True),  # those of other targets
        ((), True, [], False),
        ((), False, None, False),
        (PAIRS, True, None, False),
    ],
)
def test_zones_are_not_mirrored_in_training_where_nobody_knows_their_pairs(
    pairs: tuple[tuple[int, int], ...], mirrors: bool, given: list[list[str]] | None, refused: bool
) -> None:
    found = task(plan=plan(*ZONES, paired_targets=pairs))
    augment = SimpleNamespace(mirrors=mirrors, mixup=0.0, cutmix=0.0)
    if not refused:
        found.check_training({"paired_targets": given}, augment)
        return
    with pytest.raises(UsageError, match=r"swaps left and right, but .* which zones form pairs") as error:
        found.check_training({"paired_targets": given}, augment)
    assert "data.paired_targets=[]" in str(error.value.hint)


def test_the_worst_images_are_those_with_the_largest_distance_of_grades() -> None:
    truth = [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 0, 0], [NAN] * 6]
    said = [saying(1, 1, 1, 1, 1, 1), saying(0, 0, 0, 0, 0, 0), saying(0, 0, 0, 0, 0, 3), saying(0, 0, 0, 0, 0, 0)]
    found = task()
    records = found.evaluation_step(Echo(), batch(said, truth), final=False)
    # 6/6, 3/6 for an unknown zone that was graded, 3/6
    np.testing.assert_allclose(found.outcome.scores(records), [-1.0, -0.5, -0.5, NAN])
    assert found.worst_cases(records) == [("c000", -1.0), ("c001", -0.5), ("c002", -0.5)]
    assert found.outcome.judged_by == "error of the grades"
    same = found.evaluation_step(Echo(), batch([saying(*[2] * 6)] * 2, [[0, 1, 2, 0, 1, 2]] * 2), final=False)
    assert found.outcome.constant(same) == f"{found.outcome.class_names[2]} in every zone"


def test_zones_can_be_blended_but_not_cut() -> None:
    paired = task(plan=plan(*ZONES, paired_targets=PAIRS))
    paired.check_training({}, SimpleNamespace(mirrors=True, mixup=0.2, cutmix=0.0))
    with pytest.raises(UsageError, match=r"augment\.cutmix exchanges places"):
        paired.check_training({}, SimpleNamespace(mirrors=True, mixup=0.2, cutmix=1.0))
