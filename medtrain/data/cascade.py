"""Cascades: a network at full resolution that also sees what one at low resolution has found.

The label maps of the previous stage, its hints, are kept in the store beside the prepared cases. Those of a
cross-validation are out of fold: every case was segmented by the network that did not train on it, as new scans are.
They are read with the patch, moved with it, and become one channel per structure.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from medtrain.data.digests import digest_of
from medtrain.data.splits import some
from medtrain.errors import ConfigError, MedtrainError, Problem, UsageError

log = logging.getLogger(__name__)

_FORMAT = 1
_KEY = "data.cascade_from"


@dataclass(frozen=True)
class PreviousStage:
    """The networks whose label maps are further channels.

    Args:
        members: Folders of their runs below `data.cascade_from`; `.` for a single run.
        digests: Of the weights of each.
        class_names: Of their maps, background first.
        structures: Class indices of every channel.
    """

    members: tuple[str, ...]
    digests: tuple[str, ...]
    class_names: tuple[str, ...]
    structures: tuple[tuple[int, ...], ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreviousStage:
        """Inverse of `dataclasses.asdict`."""
        structures = tuple(tuple(members) for members in data["structures"])
        return cls(tuple(data["members"]), tuple(data["digests"]), tuple(data["class_names"]), structures)

    @property
    def num_channels(self) -> int:
        """One per structure."""
        return len(self.structures)

    def channels(self, hints: Tensor) -> Tensor:
        """Label maps [B, *S] as float32 channels [B, C, *S]: 1 inside of a structure, else 0."""
        planes = []
        for first, *others in self.structures:
            inside = hints == first
            for index in others:
                inside = inside | (hints == index)
            planes.append(inside)
        return torch.stack(planes, dim=1).float()

    def hint_name(self, members: Sequence[int]) -> str:
        """Names the hints that some of the members together give for a case."""
        return digest_of({"format": _FORMAT, "weights": [self.digests[index] for index in members]})

    def check(self, root: Path) -> None:
        """See that the networks are there and those that this one was trained with.

        Raises:
            MedtrainError: They are not.
        """
        hint = f"put it back, or say where it is now: {_KEY}=FOLDER"
        for member, digest in zip(self.members, self.digests, strict=True):
            folder = root / member
            try:
                found = _digest(folder)
            except UsageError as error:
                message = f"this network needs the one it was trained behind, and that is missing: {error.message}"
                raise MedtrainError(message, hint=hint) from error
            if found != digest:
                message = f"{folder} holds other weights than those this network was trained behind"
                raise MedtrainError(message, hint=hint)


def read_stage(root: Path, channel_names: Sequence[str]) -> PreviousStage:
    """What a run or the folder of a cross-validation offers to the next stage.

    Args:
        root: `data.cascade_from`.
        channel_names: Of the images that the next stage sees, and so must this one.

    Raises:
        UsageError: It is neither, is not finished, or does not segment volumes.
        ConfigError: It was trained on other channels.
    """
    record = root / "crossval.json"
    members: tuple[str, ...] = (".",)
    if record.is_file():
        members = tuple(json.loads(record.read_text(encoding="utf-8"))["members"])
        if not members:
            raise UsageError(f"{_KEY}={root}: no fold of it is trained", hint=f"medtrain resume {root}")
    plans = [_read_plan(root / member) for member in members]
    plan = plans[0]
    own = plan["channel_names"]
    if [name.casefold() for name in own] != [name.casefold() for name in channel_names]:
        message = f"{root} sees the channels {', '.join(own)}, and this network {', '.join(channel_names)}"
        raise ConfigError([Problem(_KEY, message, hint="train both stages on the same images")])
    regions = plan.get("regions")
    structures = regions or [[index] for index in range(1, plan["num_classes"])]
    return PreviousStage(
        members=members,
        digests=tuple(_digest(root / member) for member in members),
        class_names=tuple(plan["class_names"]),
        structures=tuple(tuple(members) for members in structures),
    )


def who_predicts(
    stage: PreviousStage, root: Path, case_ids: Sequence[str], *, warn: bool = True
) -> dict[str, tuple[int, ...]]:
    """Which members predict which case: those that held it out, or all where none did.

    Args:
        stage: The previous stage.
        root: `data.cascade_from`.
        case_ids: The cases.
        warn: Say that there are cases that none held out; once is enough.

    Raises:
        MedtrainError: A member does not say on which cases it was trained.
    """
    splits = [_read_split(root / member) for member in stage.members]
    everyone = tuple(range(len(splits)))
    found: dict[str, tuple[int, ...]] = {}
    for case_id in case_ids:
        held_out = tuple(index for index, split in enumerate(splits) if case_id not in split["train"])
        found[case_id] = held_out or everyone
    seen = [case_id for case_id in case_ids if all(case_id in split["train"] for split in splits)]
    if seen and warn:
        log.warning(
            "%s was trained on %d of %d cases that it predicts for this network, such as %s: on new scans it will be "
            "worse, which this network does not learn; `medtrain crossval` of the first stage predicts out of fold",
            root,
            len(seen),
            len(case_ids),
            some(seen),
        )
    return found


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{_KEY}={folder}: there is no run with a plan", hint="give the folder of a run or of a cross-validation"
        ) from None
    if plan.get("spatial_dims") != 3 or "class_names" not in plan or "label_values" not in plan:
        raise UsageError(f"{_KEY}={folder}: this run does not segment volumes")
    if plan.get("cascade") is not None:
        raise UsageError(f"{_KEY}={folder}: this run is a second stage itself", hint="give its first stage")
    return plan


def _read_split(folder: Path) -> dict[str, set[str]]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        folds = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        fold = folds[config["data"]["fold"] or 0]  # a run on everything has a single entry
        return {part: set(fold[part]) for part in ("train", "val")}
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        raise MedtrainError(f"{folder} does not say on which cases it was trained: {error}") from error


def _digest(folder: Path) -> str:
    """Of the weights that `medtrain predict` uses."""
    from medtrain.engine.checkpoint import CheckpointFolder  # data of other kinds have no use for it

    checkpoints = CheckpointFolder(folder / "checkpoints")
    found = checkpoints.best() or checkpoints.last()
    if found is None:
        raise UsageError(f"{_KEY}={folder}: there is no trained network", hint="train it first")
    path = found.path / ("ema.safetensors" if found.has_ema else "model.safetensors")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
