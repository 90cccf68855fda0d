"""Comparisons of judged runs: what is refused, what is paired, what is written."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medtrain.compare import judged
from medtrain.compare import runs as module
from medtrain.compare.judged import JudgedRun, _find_evaluations, _read_records, _trained_on
from medtrain.compare.runs import check_out, compare_runs, matched_cases, write_comparison
from medtrain.compare.shown import comparison_notes, comparison_table
from medtrain.errors import DataError, UsageError
from medtrain.metrics.cases import metric_specs, summarize, worst_cases
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.tables import cases_csv
from medtrain.run.folder import RunFolder
from medtrain.tasks.outcome import column

NAN = math.nan
NAMES = ("background", "liver", "tumour")


class Cases:
    """A task of segmented cases."""

    class_names = NAMES
    monitor = MetricSpec("val/dice", "max")

    def use_decision(self, decision: Mapping[str, float]) -> None:
        assert not decision

    def metrics(self) -> Mapping[str, MetricSpec]:
        return metric_specs(NAMES)

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        return summarize(records, NAMES)

    def worst_cases(self, records: Sequence[Any], count: int = 5) -> list[tuple[str, float]]:
        return worst_cases(records, count)


class Named(Cases):
    """The same of other classes."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.class_names = names  # type: ignore[assignment]

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        return summarize(records, self.class_names)


class Samples:
    """A task of labelled samples."""

    class_names = ("no", "yes")
    monitor = MetricSpec("val/accuracy", "max")

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {"accuracy": MetricSpec("accuracy", "max"), "wrong": MetricSpec("wrong", "min")}

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        right = column(records, "label") == column(records, "predicted")
        return {"accuracy": float(right.mean()), "wrong": float((~right).sum())}

    def worst_cases(self, records: Sequence[Any], count: int = 5) -> list[tuple[str, float]]:
        return [(row["case_id"], float(row["label"] == row["predicted"])) for row in records][:count]


def _run(name: str, rows: Sequence[dict[str, Any]], task: Any, **changes: Any) -> JudgedRun:
    made = JudgedRun(
        run_name=name,
        path=Path(name),
        evaluation=Path(name),
        dataset="liver",
        family="segmentation" if isinstance(task, Cases) else "images",
        part="val",
        task=task,
        decision={},
        records={row["case_id"]: row for row in rows},
        trained_on=frozenset({"t1", "t2"}),
        split_hash="x",
    )
    return dataclasses.replace(made, **changes)


def _cases(dice: Sequence[tuple[float, float]], hd95: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "case_id": f"c{number}",
            "group": f"p{number // 2}",
            "dice/liver": liver,
            "dice/tumour": tumour,
            "hd95_mm/liver": distance,
            "hd95_mm/tumour": NAN,
            "volume_ml/liver": 100.0 + number,
        }
        for number, ((liver, tumour), distance) in enumerate(zip(dice, hd95, strict=True))
    ]


FIRST = _cases([(0.9, 0.5), (0.8, NAN), (0.7, 0.3), (0.6, 0.1)], [1.0, 2.0, NAN, 4.0])
SECOND = _cases([(0.9, 0.6), (0.9, NAN), (0.7, 0.5), (0.7, 0.0)], [1.0, NAN, 9.0, 3.0])


def _compare(monkeypatch: pytest.MonkeyPatch, *made: JudgedRun, **settings: Any) -> Any:
    by_path = {item.path: item for item in made}
    monkeypatch.setattr(module, "read_judged", lambda path, **_: by_path[path])
    return compare_runs([item.path for item in made], **{"resamples": 60, **settings})


def test_pairs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,), main, _ = _compare(monkeypatch, _run("a", FIRST, Cases()), _run("b", SECOND[::-1], Cases()))
    assert (main, found.num_cases, found.num_patients) == ("dice", 4, 2)
    by_name = {item.metric: item for item in found.differences}
    assert by_name["dice/liver"].first == pytest.approx(0.75)
    assert by_name["dice/liver"].difference == pytest.approx(0.05)
    assert by_name["dice/tumour"].difference == pytest.approx((0.1 + 0.2 - 0.1) / 3)
    assert by_name["dice"].difference == pytest.approx((0.05 + 0.2 / 3) / 2)
    # of the distances only cases 0 and 3 have one in both
    assert (by_name["hd95_mm"].first, by_name["hd95_mm"].second) == (2.5, 2.0)
    assert found.one_sided == {"hd95_mm/liver": (1, 1)}
    # p0 gains (0 + 0.1) / 2 in the liver, p1 the same
    assert (by_name["dice/liver"].low, by_name["dice/liver"].high) == (pytest.approx(0.05), pytest.approx(0.05))
    assert by_name["dice/liver"].second_better == 1.0
    assert found.apart[0][0] == "c1"
    assert found.apart[0][1:] == (pytest.approx(0.8), pytest.approx(0.9))


def test_swapping_the_runs_changes_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = _run("a", FIRST, Cases()), _run("b", SECOND, Cases())
    (forth,), _, _ = _compare(monkeypatch, one, two)
    (back,), _, _ = _compare(monkeypatch, two, one)
    for first, second in zip(forth.differences, back.differences, strict=True):
        expected = [-first.difference, -first.high, -first.low, 1 - first.second_better]
        assert [second.difference, second.low, second.high, second.second_better] == pytest.approx(
            expected, nan_ok=True
        )


def test_a_run_equals_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _run("a", FIRST, Cases())
    (found,), _, _ = _compare(monkeypatch, one, dataclasses.replace(one, path=Path("again")))
    defined = [item for item in found.differences if not math.isnan(item.difference)]
    assert all((item.difference, item.low, item.high, item.p_value) == (0, 0, 0, 1) for item in defined)
    assert all(item.second_better == 0.5 for item in defined)
    assert found.apart == ()


def test_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)

    def rows(share: float) -> list[dict[str, Any]]:
        predicted = np.where(rng.random(60) < share, label, 1 - label)
        return [
            {"case_id": f"{i:02}", "group": f"g{i}", "label": float(label[i]), "predicted": float(predicted[i])}
            for i in range(60)
        ]

    one, two = _run("a", rows(0.6), Samples()), _run("b", rows(0.95), Samples())
    (found,), main, _ = _compare(monkeypatch, one, two, resamples=200)
    assert main == "accuracy"
    accuracy, wrong = found.differences
    assert accuracy.difference > 0.2
    assert 0 < accuracy.low < accuracy.difference < accuracy.high
    assert accuracy.second_better == wrong.second_better == 1.0
    assert wrong.difference < 0
    assert accuracy.p_value == pytest.approx(1 / 201)
    # other thresholds: results cannot change places
    (found,), _, _ = _compare(monkeypatch, one, dataclasses.replace(two, decision={"threshold/yes": 0.3}))
    assert all(math.isnan(item.p_value) for item in found.differences)


class Decided(Samples):
    """A task of samples that are positive from a threshold on."""

    def __init__(self) -> None:
        self.threshold = 0.5

    def use_decision(self, decision: Mapping[str, float]) -> None:
        self.threshold = decision.get("threshold/yes", 0.5)

    def summarize(self, records: Sequence[Any]) -> dict[str, float]:
        right = column(records, "label") == (column(records, "prob") >= self.threshold)
        return {"accuracy": float(right.mean()), "wrong": float((~right).sum())}

    def worst_cases(self, records: Sequence[Any], count: int = 5) -> list[tuple[str, float]]:
        return [(row["case_id"], row["prob"]) for row in records][:count]


def _folds() -> list[dict[str, Any]]:
    """Fold 0 decides rightly from 0.2 on, fold 1 from 0.8 on but for one of its four."""
    made = [("0", 0.1, 0), ("0", 0.3, 1), ("1", 0.6, 0), ("1", 0.7, 0), ("1", 0.9, 1), ("1", 0.5, 1)]
    return [
        {"case_id": f"{i}", "group": f"g{i}", "fold": fold, "prob": prob, "label": float(label)}
        for i, (fold, prob, label) in enumerate(made)
    ]


def test_folds_are_judged_by_their_own_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = {"0": {"threshold/yes": 0.2}, "1": {"threshold/yes": 0.8}}
    one = _run("a", _folds(), Decided(), by_fold=decisions)
    (found,), *_ = _compare(monkeypatch, one, _run("b", _folds(), Decided(), by_fold=decisions))
    accuracy, wrong = found.differences
    assert (accuracy.first, accuracy.second) == ((1 + 3 / 4) / 2, (1 + 3 / 4) / 2)
    assert (wrong.first, wrong.difference, wrong.p_value) == ((0 + 1) / 2, 0, 1)
    assert any("means over the folds of a and b" in note for note in comparison_notes(found, main="accuracy"))
    # a run that has decided once is judged on the same folds, and cannot change places
    rows = [{key: value for key, value in row.items() if key != "fold"} for row in _folds()]
    (found,), _, _ = _compare(monkeypatch, one, _run("c", rows, Decided()))
    assert found.differences[0].second == (1 / 2 + 2 / 4) / 2
    assert math.isnan(found.differences[0].p_value)


def test_reading_the_decisions_of_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"num_folds": 2, "split_hashes": ["x", "y"], "members": ["fold_0", "fold_1"]}
    for number, threshold in enumerate((0.2, 0.8)):
        place = tmp_path / f"fold_{number}" / "evaluation"
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps({"decision": {"threshold/yes": threshold}}))
        (place.parent / "data.json").write_text(json.dumps({"dataset": "findings"}))
        (place.parent / "status.json").write_text("{}")
    (tmp_path / "crossval.json").write_text(json.dumps(record))
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "cases.csv").write_text(cases_csv(_folds()))
    monkeypatch.setattr(judged, "_task", lambda *_: (Decided(), "images", {}, {}))
    run = judged.read_judged(tmp_path)
    assert run.by_fold == {"0": {"threshold/yes": 0.2}, "1": {"threshold/yes": 0.8}}
    (found,), _, _ = compare_runs([tmp_path, tmp_path], resamples=20)
    assert found.differences[0].first == (1 + 3 / 4) / 2


def test_an_evaluation_decides_by_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`medtrain evaluate RUN --part test inference.threshold=youden` has chosen what the run has not asked for."""
    place = tmp_path / "evaluation" / "test_step_00000010"
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"inference": {"threshold": "youden"}}))
    (place / "cases.csv").write_text(cases_csv(_folds()))
    for name, content in (("status", {}), ("data", {}), ("splits", {"train": []})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    seen: list[Any] = []

    def build(config: Mapping[str, Any], *_: Any) -> Decided:
        seen.append(config["inference"])
        return Decided()

    monkeypatch.setattr(judged, "load_saved", lambda *_, **__: {"task": {}, "inference": {"threshold": 0.5}})
    monkeypatch.setattr(judged, "read_plan", lambda *_: SimpleNamespace(family="images"))
    monkeypatch.setattr(judged, "build_task", build)
    judged.read_judged(tmp_path, part="test")
    assert seen == [{"threshold": "youden"}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "spleen"}, "different data sets: liver and spleen"),
        ({"task": Samples(), "family": "images"}, "one judges segmentation, the other images"),
        ({"trained_on": frozenset({"c1", "t1"})}, r"b was trained on 1 case \(c1\), which a judged"),
        ({"trained_on": frozenset({"t1"})}, r"different splits: 1 case \(t2\) in the training part of one of them"),
        ({"records": {row["case_id"]: row for row in FIRST[1:]}}, r"only a has judged 1 case \(c0\)"),
        (
            {"task": Named(("background", "spleen"))},
            "no class in common: a judges liver, tumour, b judges spleen",
        ),
        ({"records": {"z": {"case_id": "z"}}}, "they have no judged case in common"),
        ({"records": {r["case_id"]: {**r, "volume_ml/liver": 7.0} for r in FIRST}}, r"labels differ in 4 cases \(c0, "),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        matched_cases(
            _run("a", FIRST, Cases()), dataclasses.replace(_run("b", FIRST, Cases()), **changes), common=False
        )


def test_one_shared_class_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    other = _run("b", SECOND, Named(("background", "tumour")))
    (found,), *_ = _compare(monkeypatch, _run("a", FIRST, Cases()), other)
    assert {item.metric: item.first for item in found.differences}["dice"] == pytest.approx((0.5 + 0.3 + 0.1) / 3)


def _lesions(rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    counts = [{f"lesions_{what}/{name}": 1.0 for what in ("found", "missed", "false") for name in names}] * len(rows)
    return [{**row, **count, "nsd/liver": 0.5, "nsd/tumour": 0.25} for row, count in zip(rows, counts, strict=True)]


def test_metrics_of_other_rules_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"nsd_tolerance_mm": {"liver": 2}, "lesion_iou": 0.0}
    one = _run("a", _lesions(FIRST, "tumour"), Cases(), rules=rules)
    two = _run("b", _lesions(SECOND, "tumour"), Cases(), rules={"nsd_tolerance_mm": 1.0, "lesion_iou": 0.1})
    (found,), *_ = _compare(monkeypatch, one, two)
    compared = {item.metric for item in found.differences}
    assert {"dice", "dice/liver", "nsd/tumour", "hd95_mm"} <= compared
    assert not {"nsd", "nsd/liver", "lesion_f1", "lesion_f1/tumour", "lesion_fp"} & compared
    assert found.ruled_out["nsd"] == "task.nsd_tolerance_mm: a {'liver': 2}, b 1.0"
    notes = "\n".join(comparison_notes(found, main="dice"))
    assert "not compared, as judged by other rules: nsd (task.nsd_tolerance_mm: a {'liver': 2}, b 1.0)" in notes
    assert "lesion_f1, lesion_fp (task.lesion_iou: a 0.0, b 0.1)" in notes
    with pytest.raises(DataError, match=r"nsd is judged by other rules \(task\.nsd_tolerance_mm: ") as caught:
        _compare(monkeypatch, two, one, metric="nsd")
    assert caught.value.problems[0].hint == "judge it alike first: medtrain evaluate a task.nsd_tolerance_mm=1.0"
    same = dataclasses.replace(two, rules={"nsd_tolerance_mm": {"liver": 2.0, "tumour": 1}, "lesion_iou": 0})
    (found,), *_ = _compare(monkeypatch, one, same, metric="nsd")
    assert found.ruled_out == {}


def test_lesions_of_both_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _run("a", _lesions(FIRST, "tumour"), Cases())
    rows = [{**row, "lesions_missed/liver": 9.0} for row in _lesions(SECOND, "tumour", "liver")]
    (found,), *_ = _compare(monkeypatch, one, _run("b", rows, Cases()), metric="lesion_f1")
    by_name = {item.metric: item for item in found.differences}
    assert (by_name["lesion_f1"].first, by_name["lesion_f1"].second) == (0.5, 0.5)
    assert "lesion_f1/liver" in found.missing


def test_common_cases() -> None:
    one = _run("a", FIRST, Cases())
    other = _run("b", FIRST[1:], Cases(), trained_on=frozenset({"t1"}))
    assert matched_cases(one, other, common=True) == ["c1", "c2", "c3"]
    with pytest.raises(DataError, match="only a has judged") as caught:
        matched_cases(one, other, common=False)
    assert caught.value.problems[-1].hint == "--common compares them on the cases that both have judged"
    with pytest.raises(DataError, match="b was trained on"):  # never
        matched_cases(one, dataclasses.replace(other, trained_on=frozenset({"c2"})), common=True)


def _evaluated(folder: Path, name: str, rows: Sequence[dict[str, Any]], age: int, **facts: Any) -> None:
    place = folder / "evaluation" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "summary.json").write_text(json.dumps(facts))
    (place / "cases.csv").write_text(cases_csv(rows))
    os.utime(place, (1e9 - age, 1e9 - age))


def _judged_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of step 8 without lesions; evaluated again with them, as its newest evaluation of another step is, too."""
    _evaluated(folder, "", FIRST, 9, checkpoint="step_00000008")
    rules = {"nsd_tolerance_mm": 3.0, "lesion_iou": 0.0}
    _evaluated(folder, "val_step_00000008", _lesions(FIRST, "tumour"), 5, checkpoint="step_00000008", task=rules)
    _evaluated(folder, "val_step_00000004", _lesions(SECOND, "tumour"), 1, checkpoint="step_00000004", task=rules)
    for name, content in (("status", {}), ("data", {"dataset": "liver"}), ("splits", {"train": ["t1"]})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    task = {"nsd_tolerance_mm": 1.0, "lesion_iou": 0.0}
    monkeypatch.setattr(judged, "load_saved", lambda *_, **__: {"task": task, "inference": {}, "data": {}})
    monkeypatch.setattr(judged, "read_plan", lambda *_: SimpleNamespace(family="segmentation"))
    monkeypatch.setattr(judged, "build_task", lambda *_: Cases())
    return folder


def test_the_evaluation_that_has_the_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (_judged_folder(tmp_path / name, monkeypatch) for name in "ab")
    assert judged.read_judged(one).evaluation == one / "evaluation"
    assert judged.read_judged(one, metric="dice").evaluation == one / "evaluation"
    with caplog.at_level("INFO", logger="medtrain.compare.judged"):
        found = judged.read_judged(one, metric="lesion_f1/tumour")
    assert found.evaluation == one / "evaluation" / "val_step_00000008"
    said = "taking evaluation/val_step_00000008, which has lesion_f1/tumour, judged with task.nsd_tolerance_mm=3.0"
    assert said in caplog.text
    (compared,), main, _ = compare_runs([one, two], metric="lesion_f1/tumour", resamples=20)
    assert main == "lesion_f1/tumour"
    assert next(item for item in compared.differences if item.metric == main).first == 0.5
    with pytest.raises(
        UsageError, match="--metric lesion_f1/liver is no metric that a was judged by; it has "
    ) as caught:
        compare_runs([one, two], metric="lesion_f1/liver")
    assert "nsd" not in caught.value.message  # not judged, though the task could
    assert caught.value.hint == f"judge it first: medtrain evaluate {one} task.lesions=[liver]"


def test_the_evaluation_by_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hint says helps: `evaluate` with the other run's tolerance is found."""
    one, two = (_judged_folder(tmp_path / name, monkeypatch) for name in "ab")
    _evaluated(two, "", _lesions(FIRST), 9, checkpoint="step_00000008")
    first = judged.read_judged(one, metric="nsd")
    assert first.rules["nsd_tolerance_mm"] == 3.0
    assert judged.read_judged(two, metric="nsd").evaluation == two / "evaluation"
    assert judged.read_judged(two, metric="nsd", like=first).evaluation.name == "val_step_00000008"
    assert compare_runs([one, two], metric="nsd", resamples=20)[0][0].ruled_out == {}


def test_unknown_metrics_and_single_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = _run("a", FIRST, Cases()), _run("b", SECOND, Cases())
    with pytest.raises(UsageError, match="--metric dise is no metric that a was judged by; it has dice, ") as caught:
        _compare(monkeypatch, one, two, metric="dise")
    assert caught.value.hint == "did you mean dice?"
    with pytest.raises(UsageError, match="two runs or more"):
        _compare(monkeypatch, one)


def test_files_and_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, main, specs = _compare(monkeypatch, _run("a", FIRST, Cases()), _run("b", SECOND, Cases()))
    write_comparison(tmp_path / "out.csv", found, main=main, part="val")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["dice"]["difference"]) == found[0].differences[0].difference
    assert rows["dice"]["second_run"] == "b"
    write_comparison(tmp_path / "out.json", found, main=main, part="val")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["metric"] == "dice"
    assert written["comparisons"][0]["apart"][0][0] == "c1"
    with pytest.raises(UsageError, match=r"ends in \.csv or \.json"):
        check_out(tmp_path / "out.txt")
    with pytest.raises(UsageError, match="there is no folder"):
        check_out(tmp_path / "none" / "out.csv")
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(comparison_table(found[0], specs, main=main, part="val", confidence=0.95))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "A = a, B = b: val, 4 cases of 2 patients" in text
    assert text.index("dice/tumour") < text.index("hd95_mm (min)")
    assert "+0.050 [+0.050, +0.050]" in text
    notes = "\n".join(comparison_notes(found[0], main=main))
    assert "hd95_mm/liver A 1 B 1" in notes
    assert "c1 0.8000 -> 0.9000" in notes


def test_reading_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(UsageError, match="has not been evaluated on its test part") as caught:
        _find_evaluations(folder, "test")
    assert caught.value.hint == f"evaluate it first: medtrain evaluate {tmp_path} --part test"
    place = tmp_path / "evaluation" / "test_step_00000010"
    place.mkdir(parents=True)
    (place / "summary.json").write_text("{}")
    (place / "cases.csv").write_text(cases_csv([{"case_id": "1", "group": "7", "dice/liver": NAN, "note": "x"}]))
    assert _find_evaluations(folder, "test") == [place]
    (record,) = _read_records(place / "cases.csv").values()
    assert (record["case_id"], record["group"], record["note"]) == ("1", "7", "x")
    assert math.isnan(record["dice/liver"])
    twice = [{"case_id": case, "fold": fold} for fold, case in (("0", "a"), ("0", "b"), ("1", "b"), ("1", "c"))]
    (place / "cases.csv").write_text(cases_csv(twice))
    with pytest.raises(DataError, match=r"cases\.csv: 1 case \(b\) in several rows, of the folds 0 and 1") as refused:
        _read_records(place / "cases.csv")
    assert refused.value.problems[0].hint is not None
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]))
    assert _trained_on(splits, {"data": {"fold": 1}}) == {"b"}
    splits.write_text(json.dumps({"train": ["c"], "val": ["d"]}))
    assert _trained_on(splits, {"data": {}}) == {"c"}
