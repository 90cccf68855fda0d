"""What follows from the data and the machine: the values a user may leave out, each with its reason."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medtrain.data.source import DataPlan, DataSource, DerivedValue, Fold, FoundData, Machine, Progress
from medtrain.engine.device import choose_device, memory_gib
from medtrain.engine.precision import choose_precision
from medtrain.registry import build, get
from medtrain.run.threads import LIMIT, available_cores, thread_limit

DEFAULT_STEPS = {"cuda": 50_000, "mps": 10_000, "cpu": 1_000}
"""Optimizer steps of a run that names no limit: a fifth of nnU-Net's on a GPU, some minutes to an hour on a laptop."""

DEFAULT_TIME = {"images": "10min"}
"""Family of the data -> how long a run on a CPU trains that names no limit: labelled images differ too much in size and
number for a count of steps."""

_MOST_EVALUATIONS = 10
_EVALUATION_SHARE = 0.25

PATHS = ("root", "store", "splits", "path", "annotated", "cascade_from")
"""Settings of data that are files and folders: a run is resumed and evaluated from other folders, too."""


@dataclass(frozen=True)
class Derivation:
    """A configuration completed from its data and machine.

    Args:
        config: The configuration with every derived value filled in.
        values: What was filled in.
        plan: The plan of the data and the network.
        settings: The data settings, completed.
        found: The cases and their division into parts.
        device: Where to train.
        gpu_gib: Memory of the GPU that was planned for without being used; None where the device is this machine's.
    """

    config: dict[str, Any]
    values: tuple[DerivedValue, ...]
    plan: DataPlan
    settings: DataSource
    found: FoundData
    device: torch.device
    gpu_gib: float | None = None


def derive(
    config: Mapping[str, Any],
    *,
    local_rank: int = 0,
    local_world_size: int = 1,
    progress: Progress | None = None,
    gpu_gib: float | None = None,
) -> Derivation:
    """Fill in what the user left to be derived.

    Args:
        config: A checked configuration.
        local_rank: Index of this process on the machine.
        local_world_size: Processes on this machine, among which its cores are divided.
        progress: Called with (done, total, case id) while cases are read.
        gpu_gib: Plan for a GPU with so much memory, whether or not this machine has one.

    Raises:
        MedtrainError: The data is missing or contradicts the settings, or the device does not exist.
    """
    completed = absolute_paths(config)
    wanted, nonfinite = config["trainer"]["precision"], config["trainer"]["nonfinite"]
    if gpu_gib is None:
        device = choose_device(config["trainer"]["device"], local_rank=local_rank)
        precision = choose_precision(wanted, device, nonfinite=nonfinite)
    else:
        device = torch.device("cuda")
        precision = ("bf16", "what GPUs of today compute fastest") if wanted == "auto" else (wanted, "given")
    kind: Any = device.type
    half, memory = precision[0] in ("bf16", "fp16"), memory_gib(device) if gpu_gib is None else gpu_gib
    machine = Machine(kind, memory, available_cores(), local_world_size, thread_limit(), half)
    values: list[DerivedValue] = []
    if completed["augment"]["name"] == "auto":
        name, reason = build("augment", completed["augment"]).choose(device.type)
        completed["augment"] = {"name": name, **get("augment", name).defaults()}
        values.append(DerivedValue("augment", name, reason))
    settings: DataSource = build("data", completed["data"])
    found = settings.find()
    plan, derived = settings.derive(
        found, machine, model=_model_to_plan(completed["model"]), augment=completed["augment"], progress=progress
    )
    values = [value for value in derived if _fill(completed, value)] + values
    of_trainer = _trainer_values(completed, device, precision, machine, plan, found.split)
    values += [value for value in of_trainer if _fill(completed, value)]
    settings = build("data", completed["data"])
    return Derivation(completed, tuple(values), plan, settings, found, device, gpu_gib)


def _model_to_plan(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's settings, with the strides of a network where they are no setting: patches are made to fit them."""
    fixed_strides = getattr(get("model", settings["name"]).target, "fixed_strides", None)
    strides = None if fixed_strides is None else fixed_strides(settings)
    return settings if strides is None else {**settings, "strides": strides}


def absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration in which paths to data, tables and weights hold in every folder."""
    completed = copy.deepcopy(dict(config))
    for key in PATHS:
        if isinstance(completed["data"].get(key), str):  # a source may call something else so
            completed["data"][key] = str(Path(completed["data"][key]).expanduser().absolute())
    weights = completed["model"].get("weights")
    if isinstance(weights, str) and weights != "timm":
        completed["model"]["weights"] = str(Path(weights).expanduser().absolute())
    report = completed.get("task", {}).get("report")
    if isinstance(report, dict) and isinstance(report.get("metadata"), str):
        report["metadata"] = str(Path(report["metadata"]).expanduser().absolute())
    if completed["trainer"].get("init_from") is not None:
        completed["trainer"]["init_from"] = str(Path(completed["trainer"]["init_from"]).expanduser().absolute())
    return completed


_OF_DATA = ("data", "model")
_OF_MACHINE = ("data.num_workers",)


def with_plan(config: Mapping[str, Any], derivation: Derivation) -> dict[str, Any]:
    """A copy of a configuration in which everything is written out that follows from the data.

    What follows from the machine alone, such as the precision, and what is fitted to intensities and labels is left
    open. Paths are absolute.

    Args:
        config: As the user has it.
        derivation: Of it.
    """
    planned = absolute_paths(config)
    for value in derivation.values:
        group, _, name = value.key.partition(".")
        if value.fills and name and group in _OF_DATA and value.key not in _OF_MACHINE:
            planned[group][name] = derivation.config[group][name]
    return planned


def _fill(completed: dict[str, Any], value: DerivedValue) -> bool:
    """Put a value in the place of a null; whether it is worth telling."""
    if not value.fills:
        return True
    group, name = value.key.split(".")
    if name not in completed[group] or completed[group][name] is not None:
        return False
    completed[group][name] = value.value
    return True


def _trainer_values(
    completed: dict[str, Any],
    device: torch.device,
    precision: tuple[str, str],
    machine: Machine,
    plan: DataPlan,
    split: Fold,
) -> list[DerivedValue]:
    trainer = completed["trainer"]
    values: list[DerivedValue] = []
    if trainer["device"] == "auto":
        reason = "the fastest device that is available"
        values.append(DerivedValue("trainer.device", device.type, reason, fills=False))
    if trainer["precision"] == "auto":
        trainer["precision"] = precision[0]
        values.append(DerivedValue("trainer.precision", *precision, fills=False))
    if all(trainer[key] is None for key in ("max_steps", "max_epochs", "max_time")):
        reason = f"no limit was given; the default on {device.type}"
        if device.type == "cpu" and plan.family in DEFAULT_TIME:
            values.append(DerivedValue("trainer.max_time", DEFAULT_TIME[plan.family], reason))
        else:
            values.append(DerivedValue("trainer.max_steps", DEFAULT_STEPS[device.type], reason))
    limits = {value.key.partition(".")[2]: value.value for value in values if value.fills}
    values.append(_evaluations({**trainer, **limits}, completed, plan, split))
    reason = f"{machine.threads} cores are available to this process"
    if machine.threads == machine.thread_limit:
        reason = f"{LIMIT}={machine.thread_limit}"
    values.append(DerivedValue("trainer.num_threads", machine.threads, reason))
    values.append(DerivedValue("trainer.channels_last", *_channels_last(device, completed["model"])))
    return values


def _channels_last(device: torch.device, model: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether images and weights lie in memory with the channels last, and why."""
    if device.type == "mps":
        return False, "the MPS device has no kernels for channels last"
    if device.type == "cuda" and model.get("norm") == "instance":
        # PyTorch issue 59168: nnU-Net's network takes 24 % more time so, for every norm turns its features around
        return False, "instance normalisation on CUDA knows features only with the channels first"
    return True, "convolutions are faster in this memory format"


def evaluation_steps(plan: DataPlan, config: Mapping[str, Any], cases: int) -> float:
    """What judging cases costs in optimizer steps, by the size of what is computed."""
    return cases * plan.case_cost(config["inference"]) / config["trainer"]["accumulate"]


def _evaluations(trainer: Mapping[str, Any], completed: Mapping[str, Any], plan: DataPlan, split: Fold) -> DerivedValue:
    """How often to evaluate: by what is computed, not by a clock, so that a resumed run evaluates at the same steps."""
    key = "trainer.eval_every"
    if trainer["max_time"] is not None:
        return DerivedValue(key, f"{100 // _MOST_EVALUATIONS}%", "ten times, within a fifth of the time")
    data = completed["data"]
    batches = math.ceil(len(split["train"]) * data.get("samples_per_case", 1) / data["batch_size"])
    limits = [trainer["max_steps"], trainer["max_epochs"] and trainer["max_epochs"] * batches / trainer["accumulate"]]
    steps = min(limit for limit in limits if limit is not None)
    cases = min(len(split.get("val", ())), trainer["eval_cases"] or sys.maxsize)
    cost = evaluation_steps(plan, completed, cases)
    count = max(1, min(_MOST_EVALUATIONS, math.floor(_EVALUATION_SHARE * steps / cost))) if cost else _MOST_EVALUATIONS
    told = "ten times" if count == _MOST_EVALUATIONS else f"judging {cases} cases costs as much as {cost:.3g} steps"
    return DerivedValue(key, f"{100 / count:.6g}%", told)
