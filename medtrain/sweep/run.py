"""The life of a sweep: hand out points, watch the trials, tell the study, and lose nothing on the way."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medtrain.engine.signals import StopSignals
from medtrain.sweep.folder import RESULT, drop_checkpoints, read_result
from medtrain.sweep.pool import Ended, Evaluated, Event, Progress, TrialPool, TrialTask
from medtrain.sweep.result import EXTRA_OBJECTIVES, Definition, TrialResult
from medtrain.sweep.study import Assignment, SweepStudy
from medtrain.sweep.table import SweepTable

log = logging.getLogger(__name__)

BEAT_S = 60.0
_LOOK_S = 1.0
_OTHERS_S = 5.0
_SERVER_GONE = 255  # how multiprocessing says that it cannot know the exit code


class TrialFolders(Protocol):
    """Where trials are kept."""

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        ...


@dataclass(frozen=True)
class LocalFolders:
    """Trials of a worker that cannot reach the sweep's folder.

    Args:
        path: The worker's own folder.
    """

    path: Path

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / "trials" / f"{number:04d}"


class Search:
    """Runs trials of a study on this machine until enough are finished or something asks to stop.

    Args:
        study: The study.
        folders: Where trials are kept.
        pool: Where they run.
        table: Shows how it goes.
        signals: Asked to stop by Ctrl-C and the like.
        timeout_s: Seconds after which the running trials are saved and the search stops.
        is_owner: Whether this process waits for trials that run elsewhere and reports in the end.
        on_result: Called after each finished trial with its state and whether it is the best so far.
    """

    def __init__(
        self,
        study: SweepStudy,
        folders: TrialFolders,
        pool: TrialPool,
        table: SweepTable,
        signals: StopSignals,
        *,
        timeout_s: float | None = None,
        is_owner: bool = True,
        on_result: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.study, self.folders, self.pool, self.table, self.signals = study, folders, pool, table, signals
        self.is_owner, self.on_result = is_owner, on_result
        self.stopping: str | None = None
        self.deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        self._assignments: dict[int, Assignment] = {}
        self.failed_in_row = 0
        self.last_message = ""
        self.trained = 0
        self._beaten = time.monotonic()
        self._recovered = -BEAT_S

    def run(self) -> str:
        """Search; return why it ended: `done`, `timeout`, `failures`, or the name of a signal."""
        try:
            while True:
                self._check_stop()
                waiting_for_others = self._fill()
                if not self._assignments:
                    if self.stopping is not None or not waiting_for_others:
                        break
                    self._recovered = min(self._recovered, time.monotonic() - BEAT_S + _OTHERS_S)
                for event in self.pool.wait(_LOOK_S):
                    self._handle(event)
                self.table.refresh()
                self._beat()
        except KeyboardInterrupt:
            self.pool.kill()
            raise
        except BaseException:
            self._save_trials()
            raise
        return self.stopping or "done"

    def _save_trials(self) -> None:
        """Let the running trials save their state when the study itself cannot be reached or something is wrong.

        They stay marked as running under this process, and are put back once it is gone.
        """
        self.pool.stop()
        while self.pool.running:
            for event in self.pool.wait(_LOOK_S):
                if isinstance(event, Evaluated):
                    self.pool.answer(event.key, prune=False)

    def _check_stop(self) -> None:
        if self.stopping is not None:
            return
        if self.signals.received is not None:
            self.stopping = self.signals.received
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.stopping = "timeout"
        elif self.failed_in_row >= self.study.definition.sweep["max_failures"]:
            self.stopping = "failures"
        if self.stopping is not None:
            if self._assignments:
                log.info("stopping (%s): the running trials save their state", self.stopping)
            self.pool.stop()

    def _fill(self) -> bool:
        """Start trials while there is room; say whether trials of others are still to be waited for."""
        if time.monotonic() - self._recovered >= BEAT_S:
            self._recovered = time.monotonic()
            for number in self.study.recover():
                log.info("trial %d was left by a worker that is gone: it is continued", number)
        while self.stopping is None and self.pool.has_room:
            assignment = self.study.next()
            if assignment is None:
                return self.is_owner and self.study.counts().running > len(self._assignments)
            self._start(assignment)
        return False

    def _start(self, assignment: Assignment) -> None:
        self._assignments[assignment.number] = assignment
        place = self.folders.trial(assignment.number)
        result = read_result(place)
        if result is not None:  # finished, but its worker died before it could say so
            self._finish(assignment.number, result)
            return
        place.mkdir(parents=True, exist_ok=True)
        (place / RESULT).unlink(missing_ok=True)
        definition = self.study.definition
        overrides = [*definition.overrides, *definition.space.overrides(assignment.params)]
        task = trial_task(definition, overrides, place)
        self.pool.start(assignment.number, task, log=place.with_suffix(".log"))
        self.table.started(assignment.number, assignment.params, again=assignment.attempt > 0)

    def _handle(self, event: Event) -> None:
        if event.key not in self._assignments:
            return
        if isinstance(event, Progress):
            self.table.progress(event.key, event.percent, event.numbers)
        elif isinstance(event, Evaluated):
            prune = self.study.report(self._assignments[event.key], event.step, event.value)
            if not prune or not self._drop_lost():
                self.pool.answer(event.key, prune=prune and event.intermediate)
        elif isinstance(event, Ended):
            self._finish(event.key, ended_result(self.folders.trial(event.key), event, self.stopping))

    def _finish(self, number: int, result: TrialResult) -> None:
        assignment = self._assignments.pop(number)
        if result.state == "stopped":
            self.study.release(assignment)
            self.table.finished(number, "stopped", result.metrics, result.message, best=False)
            return
        if result.failure == "machine":
            self.study.release(assignment)
            self.table.finished(number, "again", result.metrics, result.message, best=False)
            self.failed_in_row += 1
            self.last_message = result.message
            return
        before = self._best_number()
        state = self.study.finish(assignment, result)
        is_best = state == "complete" and self._best_number() not in (None, before)
        self.table.finished(number, state, result.metrics, result.message, best=is_best)
        failed = state in ("failed", "again") and result.failure in ("error", "crash", "killed")
        self.failed_in_row = self.failed_in_row + 1 if failed else 0
        self.last_message = result.message
        self.trained += state in ("complete", "pruned", "failed")
        self._free_disk()
        if self.on_result is not None:
            self.on_result(state, is_best)

    def _best_number(self) -> int | None:
        best = self.study.best(1)
        return best[0].number if best else None

    def _free_disk(self) -> None:
        keep = self.study.definition.sweep["keep_checkpoints"]
        if keep is None:
            return
        kept = {trial.number for trial in self.study.best(keep)} | self._assignments.keys()
        for trial in self.study.trials():
            if trial.state.is_finished() and trial.number not in kept:
                drop_checkpoints(self.folders.trial(trial.number))

    def _beat(self) -> None:
        if time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self._drop_lost()

    def _drop_lost(self) -> bool:
        """End the trials that another worker has taken over, because this one was taken for dead."""
        lost = self.study.beat(list(self._assignments.values()))
        for assignment in lost:
            log.warning("trial %d was taken over by another worker: it ends here", assignment.number)
            self.pool.drop(assignment.number)
            del self._assignments[assignment.number]
        return bool(lost)


def trial_task(definition: Definition, overrides: Sequence[str], place: Path) -> TrialTask:
    """What a trial process is asked to train.

    Args:
        definition: Of the study.
        overrides: Of the trial's configuration, its point included.
        place: Folder of the trial.
    """
    wanted = {objective.metric for objective in definition.objectives}
    wanted |= {constraint.metric for constraint in definition.constraints}
    first = definition.objectives[0].metric
    watched = len(definition.objectives) == 1 and first not in EXTRA_OBJECTIVES
    return TrialTask(
        run_dir=str(place),
        overrides=tuple(overrides),
        imports=definition.imports,
        config_dirs=definition.config_dirs,
        folds=tuple(definition.sweep["folds"]),
        watch=first if watched else None,
        latency="latency_ms" in wanted,
        split_hashes=tuple(definition.split_hash.split(",")),
    )


def ended_result(place: Path, event: Ended, stopping: str | None) -> TrialResult:
    """What became of a trial whose process is gone."""
    try:
        return TrialResult.from_json(json.loads((place / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    where = place.with_suffix(".log")
    if event.exit_code < 0 and stopping is not None:
        return TrialResult(state="stopped", message="stopped before it began to train")
    if event.exit_code == _SERVER_GONE:
        return TrialResult(state="stopped", message="the process that trials are forked from was killed")
    if event.exit_code < 0:
        name = signal.Signals(-event.exit_code).name
        more = ", perhaps because the machine ran out of memory" if name == "SIGKILL" else ""
        return TrialResult(state="failed", failure="killed", message=f"its process was killed by {name}{more}")
    return TrialResult(
        state="failed", failure="crash", message=f"its process ended with code {event.exit_code}: see {where}"
    )
