"""Sweeps as a user runs them: search, stop, continue, lose nothing, use the winner."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from medtrain.config.compose import load_config
from medtrain.sweep.launch import open_sweep

Medtrain = Callable[..., int]
LR = "optimizer.lr=tag(log, interval(1e-4,1e-1))"
SHORT = ["trainer.max_steps=4", "trainer.eval_every=2step", "callbacks=[]"]


def trials(place: Path) -> dict[int, dict[str, object]]:
    """State, values and parameters of every trial, from the study itself."""
    _, study = open_sweep(place)
    return {t.number: {"state": t.state.name, "values": t.values, "params": t.params} for t in study.trials()}


def results(place: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((place / "trials").glob("*/result.json"))]


@pytest.fixture
def sweep(medtrain: Medtrain, common: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Run a sweep of tiny trials and return its folder."""

    def run(*words: str, code: int = 0) -> Path:
        place = tmp_path / "sweep"
        assert medtrain("sweep", *common, *SHORT, f"run.dir={place}", *words) == code
        return place

    return run


def test_a_sweep_ends_with_a_winner_that_train_accepts(
    sweep: Callable[..., Path], medtrain: Medtrain, tmp_path: Path
) -> None:
    place = sweep(LR, "loss=choice(dice_ce,ce)", "sweep.n_trials=3", "sweep.workers=2")
    found = trials(place)
    assert [t["state"] for t in found.values()] == ["COMPLETE"] * 3
    # the first is the configuration as it is
    assert found[0]["params"] == {"optimizer.lr": pytest.approx(3e-3), "loss": "dice_ce"}
    # the study has what the runs themselves say
    for number, trial in found.items():
        rows = [json.loads(line) for line in (place / f"trials/{number:04d}/metrics.jsonl").read_text().splitlines()]
        assert trial["values"] == [max(row["val/dice"] for row in rows if "val/dice" in row)]
    best = max(found, key=lambda number: found[number]["values"])  # type: ignore[arg-type, return-value]
    winner = load_config([f"experiment={place / 'best.yaml'}"]).tree
    trained = yaml.safe_load((place / f"trials/{best:04d}/config.yaml").read_text())
    assert winner["optimizer"]["lr"] == trained["optimizer"]["lr"] == found[best]["params"]["optimizer.lr"]  # type: ignore[index]
    assert winner["loss"]["name"] == trained["loss"]["name"] == found[best]["params"]["loss"]  # type: ignore[index]
    assert medtrain("train", f"experiment={place / 'best.yaml'}", f"run.dir={tmp_path / 'again'}") == 0
    with (place / "trials.csv").open(newline="") as file:
        assert [int(row["number"]) for row in csv.DictReader(file)] == [0, 1, 2]
    assert "data:image/png" in (place / "report.html").read_text()


def test_more_trials_can_be_asked_for(sweep: Callable[..., Path], medtrain: Medtrain) -> None:
    place = sweep(LR, "sweep.n_trials=2")
    before = trials(place)
    assert medtrain("resume", place, "sweep.n_trials=3") == 0
    after = trials(place)
    assert len(after) == 3
    assert {number: after[number] for number in before} == before
    assert medtrain("resume", place) == 0  # nothing is left to do
    assert trials(place) == after


def test_a_list_is_a_grid_of_every_combination(sweep: Callable[..., Path]) -> None:
    place = sweep("optimizer.lr=1e-3,1e-2", "loss=ce,dice_ce")
    params = [(t["params"]["optimizer.lr"], t["params"]["loss"]) for t in trials(place).values()]  # type: ignore[index]
    assert sorted(params) == [("0.001", "ce"), ("0.001", "dice_ce"), ("0.01", "ce"), ("0.01", "dice_ce")]


def test_folds_are_trained_in_turn_and_averaged(sweep: Callable[..., Path]) -> None:
    place = sweep(LR, "sweep.n_trials=1", "sweep.folds=[0,1]")
    folds = [json.loads((place / f"trials/0000/fold{fold}/result.json").read_text()) for fold in (0, 1)]
    (trial,) = trials(place).values()
    assert trial["values"] == [pytest.approx(sum(fold["metrics"]["val/dice"] for fold in folds) / 2)]
    assert results(place)[0]["step"] == 8


def test_several_objectives_know_their_directions(sweep: Callable[..., Path]) -> None:
    place = sweep(
        "model.channels=choice([4,8,16],[4,8])", "sweep.n_trials=2", "sweep.objectives=[val/dice,parameters,latency_ms]"
    )
    _, study = open_sweep(place)
    assert [goal.mode for goal in study.definition.objectives] == ["max", "min", "min"]
    sizes = sorted(t["values"][1] for t in trials(place).values())  # type: ignore[index]
    assert sizes[0] < sizes[1]
    assert all(t["values"][2] > 0 for t in trials(place).values())  # type: ignore[index]
    assert (place / "best.yaml").is_file()


MODULE = '''
import os, signal
from medtrain.losses.dice import DiceCELoss
import torch
from medtrain.registry import register


@register("loss", "treacherous", runtime=("num_classes",))
class Treacherous(DiceCELoss):
    """Fails in a chosen way.

    Args:
        how: Which way.
    """

    def __init__(self, *, num_classes: int, how: str = "not") -> None:
        super().__init__(num_classes=num_classes)
        self.how = how

    def forward(self, logits, label, **options):
        if self.how == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if self.how == "crash":
            raise RuntimeError("a bug")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = super().forward(logits, label, **options)
        return loss * float("nan") if self.how == "nan" else loss
'''


def test_a_trial_that_fails_takes_nothing_with_it(
    sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "treacherous_losses.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    place = sweep(
        "--import", "treacherous_losses", "loss=treacherous", "loss.how=not,oom,crash,kill,nan",
        "trainer.nonfinite=raise", "sweep.retries=0",
    )  # fmt: skip
    states = {t["params"]["loss.how"]: (t["state"], t["values"]) for t in trials(place).values()}  # type: ignore[index]
    assert states["not"][0] == "COMPLETE"
    assert {how: state for how, (state, _) in states.items() if how != "not"} == {
        "oom": "PRUNED", "nan": "PRUNED", "crash": "FAIL", "kill": "FAIL",
    }  # fmt: skip
    assert all(not values for how, (_, values) in states.items() if how != "not"), "never a score"
    with (place / "trials.csv").open(newline="") as file:
        failures = {row["loss.how"]: row["failure"] for row in csv.DictReader(file)}
    assert failures == {"not": "", "oom": "oom", "nan": "nonfinite", "crash": "crash", "kill": "killed"}


def test_a_sweep_of_nothing_but_failures_stops_and_says_why(
    sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "treacherous_losses.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sweep(
        "--import", "treacherous_losses", "loss=treacherous", "loss.how=crash", LR, "sweep.retries=0",
        "sweep.max_failures=2", "sweep.n_trials=9", code=1,
    )  # fmt: skip
    assert "2 trials failed in a row; the last one: RuntimeError: a bug" in capsys.readouterr().err


@pytest.fixture
def process(common: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start medtrain as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "medtrain", *map(str, words)]
        started.append(
            subprocess.Popen(
                command,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
            one.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_sweep_that_is_stopped_is_continued(
    process: Callable[..., subprocess.Popen[str]], common: list[str], tmp_path: Path, medtrain: Medtrain, number: int
) -> None:
    place = tmp_path / "sweep"
    words = [
        *common,
        "trainer.max_steps=30",
        "trainer.eval_every=10step",
        "trainer.checkpoint_every=2step",
        "callbacks=[]",
    ]
    first = process("sweep", *words, LR, "sweep.n_trials=2", f"run.dir={place}")
    wait_for(lambda: any((place / "trials/0001/checkpoints").glob("step_*/meta.json")), first)
    before = trials(place)
    if number == signal.SIGTERM:
        os.killpg(first.pid, number)  # as `timeout` and some schedulers do: to the whole group
    else:
        first.send_signal(number)
    first.communicate()
    assert first.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert before[0]["state"] == "COMPLETE"
    assert medtrain("resume", place) == 0
    after = trials(place)
    assert len(after) == 2
    _, study = open_sweep(place)
    assert all(not trial.user_attrs.get("attempt") for trial in study.trials())  # to be stopped is no crash
    assert after[0] == before[0]
    assert after[1]["state"] == "COMPLETE"
    assert after[1]["params"] == before[1]["params"]
    steps = [row["step"] for row in map(json.loads, (place / "trials/0001/metrics.jsonl").read_text().splitlines())]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30
    # it went on from its checkpoint: the second process did not train the first steps again
    log = (place / "trials/0001/log.txt").read_text()
    assert "resumed at step" in log


@pytest.mark.slow
def test_a_worker_joins_a_study_that_another_process_made(
    process: Callable[..., subprocess.Popen[str]], common: list[str], tmp_path: Path, medtrain: Medtrain
) -> None:
    place = tmp_path / "sweep"
    words = [*common, "trainer.max_steps=20", "trainer.eval_every=10step", "callbacks=[]"]
    owner = process("sweep", *words, LR, "pruner=none", "sweep.n_trials=4", f"run.dir={place}")
    wait_for((place / "trials/0000/metrics.jsonl").is_file, owner)
    assert medtrain("sweep", "--report", place) == 0  # at any time
    assert medtrain("sweep", "--worker", place / "journal.log", "sweep", "sweep.workers=2") == 0
    _, errors = owner.communicate(timeout=120)
    assert owner.returncode == 0, errors
    _, study = open_sweep(place)
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 4
    assert len({json.dumps(trial.user_attrs["worker"], sort_keys=True) for trial in study.trials()}) == 2
    assert all((place / f"trials/{number:04d}/result.json").is_file() for number in range(4))


def test_options_that_exclude_each_other_or_take_no_overrides_say_so(
    medtrain: Medtrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in [
        (["--report", tmp_path, "--worker", "a", "b"], "--report and --worker exclude each other"),
        (["--report", tmp_path, "seed=1"], "--report takes no overrides: seed=1"),
        (["--worker", "a.log", "b", "optimizer.lr=1"], "--worker takes nothing but sweep.workers=N: optimizer.lr=1"),
        (["--serve", "a.log", "here"], "--serve needs HOST:PORT, not here"),
    ]:
        assert medtrain("sweep", *words) == 2
        assert said in capsys.readouterr().err
