"""The data of a run: its plan, what of it has changed, and all of it prepared and opened."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medtrain.data.plan import Plan
from medtrain.data.source import DataPlan, DataSource
from medtrain.engine.derive import Derivation, Progress
from medtrain.engine.distributed import Dist
from medtrain.engine.protocol import TrainData
from medtrain.errors import MedtrainError
from medtrain.registry import build, plain
from medtrain.run.folder import RunFolder
from medtrain.run.threads import available_threads

log = logging.getLogger(__name__)


def open_data(
    config: Mapping[str, Any],
    plan: DataPlan,
    dist: Dist,
    *,
    derivation: Derivation | None = None,
    splits: Path | None = None,
) -> TrainData:
    """Prepare the cases that are not prepared yet and open them; several processes share the work.

    Args:
        config: A completed configuration.
        plan: The plan of the run.
        dist: This process among the others.
        derivation: Of a new run.
        splits: The split file of an existing run.
    """
    settings: DataSource = derivation.settings if derivation else build("data", config["data"])
    found = derivation.found if derivation else settings.find(splits=splits)
    augment = build("augment", config["augment"], **plan.runtime())
    workers = min(8, available_threads(dist.local_world_size))
    prepared = settings.prepare(plan, found, workers=workers, progress=log_progress("preparing"))
    if isinstance(plan, Plan) and plan.cascade is not None and dist.is_main:
        from medtrain.inference.cascade import make_hints  # it opens runs, whose data are opened here

        used = [*found.split["train"], *found.split["val"]]
        make_hints(config, plan, prepared, used, progress=log_progress("segmenting"))
    dist.barrier()
    pin_memory = config["trainer"]["device"] != "cpu" and torch.cuda.is_available()
    return settings.open(plan, found, prepared, augment=augment, seed=config["seed"], pin_memory=pin_memory)


def read_plan(folder: RunFolder, config: Mapping[str, Any]) -> DataPlan:
    """The plan a run was made with.

    Raises:
        MedtrainError: The run ended before it was planned, or the file is damaged.
    """
    try:
        plan: DataPlan = build("data", config["data"]).read_plan(json.loads(folder.plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedtrainError(
            f"the plan of the run cannot be read: {folder.plan}",
            hint="a run that ended before it was planned has to be started again with `medtrain train`",
        ) from error
    return plan


def changed_data(folder: RunFolder, data: TrainData) -> str | None:
    """What changed in the data that a run uses since it began, in a sentence; None when nothing did."""
    try:
        before = json.loads((folder.path / "data.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # stopped before it began to train
    now = plain(data.describe())
    if before.get("scheme") == now.get("scheme"):
        differing = dict(before["cases"].items() ^ now["cases"].items())
    else:  # what another version of medtrain noted of their content cannot be compared
        differing = dict.fromkeys(before["cases"].keys() ^ now["cases"].keys())
    cases = sorted(differing)
    if not cases and before["split_hash"] == now["split_hash"]:
        return None
    shown = ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
    return "the data changed since the run began: " + (shown or "cases moved between training and validation")


def log_progress(what: str, *, every_s: float = 5.0) -> Progress:
    """A progress callback that logs now and then, and nothing when the work is done at once."""
    state = {"next": time.monotonic() + every_s}

    def report(done: int, total: int, case_id: str) -> None:
        if time.monotonic() >= state["next"]:
            log.info("%s cases: %d of %d", what, done, total)
            state["next"] = time.monotonic() + every_s

    return report
