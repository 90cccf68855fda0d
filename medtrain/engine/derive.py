"""What follows from the data and the machine: the values a user may leave out, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medtrain.data.case import Dataset
from medtrain.data.fingerprint import fingerprint_cases
from medtrain.data.plan import Plan, make_plan
from medtrain.data.splits import Fold, load_splits, make_folds, select_fold
from medtrain.data.volume_data import VolumeData
from medtrain.engine.device import available_cores, choose_device, memory_gib
from medtrain.engine.precision import choose_precision
from medtrain.registry import build, get

DEFAULT_STEPS = {"cuda": 50_000, "mps": 10_000, "cpu": 1_000}
"""Optimizer steps of a run that names no limit: a fifth of nnU-Net's on a GPU, some minutes to an hour on a laptop."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class DerivedValue:
    """A value that was not given.

    Args:
        key: Dotted config key.
        value: What it is.
        reason: Why, in one sentence.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Derivation:
    """A configuration completed from its data and machine.

    Args:
        config: The configuration with every derived value filled in.
        values: What was filled in.
        plan: The plan of the data and the network.
        settings: The data settings, completed.
        dataset: The cases.
        folds: All folds of the cross-validation; a single entry when the run trains on everything.
        split: The training and validation ids of this run.
        device: Where to train.
    """

    config: dict[str, Any]
    values: tuple[DerivedValue, ...]
    plan: Plan
    settings: VolumeData
    dataset: Dataset
    folds: list[Fold]
    split: Fold
    device: torch.device


def derive(
    config: Mapping[str, Any], *, local_rank: int = 0, local_world_size: int = 1, progress: Progress | None = None
) -> Derivation:
    """Fill in what the user left to be derived.

    Reads the headers and foreground intensities of the training cases (kept in the store for the next time).

    Args:
        config: A checked configuration.
        local_rank: Index of this process on the machine.
        local_world_size: Processes on this machine, among which its cores are divided.
        progress: Called with (done, total, case id) while cases are read.

    Raises:
        MedtrainError: The data is missing or contradicts the settings, or the device does not exist.
    """
    completed = copy.deepcopy(dict(config))
    for key in ("root", "store", "splits"):  # a run is resumed and evaluated from other folders, too
        if completed["data"].get(key) is not None:
            completed["data"][key] = str(Path(completed["data"][key]).expanduser().absolute())
    device = choose_device(config["trainer"]["device"], local_rank=local_rank)
    settings: VolumeData = build("data", completed["data"])
    dataset = settings.discover()
    folds, split = read_split(settings, dataset)
    fingerprint = fingerprint_cases(dataset, split["train"], settings, progress=progress)
    plan = make_plan(
        fingerprint,
        dataset,
        settings,
        device=device.type,  # type: ignore[arg-type]
        memory_gib=memory_gib(device),
        cores=available_cores(),
        channels=config["model"].get("channels"),
        strides=config["model"].get("strides"),
        kernel_sizes=config["model"].get("kernel_sizes"),
    )
    values: list[DerivedValue] = []

    def fill(key: str, value: Any, reason: str) -> None:
        group, name = key.split(".")
        if name in completed[group] and completed[group][name] is None:
            completed[group][name] = value
            values.append(DerivedValue(key, value, reason))

    for key, reason in plan.reasons.items():
        fill(key, getattr(plan, key.partition(".")[2]), reason)
    if completed["data"]["normalization"] == "auto":
        values.append(
            DerivedValue(
                "data.normalization",
                [channel.scheme for channel in plan.normalization],
                plan.reasons.get("data.normalization", "by channel name"),
            )
        )
    if device.type == "cpu":
        reason = "a decoder of one convolution per stage trains a quarter faster on a CPU, as accurate per minute"
        fill("model.decoder_convs_per_stage", 1, reason)
    if completed["augment"]["name"] == "auto":
        name, reason = build("augment", completed["augment"]).choose(device.type)
        completed["augment"] = {"name": name, **get("augment", name).defaults()}
        values.append(DerivedValue("augment", name, reason))
    fill("inference.mirror_axes", _mirrored_axes(completed["augment"], plan.spatial_dims), "the axes training mirrors")
    _derive_trainer(completed, fill, values, device, max(1, available_cores() // local_world_size))
    settings = build("data", completed["data"])
    return Derivation(completed, tuple(values), plan, settings, dataset, folds, split, device)


def read_split(settings: VolumeData, dataset: Dataset) -> tuple[list[Fold], Fold]:
    """All folds, and the ids this run trains on and validates on."""
    if settings.fold is None:
        folds = [select_fold([], None, dataset.cases)]
        return folds, folds[0]
    if settings.splits is not None:
        folds = load_splits(Path(settings.splits), dataset.cases)
    else:
        folds = make_folds(dataset.cases, settings.num_folds)
    return folds, select_fold(folds, settings.fold, dataset.cases)


def _mirrored_axes(augment: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    """Axes along which predictions may be averaged over mirrored inputs: those the network has seen mirrored."""
    if not augment.get("mirror_p"):
        return ()
    axes = augment["mirror_axes"]
    return tuple(range(dims)) if axes is None else tuple(sorted({axis % dims for axis in axes}))


def _derive_trainer(
    completed: dict[str, Any],
    fill: Callable[[str, Any, str], None],
    values: list[DerivedValue],
    device: torch.device,
    threads: int,
) -> None:
    trainer = completed["trainer"]
    if trainer["device"] == "auto":
        values.append(DerivedValue("trainer.device", device.type, "the fastest device that is available"))
    name, reason = choose_precision(trainer["precision"], device, nonfinite=trainer["nonfinite"])
    if trainer["precision"] == "auto":
        trainer["precision"] = name
        values.append(DerivedValue("trainer.precision", name, reason))
    if trainer["max_epochs"] is None and trainer["max_time"] is None:
        fill("trainer.max_steps", DEFAULT_STEPS[device.type], f"no limit was given; the default on {device.type}")
    fill("trainer.num_threads", threads, f"{threads} cores are available to this process")
    fill("trainer.channels_last", device.type != "mps", "convolutions are faster in this memory format")
    workers = 0 if device.type == "cpu" else min(8, threads)
    fill("data.num_workers", workers, "the CPU trains, so it reads in between" if workers == 0 else "one per core")
