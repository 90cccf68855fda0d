"""Train the best configurations again over seeds and folds: a winner of many trials is partly luck."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.engine.signals import StopSignals
from medtrain.sweep.folder import RESULT, SweepFolder, read_result
from medtrain.sweep.pool import Ended, Evaluated, TrialPool
from medtrain.sweep.report.records import read_sweep
from medtrain.sweep.report.rerun_summary import choose, summarize_reruns
from medtrain.sweep.result import Objective, TrialResult
from medtrain.sweep.run import ended_result, trial_task
from medtrain.sweep.study import SweepStudy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rerun:
    """One run of a configuration that was among the best.

    Args:
        trial: Number of the trial it repeats.
        seed: Its seed.
        fold: Its fold; None for the one of the configuration.
        params: The point.
    """

    trial: int
    seed: int
    fold: int | None
    params: Mapping[str, Any]

    def place(self, folder: SweepFolder) -> Path:
        """Its folder."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return folder.reruns / f"{self.trial:04d}-seed{self.seed}{fold}"


def plan_reruns(study: SweepStudy, seed: int) -> list[Rerun]:
    """Which runs `sweep.rerun_best` asks for.

    Args:
        study: With its trials finished.
        seed: The one all trials shared.
    """
    section = study.definition.sweep
    folds: Sequence[int | None] = section["rerun_folds"] or section["folds"] or [None]
    return [
        Rerun(trial.number, seed + 1 + index, fold, dict(trial.params))
        for trial in study.best(section["rerun_best"])
        for index in range(section["rerun_seeds"])
        for fold in folds
    ]


def run_reruns(
    folder: SweepFolder,
    study: SweepStudy,
    pool: TrialPool,
    signals: StopSignals,
    *,
    seed: int,
    deadline: float | None = None,
) -> str:
    """Train them, several at the same time; return `done`, or what stopped it. What is there is kept.

    Args:
        folder: The sweep's folder.
        study: With its trials finished.
        pool: Where they run.
        signals: Asked to stop by Ctrl-C and the like.
        seed: The one all trials shared.
        deadline: `time.monotonic()` at which the running ones are saved and the rest is left; None is never.
    """
    waiting = list(enumerate(plan_reruns(study, seed)))
    log.info("training the best %d again: %d runs", study.definition.sweep["rerun_best"], len(waiting))
    running: dict[int, Rerun] = {}
    folder.reruns.mkdir(exist_ok=True)
    stopping = None
    try:
        while running or (waiting and stopping is None):
            late = deadline is not None and time.monotonic() >= deadline
            if stopping is None and (signals.received is not None or late):
                stopping = signals.received or "timeout"
                pool.stop()
            while waiting and stopping is None and pool.has_room:
                key, rerun = waiting.pop(0)
                if _start(folder, study, pool, key, rerun):
                    running[key] = rerun
            for event in pool.wait(1.0) if running else ():
                if isinstance(event, Evaluated):
                    pool.answer(event.key, prune=False)
                elif isinstance(event, Ended):
                    rerun = running.pop(event.key)
                    _say(rerun, ended_result(rerun.place(folder), event, stopping), study.definition.objectives[0])
    except BaseException:
        pool.kill()
        raise
    return stopping or "done"


def _start(folder: SweepFolder, study: SweepStudy, pool: TrialPool, key: int, rerun: Rerun) -> bool:
    place = rerun.place(folder)
    if read_result(place) is not None:
        return False
    place.mkdir(parents=True, exist_ok=True)
    (place / RESULT).unlink(missing_ok=True)
    definition = study.definition
    changed = [f"seed={rerun.seed}"] if rerun.fold is None else [f"seed={rerun.seed}", f"data.fold={rerun.fold}"]
    task = dataclasses.replace(
        trial_task(definition, [*definition.overrides, *definition.space.overrides(rerun.params), *changed], place),
        folds=(),
        watch=None,
        split_hashes=(),
        facts={"trial": rerun.trial, "seed": rerun.seed, "fold": rerun.fold},
    )
    pool.start(key, task, log=place.with_suffix(".log"))
    return True


def _say(rerun: Rerun, result: TrialResult, goal: Objective) -> None:
    if result.state == "failed":
        log.warning("trial %d with seed %d failed: %s", rerun.trial, rerun.seed, result.message)
    else:
        value = result.metrics.get(goal.metric)
        shown = f"{goal.metric} {value:.4g}" if result.state == "complete" and value is not None else result.state
        fold = "" if rerun.fold is None else f", fold {rerun.fold}"
        log.info("trial %d with seed %d%s: %s", rerun.trial, rerun.seed, fold, shown)


def best_configuration(folder: SweepFolder, study: SweepStudy) -> tuple[dict[str, Any], str] | None:
    """The winner, the same as in the report, and a comment that says why; None while nothing has won.

    Args:
        folder: The sweep's folder.
        study: The study.
    """
    objectives = study.definition.objectives
    sweep = read_sweep(folder.path, study)
    found = choose(sweep, summarize_reruns(folder.path, objectives))
    if found is None:
        return None
    trial, row = found
    if row is not None:
        spread = f" +- {row.std():.4g}" if len(row.runs) > 1 else ""
        why = f"{objectives[0].metric} {row.mean():.4g}{spread} over {len(row.runs)} more runs"
    else:
        why = ", ".join(f"{goal.metric} {value:.4g}" for goal, value in zip(objectives, trial.values))
        if sweep.is_multi:
            why += f", the best in {objectives[0].metric} of {len(sweep.best)} on the Pareto front"
    return dict(trial.params), f"The winner of the sweep {folder.name}: trial {trial.number}, {why}."
