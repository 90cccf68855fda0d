"""scripts/slurm_sweep.sh with stand-ins for SLURM's commands, medtrain and sleep."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_sweep.sh"

_STUBS = {
    # a job step is the command itself
    "srun": 'while [[ $1 == --* ]]; do printf "srun %s\\n" "$1" >>"$LOG"; shift; done; exec "$@"',
    "scontrol": 'printf "scontrol %s\\n" "$*" >>"$LOG"',
    "scancel": 'printf "scancel %s\\n" "$*" >>"$LOG"',
    "medtrain": """
        {
          printf 'medtrain'
          printf ' <%s>' "$@"
          printf '\\n'
        } >>"$LOG"
        if [[ -n ${READY:-} ]]; then  # trains until a signal asks it to stop
          trap 'echo "medtrain USR1" >>"$LOG"; exit 75' USR1
          trap 'echo "medtrain TERM" >>"$LOG"; exit 75' TERM
          exec 3<>"$READY.never"
          echo training >"$READY"
          read -r <&3
        fi
        exit "${CODE:-0}"
    """,
    # time passes: at the Nth sleep the first task has begun
    "sleep": """
        echo "sleep $1" >>"$LOG"
        if (($(grep -c '^sleep' "$LOG") == ${BEGIN_AFTER:-0})); then
          mkdir -p "$SWEEP_DIR/trials/0000"
          printf '{\\n  "status": "running"\\n}\\n' >"$SWEEP_DIR/status.json"
        fi
        if [[ -n ${READY:-} ]]; then
          echo waiting >"$READY"
          exec "$REAL_SLEEP" 60
        fi
    """,
}


@dataclass
class Cluster:
    """A folder with stand-ins for a cluster's commands.

    Args:
        root: Where everything is.
        environment: Of the job.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def sweep(self) -> Path:
        return self.root / "shared" / "liver sweep"

    def make_sweep(self, status: str = "running") -> None:
        (self.sweep / "trials" / "0000").mkdir(parents=True)
        (self.sweep / "config.yaml").touch()
        (self.sweep / "status.json").write_text(f'{{\n  "status": "{status}",\n  "step": 0\n}}\n')

    def start(self, task: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        job = {
            "SLURM_JOB_ID": f"{4712 + task}",
            "SLURM_ARRAY_JOB_ID": "4711",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_CPUS_PER_TASK": "8",
            "SWEEP_DIR": str(self.sweep),
        }
        return subprocess.Popen(
            [str(_SCRIPT), *arguments],
            env={**self.environment, **job, **environment},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, task: int, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(task, *arguments, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def start_ready(self, task: int, **environment: str) -> subprocess.Popen[str]:
        """Start a task and come back when it trains or waits."""
        ready = self.root / "ready"
        os.mkfifo(ready)
        os.mkfifo(f"{ready}.never")
        process = self.start(task, READY=str(ready), **environment)
        ready.read_text()
        return process

    def log(self, word: str) -> list[str]:
        path = self.root / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in _STUBS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    sleep = shutil.which("sleep")
    assert sleep is not None
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return Cluster(tmp_path, {"PATH": path, "LOG": str(tmp_path / "log"), "REAL_SLEEP": sleep})


def test_the_script_is_well_formed() -> None:
    assert os.access(_SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", _SCRIPT], check=True)
    lines = _SCRIPT.read_text(encoding="ascii").splitlines()
    assert max(map(len, lines)) <= 130
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first_command  # sbatch reads no further
    assert all(re.match(r"#SBATCH --[a-z-]+(=\S+)?( +#.*)?$", lines[i]) for i in options)


def test_the_linter_agrees() -> None:
    linter = shutil.which("shellcheck")
    if linter is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([linter, _SCRIPT], check=True)


def test_it_needs_a_folder(cluster: Cluster) -> None:
    code, output = cluster.run(0, SWEEP_DIR="")
    assert code != 0
    assert "set SWEEP_DIR" in output
    assert cluster.log("medtrain") == []


def test_the_first_task_makes_the_sweep(cluster: Cluster) -> None:
    space = "optimizer.lr=tag(log, interval(1e-4, 1e-1))"
    code, output = cluster.run(0, "data=msd", space)
    assert code == 0, output
    assert cluster.log("medtrain") == [f"<sweep> <data=msd> <{space}> <run.dir={cluster.sweep}>"]
    assert cluster.log("srun") == ["--ntasks=1", "--cpus-per-task=8"]
    assert cluster.log("scontrol") + cluster.log("scancel") == []


def test_the_first_task_goes_on_with_a_sweep_that_is_there(cluster: Cluster) -> None:
    cluster.make_sweep("done")
    code, output = cluster.run(0, "data=msd", "sweep.n_trials=400", "optimizer.lr=interval(0,1)", "sweep.rerun_best=3")
    assert code == 0, output
    assert cluster.log("medtrain") == [f"<resume> <{cluster.sweep}> <sweep.n_trials=400> <sweep.rerun_best=3>"]


def test_every_setting_that_may_change_comes_along() -> None:
    from medtrain.config.sweeps import MAY_CHANGE

    pattern = re.search(r"^ +(sweep\.n_trials=\* .*)\)$", _SCRIPT.read_text(), re.MULTILINE)
    assert pattern is not None
    globs = pattern[1].split(" | ")
    missing = {
        name for name in MAY_CHANGE if not any(f"sweep.{name}=".startswith(glob.split("*")[0]) for glob in globs)
    }
    assert missing == {"workers"}  # a task has one GPU


def test_the_others_join_when_the_first_has_begun(cluster: Cluster) -> None:
    code, output = cluster.run(3, "data=msd", BEGIN_AFTER="4")
    assert code == 0, output
    assert len(cluster.log("sleep")) == 4
    assert cluster.log("medtrain") == [f"<sweep> <--worker> <{cluster.sweep}/journal.log> <liver sweep>"]


def test_another_storage(cluster: Cluster) -> None:
    storage = "postgresql://me@dbhost/sweeps"
    assert cluster.run(0, "data=msd", STORAGE=storage)[0] == 0
    cluster.make_sweep()
    assert cluster.run(1, STORAGE=storage)[0] == 0
    assert cluster.log("medtrain") == [
        f"<sweep> <data=msd> <run.dir={cluster.sweep}> <sweep.storage={storage}>",
        f"<sweep> <--worker> <{storage}> <liver sweep>",
    ]


def test_joining_waits_until_a_sweep_runs_again(cluster: Cluster) -> None:
    cluster.make_sweep("done")
    assert cluster.run(1, BEGIN_AFTER="2")[0] == 0
    assert len(cluster.log("sleep")) == 2
    assert len(cluster.log("medtrain")) == 1


def test_joining_a_sweep_that_is_done_does_not_wait_for_ever(cluster: Cluster) -> None:
    cluster.make_sweep("done")
    assert cluster.run(1)[0] == 0
    assert len(cluster.log("sleep")) == 60  # of 10 s
    assert len(cluster.log("medtrain")) == 1  # finds nothing to do and ends


def test_a_sweep_that_never_begins(cluster: Cluster) -> None:
    code, output = cluster.run(1, WAIT_S="50")
    assert code == 1
    assert "there is no sweep in" in output
    assert len(cluster.log("sleep")) == 5
    assert cluster.log("medtrain") == []


def test_a_mistake_in_the_first_task_ends_the_others(cluster: Cluster) -> None:
    assert cluster.run(0, "optimizer.lr=interval(1,0)", CODE="2")[0] == 2
    assert cluster.log("scancel") == ["4711"]


@pytest.mark.parametrize("code", ["1", "75"])
def test_a_sweep_that_has_begun_is_not_cancelled(cluster: Cluster, code: str) -> None:
    cluster.make_sweep()
    assert cluster.run(0, CODE=code)[0] == int(code)
    assert cluster.run(2, CODE=code)[0] == int(code)
    assert cluster.log("scancel") + cluster.log("scontrol") == []


@pytest.mark.parametrize("task", [0, 5])
def test_a_task_whose_time_is_up_is_saved_and_requeued(cluster: Cluster, task: int) -> None:
    cluster.make_sweep()
    process = cluster.start_ready(task, SLURM_RESTART_COUNT="3")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert cluster.log("medtrain")[1:] == ["USR1"]
    assert cluster.log("scontrol") == [f"requeue 4711_{task}"]


def test_a_job_without_an_array_is_requeued_by_its_own_id(cluster: Cluster) -> None:
    nothing = dict.fromkeys(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN"), "")
    process = cluster.start_ready(0, **nothing)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert cluster.log("medtrain")[0].startswith("<sweep>")
    assert cluster.log("scontrol") == ["requeue 4712"]


def test_a_task_that_is_ended_is_saved_and_not_requeued(cluster: Cluster) -> None:
    process = cluster.start_ready(0)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert cluster.log("medtrain")[1:] == ["TERM"]
    assert cluster.log("scontrol") + cluster.log("scancel") == []


def test_requeueing_has_an_end(cluster: Cluster) -> None:
    process = cluster.start_ready(0, SLURM_RESTART_COUNT="2", MAX_RESTARTS="2")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "submit again" in output
    assert cluster.log("scontrol") == []


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_while_waiting(cluster: Cluster, number: signal.Signals, requeued: bool) -> None:
    process = cluster.start_ready(1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=50)  # less than the stand-in sleeps: it must not be left behind
    assert process.returncode == (0 if requeued else 75), output
    assert cluster.log("medtrain") == []
    assert cluster.log("scontrol") == (["requeue 4711_1"] if requeued else [])
