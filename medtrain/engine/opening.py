"""The data of a run, prepared and opened."""

from __future__ import annotations

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
from medtrain.registry import build
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


def log_progress(what: str, *, every_s: float = 5.0) -> Progress:
    """A progress callback that logs now and then, and nothing when the work is done at once."""
    state = {"next": time.monotonic() + every_s}

    def report(done: int, total: int, case_id: str) -> None:
        if time.monotonic() >= state["next"]:
            log.info("%s cases: %d of %d", what, done, total)
            state["next"] = time.monotonic() + every_s

    return report
