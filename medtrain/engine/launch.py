"""The life of a run: start it, continue it, finish it; always leave a folder that tells what happened."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtrain.callbacks.base import Callback
from medtrain.data.source import DataPlan
from medtrain.engine.build import LIMITS, build_engine, build_task, changed_since, check_training
from medtrain.engine.checkpoint import CheckpointFolder, check_format
from medtrain.engine.derive import Derivation, derive
from medtrain.engine.device import choose_device
from medtrain.engine.distributed import Dist
from medtrain.engine.final import final_evaluation, save_adapter
from medtrain.engine.initial import check_initial
from medtrain.engine.loop import Engine, EvaluationInterruptedError, FitResult
from medtrain.engine.memory import memory_guard
from medtrain.engine.opening import changed_data, log_progress, open_data, read_plan
from medtrain.engine.precision import choose_precision
from medtrain.engine.predictions import FOLDER, prediction_file
from medtrain.engine.pretrained import check_weights, record_weights
from medtrain.engine.protocol import TrainData
from medtrain.engine.sanity import sanity_check, warn_of_ties
from medtrain.engine.seen import warn_of_seen
from medtrain.errors import ConfigError, MedtrainError
from medtrain.models.freezing import parameter_summary
from medtrain.registry import plain
from medtrain.run.atomic import atomic_write_json
from medtrain.run.folder import RunFolder, Status
from medtrain.run.log import setup_logging
from medtrain.run.provenance import command_line
from medtrain.run.report import write_report
from medtrain.run.seed import seed_everything

log = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_STOPPED = 75


@dataclass(frozen=True)
class Outcome:
    """How a command that trains ended.

    Args:
        run_dir: The run's folder.
        exit_code: 0 when the run is done, 75 when it was stopped by a signal and can be resumed.
        final: What the final evaluation found, by metric (`val/dice`); empty when there was none.
    """

    run_dir: Path
    exit_code: int
    final: Mapping[str, float] = field(default_factory=dict)


def start_run(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    started: float | None = None,
    callbacks: Mapping[str, Callback] | None = None,
) -> Outcome:
    """Train from scratch in a new run folder.

    Args:
        config: A checked configuration.
        overrides: What the user typed, kept with the run.
        started: `time.monotonic()` at the start of the command.
        callbacks: Told of the run besides those of the configuration, by name.
    """
    started = time.monotonic() if started is None else started
    dist = Dist.from_environment()
    setup_logging(rank=dist.rank)
    dist.start(choose_device(config["trainer"]["device"], local_rank=dist.local_rank))
    derivation: Derivation | None = None
    run_dir: Path | None = None
    if dist.is_main:
        check_initial(config)
        derivation = derive(config, local_world_size=dist.local_world_size, progress=log_progress("reading"))
        run_dir = _make_folder(derivation, overrides)
    # one plan for all: machines may differ
    run_dir, derivation = dist.broadcast((run_dir, derivation))
    assert run_dir is not None
    assert derivation is not None
    folder = RunFolder.open(run_dir)
    setup_logging(run_dir=folder.path, rank=dist.rank)
    log.info("run %s", folder.path)
    for value in derivation.values:
        log.info("derived %s = %s: %s", value.key, plain(value.value), value.reason)
    return _run(
        folder,
        derivation.config,
        derivation.plan,
        dist,
        derivation=derivation,
        started=started,
        callbacks=callbacks,
    )


def resume_run(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    started: float | None = None,
    callbacks: Mapping[str, Callback] | None = None,
) -> Outcome:
    """Continue a run from its newest complete checkpoint.

    Args:
        run_dir: The run's folder.
        config: Its configuration, with the changes that are allowed.
        before: Its configuration until now.
        started: `time.monotonic()` at the start of the command.
        callbacks: Told of the run besides those of the configuration, by name.
    """
    dist = Dist.from_environment()
    setup_logging(rank=dist.rank)
    folder = RunFolder.open(run_dir)
    setup_logging(run_dir=folder.path, rank=dist.rank)
    device = choose_device(config["trainer"]["device"], local_rank=dist.local_rank)
    dist.start(device)
    trainer = config["trainer"]
    precision, _ = choose_precision(trainer["precision"], device, nonfinite=trainer["nonfinite"])
    config = {**config, "trainer": {**trainer, "precision": precision}}  # what is kept is what was computed in
    return _run(folder, config, read_plan(folder, config), dist, before=before, started=started, callbacks=callbacks)


def _make_folder(derivation: Derivation, overrides: Sequence[str]) -> Path:
    # what contradicts the data is said before a folder is made
    task = build_task(derivation.config, derivation.plan, derivation.device, None)
    check_training(derivation.config, derivation.plan, task)
    run = derivation.config["run"]
    experiment = run["experiment"] or f"{derivation.found.dataset_name}_{derivation.config['model']['name']}".lower()
    folder = RunFolder.create(experiment=experiment, root=run["root"], path=run["dir"])
    atomic_write_json(folder.plan, derivation.plan.to_json())
    derivation.found.save_splits(folder.splits)
    folder.write_inputs(derivation.config, overrides, command_line())
    return folder.path


def _run(
    folder: RunFolder,
    config: Mapping[str, Any],
    plan: DataPlan,
    dist: Dist,
    *,
    before: Mapping[str, Any] | None = None,
    derivation: Derivation | None = None,
    started: float | None = None,
    callbacks: Mapping[str, Callback] | None = None,
) -> Outcome:
    """Open the data, build the engine, fit, evaluate; the status file says how it ended.

    A resumed run comes with its configuration `before`, a new one with its derivation.
    """
    engine: Engine | None = None
    data: TrainData | None = None
    status = folder.read_status()
    began = before is None
    if dist.is_main:
        folder.start()
    try:
        seed_everything(config["seed"])
        data = open_data(config, plan, dist, derivation=derivation, splits=folder.splits if before else None)
        last = CheckpointFolder(folder.checkpoints).last() if before is not None else None
        device = choose_device(config["trainer"]["device"], local_rank=dist.local_rank)
        engine = build_engine(
            config,
            plan,
            data,
            run_dir=folder.path,
            device=device,
            dist=dist,
            started=started,
            callbacks=callbacks,
            read_weights=last is None or last.constant is not None,
            initialise=last is None,
        )
        if before is not None:
            left = _continue(engine, folder, before, config, data, status)
            if left == "nothing":
                if dist.is_main:
                    folder.restore(status, status.message)
                return Outcome(folder.path, EXIT_DONE)
            if left == "evaluation":
                return _judge_again(engine, folder, before, config, status)
            began = True
        elif dist.is_main:
            atomic_write_json(folder.path / "data.json", data.describe())
            record_weights(folder.path, config)
            warn_of_seen(folder.path, config, data)
        with memory_guard(engine, config):
            if config["trainer"]["sanity_check"] and engine.step == 0:
                log.info("sanity check: %s", sanity_check(engine))
            counts = parameter_summary(engine.model)
            if counts.frozen:
                log.info("%s", counts)
            if engine.stages.stages:
                log.info("%s", engine.stages.describe())
            with engine.signals:
                outcome = _finish(engine, folder, config, engine.fit(), dist)
        dist.close()
        return outcome
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        if dist.is_main and began:
            folder.finish("failed", step=engine.step if engine is not None else status.step, message=message)
        elif dist.is_main:  # a resume that never got to train leaves the run as it was
            folder.restore(status, message)
        raise
    finally:
        if engine is not None:
            engine.loggers.close()
        if data is not None:
            data.close()


def _continue(
    engine: Engine,
    folder: RunFolder,
    before: Mapping[str, Any],
    config: Mapping[str, Any],
    data: TrainData,
    status: Status,
) -> Literal["training", "evaluation", "nothing"]:
    """Put the engine where the run stopped; say what is left to do."""
    checkpoint = engine.checkpoints.last()
    if checkpoint is None or checkpoint.constant is None:  # otherwise it knows them itself
        check_weights(folder.path, before, config)
    problem = changed_data(folder, data)
    if problem is not None:
        raise MedtrainError(problem, hint="restore the data, or start a new run with `medtrain train`")
    if checkpoint is None:
        log.warning("no complete checkpoint in %s: the run starts again at step 0 with the same seed", folder.path)
        engine.loggers.resume(0)
    else:
        check_format(checkpoint)
        changed = changed_since(checkpoint.meta.get("learned", {}), config)  # early versions kept less
        if changed:
            heading = f"{checkpoint.path} was made with another configuration than {folder.config}:"
            raise ConfigError(changed, heading=heading)
        engine.load(checkpoint)
        log.info("resumed at step %d from %s", engine.step, checkpoint.path.name)
    limits = [{key: part["trainer"][key] for key in LIMITS} for part in (before, config)]
    if limits[0] != limits[1] and engine.clock.finished(engine.step):
        given = ", ".join(f"trainer.{key}={value}" for key, value in limits[1].items() if value is not None)
        raise MedtrainError(
            f"the run is at step {engine.step} after {engine.clock.elapsed() / 60:.1f} min, beyond {given}",
            hint="give a longer limit",
        )
    done = checkpoint is not None and limits[0] == limits[1] and status.status == "done"
    if done and not _is_unjudged(before, config, folder, data):
        log.info(
            "the run is done, at step %d; to train longer give it a limit, such as trainer.max_time=1h", engine.step
        )
        if plain(dict(before)) != plain(dict(config)):
            log.warning("what was given changes nothing any more; `medtrain evaluate` judges a run otherwise")
        return "nothing"
    judged = [(part["trainer"]["eval_cases"], part["inference"]) for part in (before, config)]
    if not done and judged[0] != judged[1]:
        log.warning("evaluations change from here on: the best value so far is forgotten")
        engine.best = None
    if engine.dist.is_main:
        folder.add_command(command_line())
        folder.write_config(config)
        if not (folder.path / "data.json").exists():
            atomic_write_json(folder.path / "data.json", data.describe())
    return "evaluation" if done else "training"


def _is_unjudged(before: Mapping[str, Any], config: Mapping[str, Any], folder: RunFolder, data: TrainData) -> bool:
    """Whether a run that is done was not judged, or not told, as its configuration asks now."""
    cases = data.evaluation_cases("val", limit=None)
    if not config["trainer"]["final_evaluation"] or not cases:
        return False
    kept = all(prediction_file(folder.evaluation / FOLDER, case_id).is_file() for case_id in cases)
    missing = config["trainer"]["save_predictions"] and not kept
    return missing or not before["trainer"]["final_evaluation"] or config["task"] != before["task"]


def _judge_again(
    engine: Engine, folder: RunFolder, before: Mapping[str, Any], config: Mapping[str, Any], status: Status
) -> Outcome:
    """The final evaluation of a run that is done; should it be stopped, the run is done as before."""
    log.info("the run is done, at step %d: only its final evaluation is made again", engine.step)
    result = FitResult("done", status.message, engine.step, engine.best)
    try:
        with engine.signals:
            outcome = _finish(engine, folder, config, result, engine.dist)
    except BaseException:
        if engine.dist.is_main:
            folder.write_config(before)  # nothing came of what was asked
        raise
    if outcome.exit_code == EXIT_STOPPED and engine.dist.is_main:
        folder.restore(status, status.message)
    return outcome


def _finish(engine: Engine, folder: RunFolder, config: Mapping[str, Any], result: FitResult, dist: Dist) -> Outcome:
    if result.status == "stopped":
        if dist.is_main:
            folder.finish("stopped", step=result.step, message=result.reason)
            write_report(folder.path)
        log.info("stopped at step %d (%s)", result.step, result.reason)
        return Outcome(folder.path, EXIT_STOPPED)
    warn_of_ties(engine)
    final: Mapping[str, float] = {}
    if config["trainer"]["final_evaluation"] and engine.history:
        began = time.monotonic()
        try:
            final = final_evaluation(
                engine, folder, config["inference"], save_predictions=config["trainer"]["save_predictions"]
            )
        except EvaluationInterruptedError:
            if dist.is_main:
                folder.finish("stopped", step=result.step, message="stopped in the final evaluation")
            log.info("stopped in the final evaluation")
            return Outcome(folder.path, EXIT_STOPPED)
        engine.clock.add_evaluation(time.monotonic() - began)
    if dist.is_main:
        save_adapter(engine, folder)
        folder.finish("done", step=result.step, message=result.reason)
        write_report(folder.path)
    engine.clock.warn_of_use(result.step)
    best = f", best {engine.monitor.name} {engine.best:.4f}" if engine.best is not None else ""
    log.info("done at step %d (%s)%s: %s", result.step, result.reason, best, folder.path)
    return Outcome(folder.path, EXIT_DONE, final)
