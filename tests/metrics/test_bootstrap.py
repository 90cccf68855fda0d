"""Intervals from drawing patients again, and tables of subgroups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medtrain.metrics.bootstrap import binned, bootstrap_intervals, subgroup_table
from medtrain.metrics.ranking import auroc


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_intervals(
        lambda index: {"mean": float(values[index].mean())},
        np.arange(400),
        generator=np.random.default_rng(1),
        resamples=2000,
    )["mean"]
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert (found.resamples, found.undefined) == (2000, 0)


def test_patients_are_drawn_whole() -> None:
    """Ten copies of every patient say no more than one; drawn as samples they would seem to."""
    values = np.random.default_rng(0).normal(size=50)
    copies = np.repeat(values, 10)
    owners = np.repeat([f"p{index:02d}" for index in range(50)], 10)

    def width(data: np.ndarray, groups: np.ndarray) -> float:
        found = bootstrap_intervals(
            lambda index: {"mean": float(data[index].mean())}, groups, generator=np.random.default_rng(2)
        )["mean"]
        return found.high - found.low

    assert width(copies, owners) == pytest.approx(width(values, owners[::10]))
    assert width(copies, np.arange(500)) < 0.5 * width(copies, owners)


def test_every_draw_holds_whole_patients_as_many_as_there_are() -> None:
    groups = np.array(["b", "a", "b", "c", "c", "c"])
    seen: list[np.ndarray] = []

    def statistic(index: np.ndarray) -> dict[str, float]:
        seen.append(index)
        return {"n": float(index.size)}

    bootstrap_intervals(statistic, groups, generator=np.random.default_rng(0), resamples=50)
    assert seen[0].tolist() == list(range(6))
    for index in seen[1:]:
        times = np.bincount(index, minlength=6)
        assert times[0] == times[2]
        assert times[3] == times[4] == times[5]
        assert times[0] + times[1] + times[3] == 3
    assert len({tuple(index) for index in seen}) > 5


def test_the_seed_decides_and_the_order_of_the_samples_does_not() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    scores, groups = np.round(rng.normal(size=80) + labels, 1), rng.integers(0, 30, 80).astype(str)

    def run(seed: int, order: np.ndarray) -> object:
        return bootstrap_intervals(
            lambda index: {"auroc": auroc(scores[order][index], labels[order][index])},
            groups[order],
            generator=np.random.default_rng(seed),
            resamples=50,
        )

    assert run(0, np.arange(80)) == run(0, rng.permutation(80))
    assert run(0, np.arange(80)) != run(1, np.arange(80))


def test_undefined_draws_are_counted_and_left_out() -> None:
    labels, scores = np.array([1, 0, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3, 0.4])
    found = bootstrap_intervals(
        lambda index: {"auroc": auroc(scores[index], labels[index]), "never": math.nan},
        np.arange(5),
        generator=np.random.default_rng(0),
        resamples=500,
    )
    assert found["auroc"].low == found["auroc"].high == 1.0
    assert found["auroc"].undefined == pytest.approx(500 * 0.8**5, abs=40)  # the positive is not drawn
    assert found["auroc"].resamples + found["auroc"].undefined == 500
    assert math.isnan(found["never"].low)
    assert found["never"].undefined == 500


def test_one_patient_has_no_interval() -> None:
    found = bootstrap_intervals(
        lambda index: {"n": float(index.size)}, ["a"] * 9, generator=np.random.default_rng(0), resamples=10
    )["n"]
    assert (found.value, found.resamples) == (9.0, 0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_difference_of_two_models_is_surer_than_either() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 300)
    first = labels + 1.5 * rng.normal(size=300)
    second = first + 0.3 * rng.normal(size=300)

    def statistic(index: np.ndarray) -> dict[str, float]:
        areas = auroc(first[index], labels[index]), auroc(second[index], labels[index])
        return {"first": areas[0], "difference": areas[0] - areas[1]}

    found = bootstrap_intervals(statistic, np.arange(300), generator=np.random.default_rng(5), resamples=300)
    widths = {key: interval.high - interval.low for key, interval in found.items()}
    assert widths["difference"] < 0.5 * widths["first"]


def test_subgroups_by_hand() -> None:
    right = np.array([1, 0, 1, 1, 0, 1])
    rows = subgroup_table(
        lambda index: {"accuracy": float(right[index].mean())},
        {"sex": ["f", "f", "m", "m", "m", None], "site": np.array(["b", "a", "a", "", "b", "b"])},
        groups=["p1", "p1", "p2", "p3", "p3", "p4"],
        resamples=0,
    )
    assert {row["metric"] for row in rows} == {"accuracy"}
    assert all(math.isnan(row["low"]) and math.isnan(row["high"]) for row in rows)
    table = {(row["column"], row["subgroup"]): (row["n_samples"], row["n_patients"], row["value"]) for row in rows}
    assert list(table) == [
        ("all", "all"),
        ("sex", "f"),
        ("sex", "m"),
        ("sex", "missing"),
        ("site", "a"),
        ("site", "b"),
        ("site", "missing"),
    ]
    assert table["all", "all"] == (6, 4, pytest.approx(4 / 6))
    assert table["sex", "f"] == (2, 1, 0.5)
    assert table["sex", "missing"] == (1, 1, 1.0)
    assert table["site", "b"] == (3, 3, pytest.approx(2 / 3))


def test_intervals_of_a_subgroup_are_those_of_its_samples_alone() -> None:
    rng = np.random.default_rng(0)
    values, patients = rng.normal(size=40), np.arange(40) // 2
    site = np.where(patients < 8, "a", "b")

    def mean(index: np.ndarray) -> dict[str, float]:
        return {"mean": float(values[index].mean())}

    rows = subgroup_table(mean, {"site": site}, groups=patients, seed=3, resamples=50, confidence=0.9)
    assert [(row["subgroup"], row["n_samples"], row["n_patients"]) for row in rows] == [
        ("all", 40, 20),
        ("a", 16, 8),
        ("b", 24, 12),
    ]
    alone = bootstrap_intervals(
        lambda index: {"mean": float(values[:16][index].mean())},
        patients[:16],
        generator=np.random.default_rng(3),
        resamples=50,
        confidence=0.9,
    )["mean"]
    assert (rows[1]["value"], rows[1]["low"], rows[1]["high"]) == (alone.value, alone.low, alone.high)
    assert rows[1]["low"] < rows[1]["value"] < rows[1]["high"]


def test_bins() -> None:
    assert binned([39.9, 40, 59, 60, math.nan], [40, 60]) == ["<40", "40-60", "40-60", ">=60", "missing"]
