"""The run folder: its layout, and the status file that says what became of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict

import yaml

from medtrain.errors import MedtrainError, UsageError
from medtrain.registry import plain
from medtrain.run.atomic import atomic_write, atomic_write_json, disk_errors, remove_leftovers
from medtrain.run.lock import SILENCE_S, RunLock, process_start, same_process_lives
from medtrain.run.provenance import environment, mask_command, mask_secrets, typed_command

log = logging.getLogger(__name__)

State = Literal["created", "running", "done", "stopped", "failed", "killed", "unknown"]
"""`killed` and `unknown` are never written: they are concluded from a dead process or an unreadable file."""

_HEARTBEAT_S = 10.0
_BEAT_S = 30.0  # between two signs of life while nothing is logged: data are prepared, or cases evaluated
_WRITING = threading.RLock()  # held from reading to writing: the training and the beating thread change one file


class Best(TypedDict):
    """The best evaluation so far."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """Contents of status.json.

    Args:
        status: What the run said of itself last.
        step: Optimizer steps done.
        message: Why it stopped or failed; empty otherwise.
        pid: Process that trains, or trained last.
        pid_start: Start time of that process in the kernel's ticks, which tells it from a later one with the same id.
        host: Machine of that process.
        started: When the run was created, ISO 8601.
        updated: When this was written, ISO 8601.
        best: The best evaluation so far.
    """

    status: State
    step: int = 0
    message: str = ""
    pid: int = 0
    pid_start: int | None = None
    host: str = ""
    started: str = ""
    updated: str = ""
    best: Best | None = None

    @property
    def state(self) -> State:
        """What can be known: a run that says it is running but whose process is dead is `killed`."""
        if self.status not in ("created", "running"):
            return self.status
        return self.status if self._process_lives() else "killed"

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard of the run for so long that a process on another machine is taken for dead."""
        if not self.updated:
            return True
        updated = datetime.datetime.fromisoformat(self.updated)
        return (datetime.datetime.now().astimezone() - updated).total_seconds() >= SILENCE_S

    @property
    def is_mine(self) -> bool:
        """Whether this process wrote it."""
        return (self.pid, self.host) == (os.getpid(), socket.gethostname())

    def _process_lives(self) -> bool:
        if self.host == socket.gethostname():
            return same_process_lives(self.pid, self.pid_start)
        return not self.is_silent


class RunFolder:
    """A run's folder. Use `create` or `open`.

    Args:
        path: The folder.
    """

    FOLDERS: ClassVar[tuple[str, ...]] = ("checkpoints", "evaluation")  # callbacks and loggers make their own
    SUFFIX: ClassVar[str] = ""  # of the names that are made up
    INPUTS: ClassVar[frozenset[str]] = frozenset(
        {"overrides.txt", "command.txt", "env.json", "plan.json", "splits.json"}
    )
    """What is written before config.yaml: a folder with nothing else has not begun, and is taken again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_heartbeat = -_HEARTBEAT_S
        self._lock = RunLock(path / ".lock", silent=lambda: self.read_status().is_silent)
        self._stop_beating: threading.Event | None = None

    @classmethod
    def create(
        cls, *, experiment: str, root: str | os.PathLike[str] = "outputs", path: str | os.PathLike[str] | None = None
    ) -> Self:
        """Make the folder of a new run, `<root>/<experiment>/<YYYYMMDD-HH-xxxx>`, and its status file.

        Args:
            experiment: Name of the experiment; a folder below `root`.
            root: Where experiments are kept.
            path: Take exactly this folder instead.

        Raises:
            UsageError: `path` holds a run or other files already.
            MedtrainError: The folder cannot be made.
        """
        if path is not None:
            folder = cls(_claim(Path(path), cls.INPUTS))
        else:
            parent = Path(root) / experiment
            with disk_errors(parent):
                parent.mkdir(parents=True, exist_ok=True)
                folder = cls(_make_unique(parent, cls.SUFFIX))
        try:
            with disk_errors(folder.path):
                for name in cls.FOLDERS:
                    (folder.path / name).mkdir()
            folder._write(Status(status="created", started=_now()))
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        if path is None:
            _point_latest(folder.path)
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the folder of an existing run.

        Raises:
            UsageError: There is no run; runs nearby are named.
        """
        folder = Path(path)
        if (folder / "status.json").is_file():
            return cls(folder.resolve())
        nearby = sorted(folder.rglob("status.json"), key=os.path.getmtime) if folder.is_dir() else []
        what = "holds no run" if folder.is_dir() else "does not exist"
        hint = f"the newest run below it is {nearby[-1].parent}" if nearby else "`medtrain runs` lists the runs"
        raise UsageError(f"{folder} {what}", hint=hint)

    @property
    def name(self) -> str:
        """Name of the run: its last folder."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """What was derived from the data."""
        return self.path / "plan.json"

    @property
    def splits(self) -> Path:
        """Which case is in which part."""
        return self.path / "splits.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Folder of the final evaluation."""
        return self.path / "evaluation"

    @property
    def adapter(self) -> Path:
        """Folder of the best weights' adapters, in the format of PEFT, where the model has any."""
        return self.path / "adapter"

    def write_inputs(self, config: Mapping[str, Any], overrides: Sequence[str], argv: Sequence[str]) -> None:
        """Write overrides.txt, command.txt, env.json and at last config.yaml, secrets masked.

        With config.yaml the folder is whole: from then on it is continued, and not begun anew.

        Args:
            config: The resolved configuration, plain data.
            overrides: The overrides of the command line.
            argv: The whole command line.
        """
        atomic_write(self.path / "overrides.txt", "".join(f"{line}\n" for line in mask_command(overrides)))
        self.add_command(argv)
        atomic_write_json(self.path / "env.json", environment(argv))
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml, secrets masked; a resumed run may change its limits, loggers and paths.

        Groups and their settings are sorted; the order within a setting may mean something (`data.regions`) and stays.

        Args:
            config: The resolved configuration, plain data.
        """
        groups = mask_secrets(plain(config))
        ordered = {
            key: dict(sorted(value.items())) if isinstance(value, dict) else value
            for key, value in sorted(groups.items())
        }
        text = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120)
        atomic_write(self.config, text)

    def add_command(self, argv: Sequence[str]) -> None:
        """Append a command line to command.txt: the first one started the run, later ones resumed it."""
        path = self.path / "command.txt"
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        atomic_write(path, earlier + shlex.join(typed_command(argv)) + "\n")

    def read_status(self) -> Status:
        """Read status.json; `unknown` when it cannot be read."""
        return read_status(self.path)

    def start(self, *, step: int | None = None) -> None:
        """Say that this process trains the run from now on, until `finish`, `restore` or `close`.

        Until then no other process can start it, and a thread gives a sign of life now and then.

        Args:
            step: Optimizer steps done; None keeps what the status says.

        Raises:
            MedtrainError: Another living process trains it.
        """
        holder = self._lock.acquire()
        status = self.read_status()
        # the lock may have been deleted by hand
        if holder is not None or (status.state == "running" and not status.is_mine):
            self._lock.release()
            pid, host = (holder.pid, holder.host) if holder is not None else (status.pid, status.host)
            raise self._busy(pid, host)
        try:
            step = status.step if step is None else step
            self._write(dataclasses.replace(status, status="running", step=step, message=""))
        except BaseException:
            self._lock.release()
            raise
        if self._stop_beating is None:
            self._stop_beating = threading.Event()
            threading.Thread(target=self._beat, args=(self._stop_beating,), name="heartbeat", daemon=True).start()

    def refuse_if_busy(self) -> None:
        """Say at once, before anything is read, that another living process trains the run.

        Raises:
            MedtrainError: One does, as far as its status says; `start` makes sure.
        """
        status = self.read_status()
        if status.state == "running" and not status.is_mine:
            raise self._busy(status.pid, status.host)

    def _busy(self, pid: int, host: str) -> MedtrainError:
        where = "" if host == socket.gethostname() else f" on {host}"
        return MedtrainError(
            f"{self.path} is being trained by process {pid} on {host}",
            hint=f"wait for it, or stop it first{where}: kill {pid}",
        )

    def heartbeat(self, step: int, *, best: Best | None = None) -> None:
        """Note the step and the best evaluation; cheap, since it writes at most every 10 s unless `best` is news."""
        now = time.monotonic()
        if best is None and now - self._last_heartbeat < _HEARTBEAT_S:
            return
        self._last_heartbeat = now
        with _WRITING:
            status = self.read_status()
            # not synced: the next one comes soon, and a lost one costs nothing
            self._write(dataclasses.replace(status, status="running", step=step, best=best or status.best), sync=False)

    def finish(self, state: Literal["done", "stopped", "failed"], *, step: int, message: str = "") -> None:
        """Say how the run ended.

        Args:
            state: `done`, `stopped` (by a signal, can be resumed) or `failed`.
            step: Optimizer steps done.
            message: Why, in one line.
        """
        with _WRITING:
            try:
                status = self.read_status()
                self._write(dataclasses.replace(status, status=state, step=step, message=_one_line(message)))
            finally:
                self.close()

    def restore(self, status: Status, message: str) -> None:
        """Put back an earlier status, with a new message: what was started has not begun to train.

        Args:
            status: As it was read before `start`.
            message: Why nothing came of it, in one line.
        """
        if status.status == "unknown":  # its file could not be read
            status = dataclasses.replace(status, status="failed", updated=_now())
        with _WRITING:
            try:
                status = dataclasses.replace(status, message=_one_line(message))
                atomic_write_json(self.path / "status.json", dataclasses.asdict(status))
            finally:
                self.close()

    def take_over(self) -> None:
        """Free the run from a process on another machine that is known to be dead, before it has been silent for long.

        Only who knows it from elsewhere, such as a sweep that hands a dead worker's trial to another, may do so.
        """
        self._lock.path.unlink(missing_ok=True)
        status = self.read_status()
        if status.status in ("created", "running"):
            stopped = dataclasses.replace(status, status="stopped", message=f"its process on {status.host} is gone")
            atomic_write_json(self.path / "status.json", dataclasses.asdict(stopped))

    def close(self) -> None:
        """Stop giving signs of life and let other processes start the run; the status stays as it is."""
        if self._stop_beating is not None:
            self._stop_beating.set()
            self._stop_beating = None
        self._lock.release()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(_BEAT_S):
            with _WRITING:
                status = self.read_status()
                if stop.is_set() or status.status != "running" or not status.is_mine:
                    continue
                try:
                    self._write(status, sync=False)
                except (OSError, MedtrainError) as error:
                    log.warning("%s", error)  # the disk may have room again at the next beat

    def _write(self, status: Status, *, sync: bool = True) -> None:
        pid = os.getpid()
        status = dataclasses.replace(
            status, pid=pid, pid_start=process_start(pid), host=socket.gethostname(), updated=_now()
        )
        with _WRITING:
            atomic_write_json(self.path / "status.json", dataclasses.asdict(status), sync=sync)


def read_status(run_dir: Path) -> Status:
    """Read the status file of a run; `unknown` when it cannot be read."""
    try:
        values = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Status)}
        return Status(**{key: value for key, value in values.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Status(status="unknown", message=f"status.json cannot be read: {error}")


def _claim(path: Path, inputs: Collection[str]) -> Path:
    _clear_abandoned(path, inputs)
    if (path / "status.json").exists():
        raise UsageError(
            f"{path} already holds a run", hint=f"continue it with `medtrain resume {path}`, or choose another run.dir"
        )
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{path} is not a folder", hint="choose another run.dir") from error
    if any(path.iterdir()):
        raise UsageError(f"{path} is not empty", hint="choose another run.dir; a run needs a folder of its own")
    return path


def _clear_abandoned(path: Path, inputs: Collection[str]) -> None:
    """Empty a folder that holds only what a process left that died before it had written all of what to do."""
    status = read_status(path)
    if (status.status, status.state) != ("created", "killed"):
        return
    remove_leftovers(path)
    entries = [entry for entry in path.iterdir() if entry.name != "status.json"]
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())]
    if not all(entry in folders or entry.name in inputs for entry in entries):
        return
    for entry in entries:
        if entry in folders:
            entry.rmdir()
        else:
            entry.unlink()
    (path / "status.json").unlink()  # at last: killed here, it is done again


def _make_unique(parent: Path, suffix: str = "") -> Path:
    """Make `<YYYYMMDD-HH-xxxx><suffix>`, drawing again while a run that started in the same hour has the name."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H")
    while True:
        path = parent / f"{stamp}-{secrets.token_hex(2)}{suffix}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _point_latest(path: Path) -> None:
    """Let `<experiment>/latest` point to the run, on file systems that have links."""
    link = path.parent / "latest"
    temporary = path.parent / f".latest.{secrets.token_hex(4)}"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.symlink_to(path.name)
        temporary.replace(link)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _one_line(message: str) -> str:
    return mask_secrets(" ".join(message.split()))
