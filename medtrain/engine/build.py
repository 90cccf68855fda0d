"""The one place where a checked configuration becomes objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtrain.callbacks.base import Callback
from medtrain.callbacks.status import StatusHeartbeat
from medtrain.data.source import DataPlan
from medtrain.engine.cadence import Cadence, Cadences, parse_duration, parse_time
from medtrain.engine.checkpoint import CheckpointFolder
from medtrain.engine.clock import Limit, RunClock
from medtrain.engine.derive import absolute_paths, evaluation_steps
from medtrain.engine.device import keep_freed_memory
from medtrain.engine.distributed import Dist
from medtrain.engine.ema import EMA
from medtrain.engine.initial import REPORT, load_initial
from medtrain.engine.loop import Engine
from medtrain.engine.precision import Precision, choose_precision
from medtrain.engine.protocol import TrainData
from medtrain.engine.settings import TrainerSettings
from medtrain.engine.stages import Stages, locked_parameters
from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.loggers.base import Logger, LoggerSet, RunInfo
from medtrain.models.constant import find_constant
from medtrain.optim.schedulers import Schedule
from medtrain.registry import build, plain
from medtrain.run.atomic import atomic_write_json
from medtrain.run.folder import RunFolder
from medtrain.run.provenance import mask_secrets
from medtrain.run.threads import available_threads
from medtrain.tasks.base import Task

log = logging.getLogger(__name__)

# what may differ between a run and its continuation without changing what is learned
_FREE_KEYS = {
    "trainer": {
        "max_steps", "max_epochs", "max_time", "device", "checkpoint_every", "keep_last", "keep_every", "log_every",
        "eval_every", "eval_cases", "final_evaluation", "sanity_check", "num_threads", "max_nonfinite", "precision",
        "save_predictions",
    },
    "data": {"num_workers", "root", "path", "store", "annotated", "cascade_from"},
    "model": {"weights"},
    "task": {"report"},
    "run": {"note", "tags"},
}  # fmt: skip
_FREE_GROUPS = {"callbacks", "logger", "inference"}
LIMITS = ("max_steps", "max_epochs", "max_time")
"""The settings that end a run."""


def build_model(config: Mapping[str, Any], plan: DataPlan, task: Task, *, read_weights: bool = True) -> nn.Module:
    """Construct the network; its initial weights depend on the seed and the pretrained weights alone.

    Args:
        config: The configuration with derived values filled in.
        plan: Of the data.
        task: Of the run.
        read_weights: Read the file of pretrained weights; False where a checkpoint replaces all of them.
    """
    settings = dict(config["model"])
    if not read_weights and isinstance(settings.get("weights"), str):
        settings["weights"] = None
    torch.manual_seed(config["seed"])
    model: nn.Module = build("model", settings, **{**plan.runtime(), **task.runtime()})
    return model


def build_task(
    config: Mapping[str, Any], plan: DataPlan, device: torch.device, memory_format: torch.memory_format | None
) -> Task:
    """Construct the task with its loss and inference settings."""
    known = plan.runtime()
    loss = build("loss", config["loss"], **known)
    inference = build("inference", config["inference"], **known)
    task: Task = build(
        "task",
        config["task"],
        loss=loss.to(device),
        inference=inference,
        plan=plan,
        device=device,
        memory_format=memory_format,
    )
    return task


def check_training(config: Mapping[str, Any], plan: DataPlan, task: Task) -> None:
    """Let the task see that what is trained on fits what is to be learned; see `Task.check_training`.

    Args:
        config: The configuration with derived values filled in.
        plan: Of the data.
        task: Of the run.

    Raises:
        UsageError: It does not.
    """
    task.check_training(config["data"], build("augment", config["augment"], **plan.runtime()))


def memory_format_of(config: Mapping[str, Any], plan: DataPlan) -> torch.memory_format | None:
    """The memory format of images and weights; None is the default one."""
    if not config["trainer"]["channels_last"]:
        return None
    return torch.channels_last if plan.spatial_dims == 2 else torch.channels_last_3d


def build_engine(
    config: Mapping[str, Any],
    plan: DataPlan,
    data: TrainData,
    *,
    run_dir: Path,
    device: torch.device,
    dist: Dist,
    started: float | None = None,
    callbacks: Mapping[str, Callback] | None = None,
    read_weights: bool = True,
    initialise: bool = True,
) -> Engine:
    """Construct everything a run needs from a completed configuration.

    Args:
        config: The configuration with derived values filled in.
        plan: The plan the derived values come from.
        data: The opened data.
        run_dir: The run's folder.
        device: Where to train.
        dist: This process among the others.
        started: `time.monotonic()` at the start of the command.
        callbacks: Told of the run besides those of the configuration, by name.
        read_weights: See `build_model`.
        initialise: Read the weights of `trainer.init_from`; False where a checkpoint replaces them.

    Raises:
        UsageError: Components contradict each other; said before the first step.
    """
    settings: TrainerSettings = build("trainer", config["trainer"])
    # of a run that is continued on another device, or with precision=auto, nobody has asked yet
    precision, _ = choose_precision(settings.precision, device, nonfinite=settings.nonfinite)
    _set_up_torch(settings, device)
    memory_format = memory_format_of(config, plan)
    task = build_task(config, plan, device, memory_format)
    model = build_model(config, plan, task, read_weights=read_weights)
    if settings.init_from is not None and initialise:
        _, facts = load_initial(model, Path(settings.init_from), min_match=settings.init_min_match)
        if dist.is_main:
            atomic_write_json(run_dir / REPORT, facts)
    constant = find_constant(model)
    model = model.to(device)
    if memory_format is not None:
        model = model.to(memory_format=memory_format)
    ema = None
    if settings.ema_decay:  # before a stage freezes what trains later
        locked = locked_parameters(model)
        ema = EMA(model, decay=settings.ema_decay, warmup=settings.ema_warmup, locked=locked)
    optimizer = build("optimizer", config["optimizer"], model=model)
    schedule = build("scheduler", config["scheduler"], lr=config["optimizer"]["lr"])
    if settings.compile:
        # training, evaluating, a single window and several, what a stage freezes: each has a graph of its own, and
        # beyond the limit, of 8, torch goes on without compiling
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        model.compile()
    _check_together(plan, task, settings, dist, schedule, data, config)

    steps_per_epoch = -(-data.batches_per_epoch // settings.accumulate)
    # only the main process writes and looks
    loggers = _build_loggers(config, run_dir) if dist.is_main else {}
    listeners = {**_build_callbacks(config, run_dir), **(callbacks or {})} if dist.is_main else {}
    return Engine(
        task=task,
        data=data,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=Precision(precision, device, nonfinite=settings.nonfinite),
        clock=_clock(config, settings, plan, task, data, started=started),
        cadences=_cadences(settings, steps_per_epoch),
        checkpoints=CheckpointFolder(run_dir / "checkpoints", keep_last=settings.keep_last, constant=constant),
        loggers=LoggerSet(loggers),
        callbacks=listeners,
        monitor=task.monitor,
        dist=dist,
        device=device,
        run_dir=run_dir,
        seed=config["seed"],
        stages=Stages(settings.stages, model, steps_per_epoch=steps_per_epoch),
        ema=ema,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        clip_value=settings.clip_value,
        eval_cases=settings.eval_cases,
        max_nonfinite=settings.max_nonfinite,
        memory_format=memory_format,
        learned=fixed_part(config),
    )


def _cadences(settings: TrainerSettings, steps_per_epoch: int) -> Cadences:
    def cadence(text: str | None) -> Cadence:
        return Cadence(parse_duration(text) if text is not None else None, steps_per_epoch=steps_per_epoch)

    return Cadences(
        log=cadence(settings.log_every),
        evaluate=cadence(settings.eval_every),
        checkpoint=cadence(settings.checkpoint_every),
        keep=cadence(settings.keep_every),
    )


def _set_up_torch(settings: TrainerSettings, device: torch.device) -> None:
    torch.set_num_threads(settings.num_threads or available_threads())
    if device.type == "cpu":
        keep_freed_memory()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not settings.deterministic


def _build_loggers(config: Mapping[str, Any], run_dir: Path) -> dict[str, Logger]:
    info = RunInfo(
        run_name=run_dir.name,
        experiment=run_dir.parent.name,
        config=mask_secrets(plain(dict(config))),
        note=config["run"]["note"],
        tags=tuple(config["run"]["tags"]),
    )
    return {name: build("logger", part, run_dir=run_dir, run_info=info) for name, part in config["logger"].items()}


def _build_callbacks(config: Mapping[str, Any], run_dir: Path) -> dict[str, Callback]:
    callbacks: dict[str, Callback] = {name: build("callbacks", part) for name, part in config["callbacks"].items()}
    callbacks["status"] = StatusHeartbeat(RunFolder(run_dir))
    return callbacks


def _limit(settings: TrainerSettings, batches_per_epoch: int) -> Limit:
    steps = settings.max_steps
    if settings.max_epochs is not None:
        by_epochs = settings.max_epochs * -(-batches_per_epoch // settings.accumulate)
        steps = by_epochs if steps is None else min(steps, by_epochs)
    return Limit(steps, parse_time(settings.max_time) if settings.max_time is not None else None)


def _clock(
    config: Mapping[str, Any],
    settings: TrainerSettings,
    plan: DataPlan,
    task: Task,
    data: TrainData,
    *,
    started: float | None,
) -> RunClock:
    judged, every = (len(data.evaluation_cases("val", limit=limit)) for limit in (settings.eval_cases, None))
    final_cost = 1.1 * task.final_cost() * every / judged if settings.final_evaluation and judged else 0.0
    return RunClock(
        _limit(settings, data.batches_per_epoch),
        final_evaluation_cost=final_cost,
        evaluation_steps=evaluation_steps(plan, config, judged),
        started=started,
    )


def _check_together(
    plan: DataPlan,
    task: Task,
    settings: TrainerSettings,
    dist: Dist,
    schedule: Schedule,
    data: TrainData,
    config: Mapping[str, Any],
) -> None:
    if not data.evaluation_cases("val", limit=None):
        if schedule.interval == "metric":
            hint = "leave a share in data.shares" if "shares" in config["data"] else "choose a data.fold"
            raise UsageError(
                "scheduler=plateau follows the evaluations, and no case is held out to be evaluated",
                hint=f"{hint}, or another scheduler",
            )
        log.info("no case is held out: nothing is evaluated, and the last weights are the result")
    if settings.save_predictions and not settings.final_evaluation:
        raise UsageError(
            "trainer.save_predictions keeps the label maps of the final evaluation, which "
            "trainer.final_evaluation=false leaves out",
            hint="drop one of them",
        )
    if settings.save_predictions and plan.family != "segmentation":
        raise UsageError(
            "trainer.save_predictions keeps label maps, and this task predicts none",
            hint="drop it: evaluation/cases.csv has the predictions",
        )
    if not task.loss.decomposable and (settings.accumulate > 1 or dist.world_size > 1):
        raise UsageError(
            f"loss={config['loss']['name']}, as it is set, cannot be used with trainer.accumulate > 1 or several "
            "processes: its value for a whole batch is not the mean of its parts",
            hint="trainer.accumulate=1 with a larger data.batch_size, or a loss of single samples "
            "(a Dice loss is one with loss.batch_dice=false)",
        )


def changed_since(learned: Mapping[str, Any], config: Mapping[str, Any]) -> list[Problem]:
    """Settings that are not what they were when a checkpoint was made.

    A setting that only one of the two has is one of another version of medtrain.

    Args:
        learned: The `fixed_part` of the configuration of that time.
        config: The configuration now.
    """
    return [
        Problem(key, f"was {old!r} when the checkpoint was made, and is {new!r}")
        for key, old, new in _differences(learned, fixed_part(config))
    ]


def fixed_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a continuation must not change, as plain data."""
    fixed: dict[str, Any] = {}
    for group, value in config.items():
        if group in _FREE_GROUPS:
            continue
        free = _FREE_KEYS.get(group, set())
        fixed[group] = {k: v for k, v in value.items() if k not in free} if isinstance(value, Mapping) else value
    return plain(fixed)


def continuation(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration a run is continued with.

    A limit that is given replaces the run's limits: `trainer.max_time=2h` on a run of 2000 steps trains for two hours.

    Args:
        before: The run's configuration.
        after: The same with the user's changes.

    Raises:
        ConfigError: Lists every key that must not change, with both values, or says that no limit is left.
    """
    heading = "a resumed run must learn the same; start a new one with `medtrain train`:"
    _refuse_changes(fixed_part(before), fixed_part(after), heading)
    old, new = before["trainer"], after["trainer"]
    changed = {key: new[key] for key in LIMITS if new[key] != old[key]}
    after = absolute_paths(after)
    if not changed:
        return dict(after)
    given = {key: value for key, value in changed.items() if value is not None}
    kept = {key: new[key] for key in LIMITS if key not in changed and not given}
    limits = {**dict.fromkeys(LIMITS), **kept, **given}
    if all(value is None for value in limits.values()):
        message = "no limit is left: set trainer.max_steps, trainer.max_epochs or trainer.max_time"
        raise ConfigError([Problem("trainer", message)])
    return {**after, "trainer": {**new, **limits}}


_EVALUATION = {
    "data": ("root", "path", "store", "annotated", "cascade_from"),
    "model": ("weights",),
    "task": ("report", "nsd_tolerance_mm", "lesions", "lesion_iou"),
}
_PREDICTION = {"data": ("root", "cascade_from"), "model": ("weights",)}  # root: of images that a new table names


def check_evaluation(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse to judge a run under a configuration that has no effect on judging, or judges something else.

    Raises:
        ConfigError: Lists every key that cannot change, with both values.
    """
    _allow_changes(before, after, _EVALUATION)


def check_prediction(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse to predict under a configuration whose changes have no effect on a prediction.

    Raises:
        ConfigError: Lists every key that cannot change, with both values.
    """
    _allow_changes(before, after, _PREDICTION)


def _allow_changes(before: Mapping[str, Any], after: Mapping[str, Any], free: Mapping[str, Sequence[str]]) -> None:
    """Refuse all changes but those of inference and of the settings named by group."""

    def fixed(config: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for group, value in config.items():
            if group != "inference":
                names = free.get(group, ())
                kept[group] = (
                    {k: v for k, v in value.items() if k not in names} if isinstance(value, Mapping) else value
                )
        return plain(kept)

    allowed = ["inference.*", *(f"{group}.{name}" for group, names in free.items() for name in names)]
    heading = f"only {', '.join(allowed[:-1])} and {allowed[-1]} can change here:"
    _refuse_changes(fixed(before), fixed(after), heading)


def _refuse_changes(before: Mapping[str, Any], after: Mapping[str, Any], heading: str) -> None:
    old, new = dict(_leaves(before)), dict(_leaves(after))
    problems = [
        Problem(key, f"was {old.get(key)!r} when the run began and cannot become {new.get(key)!r}")
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if problems:
        raise ConfigError(problems, heading=heading)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys that both trees have, with both values where these differ."""
    for key in sorted(old.keys() & new.keys()):
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}", old[key], new[key]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
