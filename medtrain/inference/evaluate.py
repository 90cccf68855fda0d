"""A trained run at work: judged on its own cases, or applied to new scans."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from medtrain.callbacks.previews import draw_case
from medtrain.data.module import SegmentationData
from medtrain.engine.distributed import Dist
from medtrain.engine.launch import changed_data, open_data
from medtrain.engine.restore import LoadedRun, load_run
from medtrain.errors import UsageError
from medtrain.inference.predictor import Predictor
from medtrain.metrics.cases import summary_table, worst_cases, write_evaluation
from medtrain.registry import closest, plain
from medtrain.run.atomic import atomic_write
from medtrain.run.folder import RunFolder
from medtrain.run.log import console, setup_logging
from medtrain.run.report import write_report
from medtrain.tasks.base import Record

log = logging.getLogger(__name__)


def evaluate_run(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    trained: Mapping[str, Any],
    checkpoint: str = "best",
    part: str = "val",
    cases: Sequence[str] = (),
    device: str = "auto",
) -> dict[str, float]:
    """Judge a run with the full protocol and write the tables and a picture of the worst case.

    The run's own final evaluation is `evaluation/`; any other choice of checkpoint, part, cases or settings goes to a
    folder below it.

    Args:
        run_dir: The run's folder.
        config: The run's configuration, with the user's changes.
        trained: The run's configuration.
        checkpoint: `best`, `last` or a checkpoint's name.
        part: `val` or `train`.
        cases: Judge and draw only these cases, of either part.
        device: auto, cpu, cuda or mps.

    Returns:
        The metrics.

    Raises:
        UsageError: The part has no cases, or a case does not exist.
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
        chosen = _choose_cases(data, part, cases)
        as_trained = config["inference"] == trained["inference"] and config["task"] == trained["task"]
        same = part == "val" and not cases and checkpoint == "best" and as_trained
        name = "cases" if cases else part
        out = folder.evaluation if same else folder.evaluation / f"{name}_step_{run.step:08d}"
        out.mkdir(parents=True, exist_ok=True)
        records = _judge(run, data, chosen, out, each=bool(cases))
    finally:
        data.close()
    summary = run.task.summarize(records)
    facts = {
        "checkpoint": f"step_{run.step:08d}",
        "weights": run.weights,
        "part": part,
        "inference": config["inference"],
    }
    write_evaluation(out, records, summary, extra=plain(facts))
    if same:
        write_report(run.run_dir)
    console().print(summary_table(records, summary, title=f"{run.run_dir.name}: {name}, {len(chosen)} cases"))
    log.info("worst cases: %s", ", ".join(f"{case} {dice:.4f}" for case, dice in worst_cases(records)))
    log.info("tables and pictures in %s", out)
    return summary


def _choose_cases(data: SegmentationData, part: str, cases: Sequence[str]) -> list[str]:
    if not cases:
        chosen = data.evaluation_cases(part)  # type: ignore[arg-type]
        if not chosen:
            raise UsageError(
                f"the {part} part of this run has no cases",
                hint="a run with data.fold=null holds none out: --part train",
            )
        return chosen
    known = [*data.evaluation_cases("train"), *data.evaluation_cases("val")]
    for case in cases:
        if case not in known:
            near = closest(case, known)
            hint = f"did you mean {near}?" if near else f"the run has {len(known)} cases, e.g. {known[0]}"
            raise UsageError(f"--case {case}: the run has no such case", hint=hint)
    return list(cases)


def _judge(run: LoadedRun, data: SegmentationData, cases: Sequence[str], out: Path, *, each: bool) -> list[Record]:
    """Judge cases one by one; draw each of them, or the worst."""
    records: list[Record] = []
    run.task.begin_evaluation()
    with torch.inference_mode(), run.precision.autocast():
        for number, case_id in enumerate(cases, start=1):
            records += run.task.evaluation_step(run.model, data.evaluation_item(case_id), final=True)
            log.info("case %d of %d: %s", number, len(cases), case_id)
            if each:
                _draw(run, out / f"{case_id}.png")
                run.task.begin_evaluation()
    if not each:
        _draw(run, out / "worst.png")
    return records


def _draw(run: LoadedRun, path: Path) -> None:
    case = run.task.worst
    if case is not None:
        title = f"{case['case_id']}   mean Dice {case['score']:.4f}   step {run.step}"
        buffer = io.BytesIO()
        Image.fromarray(draw_case(case, list(run.task.class_names), title=title)).save(buffer, format="PNG")
        atomic_write(path, buffer.getvalue())


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
