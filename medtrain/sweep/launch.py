"""Start a sweep, continue it, join it from elsewhere, and bring it to its end."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medtrain.config.compose import load_config
from medtrain.config.render import experiment_yaml
from medtrain.config.space import Space
from medtrain.config.sweeps import SweepConfig
from medtrain.engine.cadence import parse_time
from medtrain.engine.derive import PATHS
from medtrain.engine.signals import StopSignals
from medtrain.errors import ConfigError, MedtrainError, Problem, UsageError
from medtrain.registry import builtin_modules, get
from medtrain.run.atomic import atomic_write
from medtrain.run.log import setup_logging
from medtrain.sweep.folder import SweepFolder
from medtrain.sweep.objectives import choose_objectives, default_point, digest
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.pool import Place, TrialPool, divide
from medtrain.sweep.pruners import make_pruner
from medtrain.sweep.report.write import write_report
from medtrain.sweep.rerun import best_configuration, run_reruns
from medtrain.sweep.result import Definition, Objective
from medtrain.sweep.run import LocalFolders, Search
from medtrain.sweep.samplers import make_sampler
from medtrain.sweep.storage import open_storage, serve
from medtrain.sweep.study import SweepStudy
from medtrain.sweep.table import SweepTable

log = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_STOPPED = 75


def start_sweep(config: SweepConfig) -> int:
    """Search from scratch in a new sweep folder; return the exit code.

    Args:
        config: A checked configuration of a sweep.
    """
    setup_logging()
    folder, definition, facts = begin(config)
    section = definition.sweep
    try:
        storage = open_storage(section["storage"] or str(folder.journal))
        study = SweepStudy.create(storage, section["study"] or folder.name, definition)
    except BaseException:
        shutil.rmtree(folder.path)  # nothing has begun
        raise
    return _search(folder, study, gpus=facts.gpus, tree=config.composed.tree)


def begin(config: SweepConfig) -> tuple[SweepFolder, Definition, Any]:
    """Check a sweep, alone and against its data, and make its folder; return it with the definition and the facts."""
    for note in config.notes:
        log.info(note)
    tree = config.composed.tree
    section, run = tree["sweep"], tree["run"]
    _check_early(config, section)
    folder = SweepFolder.create(experiment="", path=run["dir"]) if run["dir"] is not None else None
    try:
        facts = _probe(config, section)
        objectives, constraints = choose_objectives(section, facts)
        monitor = _monitor(objectives, facts)
        if monitor:  # once more, with what the trials will watch
            facts = _probe(config, section, monitor)
        if folder is None:
            experiment = run["experiment"] or f"{facts.dataset}_{tree['model']['name']}_sweep".lower()
            folder = SweepFolder.create(experiment=experiment, root=run["root"])
        folder = SweepFolder(folder.path.absolute())
        places = (*monitor, *_absolute_paths(config.train.tree, config.space))
        overrides = (*config.overrides, *places, *_group(config.train.tree, folder.name))
        base = load_config(overrides, config_dirs=config.config_dirs, imports=config.imports).tree
        point, moved = default_point(config.space, facts.config)
        definition = dataclasses.replace(
            _draft(config, section),
            overrides=overrides,
            full_overrides=(*config.full_overrides, *places),
            digest=digest(base),
            objectives=objectives,
            constraints=constraints,
            folder=str(folder.path),
            split_hash=",".join(facts.split_hashes),
            default=point,
            default_moved=moved,
            token=secrets.token_hex(4),
        )
        folder.write_inputs(tree, config.composed.overrides, sys.argv)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder.path)  # nothing has begun
        raise
    return folder, definition, facts


def _draft(config: SweepConfig, section: Mapping[str, Any]) -> Definition:
    """What is known of a sweep before its data were seen."""
    tree = config.composed.tree
    names = section["objectives"] or ["val/?"]
    return Definition(
        overrides=config.overrides,
        full_overrides=config.full_overrides,
        imports=config.imports,
        config_dirs=config.config_dirs,
        digest="",
        space=config.space,
        objectives=tuple(Objective(name, "max") for name in names),
        constraints=(),
        sweep=section,
        sampler=tree["sampler"],
        pruner=tree["pruner"],
        folder="",
        split_hash="",
        default=None,
        is_grid=config.is_grid,
    )


def _check_early(config: SweepConfig, section: Mapping[str, Any]) -> None:
    """Refuse what needs no look at the data: what has no effect, cannot work, or should not be kept."""
    problems = []
    if section["storage"] is not None and "://" in section["storage"] and urlsplit(section["storage"]).password:
        why = "holds a password, which would be kept in the sweep's files"
        problems.append(Problem("sweep.storage", why, "leave it out; set PGPASSWORD, or write it into ~/.pgpass"))
    problems += _idle(section)
    if problems:
        raise ConfigError(problems)
    plan = SearchPlan.of(_draft(config, section))
    make_sampler(dict(config.composed.tree["sampler"]), plan)
    make_pruner(dict(config.composed.tree["pruner"]), plan)


def _idle(section: Mapping[str, Any]) -> list[Problem]:
    """Settings that have no effect beside the others."""
    defaults = get("sweep", "default").defaults()
    changed = [key for key in ("rerun_seeds", "rerun_folds") if section[key] != defaults[key]]
    if section["rerun_best"]:
        return []
    return [Problem(f"sweep.{key}", "has no effect without sweep.rerun_best") for key in changed]


def resume_sweep(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> int:
    """Continue a sweep, with more trials or time where that was asked for; return the exit code.

    Args:
        path: The sweep's folder.
        sections: Its checked sections, with the changes that are allowed.
    """
    folder = SweepFolder.open(path)
    folder.refuse_if_busy()
    setup_logging(run_dir=folder.path)
    log.info("opening the sweep")
    section = sections["sweep"]
    if idle := _idle(section):
        raise ConfigError(idle)
    study = SweepStudy.load(
        open_storage(section["storage"] or str(folder.journal), create=False), section["study"] or folder.name
    )
    definition = study.definition
    tree = _check_same(definition)
    gpus = _count_gpus(tree)
    status = folder.read_status()
    folder.start()  # refused here, before anything is changed, when another process runs the sweep
    try:
        study.update_sweep(section)
        folder.write_config({**tree, **sections})
        folder.add_command(sys.argv)
    except BaseException as error:
        folder.restore(status, f"{type(error).__name__}: {error}")
        raise
    return _search(folder, study, gpus=gpus, tree=tree)


def join_sweep(storage: str, name: str, *, workers: int | None = None) -> int:
    """Run trials of a study that another process has created, until enough are finished; return the exit code.

    Args:
        storage: Where the study is kept, as in `sweep.storage`.
        name: Its name.
        workers: Trials at the same time; None is one per GPU, and one on a CPU.
    """
    setup_logging()
    study = SweepStudy.load(open_storage(storage, create=False), name)
    definition = study.definition
    tree = _check_same(definition)
    folder = Path(definition.folder)
    shared = folder.is_dir() and os.access(folder, os.W_OK)
    folders = SweepFolder(folder) if shared else LocalFolders(Path("outputs", f"{name}-{definition.token}").absolute())
    gpus = _count_gpus(tree)
    log.info("joined %s; trials are kept in %s", name, folders.path)
    section = {**definition.sweep, "workers": workers}
    table = make_table(study, folders.path)
    with StopSignals() as signals:
        search = Search(study, folders, _pool(section, gpus, tree), table, signals, is_owner=False)
        try:
            reason = search.run()
        finally:
            table.close()
    log.info("this worker is done (%s): %d trials", reason, search.trained)
    if reason == "failures":
        raise MedtrainError(f"{search.failed_in_row} trials failed in a row; the last one: {search.last_message}")
    return EXIT_STOPPED if reason != "done" else EXIT_DONE


def serve_storage(storage: str, address: str) -> None:
    """Offer a storage to workers that can reach this machine, until Ctrl-C.

    Args:
        storage: As in `sweep.storage`.
        address: `HOST:PORT` to listen at.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--serve needs HOST:PORT, not {address}", hint="such as --serve journal.log 0.0.0.0:13000")
    setup_logging()
    log.info("offering %s; workers join with: medtrain sweep --worker grpc://%s STUDY", storage, address)
    serve(storage, host, int(port))


def report_sweep(path: Path) -> list[Path]:
    """Write the report of a sweep as it stands, running or not.

    Args:
        path: The sweep's folder.
    """
    folder, study = open_sweep(path)
    _write_best(folder, study)
    return write_report(folder.path, study)


def open_sweep(path: Path) -> tuple[SweepFolder, SweepStudy]:
    """A sweep's folder and its study."""
    from medtrain.config.sweeps import load_saved_sweep

    folder = SweepFolder.open(path)
    section = load_saved_sweep(folder.path)["sweep"]
    storage = open_storage(section["storage"] or str(folder.journal), create=False)
    return folder, SweepStudy.load(storage, section["study"] or folder.name)


def _search(folder: SweepFolder, study: SweepStudy, *, gpus: int, tree: Mapping[str, Any]) -> int:
    """Search, train the best again, report; the status file says how it ended."""
    folder.start(step=study.counts().finished)
    setup_logging(run_dir=folder.path)
    section = study.definition.sweep
    log.info("sweep %s", folder.path)
    log.info("%s", _describe(study))
    table = make_table(study, folder.path)

    finished = study.counts().finished

    def on_result(state: str, is_best: bool) -> None:
        nonlocal finished
        finished = study.counts().finished
        if is_best:
            _write_best(folder, study)
        folder.heartbeat(finished, best=_best_so_far(study) if is_best else None)

    reason, message = "failed", ""
    try:
        with StopSignals() as signals:
            pool = _pool(section, gpus, tree)
            timeout = parse_time(section["timeout"]) if section["timeout"] is not None else None
            search = Search(study, folder, pool, table, signals, timeout_s=timeout, on_result=on_result)
            try:
                reason = search.run()
            finally:
                table.close()
            if reason == "done" and section["rerun_best"]:
                reason = run_reruns(folder, study, pool, signals, seed=tree["seed"], deadline=search.deadline)
        _report(folder, study)
        if reason == "failures":
            message = search.last_message
    except BaseException as error:
        reason, message = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        states: dict[str, Any] = {"done": "done", "failed": "failed", "failures": "failed"}
        state = states.get(reason, "stopped")
        folder.finish(state, step=finished, message=message or ("" if state == "done" else reason))
    if reason == "failures":
        raise MedtrainError(
            f"{search.failed_in_row} trials failed in a row; the last one: {message}",
            hint=f"mend the cause and continue with `medtrain resume {folder.path}`, or allow more: sweep.max_failures",
        )
    return _conclude(folder, study, reason)


def make_table(study: SweepStudy, folder: Path) -> SweepTable:
    """The table of a sweep as it stands."""
    counts = study.counts()
    ended = {"complete": counts.complete, "pruned": counts.pruned, "failed": counts.failed}
    first = next(iter(study.best(1)), None)
    best = (first.number, first.user_attrs.get("metrics", {}), first.params) if first is not None else None
    return SweepTable(study.definition.objectives, study.limit, folder, counts=ended, best=best)


def _conclude(folder: SweepFolder, study: SweepStudy, reason: str) -> int:
    counts = study.counts()
    if reason != "done":
        log.info(
            "stopped (%s) after %d trials; continue with: medtrain resume %s", reason, counts.finished, folder.path
        )
        return EXIT_DONE if reason == "timeout" else EXIT_STOPPED
    if not folder.best.is_file():
        raise MedtrainError(
            f"none of the {counts.finished} trials can be used: {study.why_none()}",
            hint=f"the reasons are in {folder.path / 'trials.csv'}",
        )
    log.info("done: %s", folder.path)
    log.info("train the winner, for longer if you like, with: medtrain train experiment=%s", folder.best)
    return EXIT_DONE


def _report(folder: SweepFolder, study: SweepStudy) -> None:
    """Write the winner and the report; a picture that fails must not cost the sweep."""
    try:
        _write_best(folder, study)
        write_report(folder.path, study)
    except Exception as error:
        log.warning("the report could not be written: %s: %s", type(error).__name__, error)
        log.warning("try it again with: medtrain sweep --report %s", folder.path)


def _write_best(folder: SweepFolder, study: SweepStudy) -> None:
    found = best_configuration(folder, study)
    if found is None:
        return
    definition = study.definition
    params, comment = found
    overrides = [*definition.full_overrides, *definition.space.overrides(params)]
    composed = load_config(overrides, config_dirs=definition.config_dirs, imports=definition.imports)
    atomic_write(folder.best, experiment_yaml(composed, comment=comment))


def _best_so_far(study: SweepStudy) -> Any:
    trial = study.best(1)[0]
    objective = study.definition.objectives[0]
    return {"metric": objective.metric, "value": trial.values[0], "step": trial.number}


def _check_same(definition: Definition) -> dict[str, Any]:
    """Compose the configuration of a study again and see that it is what it was; return its tree.

    Raises:
        MedtrainError: Files of the configuration, or medtrain's defaults, changed since the sweep began.
    """
    tree = load_config(definition.overrides, config_dirs=definition.config_dirs, imports=definition.imports).tree
    if digest(tree) != definition.digest:
        raise MedtrainError(
            "the configuration is not what it was when the sweep began: a file in conf/ or a default has changed, and "
            "new trials could not be compared with the old ones",
            hint="restore it (and the version of medtrain), or start a new sweep with sweep.warm_start=[FOLDER]",
        )
    return tree


def _monitor(objectives: Sequence[Objective], facts: Any) -> list[str]:
    """Let a trial's own best evaluation be the one that the sweep judges it by, where the task's monitor is another."""
    name = objectives[0].metric
    if len(objectives) > 1 or name == facts.monitor or name not in facts.metrics:
        return []
    return [f"task.monitor={name.removeprefix('val/')}"]


def _probe(config: SweepConfig, section: Mapping[str, Any], extra: Sequence[str] = ()) -> Any:
    """Look at the data in a process of its own, so that this one holds neither data nor device."""
    if not extra:
        log.info("checking the configuration and the data")
    pool = TrialPool([Place(0)], preload=component_modules(config.train.tree))
    folds = section["folds"]
    overrides = (*config.overrides, *extra)
    return pool.call("medtrain.sweep.trial:probe", overrides, config.imports, config.config_dirs, folds)


def _count_gpus(tree: Mapping[str, Any]) -> int:
    pool = TrialPool([Place(0)], preload=component_modules(tree))
    return int(pool.call("medtrain.sweep.trial:count_gpus", tree["trainer"]["device"]))


def _pool(section: Mapping[str, Any], gpus: int, tree: Mapping[str, Any]) -> TrialPool:
    return TrialPool(divide(_workers(section, gpus), visible_gpus(gpus)), preload=component_modules(tree))


def _workers(section: Mapping[str, Any], gpus: int) -> int:
    return section["workers"] or max(1, gpus)


def visible_gpus(gpus: int) -> list[str]:
    """The GPUs by the names that CUDA_VISIBLE_DEVICES gives them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:gpus] if named else [str(index) for index in range(gpus)]


def component_modules(tree: Mapping[str, Any]) -> list[str]:
    """Modules of the components that every trial needs."""
    known = builtin_modules()
    chosen = {(group, part["name"]) for group, part in tree.items() if isinstance(part, Mapping) and "name" in part}
    return sorted({known[key] for key in chosen if key in known})


def _absolute_paths(tree: Mapping[str, Any], space: Space) -> list[str]:
    """Where the data are, for trials that are continued from another folder than the sweep was started in."""
    if any(dimension.key in ("data", "experiment", "debug") for dimension in space.dimensions):
        return []  # each choice has its own
    given = {f"data.{key}": tree["data"].get(key) for key in PATHS}
    given["trainer.init_from"] = tree["trainer"]["init_from"]
    return [
        f"{key}={json.dumps(str(Path(path).expanduser().absolute()), ensure_ascii=False)}"
        for key, path in given.items()
        if isinstance(path, str)
    ]


def _group(tree: Mapping[str, Any], name: str) -> Sequence[str]:
    """Trials are shown together in W&B."""
    wandb = tree["logger"].get("wandb")
    return [f"logger.wandb.group={name}"] if wandb is not None and wandb["group"] is None else []


def _describe(study: SweepStudy) -> str:
    definition = study.definition
    goals = ", ".join(
        f"{'largest' if goal.mode == 'max' else 'smallest'} {goal.metric}" for goal in definition.objectives
    )
    size = definition.space.size
    points = "" if size is None else f" of {size} points"
    return f"{study.limit} trials{points}, {definition.sampler['name']} sampler, for the {goals}"
