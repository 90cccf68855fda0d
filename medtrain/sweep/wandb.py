"""Sweeps that Weights & Biases conducts: register one made from a medtrain space, and run trials for it.

Only the official client talks to W&B, and it is imported here inside functions. What can be known without a server
(the translation of spaces and draws) is in `medtrain.sweep.wandb_space`.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import yaml

from medtrain import registry
from medtrain.config.compose import load_config
from medtrain.engine.signals import STOP_SIGNALS
from medtrain.errors import MedtrainError, UsageError
from medtrain.loggers.wandb import has_key
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors
from medtrain.sweep.result import Definition
from medtrain.sweep.wandb_space import (
    DEFINITION,
    count_evaluations,
    definition_of,
    parse_definition,
    read_params,
    sweep_config,
)

log = logging.getLogger(__name__)

CONFIG_FILE = "wandb-sweep.yaml"
"""In the sweep's folder: the sweep as W&B knows it."""

_RUN_ID, _SWEEP_ID, _PARAMS = "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"  # set by W&B for each trial
_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")
_URL = re.compile(r"https?://.*?([^/]+/[^/]+)/sweeps/([^/?#]+)")


class Train(Protocol):
    """Trains a trial in a process of its own.

    W&B stops a trial by an exception that is raised in the thread that waits here: wait in short steps (an exception
    cannot interrupt a long one), and when one comes, stop the process and let it through.
    """

    def __call__(self, overrides: list[str], place: Path) -> Mapping[str, float]:
        """Train, or continue what is in `place`; return the metrics at the best evaluation.

        Args:
            overrides: Of the trial's configuration.
            place: Its folder.

        Raises:
            MedtrainError: The trial failed; says why.
        """
        ...


@dataclass(frozen=True)
class WandbSweep:
    """A sweep that W&B conducts.

    Args:
        entity: User or team; None is the key's own.
        project: Project; None is what W&B's own settings say.
        sweep_id: W&B's id.
        definition: What it is about.
    """

    entity: str | None
    project: str | None
    sweep_id: str
    definition: Definition

    @property
    def path(self) -> str:
        """ENTITY/PROJECT/ID."""
        return "/".join(part for part in (self.entity, self.project, self.sweep_id) if part)


@dataclass(frozen=True)
class AgentOutcome:
    """What an agent did.

    Args:
        done: Trials that ended well.
        failed: Trials that failed.
        stopped: Trials that W&B or the user stopped.
        signal: The signal that ended the agent; None when the sweep or the count did.
    """

    done: int
    failed: int
    stopped: int
    signal: str | None


# ------------------------------------------------------------------------------------------------ --wandb-init


def init_sweep(definition: Definition, folder: Path) -> str | None:
    """Write a sweep in W&B's format into a folder and, where there is a key, register it.

    Project and entity are those of `logger.wandb` where that logger is chosen.

    Args:
        definition: The sweep.
        folder: The sweep's folder.

    Returns:
        ENTITY/PROJECT/ID for `--wandb-agent`; None without a key, when the commands to type are logged.

    Raises:
        ConfigError: The sweep asks for something that W&B cannot do.
        MedtrainError: W&B refused.
    """
    tree = load_config(definition.overrides, config_dirs=definition.config_dirs, imports=definition.imports).tree
    logger = {**registry.get("logger", "wandb").defaults(), **tree["logger"].get("wandb", {})}
    config = sweep_config(
        definition,
        project=logger["project"],
        entity=logger["entity"],
        evaluations=count_evaluations(tree["trainer"]),
    )
    path = folder / CONFIG_FILE
    atomic_write(path, yaml.safe_dump(config, sort_keys=False, width=1000))
    log.info("%s", config["description"])
    if not has_key() or _offline():
        entity = f"--entity {config['entity']} " if "entity" in config else ""
        log.info("there is no W&B key: the sweep is not registered. Where there is one (`wandb login`), type")
        log.info("    wandb sweep --project %s %s%s", config["project"], entity, path)
        log.info("    medtrain sweep --wandb-agent ENTITY/PROJECT/ID")
        return None
    sweep = _register(config)
    log.info("registered; run its trials, on any machine and as often as you like, with")
    log.info("    medtrain sweep --wandb-agent %s", sweep)
    return sweep


def _register(config: Mapping[str, Any]) -> str:
    import wandb

    with _service("the sweep cannot be registered"), contextlib.redirect_stdout(sys.stderr):
        sweep_id = wandb.sweep(dict(config), entity=config.get("entity"), project=config["project"])
    # the client leaves in the environment where W&B put the sweep
    entity = os.environ.get("WANDB_ENTITY") or config.get("entity")
    project = os.environ.get("WANDB_PROJECT") or config["project"]
    return "/".join(part for part in (entity, project, sweep_id) if part)


# ----------------------------------------------------------------------------------------------- --wandb-agent


def open_sweep(text: str) -> WandbSweep:
    """Ask W&B for a sweep.

    Args:
        text: ID, PROJECT/ID, ENTITY/PROJECT/ID, or the address of its page.

    Raises:
        MedtrainError: There is no key, no such sweep, or it is not one of medtrain's.
    """
    entity, project, sweep_id = _parse(text)
    if DEFINITION in os.environ:  # `wandb agent` has started this process
        entity, project = os.environ.get("WANDB_ENTITY", entity), os.environ.get("WANDB_PROJECT", project)
        return WandbSweep(entity, project, sweep_id, parse_definition(os.environ[DEFINITION]))
    if _offline():
        raise MedtrainError(
            f"W&B conducts this sweep, but WANDB_MODE={os.environ['WANDB_MODE']} keeps it from being asked",
            hint="unset WANDB_MODE; without a network use `medtrain sweep` with workers of its own",
        )
    if not has_key():
        raise MedtrainError(
            "a W&B sweep needs a W&B key, and there is none", hint="`wandb login`, or set WANDB_API_KEY"
        )
    import wandb

    project = project or os.environ.get("WANDB_PROJECT") or registry.get("logger", "wandb").defaults()["project"]
    with _service(f"there is no access to the sweep {text}"):
        found = wandb.Api().sweep("/".join(part for part in (entity, project, sweep_id) if part))
        return WandbSweep(found.entity, found.project, sweep_id, definition_of(found.config))


def run_agent(
    sweep: WandbSweep, train: Train, *, folder: Path, overrides: Sequence[str] = (), count: int | None = None
) -> AgentOutcome:
    """Run trials that W&B hands out, one after another, until it has no more.

    The trials are in `trials/ID` of the folder, with W&B's id of the run, and log to that run of W&B themselves; with
    several folds each fold is a run of its own in the sweep's group, and W&B's run holds the means. A signal stops the
    running trial, with a checkpoint, and then the agent.

    Args:
        sweep: From `open_sweep`.
        train: Trains one.
        folder: For the trials.
        overrides: That differ on this machine, such as `data.root=DIR`.
        count: End after so many trials; None is no limit.

    Raises:
        ConfigError: The overrides do not fit.
        MedtrainError: W&B cannot be reached, or `sweep.max_failures` trials failed in a row.
    """
    import wandb

    jobs = _Jobs(sweep, train, folder.absolute(), overrides)
    with disk_errors(folder):
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    alone = _PARAMS in os.environ  # `wandb agent` has started this process for one trial
    with _stop_by_signals() as received, _environment({"WANDB_DIR": str(folder.absolute())}):
        if alone:
            with contextlib.suppress(KeyboardInterrupt):
                jobs.run()
        else:
            with _service(f"the sweep {sweep.path} ended"):
                wandb.agent(sweep.sweep_id, function=jobs.run, entity=sweep.entity, project=sweep.project, count=count)
    if alone and jobs.failed:
        raise MedtrainError(f"the trial failed: {jobs.last_message}")
    if jobs.gave_up:
        raise MedtrainError(
            f"{jobs.failed_in_row} trials failed in a row; the last one: {jobs.last_message}",
            hint="mend the cause and start the agent again: the sweep waits in W&B",
        )
    return AgentOutcome(jobs.done, jobs.failed, jobs.stopped, received[0] if received else None)


class _Jobs:
    """The trials of an agent. W&B's client calls `run` in a thread, with the trial in environment variables."""

    def __init__(self, sweep: WandbSweep, train: Train, folder: Path, overrides: Sequence[str]) -> None:
        self.sweep, self.train, self.folder = sweep, train, folder
        definition = sweep.definition
        common = [*definition.overrides, *overrides]
        tree = load_config(common, config_dirs=definition.config_dirs, imports=definition.imports).tree
        loggers = dict.fromkeys([*tree["logger"], "wandb"])
        self.common = [*common, f"logger=[{','.join(loggers)}]"]
        if tree["logger"].get("wandb", {}).get("group") is None:
            self.common.append(f"logger.wandb.group={_quoted(Path(definition.folder).name)}")
        self.several_folds = len(definition.sweep["folds"]) > 1
        self.done = self.failed = self.stopped = self.failed_in_row = 0
        self.gave_up = False
        self.last_message = ""

    def run(self) -> None:
        """Train the trial that W&B has just handed out."""
        run_id = os.environ[_RUN_ID]
        try:
            metrics = self._train(run_id)
        except MedtrainError as error:
            self._fail(run_id, error.message)
        except Exception as error:
            if type(error) is not Exception or error.args:
                self._fail(run_id, f"{type(error).__name__}: {error}")
                raise
            self._stop(run_id)  # this is how W&B's client stops a trial
        except KeyboardInterrupt:
            self._stop(run_id)
            raise
        else:
            self.done += 1
            self.failed_in_row = 0
            log.info("trial %s: %s", run_id, ", ".join(f"{name} {metrics[name]:.4g}" for name in self._wanted()))
            _conclude(self.sweep, metrics, exit_code=0)

    def _train(self, run_id: str) -> Mapping[str, float]:
        definition = self.sweep.definition
        params = read_params(definition.space, _drawn(Path(os.environ[_PARAMS])))
        trial = definition.space.overrides(params)
        log.info("trial %s: %s", run_id, " ".join(trial))
        overrides = [*self.common, *trial]
        if not self.several_folds:
            overrides.append(f"logger.wandb.job={_quoted(str(self._write_job(run_id)))}")
        # a process that trains must learn of its W&B run from its configuration alone: a fork server would keep the
        # environment of the first trial for all
        with _environment(dict.fromkeys((_RUN_ID, _SWEEP_ID, _PARAMS))):
            metrics = self.train(overrides, self.folder / "trials" / run_id)
        missing = [name for name in self._wanted() if not math.isfinite(metrics.get(name, math.nan))]
        if missing:
            raise MedtrainError(f"it has no finite {' and no finite '.join(missing)}")
        return metrics

    def _wanted(self) -> list[str]:
        return [objective.metric for objective in self.sweep.definition.objectives]

    def _write_job(self, run_id: str) -> Path:
        path = self.folder / "trials" / f"{run_id}.wandb.json"
        job = {
            "entity": self.sweep.entity,
            "project": self.sweep.project,
            "sweep_id": self.sweep.sweep_id,
            "run_id": run_id,
            "sweep_param_path": os.path.abspath(os.environ[_PARAMS]),
        }
        atomic_write_json(path, {key: value for key, value in job.items() if value is not None})
        return path

    def _stop(self, run_id: str) -> None:
        self.stopped += 1
        # W&B hands it out no more, but by its configuration it stays that run of W&B
        more = "" if self.several_folds else f"; to go on with it: medtrain resume {self.folder / 'trials' / run_id}"
        log.info("trial %s was stopped%s", run_id, more)

    def _fail(self, run_id: str, message: str) -> None:
        self.failed += 1
        self.failed_in_row += 1
        self.last_message = message
        log.error("trial %s failed: %s", run_id, message)
        _conclude(self.sweep, {}, exit_code=1)
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread and self.failed_in_row >= self.sweep.definition.sweep["max_failures"]:
            self.gave_up = True
            _thread.interrupt_main()  # the client takes it for a Ctrl-C and ends


def _conclude(sweep: WandbSweep, metrics: Mapping[str, float], *, exit_code: int) -> None:
    """Tell W&B's run what the trial is worth at its best evaluation, or that it failed."""
    import wandb

    try:
        run = wandb.init(
            resume="allow",  # the trial's process has logged to it
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        run.summary.update({key: value for key, value in metrics.items() if math.isfinite(value)})
        run.finish(exit_code=exit_code)
    except (wandb.Error, OSError) as error:
        log.warning("W&B could not be told how trial %s of %s ended: %s", os.environ[_RUN_ID], sweep.path, error)


def _drawn(path: Path) -> dict[str, Any]:
    """What W&B drew for a trial: a file of `NAME: {value: VALUE}`."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {name: item["value"] for name, item in content.items() if isinstance(item, Mapping) and "value" in item}


def _parse(text: str) -> tuple[str | None, str | None, str]:
    page = _URL.match(text)
    path = f"{page[1]}/{page[2]}" if page else text
    if _ID.fullmatch(path) is None:
        raise UsageError(f"{text} is not a W&B sweep", hint="write ENTITY/PROJECT/ID, PROJECT/ID, ID or its address")
    entity, project, sweep_id = [None, None, *path.split("/")][-3:]
    assert sweep_id is not None
    return entity, project, sweep_id


def _offline() -> bool:
    return os.environ.get("WANDB_MODE", "") in ("offline", "dryrun", "disabled")


@contextlib.contextmanager
def _service(what: str) -> Iterator[None]:
    """One sentence for whatever goes wrong between here and W&B."""
    try:
        yield
    except MedtrainError:
        raise
    except Exception as error:  # the client's own errors have no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MedtrainError(f"{what}: W&B says: {reason}") from error


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for a while; None removes one."""
    before = {name: os.environ.get(name) for name in values}

    def put(wanted: Mapping[str, str | None]) -> None:
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def _stop_by_signals() -> Iterator[list[str]]:
    """Make every stop signal a Ctrl-C, which W&B's client understands; gather their names."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quoted(text: str) -> str:
    """A text as a value on the command line, whatever characters it has."""
    escaped = text.replace("'", r"\'")
    return f"'{escaped}'"
