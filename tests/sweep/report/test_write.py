from __future__ import annotations

import csv
import html
import json
import math
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from medtrain.config.space import Dimension
from medtrain.run.folder import RunFolder
from medtrain.sweep.report.write import write_report
from medtrain.sweep.result import Objective, TrialResult
from tests.sweep import searches
from tests.sweep.report.studies import DICE, DROPOUT, FIVE, LATENCY, LOSS, LR, FakeStudy, define, search

PICK = Dimension(key="loss.kind", kind="choice", choices=("a", "b"), when={"loss": ("focal",)})
C, P, F, R, W = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING


def _text(folder: Path) -> str:
    """What a reader sees, spaces collapsed."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _rerun(folder: Path, trial: int, seed: int, dice: float) -> None:
    place = folder / "rerun" / f"{trial:04d}-seed{seed}"
    place.mkdir(parents=True)
    result = {"trial": trial, "seed": seed, "fold": None, "state": "complete", "metrics": {"val/dice": dice}}
    (place / "result.json").write_text(json.dumps(result))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, for tests that read."""
    monkeypatch.setattr("medtrain.sweep.report.write.draw_pictures", lambda sweep, found, reruns: [])


def test_one_file_holds_everything(in_tmp: Path) -> None:
    folder = in_tmp / "outputs" / "liver" / "20261120-09-a1b2"
    folder.mkdir(parents=True)
    study = search(folder, 60, running=1, n_trials=80)
    (folder / "best.yaml").write_text("defaults: []\n")
    files = write_report(folder, study)
    assert [path.name for path in files[:2]] == ["report.html", "trials.csv"]
    assert all(path.is_file() for path in files)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(files) - 2 == len(list((folder / "plots").iterdir()))
    assert not re.search(r"<script|<link|https?://|src=\"(?!data:)|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    text = _text(folder)
    best = study.best(1)[0]
    assert text.startswith("Sweep liver / 20261120-09-a1b2 ")
    assert f"Trial {best.number}: val/dice {best.values[0]:.4f}. A single run" in text
    assert "medtrain train experiment=outputs/liver/20261120-09-a1b2/best.yaml" in text
    assert "medtrain resume outputs/liver/20261120-09-a1b2 # go on" in re.sub(r" +", " ", text)
    assert "sweep.n_trials=160" in text
    assert "medtrain sweep --report outputs/liver/20261120-09-a1b2" in text
    assert "optuna-dashboard outputs/liver/20261120-09-a1b2/journal.log" in text
    assert "60 of 80 trials finished" in text
    assert "; 1 trial running." in text
    assert "saved by pruning" in text
    assert "loss=focal or tversky" in text  # the condition of loss.gamma
    assert "0.0001 .. 0.1, logarithmic" in text


@pytest.mark.usefixtures("undrawn")
def test_the_command_repeats_the_best_trial(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, FIVE))
    point = {
        "optimizer.lr": 0.1 + 0.2e-3,
        "loss": "focal",
        "loss.gamma": 2.0,
        "model.dropout": 0.0,
        "data.batch_size": 4,
    }
    study.add(C, {**point, "optimizer.lr": 0.05}, values=[0.9])
    write_report(tmp_path, study)
    expected = (
        "medtrain train model=unet data=msd 'data.root=/data/Task04 Hippocampus' optimizer.lr=0.05 loss=focal "
        "loss.gamma=2.0 model.dropout=0.0 data.batch_size=4"
    )
    assert expected in _text(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_command_gives_the_same_as_the_file(tmp_path: Path) -> None:
    full = ("model=unet", "data.root=/a", "+data.x=1", "callbacks=none", "data.root=/b", "loss=focal", "data.x=2")
    study = FakeStudy(replace(define(tmp_path, (LOSS, LR)), full_overrides=full))
    study.add(C, {"loss": "dice_ce", "optimizer.lr": 0.05}, values=[0.9])
    (tmp_path / "best.yaml").write_text("defaults: []\n")
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert (
        "medtrain train model=unet callbacks=none data.root=/b data.x=2 loss=dice_ce optimizer.lr=0.05 " in text
    )  # of each key the last
    assert "best.yaml keeps the budget of a trial" in text
    assert "trainer.max_steps=NUMBER" in text


@pytest.mark.usefixtures("undrawn")
def test_a_class_that_the_winner_does_not_find_is_told(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    for dice, front, back in ((0.4, 0.8, 0.0), (0.3, 0.3, 0.3)):
        metrics = {"val/dice": dice, "val/dice/front": front, "val/dice/back": back, "val/nsd/front": 0.7}
        study.add(C, {"optimizer.lr": 0.01}, values=[dice], metrics=metrics)
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert "Class val/dice front 0.8000 back 0.0000 Warning: val/dice of back is 0." in text
    assert "Trial val/dice front back lr Time 0 0.4000 0.8000 0.0000 0.01" in text
    study.frozen[0].user_attrs["metrics"]["val/dice/back"] = math.nan
    write_report(tmp_path, study)
    assert "Warning: val/dice of back is no value." in _text(tmp_path)
    study.frozen[0].user_attrs["metrics"]["val/dice/back"] = 0.1
    write_report(tmp_path, study)
    assert "Warning" not in _text(tmp_path)


def test_an_error_of_zero_is_no_warning(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), objectives=(Objective("val/hd95_mm", "min"),)))
    study.add(C, {"optimizer.lr": 0.01}, values=[0.0], metrics={"val/hd95_mm": 0.0, "val/hd95_mm/front": 0.0})
    write_report(tmp_path, study)
    assert "Class val/hd95_mm front 0.0000" in _text(tmp_path)
    assert "Warning" not in _text(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_no_gain_is_claimed_against_what_was_not_tried(tmp_path: Path) -> None:
    study = search(tmp_path, 4, failures=False)
    write_report(tmp_path, study)
    assert "against the configuration as it is" in _text(tmp_path)
    assert [row["default"] for row in _rows(tmp_path)] == ["1", "0", "0", "0"]
    study.definition = replace(study.definition, default_moved={"optimizer.lr": 0.5})
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert re.search(r"[+-][\d.]+ against the configuration", text) is None
    assert "lies outside of the space that was searched (optimizer.lr=0.5). Trial 0 is only the one nearest to" in text
    best = study.best(1)[0].params["optimizer.lr"]
    assert f"Parameter Best As it is optimizer.lr {best:.4g} 0.5" in text
    assert [row["default"] for row in _rows(tmp_path)] == ["nearest", "0", "0", "0"]


@pytest.mark.usefixtures("undrawn")
def test_what_a_value_is_and_how_many_trials_importances_need(tmp_path: Path) -> None:
    study = search(tmp_path, 19, failures=False)
    write_report(tmp_path, study)
    assert (
        "trial's best evaluation. How much each parameter matters is told from 20 finished trials on; there are 19"
        in (_text(tmp_path))
    )
    write_report(tmp_path, search(tmp_path, 20, failures=False, folds=[0, 1]))
    text = _text(tmp_path)
    assert "A value is that of the trial's best evaluation, on average over its folds. Trial" in text


@pytest.mark.parametrize(
    ("is_grid", "dimensions", "sampler", "pruner"),
    [(False, FIVE, "tpe", "gradual"), (True, (LOSS,), "grid", "none"), (True, (LOSS, PICK), "brute_force", "none")],
)
def test_what_auto_has_chosen_is_named(
    tmp_path: Path, is_grid: bool, dimensions: Any, sampler: str, pruner: str
) -> None:
    auto = {"name": "auto"}
    definition = replace(define(tmp_path, dimensions), sampler=auto, pruner=auto, is_grid=is_grid)
    write_report(tmp_path, FakeStudy(definition))
    assert f"Sampler {sampler}, chosen by auto Pruner {pruner}, chosen by auto" in _text(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_two_runs_cannot_tell_luck(tmp_path: Path) -> None:
    study = search(tmp_path, 8, failures=False)
    first, second = (trial.number for trial in study.best(2))
    for seed in (1, 2):
        _rerun(tmp_path, first, seed, 0.85 + 0.001 * seed)
        _rerun(tmp_path, second, seed, 0.80 + 0.0011 * seed)
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert f"It leads trial {second} by 0.0498: two runs of each cannot tell whether that is luck" in text
    assert "more than luck" not in text
    assert f"The value in the search of trials {first}, {second} is more than two standard deviations away" in text


def test_the_winner_of_the_reruns_is_the_best(tmp_path: Path) -> None:
    study = search(tmp_path, 8, failures=False)
    first, second = (trial.number for trial in study.best(2))
    for seed in (1, 2, 3):
        _rerun(tmp_path, first, seed, 0.80 + 0.001 * seed)
        _rerun(tmp_path, second, seed, 0.85 + 0.001 * seed + 0.0002 * (seed == 2))
    files = write_report(tmp_path, study)
    assert {"rerun.csv", "rerun.png"} <= {path.name for path in files}
    text = _text(tmp_path)
    assert f"Trial {second}: val/dice 0.8521 on average over 3 runs" in text
    assert f"Trial {second} has the best mean, although trial {first} won the search." in text
    assert "more than luck" in text
    for path in (tmp_path / "rerun").glob(f"{second:04d}-*/result.json"):
        path.write_text(path.read_text().replace("0.85", "0.80"))
    write_report(tmp_path, study)
    assert "luck cannot be ruled out" in _text(tmp_path)


def test_several_objectives_show_the_front(tmp_path: Path) -> None:
    study = search(tmp_path, 25, objectives=(DICE, LATENCY))
    write_report(tmp_path, study)
    text = _text(tmp_path)
    best = max(study.pareto(), key=lambda trial: trial.values[0])
    assert f"Trial {best.number}, the best of the Pareto front in val/dice" in text
    assert len(study.pareto()) == 1
    assert "1 trial on the Pareto front" in text
    assert "Objectives val/dice (higher is better), latency_ms (lower is better)" in text


@pytest.mark.usefixtures("undrawn")
def test_how_importances_were_found_is_said(tmp_path: Path) -> None:
    write_report(tmp_path, search(tmp_path, 19))
    assert "Importances need 20 trials, 10 of them complete" in _text(tmp_path)
    write_report(tmp_path, search(tmp_path, 60, dimensions=(LR, DROPOUT)))
    text = _text(tmp_path)
    assert "(PED-ANOVA, by Optuna)" in text
    assert "Small differences mean little." in text
    assert "not rated where" not in text
    study = FakeStudy(define(tmp_path, (LR, DROPOUT), objectives=(DICE, LATENCY)))
    for index in range(20):
        study.add(C, {"optimizer.lr": 1e-3 * (1 + index), "model.dropout": 0.1}, values=[index, 5.0])
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert "Only with Importance for val/dice optimizer.lr 0.0001 .. 0.1, logarithmic 100 %" in text
    assert "model.dropout 0 .. 0.5 not rated" in text
    assert "A parameter is not rated where" in text


def test_what_went_wrong_is_counted_with_what_helps(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,)))
    for number in range(3):
        study.add(P, {"optimizer.lr": 0.01}, failure="oom", message=f"out of memory: tried to allocate {number} MiB")
    study.add(F, {"optimizer.lr": 0.01}, failure="crash", message="KeyError: 'x'")
    study.add(P, {"optimizer.lr": 0.01}, curve={25: 0.5}, seconds=100.0)
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert "No trial is complete yet." in text
    assert "3 of them ran out of memory or diverged" in text
    assert "3 oom out of memory: tried to allocate 0 MiB 0, 1, 2 Allow smaller batches" in text
    assert "1 crash KeyError: 'x' 3 The console of the trial says more. trials/0003.log" in text
    assert "Pruning ended 1 trial after 25 % of its budget. That" in text
    assert "0.8 whole trials, about 5 min 00 s: 75 %" in text


def test_nobody_may_win(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), constraints=("parameters <= 5",)))
    study.add(C, {"optimizer.lr": 0.01}, values=[0.9], metrics={"parameters": 9.0})
    write_report(tmp_path, study)
    text = _text(tmp_path)
    assert "No trial meets the constraints." in text
    assert "1 cannot win miss parameters <= 5" in text


def test_texts_are_escaped(tmp_path: Path) -> None:
    odd = Dimension(key="model.x", kind="choice", choices=("<script>alert(1)</script>", "&amp; \"q\" 'p'"))
    study = FakeStudy(define(tmp_path, (odd,)))
    study.add(C, {"model.x": odd.choices[0]}, values=[0.9])
    study.add(F, {"model.x": odd.choices[1]}, failure="crash", message="<b>bold</b> & more")
    write_report(tmp_path, study)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "<b>bold</b> & more" in html.unescape(page)
    assert odd.choices[1] in html.unescape(page)


def test_secrets_are_masked(tmp_path: Path) -> None:
    study = FakeStudy(define(tmp_path, (LR,), storage="postgresql://user:hunter2@db.example/optuna"))
    write_report(tmp_path, study)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "hunter2" not in page
    assert "optuna-dashboard 'postgresql+psycopg://***@db.example/optuna'" in html.unescape(page)


@pytest.mark.parametrize(
    ("storage", "command"),
    [
        ("/data/x.log", "optuna-dashboard /data/x.log"),
        ("/data/x.db", "optuna-dashboard sqlite:////data/x.db"),
        ("sqlite:////data/x.db", "optuna-dashboard sqlite:////data/x.db"),
        ("postgresql://me@host/db", "optuna-dashboard postgresql+psycopg://me@host/db"),
        ("grpc://host:13000", "optuna-dashboard STORAGE"),
    ],
)
def test_how_to_open_the_dashboard(tmp_path: Path, storage: str, command: str) -> None:
    write_report(tmp_path, FakeStudy(define(tmp_path, (LR,), storage=storage)))
    assert command in _text(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_state_of_the_sweep_is_said(tmp_path: Path) -> None:
    folder = RunFolder.create(experiment="liver", path=tmp_path / "s")
    folder.start()
    study = search(folder.path, 3, n_trials=3)
    write_report(folder.path, study)
    assert "the sweep is" not in _text(folder.path)  # whoever writes the report at its end is still running
    folder.finish("stopped", step=3, message="SIGTERM")
    write_report(folder.path, study)
    text = _text(folder.path)
    assert "the sweep is stopped (SIGTERM)" in text
    assert "# go on" not in text  # there is nothing left of it


def test_a_study_as_it_is_kept_in_its_journal(tmp_path: Path) -> None:
    default = {"optimizer.lr": 0.01, "loss": "dice_ce", "data.batch_size": 4}
    definition = searches.define(
        searches.MIXED,
        folder=tmp_path,
        pruner={"name": "median", "n_startup_trials": 3, "warmup": 0},
        default=default,
        constraints=("parameters <= 5",),
        n_trials=24,
        retries=0,
    )
    study = searches.create(tmp_path, definition)
    while (assignment := study.next()) is not None:
        score = searches.quality(assignment.params)
        if assignment.number in (3, 4):
            failure: Any = "oom" if assignment.number == 3 else "crash"
            study.finish(assignment, TrialResult(state="failed", failure=failure, message="gone", seconds=1.0))
            continue
        steps = (25, 50, 75, 100)
        end = next((step for step in steps if study.report(assignment, step, score * step / 100) and step < 100), 100)
        metrics = {"val/dice": score, "parameters": 9.0 if assignment.number == 5 else 1.0}
        state: Any = "complete" if end == 100 else "pruned"
        result = TrialResult(state=state, metrics=metrics, seconds=end, overhead_s=0.5, step=end)
        study.finish(assignment, result)
    again = searches.load(tmp_path)
    files = write_report(tmp_path, again)
    counts, rows = again.counts(), _rows(tmp_path)
    assert counts.finished == len(rows) == 24
    for state, count in (("complete", counts.complete), ("pruned", counts.pruned), ("failed", counts.failed)):
        assert sum(row["state"] == state for row in rows) == count > 0
    assert rows[0]["default"] == "1"
    assert {row["machine"] for row in rows} == {socket.gethostname()}
    assert (rows[3]["state"], rows[3]["failure"]) == ("pruned", "oom")
    assert (rows[4]["state"], rows[4]["failure"]) == ("failed", "crash")
    assert {row["percent"] for row in rows if row["state"] == "pruned" and not row["failure"]} <= {
        "25.0",
        "50.0",
        "75.0",
    }
    best = again.best(1)[0]
    text = _text(tmp_path)
    assert f"Trial {best.number}: val/dice {best.values[0]:.4f}" in text
    assert "24 of 24 trials finished" in text
    if rows[5]["state"] == "complete":
        assert rows[5]["violated"] == "parameters <= 5"
    assert {"history.png", "importance.png", "parallel.png", "curves.png"} <= {path.name for path in files}


# ------------------------------------------------------------------------------------------------------ trials.csv


def test_the_table_of_the_trials_reads_back(tmp_path: Path) -> None:
    nasty = Dimension(key="model.x", kind="choice", choices=('a, "b"', "[1,2]"))
    study = FakeStudy(
        define(tmp_path, (LR, nasty), constraints=("parameters <= 5",), default={"optimizer.lr": 0.1 + 0.2})
    )
    metrics: dict[str, Any] = {"val/dice": 0.1 + 0.2, "parameters": 9.0, "val/hd95_mm": float("nan")}
    worker = {"host": "node,1", "pid": 3}
    study.add(
        C,
        {"optimizer.lr": 0.0123456789012345, "model.x": nasty.choices[0]},
        values=[0.1 + 0.2],
        metrics=metrics,
        seconds=12.5,
        overhead_s=1.25,
        step=100,
        worker=worker,
    )
    study.add(P, {"optimizer.lr": 0.01, "model.x": "[1,2]"}, curve={35: 0.5}, message='pruned\nby the sweep; "x"')
    study.add(W)
    write_report(tmp_path, study)
    complete, pruned, waiting = _rows(tmp_path)
    assert list(complete)[:5] == ["number", "state", "val/dice", "optimizer.lr", "model.x"]
    assert float(complete["val/dice"]) == 0.1 + 0.2
    assert float(complete["optimizer.lr"]) == 0.0123456789012345
    assert complete["model.x"] == 'a, "b"'
    assert (complete["seconds"], complete["overhead_s"], complete["step"]) == ("12.5", "1.25", "100")
    assert (complete["machine"], complete["folder"], complete["violated"]) == (
        "node,1",
        "trials/0000",
        "parameters <= 5",
    )
    assert (complete["parameters"], complete["val/hd95_mm"], complete["percent"]) == ("9.0", "", "100.0")
    assert (pruned["state"], pruned["message"], pruned["percent"]) == ("pruned", 'pruned by the sweep; "x"', "35.0")
    assert pruned["val/dice"] == ""
    assert (waiting["state"], waiting["optimizer.lr"], waiting["folder"]) == ("waiting", "", "")
    assert all(len(row) == len(complete) and None not in row for row in (pruned, waiting))


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    files = write_report(tmp_path, FakeStudy(define(tmp_path)))
    assert [path.name for path in files] == ["report.html", "trials.csv"]
    assert _rows(tmp_path) == []
    assert "0 of 20 trials finished" in _text(tmp_path)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    write_report(tmp_path, search(tmp_path, 3))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
