from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from medtrain.config.compose import load_config
from medtrain.config.space import Dimension, Space
from medtrain.errors import ConfigError, MedtrainError, UsageError
from medtrain.sweep.result import Definition, Objective
from medtrain.sweep.settings import SweepSettings
from medtrain.sweep.wandb import CONFIG_FILE, WandbSweep, init_sweep, open_sweep, run_agent
from medtrain.sweep.wandb_space import DEFINITION, sweep_config

_SPACE = Space(
    (
        Dimension(key="optimizer.lr", kind="float", low=1e-4, high=1e-1, log=True),
        Dimension(key="loss", kind="choice", choices=("dice_ce", "focal")),
        Dimension(key="loss.gamma", kind="float", low=0.5, high=5.0, when={"loss": ("focal",)}),
    )
)
_FOLDER = "/far/away/outputs/liver_sweep/20261120-09-3fa2"


def _definition(*overrides: str, **sweep: Any) -> Definition:
    return Definition(
        overrides=("data=phantom", "logger=[csv,jsonl]", *overrides),
        imports=(),
        config_dirs=(),
        digest="0123",
        space=_SPACE,
        objectives=(Objective("val/dice", "max"),),
        constraints=(),
        sweep={**dataclasses.asdict(SweepSettings()), **sweep},
        sampler={"name": "auto"},
        pruner={"name": "auto"},
        folder=_FOLDER,
        split_hash="abc",
        default=None,
    )


class _Run:
    """A run of W&B as the agent ends it."""

    def __init__(self, run_id: str | None, options: Mapping[str, Any]) -> None:
        self.run_id, self.options = run_id, options
        self.summary: dict[str, float] = {}
        self.exit_code: int | None = None

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class _FakeWandb(types.ModuleType):
    """W&B's client as far as medtrain uses it; hands out `jobs` one after another as the real one does."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.jobs: list[tuple[str, dict[str, Any]]] = []
        self.sweeps: dict[str, types.SimpleNamespace] = {}
        self.registered: list[tuple[dict[str, Any], Any, Any]] = []
        self.agents: list[dict[str, Any]] = []
        self.runs: list[_Run] = []
        self.failure: Exception | None = None

    def sweep(self, config: dict[str, Any], entity: str | None, project: str | None) -> str:
        if self.failure is not None:
            raise self.failure
        self.registered.append((config, entity, project))
        os.environ["WANDB_ENTITY"], os.environ["WANDB_PROJECT"] = entity or "me", project or "uncategorized"
        print("Create sweep with ID: swp1")
        return "swp1"

    def Api(self) -> types.SimpleNamespace:  # noqa: N802 - W&B's name
        def sweep(path: str) -> types.SimpleNamespace:
            if self.failure is not None:
                raise self.failure
            return self.sweeps[path]

        return types.SimpleNamespace(sweep=sweep)

    def agent(self, sweep_id: str, *, function: Callable[[], None], **options: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.agents.append({"sweep_id": sweep_id, **options})
        try:
            for run_id, drawn in self.jobs:
                self._run(sweep_id, run_id, drawn, function)
        except KeyboardInterrupt:
            return
        finally:
            os.environ.pop("WANDB_SWEEP_ID", None)

    def _run(self, sweep_id: str, run_id: str, drawn: dict[str, Any], function: Callable[[], None]) -> None:
        path = Path(os.environ["WANDB_DIR"], "wandb", f"sweep-{sweep_id}", f"config-{run_id}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: {"value": value} for name, value in drawn.items()}
        path.write_text(f"wandb_version: 1\n\n{yaml.safe_dump(values)}")
        os.environ |= {"WANDB_RUN_ID": run_id, "WANDB_SWEEP_ID": sweep_id, "WANDB_SWEEP_PARAM_PATH": str(path)}
        thread = threading.Thread(target=function)
        thread.start()
        try:
            thread.join()
        finally:
            for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
                os.environ.pop(name, None)

    def init(self, **options: Any) -> _Run:
        run = _Run(os.environ.get("WANDB_RUN_ID"), options)
        self.runs.append(run)
        return run

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _FakeWandb:
    module = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in list(os.environ):
        if name.startswith("WANDB_") or name in (DEFINITION, "NETRC"):
            monkeypatch.delenv(name)
    for name in ("WANDB_ENTITY", "WANDB_PROJECT"):  # the client sets them: set once, so that they go afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    return module


# ----------------------------------------------------------------------------------------------- --wandb-init


def test_init_writes_and_registers(
    fake: _FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    assert init_sweep(_definition("trainer.eval_every=5%"), tmp_path) == "me/medtrain/swp1"
    ((config, entity, project),) = fake.registered
    assert (entity, project) == (None, "medtrain")
    assert config == sweep_config(_definition("trainer.eval_every=5%"), project="medtrain", evaluations=20)
    assert yaml.safe_load((tmp_path / CONFIG_FILE).read_text()) == config
    assert "medtrain sweep --wandb-agent me/medtrain/swp1" in caplog.text
    assert capsys.readouterr().out == ""  # the client's own lines go to stderr


def test_init_uses_the_project_of_the_logger(fake: _FakeWandb, tmp_path: Path) -> None:
    definition = _definition("logger=[csv,wandb]", "logger.wandb.project=liver", "logger.wandb.entity=lab")
    assert init_sweep(definition, tmp_path) == "lab/liver/swp1"
    assert fake.registered[0][1:] == ("lab", "liver")


@pytest.mark.parametrize("env", [{"WANDB_API_KEY": ""}, {"WANDB_MODE": "offline"}])
def test_init_without_a_key_says_what_to_type(
    fake: _FakeWandb,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
) -> None:
    caplog.set_level(logging.INFO)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert init_sweep(_definition("logger=[wandb]", "logger.wandb.entity=lab"), tmp_path) is None
    assert fake.registered == []
    assert f"wandb sweep --project medtrain --entity lab {tmp_path / CONFIG_FILE}" in caplog.text
    assert yaml.safe_load((tmp_path / CONFIG_FILE).read_text())["method"] == "bayes"


def test_init_of_what_wandb_cannot_do_writes_nothing(fake: _FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.rerun_best: has no effect in a W&B sweep"):
        init_sweep(_definition(rerun_best=2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_init_says_why_wandb_refuses(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.failure = fake.Error("permission\n denied")
    with pytest.raises(MedtrainError, match="cannot be registered: W&B says: permission denied"):
        init_sweep(_definition(), tmp_path)


# ---------------------------------------------------------------------------------------------- --wandb-agent


def _remote(definition: Definition | None = None) -> types.SimpleNamespace:
    config = sweep_config(definition or _definition(), project="liver")
    return types.SimpleNamespace(entity="lab", project="liver", config=config)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("lab/liver/swp1", "lab/liver/swp1"),
        ("liver/swp1", "liver/swp1"),
        ("swp1", "medtrain/swp1"),
        ("https://wandb.ai/lab/liver/sweeps/swp1?nw=me", "lab/liver/swp1"),
        ("https://w.lab.example:8080/wandb/lab/liver/sweeps/swp1", "lab/liver/swp1"),
    ],
)
def test_open_by_any_name(fake: _FakeWandb, text: str, asked: str) -> None:
    fake.sweeps = {asked: _remote()}
    sweep = open_sweep(text)
    assert sweep == WandbSweep("lab", "liver", "swp1", _definition())
    assert sweep.path == "lab/liver/swp1"


def test_open_takes_the_project_of_the_environment(fake: _FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "brain")
    fake.sweeps = {"brain/swp1": _remote()}
    assert open_sweep("swp1").definition == _definition()


@pytest.mark.parametrize("text", ["", "a/b/c/d", "lab//swp1", "lab/liver/swp 1"])
def test_open_of_no_name_of_a_sweep(fake: _FakeWandb, text: str) -> None:
    with pytest.raises(UsageError, match="is not a W&B sweep"):
        open_sweep(text)


def test_open_needs_a_key_and_the_network(fake: _FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    with pytest.raises(MedtrainError, match="needs a W&B key"):
        open_sweep("swp1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(MedtrainError, match="WANDB_MODE=offline"):
        open_sweep("swp1")


def test_open_of_what_is_not_there(fake: _FakeWandb) -> None:
    fake.failure = ValueError("Could not find sweep")
    with pytest.raises(MedtrainError, match="no access to the sweep lab/liver/swp1: W&B says: Could not find sweep"):
        open_sweep("lab/liver/swp1")
    fake.failure = None
    fake.sweeps = {"lab/liver/swp1": types.SimpleNamespace(entity="lab", project="liver", config={"method": "grid"})}
    with pytest.raises(MedtrainError, match="not made by medtrain"):
        open_sweep("lab/liver/swp1")


class _Train:
    """Notes what it was asked to train."""

    def __init__(self, results: Mapping[str, Any] | None = None) -> None:
        self.results = results or {}
        self.calls: list[tuple[str, list[str], dict[str, str]]] = []

    def __call__(self, overrides: list[str], place: Path) -> Mapping[str, float]:
        environment = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        self.calls.append((place.name, overrides, environment))
        result = self.results.get(place.name, {"val/dice": 0.75, "parameters": 12.0, "val/hd95_mm": float("nan")})
        if isinstance(result, BaseException):
            raise result
        return result


_DRAWN = {"optimizer.lr": 0.01, "loss.choice": "focal", "loss.gamma": 2.5}


def _sweep(definition: Definition | None = None) -> WandbSweep:
    return WandbSweep("lab", "liver", "swp1", definition or _definition())


def test_a_trial(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [("run1", _DRAWN)]
    train = _Train()
    outcome = run_agent(_sweep(), train, folder=tmp_path, overrides=["data.root=/scratch/a b"], count=4)
    assert dataclasses.astuple(outcome) == (1, 0, 0, None)
    assert fake.agents == [{"sweep_id": "swp1", "entity": "lab", "project": "liver", "count": 4}]
    ((name, overrides, environment),) = train.calls
    assert name == "run1"
    tree = load_config(overrides).tree
    assert tree["data"]["root"] == "/scratch/a b"
    assert (tree["optimizer"]["lr"], tree["loss"]["name"], tree["loss"]["gamma"]) == (0.01, "focal", 2.5)
    assert list(tree["logger"]) == ["csv", "jsonl", "wandb"]
    assert tree["logger"]["wandb"]["group"] == "20261120-09-3fa2"
    # the trial learns of its W&B run from its configuration: a process server would keep an environment for ever
    assert not {"WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"} & environment.keys()
    job = json.loads(Path(tree["logger"]["wandb"]["job"]).read_text())
    assert Path(job.pop("sweep_param_path")).is_file()
    assert job == {"entity": "lab", "project": "liver", "sweep_id": "swp1", "run_id": "run1"}
    (run,) = fake.runs
    assert (run.run_id, run.exit_code, run.options["resume"]) == ("run1", 0, "allow")
    assert run.summary == {"val/dice": 0.75, "parameters": 12.0}
    assert "WANDB_DIR" not in os.environ


def test_a_path_with_quotes_reaches_the_trial(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [("run1", _DRAWN)]
    train, folder = _Train(), tmp_path / "it's, \u00fc=1"
    run_agent(_sweep(), train, folder=folder)
    assert load_config(train.calls[0][1]).tree["logger"]["wandb"]["job"] == str(folder / "trials/run1.wandb.json")


def test_the_users_choice_of_loggers_stays(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [("run1", _DRAWN)]
    train = _Train()
    chosen = _definition("logger=[wandb,tensorboard]", "logger.wandb.mode=offline", "logger.wandb.group=mine")
    run_agent(_sweep(chosen), train, folder=tmp_path)
    logger = load_config(train.calls[0][1]).tree["logger"]
    assert list(logger) == ["wandb", "tensorboard"]
    assert (logger["wandb"]["mode"], logger["wandb"]["group"]) == ("offline", "mine")


def test_folds_are_runs_of_their_own(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [("run1", _DRAWN)]
    train = _Train()
    run_agent(_sweep(_definition(folds=[0, 1])), train, folder=tmp_path)
    logger = load_config(train.calls[0][1]).tree["logger"]["wandb"]
    assert (logger["job"], logger["group"]) == (None, "20261120-09-3fa2")
    assert fake.runs[0].summary["val/dice"] == 0.75


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (MedtrainError("out of memory"), "out of memory"),
        ({"parameters": 12.0}, "no finite val/dice"),
        ({"val/dice": float("nan")}, "no finite val/dice"),
    ],
)
def test_a_trial_that_fails(
    fake: _FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, result: Any, message: str
) -> None:
    fake.jobs = [("run1", _DRAWN), ("run2", _DRAWN)]
    outcome = run_agent(_sweep(), _Train({"run1": result}), folder=tmp_path)
    assert dataclasses.astuple(outcome) == (1, 1, 0, None)
    assert [(run.run_id, run.exit_code) for run in fake.runs] == [("run1", 1), ("run2", 0)]
    assert fake.runs[0].summary == {}
    assert message in caplog.text


def test_a_draw_outside_of_the_space_fails_the_trial(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [("run1", {**_DRAWN, "optimizer.lr": 7.0})]
    train = _Train()
    assert run_agent(_sweep(), train, folder=tmp_path).failed == 1
    assert (train.calls, fake.runs[0].exit_code) == ([], 1)


def test_the_agent_gives_up_after_failures_in_a_row(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.jobs = [(f"run{index}", _DRAWN) for index in range(6)]
    broken = MedtrainError("no data")
    train = _Train({"run0": broken, "run2": broken, "run3": broken})
    with pytest.raises(MedtrainError, match="2 trials failed in a row; the last one: no data"):
        run_agent(_sweep(_definition(max_failures=2)), train, folder=tmp_path)
    assert [name for name, _, _ in train.calls] == ["run0", "run1", "run2", "run3"]


def test_a_signal_ends_the_agent(fake: _FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def agent(sweep_id: str, **options: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as the real client does
            return
        raise AssertionError("not interrupted")

    monkeypatch.setattr(fake, "agent", agent)
    assert run_agent(_sweep(), _Train(), folder=tmp_path).signal == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_broken_client_is_one_sentence(fake: _FakeWandb, tmp_path: Path) -> None:
    fake.failure = fake.Error("sweep not found")
    with pytest.raises(MedtrainError, match="sweep lab/liver/swp1 ended: W&B says: sweep not found"):
        run_agent(_sweep(), _Train(), folder=tmp_path)


def test_overrides_that_do_not_fit_are_said_before_the_first_trial(fake: _FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        run_agent(_sweep(), _Train(), folder=tmp_path, overrides=["optimizer.learning_rate=1"])
    assert fake.agents == []


def test_a_summary_that_cannot_be_sent_costs_no_trial(
    fake: _FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> _Run:
        raise fake.Error("no network")

    monkeypatch.setattr(fake, "init", init)
    fake.jobs = [("run1", _DRAWN)]
    assert run_agent(_sweep(), _Train(), folder=tmp_path).done == 1
    assert "could not be told how trial run1 of lab/liver/swp1 ended: no network" in caplog.text


# --------------------------------------------------------------- `wandb agent`, which starts a process per trial


@pytest.fixture
def started(fake: _FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that `wandb agent` gives to the sweep's command."""
    path = tmp_path / "config-run1.yaml"
    path.write_text("wandb_version: 1\n\n" + yaml.safe_dump({name: {"value": v} for name, v in _DRAWN.items()}))
    command = _remote().config["command"]
    name, _, text = command[1].partition("=")
    for key, value in {
        name: text,
        "WANDB_RUN_ID": "run1",
        "WANDB_SWEEP_ID": "swp1",
        "WANDB_SWEEP_PARAM_PATH": str(path),
        "WANDB_ENTITY": "lab",
        "WANDB_PROJECT": "liver",
    }.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("started")
def test_one_trial_under_wandbs_own_agent(fake: _FakeWandb, tmp_path: Path) -> None:
    sweep = open_sweep("swp1")
    assert sweep == _sweep()
    train = _Train()
    outcome = run_agent(sweep, train, folder=tmp_path)
    assert dataclasses.astuple(outcome) == (1, 0, 0, None)
    assert fake.agents == []
    assert [(run.run_id, run.exit_code) for run in fake.runs] == [("run1", 0)]
    assert "optimizer.lr=0.01" in train.calls[0][1]


@pytest.mark.usefixtures("started")
def test_a_failure_under_wandbs_own_agent(fake: _FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(MedtrainError, match="the trial failed: diverged"):
        run_agent(open_sweep("swp1"), _Train({"run1": MedtrainError("diverged")}), folder=tmp_path)
    assert fake.runs[0].exit_code == 1


@pytest.mark.usefixtures("started")
def test_a_stop_under_wandbs_own_agent(fake: _FakeWandb, tmp_path: Path) -> None:
    def train(overrides: list[str], place: Path) -> Mapping[str, float]:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not interrupted")

    outcome = run_agent(open_sweep("swp1"), train, folder=tmp_path)
    assert dataclasses.astuple(outcome) == (0, 0, 1, "SIGTERM")


# ------------------------------------------------------------------- the official client, without a server

_SCRIPT = """
import json, os, socket, subprocess, sys, threading, time
from pathlib import Path

def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"the network was used: {address}")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse

import wandb
import wandb.apis.public.sweeps as server
from wandb.agents import pyagent
from medtrain.errors import MedtrainError
from medtrain.config.compose import load_config
from medtrain.sweep.result import Definition
from medtrain.sweep.wandb import WandbSweep, run_agent

folder, definition = Path(sys.argv[1]), Definition.from_json(json.loads(sys.argv[2]))

# the part of W&B's server that hands out trials: the next one once the last has ended
training = threading.Event()
orders = ["good", "broken", "slow", "stop"]

def heartbeat(api, agent_id, metrics, states):
    if orders[0] == "stop":
        if not training.is_set():
            return []
        return [{"type": "stop", "run_id": "slow"}]
    if states:
        return []
    run_id = orders.pop(0)
    return [{"type": "run", "run_id": run_id, "args": {
        "optimizer.lr": {"value": 0.01}, "loss.choice": {"value": "dice_ce"}, "loss.gamma": {"value": 1.5}}}]

wandb.Api = lambda: None
server._register_agent = lambda api, host, **options: {"id": "agent1"}
server._agent_heartbeat = heartbeat
pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.01

def train(overrides, place):
    if place.name == "broken":
        raise MedtrainError("out of memory")
    if place.name == "slow":
        training.set()
        while True:
            time.sleep(0.01)  # in short steps: the client stops a trial by an exception
    chosen = load_config(overrides).tree["logger"]["wandb"]
    place.mkdir()
    subprocess.run([sys.executable, "-c", sys.argv[3], place, chosen["job"]], check=True)
    return {"val/dice": 0.75, "parameters": 12345.0}

outcome = run_agent(WandbSweep("lab", "liver", "swp1", definition), train, folder=folder, count=3)
print(outcome)
"""


_TRIAL = """
import sys
from pathlib import Path
from medtrain.loggers.base import RunInfo
from medtrain.loggers.wandb import WandbLogger

info = RunInfo(run_name="r", experiment="e", config={"loss": {"name": "dice_ce"}})
logger = WandbLogger(run_dir=Path(sys.argv[1]), run_info=info, group="g", job=sys.argv[2])
logger.log_scalars(1, 0, {"val/dice": 0.5})
run = logger._run
print([run.id, run.sweep_id, run.project, run.entity, run.config["loss.choice"], run.config["loss"]], flush=True)
logger.close()
"""


def test_the_real_client_without_a_server(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    env |= {"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "sweep"), json.dumps(_definition().to_json()), _TRIAL]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logged, outcome = done.stdout.strip().splitlines()
    assert logged == "['good', 'swp1', 'liver', 'lab', 'dice_ce', {'name': 'dice_ce'}]"
    assert outcome == "AgentOutcome(done=1, failed=1, stopped=1, signal=None)"
    assert "Traceback" not in done.stderr
    trial = _content(tmp_path / "sweep/trials/good", "good")
    assert b"val/dice" in trial
    ends = {name: _content(tmp_path / "sweep", name) for name in ("good", "broken")}
    assert b"12345" in ends["good"]
    assert b"12345" not in ends["broken"]
    assert not list((tmp_path / "sweep/wandb").glob("offline-run-*-slow"))


def _content(folder: Path, run_id: str) -> bytes:
    """What was recorded to be sent to W&B."""
    return b"".join(path.read_bytes() for path in folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))
