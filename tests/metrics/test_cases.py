"""Rows of cases, their summary, and the files and table made of them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from medtrain.metrics.cases import evaluate_case, metric_specs, summarize
from medtrain.metrics.lesions import LesionRule
from medtrain.metrics.surface import surface_metrics
from medtrain.metrics.tables import cases_csv, summary_json, summary_table, write_evaluation

NAMES = ("background", "liver", "cancer")
NESTED, REGION_NAMES = ((1, 2), (2,)), ("background", "whole", "core")
NAN = math.nan


def _case() -> tuple[np.ndarray, np.ndarray]:
    """A label with two classes and a prediction shifted by a voxel that misses the second; [6, 8, 8]."""
    label = np.zeros((6, 8, 8), dtype=np.uint8)
    label[1:5, 2:6, 2:6] = 1
    label[2:4, 3:5, 3:5] = 2
    prediction = np.zeros_like(label)
    prediction[1:5, 3:7, 2:6] = 1
    return prediction, label


def test_row_of_a_case_by_hand() -> None:
    prediction, label = _case()
    row = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES)
    # liver: 64 - 8 = 56 true voxels, 64 predicted; overlap 4 * 3 * 4 = 48 less the 8 of the tumour in rows 3 and 4
    assert row["dice/liver"] == pytest.approx(2 * 40 / (56 + 64))
    assert row["iou/liver"] == pytest.approx(40 / (56 + 64 - 40))
    assert row["precision/liver"] == pytest.approx(40 / 64)
    assert row["recall/liver"] == pytest.approx(40 / 56)
    assert row["volume_error_ml/liver"] == pytest.approx((64 - 56) * 2.0 / 1000)
    assert row["volume_bias_ml/liver"] == pytest.approx((64 - 56) * 2.0 / 1000)
    assert row["volume_ml/liver"] == pytest.approx(56 * 2.0 / 1000)
    assert row["volume_bias_ml/cancer"] == pytest.approx(-8 * 2.0 / 1000)
    expected = surface_metrics(prediction == 1, label == 1, (2.0, 1.0, 1.0))
    assert {key: row[f"{key}/liver"] for key in expected} == expected
    # the missed tumour: zero overlap, no distance
    assert [row[f"{key}/cancer"] for key in ("dice", "iou", "precision", "recall", "nsd")] == [0.0] * 5
    assert math.isnan(row["hd95_mm/cancer"])
    assert math.isnan(row["asd_mm/cancer"])
    assert row["volume_error_ml/cancer"] == pytest.approx(8 * 2.0 / 1000)


def test_class_in_neither_map() -> None:
    empty = np.zeros((4, 4, 4), dtype=np.uint8)
    row = evaluate_case(empty, empty, (1.0, 1.0, 1.0), NAMES)
    volumes = {f"{key}/{name}" for key in ("volume_error_ml", "volume_bias_ml", "volume_ml") for name in NAMES[1:]}
    assert {key for key, value in row.items() if not math.isnan(value)} == volumes


def test_tensors_and_arrays_agree_and_surface_is_optional() -> None:
    prediction, label = _case()
    row = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES)
    tensors = evaluate_case(torch.from_numpy(prediction), torch.from_numpy(label).long(), (2.0, 1.0, 1.0), NAMES)
    np.testing.assert_equal(tensors, row)
    overlap = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, surface=False)
    np.testing.assert_equal(
        overlap, {k: v for k, v in row.items() if k.split("/")[0] not in ("hd95_mm", "nsd", "asd_mm")}
    )
    strict = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, nsd_tolerance_mm=0.0)
    assert strict["nsd/liver"] < row["nsd/liver"] == 1.0


def test_regions_by_hand() -> None:
    label = np.array([[1, 1, 2, 2, 0, 0]])  # [1, 6]
    prediction = np.array([[1, 2, 2, 0, 0, 2]])
    row = evaluate_case(prediction, label, (1.0, 1.0), REGION_NAMES, regions=NESTED, surface=False)
    assert row["dice/whole"] == pytest.approx(2 * 3 / (4 + 4))
    assert row["dice/core"] == pytest.approx(2 * 1 / (2 + 3))
    assert row["volume_bias_ml/core"] == pytest.approx(1 / 1000)


def test_a_region_is_what_joined_classes_would_be() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (6, 7, 8)), rng.integers(0, 3, (6, 7, 8))  # 3 is ignored
    spacing = (1.0, 2.0, 1.5)
    row = evaluate_case(prediction, label, spacing, REGION_NAMES, regions=NESTED, ignore_index=3)
    joined = np.array([0, 1, 1, 3])
    whole = evaluate_case(joined[prediction], joined[label], spacing, ("background", "whole"), ignore_index=3)
    assert row == {**row, **whole}
    core = evaluate_case(prediction, label, spacing, ("background", "rest", "core"), ignore_index=3)
    assert row == {**row, **{key: value for key, value in core.items() if key.endswith("/core")}}
    # a class of the map that is part of no region
    only = evaluate_case(prediction, label, spacing, ("background", "one"), regions=((1,),), ignore_index=3)
    assert only["dice/one"] == core["dice/rest"]


def test_what_nobody_annotated_has_no_value() -> None:
    prediction, label = _case()
    lesions = LesionRule(("cancer",))
    row = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, annotated=(True, False), lesions=lesions)
    full = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, lesions=lesions)
    assert set(row) == set(full)
    assert all(math.isnan(value) for key, value in row.items() if key.endswith("/cancer"))
    np.testing.assert_equal(row, {**row, **{key: value for key, value in full.items() if key.endswith("/liver")}})


def test_a_tolerance_for_every_structure() -> None:
    prediction, label = _case()
    strict = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, nsd_tolerance_mm={"liver": 0.0})
    assert strict["nsd/liver"] == surface_metrics(prediction == 1, label == 1, (2, 1, 1), nsd_tolerance_mm=0.0)["nsd"]
    loose = evaluate_case(prediction, label, (2.0, 1.0, 1.0), NAMES, nsd_tolerance_mm={"cancer": 9.0})
    assert loose["nsd/liver"] == 1.0


def test_lesions_of_cases_are_added() -> None:
    """Case a: 2 lesions, one found, and a false positive. Case b: one lesion, found; c: none in either map."""
    label, prediction = np.zeros((2, 1, 9), dtype=np.uint8)
    label[0, :2], label[0, 4] = 1, 1
    prediction[0, 1], prediction[0, 8] = 1, 1
    other = np.zeros_like(label)
    other[0, 3] = 1
    names, rule = ("background", "tumour"), LesionRule(("tumour",))
    records = [
        evaluate_case(one, two, (1.0, 1.0), names, lesions=rule)
        for one, two in ((prediction, label), (other, other), (label * 0, label * 0))
    ]
    assert [records[0][f"lesions_{key}/tumour"] for key in ("found", "missed", "false")] == [1, 1, 1]
    summary = summarize(records, names)
    assert summary["lesion_sensitivity/tumour"] == summary["lesion_sensitivity"] == pytest.approx(2 / 3)
    assert summary["lesion_precision"] == pytest.approx(2 / 3)
    assert summary["lesion_f1"] == pytest.approx(2 / 3)
    assert summary["lesion_fp"] == pytest.approx(1 / 3)
    assert set(summary) == set(metric_specs(names, ("tumour",)))


def test_ignored_voxels_do_not_count() -> None:
    prediction, label = _case()
    label[:, 6:] = 3
    label[:, :2] = 3
    row = evaluate_case(prediction, label, (1.0, 1.0, 1.0), NAMES, ignore_index=3)
    cut = evaluate_case(prediction[:, 2:6], label[:, 2:6], (1.0, 1.0, 1.0), NAMES)
    np.testing.assert_equal(row, cut)


def test_summary_is_the_mean_of_class_means_over_defined_cases() -> None:
    records = [
        {"case_id": "a", "dice/liver": 0.9, "dice/cancer": NAN, "hd95_mm/liver": 2.0, "hd95_mm/cancer": NAN},
        {"case_id": "b", "dice/liver": 0.7, "dice/cancer": 0.2, "hd95_mm/liver": 4.0, "hd95_mm/cancer": NAN},
    ]
    summary = summarize(records, NAMES)
    expected = {"dice/liver": 0.8, "dice/cancer": 0.2, "dice": 0.5, "hd95_mm/liver": 3.0, "hd95_mm": 3.0}
    assert math.isnan(summary.pop("hd95_mm/cancer"))
    assert summary == pytest.approx(expected)
    assert next(iter(summary)) == "dice"


def test_summary_of_undefined_values_is_nan_without_a_warning() -> None:
    assert all(math.isnan(v) for v in summarize([{"dice/liver": NAN, "dice/cancer": NAN}], NAMES).values())
    assert summarize([], NAMES) == {}


def test_every_summary_key_has_a_direction() -> None:
    prediction, label = _case()
    summary = summarize([evaluate_case(prediction, label, (1, 1, 1), NAMES)], NAMES)
    specs = metric_specs(NAMES)
    assert set(specs) == set(summary)
    assert next(iter(specs)) == "dice"
    assert all(spec.name == key for key, spec in specs.items())
    assert {key for key, spec in specs.items() if spec.mode == "min" and "/" not in key} == {
        "hd95_mm",
        "asd_mm",
        "volume_error_ml",
    }


def test_csv_round_trips_exactly() -> None:
    records = [
        {"case_id": 'a,"b"', "dice/liver": 1 / 3, "nsd/liver": NAN},
        {"case_id": "c", "dice/liver": np.float64(0.1)},
    ]
    rows = list(csv.DictReader(io.StringIO(cases_csv(records))))
    assert rows[0]["case_id"] == 'a,"b"'
    assert float(rows[0]["dice/liver"]) == 1 / 3
    assert rows[0]["nsd/liver"] == "nan"
    assert rows[1] == {"case_id": "c", "dice/liver": "0.1", "nsd/liver": ""}


def test_files(tmp_path: Path) -> None:
    records = [{"case_id": c, "dice/liver": v, "dice/cancer": NAN} for c, v in zip("abcd", (0.2, 0.4, 0.9, NAN))]
    summary = summarize(records, NAMES)
    write_evaluation(tmp_path, records, summary, extra={"step": 7})
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["step"] == 7
    assert written["num_cases"] == 4
    assert written["mean"] == {"dice": pytest.approx(0.5)}
    assert written["classes"]["liver"]["dice"] == {
        "mean": pytest.approx(0.5),
        "std": pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1)),
        "median": 0.4,
        "min": 0.2,
        "max": 0.9,
        "n": 3,
        "n_undefined": 1,
    }
    cancer = written["classes"]["cancer"]["dice"]
    assert (cancer["mean"], cancer["n"], cancer["n_undefined"]) == (None, 0, 4)
    assert (tmp_path / "cases.csv").read_text() == cases_csv(records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases.csv", "summary.json"]


def test_std_of_one_case_is_undefined() -> None:
    found = summary_json([{"dice/liver": 0.5}], {"dice/liver": 0.5})["classes"]["liver"]["dice"]
    assert found["mean"] == 0.5
    assert math.isnan(found["std"])


def test_table_fits_a_pipe() -> None:
    prediction, label = _case()
    records = [evaluate_case(prediction, label, (2, 1, 1), NAMES)]
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(summary_table(records, summarize(records, NAMES), title="run: val, 1 case"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in text for word in ("dice", "precision", "volume", "mL", "liver", "cancer", "mean", "run: val"))
    assert "0.6667" in text
    assert "hd95_mm/cancer: 1" in text
    assert "\u2026" not in text
