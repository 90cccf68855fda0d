"""Start a cross-validation, continue it, and bring it to its end; lose nothing on the way."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.config.saved import load_saved
from medtrain.crossval.folder import CrossvalFolder, CrossvalRecord, fold_name
from medtrain.crossval.summary import show_number, summarize_folds
from medtrain.engine.signals import StopSignals
from medtrain.errors import UsageError
from medtrain.run.atomic import atomic_write_json
from medtrain.run.folder import State, read_status
from medtrain.run.log import setup_logging
from medtrain.sweep.folder import RESULT
from medtrain.sweep.launch import component_modules, visible_gpus
from medtrain.sweep.pool import Ended, Evaluated, Place, Progress, TrialPool, TrialTask, divide
from medtrain.sweep.run import ended_result

log = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75
_TOLD_EVERY = 10.0  # percent of a fold's budget, where several train at the same time


def start_crossval(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    imports: Sequence[str] = (),
    workers: int | None = None,
) -> int:
    """Train every fold in a new folder and put the results together; return the exit code.

    Args:
        config: A checked configuration of a run.
        overrides: What the user typed, kept with the folder.
        imports: Modules that register the user's components.
        workers: Folds that train at the same time; None is one per GPU, and one on a CPU.
    """
    setup_logging()
    check_request(config, overrides)
    run = config["run"]
    folder = CrossvalFolder.create(experiment="", path=run["dir"]) if run["dir"] is not None else None
    try:
        log.info("planning for all folds")
        pool = TrialPool([Place(0)], preload=component_modules(config))
        facts: Any = pool.call("medtrain.crossval.probe:probe", dict(config), tuple(imports))
        if folder is None:
            experiment = run["experiment"] or f"{facts.dataset}_{config['model']['name']}".lower()
            folder = CrossvalFolder.create(experiment=experiment, root=run["root"])
        folder = CrossvalFolder(folder.path.absolute())
        record = _begin(folder, facts, overrides, workers)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder.path, ignore_errors=True)  # nothing has begun
        raise
    setup_logging(run_dir=folder.path)
    log.info("cross-validation of %d folds: %s", record.num_folds, folder.path)
    for key, value, reason in facts.values:
        log.info("derived %s = %s: %s", key, value, reason)
    for name, told in record.seen.items():
        log.warning("%s: %s", name, told)
    return _run(folder, record, imports, facts.gpus)


def _begin(folder: CrossvalFolder, facts: Any, overrides: Sequence[str], workers: int | None) -> CrossvalRecord:
    """Write what all folds share."""
    shared = facts.config
    shared["run"] = {**shared["run"], "dir": None}
    shared["trainer"]["save_predictions"] = facts.folds is not None  # what post-processing is chosen from
    wandb = shared["logger"].get("wandb")
    if wandb is not None and wandb["group"] is None:
        wandb["group"] = folder.name  # the folds are shown together
    atomic_write_json(folder.plan, facts.plan)
    if facts.folds is not None:
        atomic_write_json(folder.splits, facts.folds)
        shared["data"]["splits"] = str(folder.splits)
    seen = {fold_name(fold): told for fold, told in facts.seen.items()}
    hashes = facts.split_hashes
    record = CrossvalRecord(num_folds=len(hashes), split_hashes=hashes, workers=workers, seen=seen)
    folder.write_record(record)  # before config.yaml: what has one and no record is a single run
    folder.write_inputs(shared, overrides, sys.argv)
    return record


def check_request(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse what makes no cross-validation.

    Raises:
        UsageError: A fold is chosen, the data has none, or folds would not be judged.
    """
    if any(word.lstrip("+").partition("=")[0] == "data.fold" for word in overrides):
        raise UsageError(
            "a cross-validation trains every fold, and data.fold names one",
            hint="drop data.fold; data.num_folds says how many there are, and `medtrain train` trains one",
        )
    if "fold" not in config["data"] or "num_folds" not in config["data"]:
        raise UsageError(f"data={config['data']['name']} cannot be divided into folds")
    if not config["trainer"]["final_evaluation"]:
        raise UsageError(
            "a cross-validation is made of the final evaluations of its folds, and trainer.final_evaluation is false",
            hint="drop trainer.final_evaluation=false",
        )


def resume_crossval(path: Path, *, overrides: Sequence[str] = (), imports: Sequence[str] = ()) -> int:
    """Train the folds that are not done, the interrupted ones from their checkpoints; return the exit code.

    Args:
        path: The folder.
        overrides: What the user typed; refused.
        imports: Modules that register the user's components.
    """
    if overrides:
        raise UsageError(
            f"a cross-validation is continued as it is, without {overrides[0]}",
            hint=f"change one of its runs, such as `medtrain resume {path / fold_name(0)} {overrides[0]}`, and then "
            f"`medtrain evaluate {path}`",
        )
    setup_logging()
    folder = CrossvalFolder.open(path)
    folder.refuse_if_busy()
    config = load_saved(folder.path, imports=imports)
    record = folder.read_record()
    setup_logging(run_dir=folder.path)
    pool = TrialPool([Place(0)], preload=component_modules(config))
    gpus = int(pool.call("medtrain.sweep.trial:count_gpus", config["trainer"]["device"]))
    folder.add_command(sys.argv)
    return _run(folder, record, imports, gpus)


def _run(folder: CrossvalFolder, record: CrossvalRecord, imports: Sequence[str], gpus: int) -> int:
    """Train what is not trained, then judge all together; the status file says how it ended."""
    folder.start(step=_steps(folder, record))
    reason, message = "failed", ""
    try:
        with StopSignals() as signals:
            config = load_saved(folder.path, imports=imports)
            places = divide(record.workers or max(1, gpus), visible_gpus(gpus))
            pool = TrialPool(places, preload=component_modules(config))
            failed, reason = _train(folder, record, imports, pool, signals, alone=len(places) == 1)
        members = tuple(fold_name(fold) for fold in range(record.num_folds) if folder.is_done(fold))
        record = dataclasses.replace(record, members=members, failed=failed)
        folder.write_record(record)
        if reason == "done" and members:
            record = summarize_folds(folder, record, imports=imports)
        message = outcome(record, reason)
    except BaseException as error:
        reason, message = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        state: Any = "stopped" if reason not in ("done", "failed") else reason
        if state == "done" and len(record.members) < record.num_folds:
            state = "failed"
        folder.finish(state, step=_steps(folder, record), message=message)
    if reason != "done":
        log.info("stopped (%s); continue with: medtrain resume %s", reason, folder.path)
        return EXIT_STOPPED
    for name, why in record.failed.items():
        log.error("%s failed: %s", name, why)
    if record.failed:
        log.info("try again with: medtrain resume %s", folder.path)
        return EXIT_FAILED
    log.info("done: %s", folder.path)
    if folder.splits.is_file():  # of segmentations
        log.info("apply all %d models together with: medtrain predict %s SCANS OUT", record.num_folds, folder.path)
    return EXIT_DONE


def _steps(folder: CrossvalFolder, record: CrossvalRecord) -> int:
    """Optimizer steps of all folds together."""
    places = [folder.fold(fold) for fold in range(record.num_folds)]
    return sum(read_status(place).step for place in places if place.is_dir())


def outcome(record: CrossvalRecord, reason: str) -> str:
    """How a cross-validation ended, in a line.

    Args:
        record: With its members, and metrics if it has any.
        reason: `done`, or why it stopped.
    """
    done = f"{len(record.members)} of {record.num_folds} folds"
    if reason != "done":
        return f"{done}, {reason}"
    main = next(iter(record.metrics.get("folds", {}).items()), None)
    if main is None:
        return done
    name, values = main
    spread = "" if values["std"] is None else f" +- {values['std']:.4f}"
    return f"{done}: {name} {show_number(values['mean'])}{spread}"


def _train(
    folder: CrossvalFolder,
    record: CrossvalRecord,
    imports: Sequence[str],
    pool: TrialPool,
    signals: StopSignals,
    *,
    alone: bool,
) -> tuple[dict[str, str], str]:
    """Train the folds that are not done; return why some failed, and `done` or the signal that stopped them."""
    waiting = [fold for fold in range(record.num_folds) if not folder.is_done(fold)]
    kept = record.num_folds - len(waiting)
    if kept:
        log.info("%d of %d folds are done", kept, record.num_folds)
    failed: dict[str, str] = {}
    told: dict[int, float] = {}
    stopping: str | None = None
    try:
        while pool.running or (waiting and stopping is None):
            if stopping is None and signals.received is not None:
                stopping = signals.received
                pool.stop()
            while waiting and stopping is None and pool.has_room:
                _start(folder, record, imports, pool, waiting.pop(0), alone=alone)
            for event in pool.wait(1.0) if pool.running else ():
                if isinstance(event, Evaluated):
                    pool.answer(event.key, prune=False)
                elif isinstance(event, Progress) and not alone:
                    _tell(event, told)
                elif isinstance(event, Ended):
                    _end(folder, event, stopping, failed)
            folder.heartbeat(_steps(folder, record))
    except BaseException:
        pool.kill()
        raise
    return failed, stopping or "done"


def _start(
    folder: CrossvalFolder, record: CrossvalRecord, imports: Sequence[str], pool: TrialPool, fold: int, *, alone: bool
) -> None:
    place = folder.fold(fold)
    (place / RESULT).unlink(missing_ok=True)
    log.info("fold %d of %d: %s", fold, record.num_folds, place)
    task = TrialTask(
        run_dir=str(place),
        config=str(folder.path),
        overrides=(f"data.fold={fold}",),
        imports=tuple(imports),
        split_hashes=(record.split_hashes[fold],),
        facts={"fold": fold},
    )
    pool.start(fold, task, log=None if alone else place.with_suffix(".log"))


def _tell(event: Progress, told: dict[int, float]) -> None:
    """Say now and then how far a fold is, where it does not say so itself."""
    if event.percent - told.get(event.key, 0.0) >= _TOLD_EVERY:
        told[event.key] = event.percent
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in list(event.numbers.items())[:2])
        log.info("fold %d: %.0f %%%s", event.key, event.percent, f", {numbers}" if numbers else "")


def _end(folder: CrossvalFolder, event: Ended, stopping: str | None, failed: dict[str, str]) -> None:
    fold, place = event.key, folder.fold(event.key)
    result = ended_result(place, event, stopping)
    if folder.is_done(fold):
        log.info("fold %d is done", fold)
    elif stopping is not None and (result.state == "stopped" or read_status(place).status == "stopped"):
        log.info("fold %d is stopped at step %d", fold, read_status(place).step)
    else:
        message = result.message or "it ended before its final evaluation"
        failed[fold_name(fold)] = message
        log.error("fold %d failed, the others go on: %s", fold, message)


def evaluate_crossval(path: Path, overrides: Sequence[str] = (), *, imports: Sequence[str] = ()) -> None:
    """Put the evaluations of the folds together again: after one was trained longer, or judged otherwise.

    Args:
        path: The folder.
        overrides: What the folds were judged with, such as where the data lies now.
        imports: Modules that register the user's components.

    Raises:
        MedtrainError: No fold is done.
    """
    setup_logging()
    folder = CrossvalFolder.open(path)
    record = folder.read_record()
    members = folder.done_members(record)
    failed = {name: why for name, why in record.failed.items() if name not in members}
    record = dataclasses.replace(record, members=members, failed=failed)
    record = summarize_folds(folder, record, overrides=overrides, imports=imports)
    status = folder.read_status()
    if status.state in ("created", "running"):  # it goes on, and tells how it ends itself
        return
    complete = len(members) == record.num_folds
    state: State = "done" if complete else "stopped" if status.status == "done" else status.status
    status = dataclasses.replace(status, status=state, step=_steps(folder, record))
    folder.restore(status, outcome(record, "done"))
