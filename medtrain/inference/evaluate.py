"""A trained run at work: judged on its own cases, or applied to new scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medtrain.engine.distributed import Dist
from medtrain.engine.launch import changed_data, open_data
from medtrain.engine.restore import load_run
from medtrain.errors import MedtrainError, UsageError
from medtrain.inference.predictor import Predictor
from medtrain.metrics.cases import summary_table, write_evaluation
from medtrain.run.folder import RunFolder
from medtrain.run.log import console, setup_logging
from medtrain.run.report import write_report
from medtrain.tasks.base import Record

log = logging.getLogger(__name__)


def evaluate_run(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    checkpoint: str = "best",
    part: str = "val",
    device: str = "auto",
) -> dict[str, float]:
    """Judge a run on its validation or training cases with the full protocol.

    Writes `cases.csv` and `summary.json` to the run's `evaluation` folder (`evaluation/train` for the training part).

    Args:
        run_dir: The run's folder.
        config: The run's configuration.
        checkpoint: `best`, `last` or a checkpoint's name.
        part: `val` or `train`.
        device: auto, cpu, cuda or mps.

    Returns:
        The metrics.

    Raises:
        MedtrainError: The part has no cases.
    """
    if part not in ("val", "train"):
        raise UsageError(f"--part {part}: choose val or train")
    setup_logging()
    run = load_run(run_dir, config, checkpoint=checkpoint, device=device)
    folder = RunFolder.open(run_dir)
    data = open_data(config, run.plan, Dist(), splits=folder.splits)
    try:
        problem = changed_data(folder, data)
        if problem is not None:
            log.warning("%s", problem)
        cases = data.evaluation_cases(part)  # type: ignore[arg-type]
        if not cases:
            raise MedtrainError(
                f"the {part} part of this run has no cases",
                hint="a run with data.fold=null holds none out: --part train",
            )
        records: list[Record] = []
        run.task.begin_evaluation()
        with torch.inference_mode(), run.precision.autocast():
            for number, case_id in enumerate(cases, start=1):
                records += run.task.evaluation_step(run.model, data.evaluation_item(case_id), final=True)
                log.info("case %d of %d: %s", number, len(cases), case_id)
    finally:
        data.close()
    summary = run.task.summarize(records)
    out = run.run_dir / "evaluation" / ("" if part == "val" else part)
    out.mkdir(parents=True, exist_ok=True)
    write_evaluation(out, records, summary, extra={"step": run.step, "weights": run.weights, "part": part})
    write_report(run.run_dir)
    console().print(summary_table(records, summary, title=f"{run.run_dir.name}: {part}, {len(cases)} cases"))
    log.info("tables in %s", out)
    return summary


def predict_run(
    run_dir: Path,
    config: Mapping[str, Any],
    scans: Path,
    out: Path,
    *,
    checkpoint: str = "best",
    mirror: bool | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> bool:
    """Segment the scans of a folder, or one scan; return whether every scan was segmented.

    Args:
        run_dir: The run's folder.
        config: The run's configuration.
        scans: A folder of scans or one scan.
        out: Folder for the segmentations.
        checkpoint: `best`, `last` or a checkpoint's name.
        mirror: Average over mirrored copies; None takes the run's setting.
        overwrite: Predict again what is in `out` already.
        device: auto, cpu, cuda or mps.
    """
    setup_logging()
    run = load_run(run_dir, config, checkpoint=checkpoint, device=device)
    predictor = Predictor(run, mirror=mirror)
    reports = predictor.predict_folder(scans, out, overwrite=overwrite)
    return all(report.ok for report in reports)
