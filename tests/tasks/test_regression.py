"""Regression: quantities in the unit of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.regression import MAELoss, MSELoss
from medtrain.tasks.regression import Regression
from medtrain.tasks.report import Report
from tests.tasks.stubs import NAN, Echo, batch, made, number, plan, target

AGE = number("age", mean=50.0, std=10.0)
VOLUME = number("volume", mean=0.2, std=0.1)


def task(*targets: object) -> Regression:
    return made(
        "regression",
        loss=MSELoss(targets=list(targets)),  # type: ignore[arg-type]
        plan=plan(*targets),  # type: ignore[arg-type]
        report=Report(resamples=0),
    )


def test_errors_are_in_the_unit_of_the_target() -> None:
    found = task(AGE)
    records = found.evaluation_step(Echo(), batch([[0.0], [1.0], [-1.0]], [[55], [58], [NAN]]), final=False)
    assert [record["predicted"] for record in records] == pytest.approx([50, 60, 40])
    summary = found.summarize(records)
    assert summary["mae"] == pytest.approx((5 + 2) / 2)
    assert summary["rmse"] == pytest.approx(np.sqrt((25 + 4) / 2))
    assert found.worst_cases(records) == [("c000", pytest.approx(-5)), ("c001", pytest.approx(-2))]
    assert summary["r2"] == pytest.approx(r2_score([55, 58], [50, 60]))
    assert summary["loss"] == pytest.approx((0.5**2 + 0.2**2) / 2)  # standardised
    assert found.monitor.name == "val/mae"
    assert found.monitor.mode == "min"
    assert list(summary) == list(found.metrics())


def test_several_quantities_with_gaps() -> None:
    found = task(AGE, VOLUME)
    truth = [[60, 0.3], [40, NAN], [NAN, 0.1], [55, 0.2]]
    records = found.evaluation_step(Echo(), batch([[1, 1], [0.5, 9], [9, -2], [0.5, 0]], truth), final=False)
    summary = found.summarize(records)
    assert summary["mae/age"] == pytest.approx(15 / 3)
    assert summary["mae/volume"] == pytest.approx((0 + 0.1 + 0) / 3)
    assert records[0]["predicted/volume"] == pytest.approx(0.3)
    assert found.monitor.name == "val/r2"  # years and litres cannot be averaged
    assert [case for case, _ in found.worst_cases(records)][:2] == ["c001", "c002"]


def test_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="needs numbers, but finding has the classes a, b"):
        made("regression", loss=MAELoss(targets=[AGE]), plan=plan(target("a", "b")))
    with pytest.raises(UsageError, match="predicts no probabilities"):
        made("regression", loss=MAELoss(targets=[AGE]), inference=ImageInference(calibrate=True), plan=plan(AGE))


def test_a_mirrored_image_has_its_quantities_swapped_back() -> None:
    class Sides(Echo):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image[:, 0, 0, :]  # each side's quantity is its brightness

    sides = [number("left_kidney"), number("right_kidney")]
    found = made(
        "regression",
        loss=MSELoss(targets=sides),
        inference=ImageInference(mirror=True),
        plan=plan(*sides, paired_targets=((0, 1),)),
        report=Report(resamples=0),
    )
    (record,) = found.evaluation_step(Sides(), batch([[3.0, 1.0]], [[3, 1]]), final=True)
    assert (record["predicted/left_kidney"], record["predicted/right_kidney"]) == pytest.approx((3, 1))
