from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from medtrain.config.space import Dimension, Space
from medtrain.errors import MedtrainError
from medtrain.sweep.agent import OneByOne
from medtrain.sweep.folder import RESULT
from medtrain.sweep.pool import Ended, Evaluated, Event, Progress, TrialTask
from medtrain.sweep.result import Definition, Objective, TrialResult
from medtrain.sweep.settings import SweepSettings

_DEFINITION = Definition(
    overrides=("data=phantom",),
    imports=("my_lab.nets",),
    config_dirs=("/conf",),
    digest="0123",
    space=Space((Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1),)),
    objectives=(Objective("val/dice", "max"),),
    constraints=(),
    sweep=dataclasses.asdict(SweepSettings()),
    sampler={"name": "auto"},
    pruner={"name": "auto"},
    folder="/sweep",
    split_hash="abc",
    default=None,
)
_RESULT = TrialResult(state="complete", metrics={"val/dice": 0.75, "parameters": 12.0})


class _Pool:
    """Runs nothing: its trial says what `news` says, one after another, and leaves `result`."""

    def __init__(self, news: list[list[Event] | BaseException], result: TrialResult | None = None) -> None:
        self.news, self.result = iter(news), result
        self.tasks: list[tuple[TrialTask, Path]] = []
        self.running: list[int] = []
        self.stops = self.answers = 0

    def start(self, key: int, task: TrialTask, *, log: Path) -> None:
        assert not (Path(task.run_dir) / RESULT).exists()
        self.tasks.append((task, log))
        self.running = [key]

    def wait(self, timeout: float) -> list[Event]:
        assert timeout <= 1.0  # or W&B could not stop the trial
        events = next(self.news)
        if isinstance(events, BaseException):
            raise events
        if any(isinstance(event, Ended) for event in events):
            self.running = []
            if self.result is not None:
                (Path(self.tasks[-1][0].run_dir) / RESULT).write_text(json.dumps(self.result.to_json()))
        return events

    def answer(self, key: int, *, prune: bool) -> None:
        assert (key, prune) == (0, False)  # W&B prunes by itself
        self.answers += 1

    def stop(self) -> None:
        self.stops += 1


def _train(pool: Any, place: Path) -> Any:
    return OneByOne(pool, _DEFINITION)(["data=phantom", "optimizer.lr=0.01"], place)


def test_a_trial(tmp_path: Path) -> None:
    place = tmp_path / "trials" / "run1"
    place.mkdir(parents=True)
    (place / RESULT).write_text("{}")  # of an attempt that was stopped
    news: list[Any] = [[], [Progress(0, 50.0, {}), Evaluated(0, 50, 0.5, intermediate=True)], [Ended(0, 0)]]
    pool = _Pool(news, _RESULT)
    assert _train(pool, place) == {"val/dice": 0.75, "parameters": 12.0}
    ((task, log),) = pool.tasks
    assert log == tmp_path / "trials" / "run1.log"
    assert (task.run_dir, task.overrides) == (str(place), ("data=phantom", "optimizer.lr=0.01"))
    assert (task.imports, task.config_dirs, task.split_hashes) == (("my_lab.nets",), ("/conf",), ("abc",))
    assert task.watch is None
    assert pool.answers == 1


@pytest.mark.parametrize(
    ("code", "result", "message"),
    [
        (0, TrialResult(state="failed", failure="oom", message="out of memory: 3 GiB"), "out of memory: 3 GiB"),
        (0, TrialResult(state="stopped", message="received SIGTERM"), "received SIGTERM"),
        (-9, None, "killed by SIGKILL"),
        (1, None, r"ended with code 1: see .*run1\.log"),
    ],
)
def test_a_trial_that_fails(tmp_path: Path, code: int, result: TrialResult | None, message: str) -> None:
    with pytest.raises(MedtrainError, match=message):
        _train(_Pool([[Ended(0, code)]], result), tmp_path / "run1")


@pytest.mark.parametrize("error", [Exception(), KeyboardInterrupt()])
def test_a_stop_saves_the_trial_and_comes_through(tmp_path: Path, error: BaseException) -> None:
    pool = _Pool([[], error, [Progress(0, 50.0, {})], [Ended(0, 75)]])
    with pytest.raises(type(error)) as caught:
        _train(pool, tmp_path / "run1")
    assert caught.value is error
    assert (pool.stops, pool.running) == (1, [])
