"""One trial, in a process of its own: an ordinary run that reports its evaluations and may be told to end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medtrain.callbacks.base import Callback, EngineView
from medtrain.config.compose import load_config
from medtrain.config.saved import load_saved
from medtrain.engine.build import build_task
from medtrain.engine.derive import derive
from medtrain.engine.device import choose_device, out_of_memory
from medtrain.engine.distributed import Dist
from medtrain.engine.launch import EXIT_STOPPED, Outcome, resume_run, start_run
from medtrain.engine.opening import log_progress, open_data
from medtrain.errors import DataError, MedtrainError, NonFiniteError, Problem, ProcessKilledError, UsageError
from medtrain.registry import plain
from medtrain.run.atomic import atomic_write_json
from medtrain.run.folder import RunFolder, read_status
from medtrain.run.log import setup_logging
from medtrain.sweep.folder import RESULT, read_result
from medtrain.sweep.pool import GRACE_S, TrialChannel, TrialTask
from medtrain.sweep.result import Failure, TrialResult

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_MARGIN_S = 30.0
_PRUNED = "pruned by the sweep"


class TrialReport(Callback):
    """Sends evaluations to the sweep, ends the run when the sweep says so, and gathers what the trial is worth.

    Args:
        channel: The line to the sweep.
        task: What the trial was asked.
        fold: Index of the fold and how many there are; pruning within a run needs a single one.
    """

    def __init__(self, channel: TrialChannel, task: TrialTask, fold: tuple[int, int]) -> None:
        self._channel, self._task = channel, task
        self._fold, self._folds = fold
        self._last_percent = 0
        self._last_mark = task.started
        self.overhead: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.pruned = False
        self.overhead_s = 0.0
        self.elapsed_s = 0.0

    def mark(self, part: str) -> None:
        """A part of what comes before training is over."""
        now = time.monotonic()
        self.overhead[part] = now - self._last_mark
        self._last_mark = now

    def on_fit_start(self, view: EngineView) -> None:
        """Training is about to begin, on the cases that every trial must have."""
        now = json.loads((view.run_dir / "data.json").read_text(encoding="utf-8"))["split_hash"]
        if self._task.split_hashes and now != self._task.split_hashes[self._fold]:
            why = "the cases or their split changed since the first run of these: they could not be compared"
            raise DataError([Problem(str(view.run_dir), why, "restore the data, or start all of them anew")])
        if self._fold == 0:
            self.mark("data and network")
            self.overhead_s = sum(self.overhead.values())

    def on_log(self, view: EngineView, scalars: Mapping[str, float]) -> None:
        """Say how far it is."""
        self.elapsed_s = view.elapsed_s
        self._channel.progress(self._percent(view), {key: scalars[key] for key in ("train/loss",) if key in scalars})

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Report the watched metric, once per percent of the budget."""
        self._channel.progress(self._percent(view), metrics)
        percent = max(1, round(view.progress * 100))
        value = metrics.get(self._task.watch or "", math.nan)
        if self._folds > 1 or percent == self._last_percent or not math.isfinite(value):
            return
        self._last_percent = percent
        if self._channel.evaluated(percent, value, intermediate=view.progress < 1) and view.progress < 1:
            self.pruned = True
            view.request_stop(f"{_PRUNED} at {percent} % of its budget")

    def on_fit_end(self, view: EngineView, status: str) -> None:
        """Gather the metrics of the best evaluation."""
        self.elapsed_s = view.elapsed_s
        if status != "done":
            return
        best: Mapping[str, float] = {}
        for row in view.history:
            value = row[view.monitor.name]
            if not best or view.monitor.improves(value, best[view.monitor.name]):
                best = row
        self.metrics = {key: float(value) for key, value in best.items() if "/" in key}
        self.metrics |= {"parameters": float(view.parameters), "train_s": view.elapsed_s - self.overhead_s}
        if self._task.latency and not self.pruned:
            self.metrics["latency_ms"] = view.measure_latency()

    def _percent(self, view: EngineView) -> float:
        return 100 * (self._fold + view.progress) / self._folds


def run_trial(task: TrialTask, channel: TrialChannel) -> TrialResult:
    """Train a trial, on each of its folds, from where it is; every way it can end is a result.

    Args:
        task: What to do.
        channel: The line to the sweep.
    """
    started = time.monotonic()
    folder = Path(task.run_dir)
    results: list[TrialResult] = []
    for index, fold in enumerate(task.folds or (None,)):
        place = folder if fold is None else folder / f"fold{fold}"
        result = read_result(place)
        if result is None:
            result = _run_fold(task, channel, place, fold, (index, max(1, len(task.folds))))
            if fold is not None:
                atomic_write_json(place / RESULT, result.to_json())
        results.append(result)
        if result.state != "complete":
            break
        if len(task.folds) > 1 and task.watch is not None:
            last = index == len(task.folds) - 1
            if channel.evaluated(index, result.metrics[task.watch], intermediate=not last) and not last:
                results[-1] = dataclasses.replace(result, state="pruned", message=f"{_PRUNED} after fold {fold}")
                break
    return _join(results, time.monotonic() - started)


def _run_fold(
    task: TrialTask, channel: TrialChannel, place: Path, fold: int | None, position: tuple[int, int]
) -> TrialResult:
    report = TrialReport(channel, task, position)
    message, failure = "", None
    state: Any = "failed"
    try:
        outcome = _train(task, place, fold, report)
        state = "stopped" if outcome.exit_code == EXIT_STOPPED else "pruned" if report.pruned else "complete"
        message = read_status(place).message if state != "complete" else ""
        if state == "complete":
            report.metrics |= outcome.final
    except KeyboardInterrupt:
        state, message = "stopped", "interrupted"
    except BaseException as error:
        failure, message = _explain(error)
        log.error("the trial failed (%s): %s", failure, message, exc_info=failure == "crash")
    return TrialResult(
        state=state,
        metrics=report.metrics,
        failure=failure,
        message=message,
        step=read_status(place).step if place.is_dir() else 0,
        seconds=report.elapsed_s,
        overhead_s=report.overhead_s,
        overhead=report.overhead,
    )


def _train(task: TrialTask, place: Path, fold: int | None, report: TrialReport) -> Outcome:
    """Start the run, or continue it where an earlier process left it."""
    callbacks: dict[str, Callback] = {"sweep": report}
    report.mark("process")
    if (place / "status.json").is_file():
        _wait_until_free(RunFolder.open(place))
        if any((place / "checkpoints").glob("*/meta.json")):
            return _continue(task, place, callbacks)
        log.info("the trial ended before its first checkpoint: it starts again")
    shutil.rmtree(place, ignore_errors=True)
    overrides = [*task.overrides, f"run.dir={json.dumps(str(place), ensure_ascii=False)}"]
    overrides += [f"data.fold={fold}"] if fold is not None else []
    if task.config is not None:
        tree = load_saved(Path(task.config), overrides, imports=task.imports)
    else:
        tree = load_config(overrides, config_dirs=task.config_dirs, imports=task.imports).tree
    report.mark("configuration")
    return start_run(tree, overrides=overrides, started=task.started, callbacks=callbacks)


def _wait_until_free(folder: RunFolder) -> None:
    """Let an earlier process of this trial, whose sweep is gone, end: it may still be saving its state."""
    deadline = time.monotonic() + GRACE_S + _MARGIN_S
    while (status := folder.read_status()).state in ("created", "running") and time.monotonic() < deadline:
        if status.host != socket.gethostname():  # the study has given the trial to us: its worker is dead
            folder.take_over()
            return
        time.sleep(_LOOK_S)


def _continue(task: TrialTask, place: Path, callbacks: Mapping[str, Callback]) -> Outcome:
    setup_logging()
    config = load_saved(place, imports=task.imports)
    folder = RunFolder.open(place)
    status = folder.read_status()
    if status.status == "done":  # trained, but killed before the result was written: only that is left to do
        folder.restore(dataclasses.replace(status, status="stopped"), status.message)
    return resume_run(place, config, before=config, callbacks=callbacks)


def _join(results: Sequence[TrialResult], seconds: float) -> TrialResult:
    """The result of a trial from those of its folds: means of the metrics, times added up."""
    last = results[-1]
    names = set.intersection(*(set(result.metrics) for result in results))
    metrics = {name: statistics.fmean(result.metrics[name] for result in results) for name in sorted(names)}
    if "train_s" in metrics:
        metrics["train_s"] *= len(results)
    return dataclasses.replace(
        last,
        metrics=metrics,
        step=sum(result.step for result in results),
        seconds=max(seconds, sum(result.seconds for result in results)),
        overhead_s=results[0].overhead_s,
        overhead=results[0].overhead,
    )


def _explain(error: BaseException) -> tuple[Failure, str]:
    text = " ".join(str(error).split()) or type(error).__name__
    if out_of_memory(error) or text.startswith("out of memory"):  # as `memory_guard` says it
        return "oom", "out of memory: " + text.removeprefix("out of memory: ")[:200]
    if isinstance(error, NonFiniteError):
        return "nonfinite", text
    outside = UsageError | DataError | ProcessKilledError | OSError  # the sweep has seen that all is well with the data
    if isinstance(error, outside) or (isinstance(error, MedtrainError) and isinstance(error.__cause__, OSError)):
        return "machine", text
    if isinstance(error, MedtrainError):
        return "error", text
    return "crash", f"{type(error).__name__}: {text}"


# --------------------------------------------------------------------------------------------- before the first


@dataclass(frozen=True)
class Probe:
    """What a sweep must know of its data and machine before the first trial.

    Args:
        metrics: Every metric of an evaluation and which way is better.
        monitor: The one that decides what is best.
        config: The configuration with every derived value.
        split_hashes: Of the split of each fold that is used.
        dataset: Name of the data.
        device: Where trials run.
        gpus: How many GPUs there are.
    """

    metrics: dict[str, str]
    monitor: str
    config: dict[str, Any]
    split_hashes: tuple[str, ...]
    dataset: str
    device: str
    gpus: int


def probe(overrides: Sequence[str], imports: Sequence[str], config_dirs: Sequence[str], folds: Sequence[int]) -> Probe:
    """Read the data once, prepare it for every trial, and check the configuration against it."""
    setup_logging()
    config = load_config(overrides, config_dirs=config_dirs, imports=imports).tree
    hashes = []
    for fold in folds or (config["data"]["fold"],):
        here = {**config, "data": {**config["data"], "fold": fold}}
        derivation = derive(here, progress=log_progress("reading"))
        hashes.append(derivation.found.split_hash)
        with contextlib.closing(
            open_data(derivation.config, derivation.plan, Dist.from_environment(), derivation=derivation)
        ):
            task = build_task(derivation.config, derivation.plan, derivation.device, None)
    return Probe(
        metrics={f"val/{name}": spec.mode for name, spec in task.metrics().items()},
        monitor=task.monitor.name,
        config=plain(derivation.config),
        split_hashes=tuple(hashes),
        dataset=derivation.found.dataset_name,
        device=derivation.device.type,
        gpus=count_gpus(config["trainer"]["device"]),
    )


def count_gpus(device: str) -> int:
    """GPUs that trials can use on this machine: none where they train on something else."""
    return torch.cuda.device_count() if choose_device(device).type == "cuda" else 0
