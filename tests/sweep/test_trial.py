"""One trial: when it may begin, and what its ends mean."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medtrain.errors import DataError, MedtrainError, NonFiniteError, Problem
from medtrain.run.folder import RunFolder
from medtrain.run.lock import Holder, process_start
from medtrain.sweep import trial
from medtrain.sweep.result import TrialResult


def pretend(folder: RunFolder, *, pid: int, host: str) -> None:
    """Let the run look as if a process trained it."""
    status = dataclasses.replace(
        folder.read_status(), status="running", pid=pid, pid_start=process_start(pid), host=host
    )
    (folder.path / "status.json").write_text(json.dumps(dataclasses.asdict(status)))
    holder = Holder(pid, status.pid_start, host, "token")
    (folder.path / ".lock").write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_trial_waits_for_its_earlier_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(experiment="x", path=tmp_path / "run")
    earlier = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pretend(folder, pid=earlier.pid, host=socket.gethostname())
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            earlier.communicate(b"\n")  # it ends

    monkeypatch.setattr(trial.time, "sleep", sleep)
    trial._wait_until_free(RunFolder.open(folder.path))
    assert len(waited) == 3
    assert folder.read_status().state == "killed"


def test_a_trial_of_a_dead_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    folder = RunFolder.create(experiment="x", path=tmp_path / "run")
    pretend(folder, pid=1, host="elsewhere")
    with pytest.raises(MedtrainError, match="elsewhere"):
        RunFolder.open(folder.path).start()
    trial._wait_until_free(RunFolder.open(folder.path))
    again = RunFolder.open(folder.path)
    assert again.read_status().state == "stopped"
    again.start()
    again.finish("done", step=1)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), "oom"),
        (NonFiniteError("the gradient was NaN"), "nonfinite"),
        (DataError([Problem("a.nii", "truncated")]), "machine"),
        (OSError(28, "No space left on device"), "machine"),
        (MedtrainError("model.kernel_size is even"), "error"),
        (RuntimeError("a bug"), "crash"),
    ],
)
def test_every_failure_has_its_kind(error: BaseException, failure: str) -> None:
    assert trial._explain(error)[0] == failure


def test_only_what_would_come_again_is_final() -> None:
    assert TrialResult(state="complete").is_final
    assert TrialResult(state="pruned").is_final
    assert TrialResult(state="failed", failure="oom").is_final
    assert not TrialResult(state="failed", failure="killed").is_final
    assert not TrialResult(state="failed", failure="crash").is_final
    assert not TrialResult(state="stopped").is_final


def test_folds_are_joined_by_their_means_and_their_times_added() -> None:
    folds = [
        TrialResult(
            state="complete", metrics={"val/dice": 0.5, "train_s": 10.0, "parameters": 7.0}, step=4, overhead_s=1
        ),
        TrialResult(state="complete", metrics={"val/dice": 0.75, "train_s": 20.0, "parameters": 7.0}, step=6),
    ]
    joined = trial._join(folds, 33.0)
    assert joined.metrics == {"val/dice": 0.625, "train_s": 30.0, "parameters": 7.0}
    assert (joined.step, joined.seconds, joined.overhead_s) == (10, 33.0, 1)


def test_a_trial_that_cannot_be_composed_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    task = trial.TrialTask(run_dir=str(tmp_path / "run"), overrides=("optimizer.lr=-1",))
    result = trial.run_trial(task, None)  # type: ignore[arg-type]
    assert (result.state, result.failure) == ("failed", "error")
    assert "optimizer.lr" in result.message
    assert not (tmp_path / "run").exists()
