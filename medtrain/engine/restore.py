"""A trained run, opened to be used: evaluated, applied to scans, or exported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from medtrain.engine.build import build_model, build_task, memory_format_of
from medtrain.engine.checkpoint import CheckpointFolder, check_format, read_checkpoint
from medtrain.engine.decisions import read_decision
from medtrain.engine.device import choose_device
from medtrain.engine.opening import read_plan
from medtrain.engine.precision import Precision, PrecisionName, choose_precision
from medtrain.engine.pretrained import check_weights
from medtrain.errors import MedtrainError, UsageError
from medtrain.run.folder import RunFolder
from medtrain.run.threads import available_threads
from medtrain.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """A run with its weights loaded.

    Args:
        model: The network in evaluation mode, float32, with the weights that were evaluated (averaged where kept).
        task: The task of the run.
        plan: The plan of the run, a `DataPlan` of its family.
        config: The completed configuration.
        run_dir: The run's folder.
        step: Optimizer steps behind the weights.
        weights: Whether the weights are the moving average.
        metrics: Value of the monitor of the checkpoint, if it was evaluated.
        device: Where the network is.
        precision: Autocast of the forward pass.
    """

    model: nn.Module
    task: Task
    plan: Any
    config: Mapping[str, Any]
    run_dir: Path
    step: int
    weights: Literal["ema", "raw"]
    metrics: Mapping[str, float]
    device: torch.device
    precision: Precision


def load_run(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    checkpoint: str = "best",
    device: str = "auto",
    precision: str | None = None,
) -> LoadedRun:
    """Open a run.

    Args:
        run_dir: The run's folder.
        config: The run's configuration.
        checkpoint: `best`, `last`, or the name of a checkpoint folder such as `step_00001200`.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32, tf32, bf16 or fp16; None takes the run's, or auto where this device cannot.

    Raises:
        MedtrainError: The run has no such checkpoint.
    """
    folder = RunFolder.open(run_dir)
    checkpoints = CheckpointFolder(folder.checkpoints)
    if checkpoint == "best":
        found = checkpoints.best() or checkpoints.last()
    elif checkpoint == "last":
        found = checkpoints.last()
    else:
        found = read_checkpoint(folder.checkpoints / checkpoint)
    if found is None:
        names = [c.path.name for c in checkpoints.list()]
        raise MedtrainError(
            f"{folder.path} has no complete checkpoint `{checkpoint}`; it has: {', '.join(names) or 'none'}",
            hint=f"continue the run with `medtrain resume {run_dir}`"
            if not names
            else "choose best, last or one of these",
        )
    check_format(found)
    if found.constant is None:
        check_weights(folder.path, yaml.safe_load(folder.config.read_text(encoding="utf-8")), config)
    plan = read_plan(folder, config)
    chosen_device = choose_device(device)
    # windows and images come in one shape: the fastest convolution is worth a search
    torch.backends.cudnn.benchmark = chosen_device.type == "cuda" and not config["trainer"]["deterministic"]
    if chosen_device.type == "cpu":
        torch.set_num_threads(available_threads())
    memory_format = memory_format_of(config, plan)
    task = build_task(config, plan, chosen_device, memory_format)
    model = build_model(config, plan, task, read_weights=found.constant is not None)
    found.load_into(model, ema=found.has_ema)
    decision = read_decision(folder.path, found.step, config["inference"])
    task.use_decision(decision)
    if decision:
        told = ", ".join(f"{name} = {value:.4g}" for name, value in decision.items())
        log.info("chosen on the validation part: %s", told)
    model = model.to(chosen_device).eval().requires_grad_(False)
    if memory_format is not None:
        model = model.to(memory_format=memory_format)
    value = found.meta.get("value")
    state = folder.read_status().state
    log.info(
        "weights of %s: step %d%s, %s%s",
        folder.path.name,
        found.step,
        " (moving average)" if found.has_ema else "",
        f"{found.meta['monitor']} {value:.4f}" if value is not None else "not evaluated",
        "" if state == "done" else f"; the run is {state}, not done",
    )
    return LoadedRun(
        model=model,
        task=task,
        plan=plan,
        config=config,
        run_dir=folder.path,
        step=found.step,
        weights="ema" if found.has_ema else "raw",
        metrics={found.meta["monitor"]: value} if value is not None else {},
        device=chosen_device,
        precision=Precision(_precision(precision, config, chosen_device), chosen_device),
    )


def _precision(requested: str | None, config: Mapping[str, Any], device: torch.device) -> PrecisionName:
    if requested is not None:
        return choose_precision(requested, device)[0]
    try:
        return choose_precision(config["trainer"]["precision"], device)[0]
    except UsageError:
        name = choose_precision("auto", device)[0]
        log.warning(
            "trained in %s, which %s does not have: using %s", config["trainer"]["precision"], device.type, name
        )
        return name
