"""A trained run at work: judged on its own cases, or applied to new scans."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtrain.callbacks.previews import save_picture
from medtrain.engine.decisions import save_decision
from medtrain.engine.distributed import Dist
from medtrain.engine.explaining import draw_evaluation
from medtrain.engine.opening import changed_data, open_data
from medtrain.engine.protocol import TrainData
from medtrain.engine.restore import LoadedRun, load_run
from medtrain.errors import UsageError
from medtrain.inference.image_predictor import ImagePredictor
from medtrain.inference.predictor import Predictor
from medtrain.metrics.shown import report_tables
from medtrain.registry import closest, plain
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
) -> Path:
    """Judge a run with the full protocol and write the tables and a picture of the worst case.

    The run's own final evaluation is `evaluation/`; any other choice of checkpoint, part, cases or settings goes to a
    folder below it.

    Args:
        run_dir: The run's folder.
        config: The run's configuration, with the user's changes.
        trained: The run's configuration.
        checkpoint: `best`, `last` or a checkpoint's name.
        part: `val`, `train` or `test`, where some cases are kept back for it.
        cases: Judge and draw only these cases, of either part.
        device: auto, cpu, cuda or mps.

    Returns:
        The folder of the tables and pictures.

    Raises:
        UsageError: The part has no cases, or a case does not exist.
    """
    if part not in ("val", "train", "test"):
        raise UsageError(f"--part {part}: choose val, train or test")
    setup_logging()
    run = load_run(run_dir, config, checkpoint=checkpoint, device=device)
    folder = RunFolder.open(run_dir)
    data = open_data(config, run.plan, Dist(), splits=folder.splits)
    try:
        problem = changed_data(folder, data)
        if problem is not None:
            log.warning("%s", problem)
        chosen = _choose_cases(data, part, cases, segments=run.plan.family == "segmentation")
        as_trained = config["inference"] == trained["inference"] and config["task"] == trained["task"]
        same = part == "val" and not cases and checkpoint == "best" and as_trained
        name = _name_of(cases) if cases else part
        out = folder.evaluation if same else folder.evaluation / f"{name}_step_{run.step:08d}"
        out.mkdir(parents=True, exist_ok=True)
        drawn: dict[str, np.ndarray] = {}
        if part == "val" and not cases:
            records = _judge_validation(run, data, chosen, config)
        else:
            if run.task.lacks_decision:
                log.info("judging the validation part first: it decides what inference leaves to it")
                _judge_validation(run, data, data.evaluation_cases("val", limit=None), config)
            records, drawn = _judge_each(run, data, chosen) if cases else (_judge(run, data, chosen), {})
        summary = run.task.summarize(records)
        facts = {"checkpoint": f"step_{run.step:08d}", "weights": run.weights, "part": part}
        facts = plain({**facts, "inference": config["inference"], "task": config["task"]})
        run.task.write_evaluation(out, records, summary, extra=facts)  # before pictures, which may fail
        for picture, pixels in (drawn if cases else _draw(run, data, records)).items():
            save_picture(out / f"{picture}.png", pixels)
    finally:
        data.close()
    if same or (part == "test" and not cases):
        write_report(run.run_dir)
    if cases:
        _tell_each(run, records)
    else:
        title = f"{run.run_dir.name}: {name}, {len(chosen)} cases"
        console().print(run.task.summary_table(records, summary, title=title))
        for table in report_tables(out, run.task.metrics(), monitor=run.task.monitor.name.removeprefix("val/")):
            console().print("", table)
        log.info("worst cases: %s", ", ".join(f"{case} {score:.4f}" for case, score in run.task.worst_cases(records)))
    log.info("tables and pictures in %s", out)
    return out


def _tell_each(run: LoadedRun, records: Sequence[Record]) -> None:
    """Each case's own values: means and intervals of a few cases that were picked out say nothing."""
    for record in records:
        if line := run.task.told(record):
            console().print(f"{record['case_id']}: {line}", markup=False, highlight=False)
        else:
            table = run.task.summary_table([record], run.task.summarize([record]), title=str(record["case_id"]))
            console().print(table)


def _choose_cases(data: TrainData, part: str, cases: Sequence[str], *, segments: bool) -> list[str]:
    if not cases:
        chosen = data.evaluation_cases(part, limit=None)  # type: ignore[arg-type]
        if not chosen:
            raise UsageError(f"the {part} part of this run has no cases", hint=_why_empty(part, segments=segments))
        return chosen
    known = [case for name in ("train", "val", "test") for case in data.evaluation_cases(name, limit=None)]
    for case in cases:
        if case not in known:
            near = closest(case, known)
            hint = f"did you mean {near}?" if near else f"the run has {len(known)} cases, e.g. {known[0]}"
            raise UsageError(f"--case {case}: the run has no such case", hint=hint)
    return list(cases)


def _name_of(cases: Sequence[str]) -> str:
    """Of the folder of some cases: those of others stay where they are."""
    flat = re.sub(r"[^\w.-]", "_", cases[0])[:60]
    if len(cases) == 1:
        return f"case_{flat}"
    digest = hashlib.sha256("\n".join(cases).encode()).hexdigest()[:6]
    return f"cases_{flat}_and_{len(cases) - 1}_more_{digest}"


def _why_empty(part: str, *, segments: bool) -> str:
    """What to judge instead, by how each family of data is divided."""
    if segments and part == "val":
        return "--part train: a run with data.fold=null is trained on every case"
    if segments:
        return "--part val: scans are divided into folds, and none is kept back to test"
    if part == "test":
        return "--part val: of folds (data.fold) and with data.shares=[..,..,0] none is kept back to test"
    return "--part train: with data.shares=[..,0,..] none is held out"


def _judge_validation(run: LoadedRun, data: TrainData, cases: Sequence[str], config: Mapping[str, Any]) -> list[Record]:
    """Judge the whole validation part, and take and keep the decisions that are left to it."""
    if not cases:
        raise UsageError("inference leaves a decision to the validation part, and this run has none")
    run.task.use_decision({})
    records = _judge(run, data, cases)
    decision = run.task.fit_decision(records)
    save_decision(run.run_dir, run.step, config["inference"], decision)
    return run.task.decide(records)


def _draw(run: LoadedRun, data: TrainData, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """What the task shows of judged cases, and why the model judged some of them as it did."""
    return draw_evaluation(run.task, run.model, data.judged_items, records, step=run.step)


def _judge_each(run: LoadedRun, data: TrainData, cases: Sequence[str]) -> tuple[list[Record], dict[str, np.ndarray]]:
    """Judge cases one by one and draw each, for a task shows only what it judged last; the pictures by file name."""
    records: list[Record] = []
    drawn: dict[str, np.ndarray] = {}
    for case in cases:
        judged = _judge(run, data, [case], before=len(records), total=len(cases))
        flat = re.sub(r"[/\\]", "_", case)  # an id may be a path
        for name, pixels in _draw(run, data, judged).items():
            drawn[flat if name == "worst" else f"{flat}_{name}"] = pixels
        records += judged
    return records, drawn


def _judge(
    run: LoadedRun, data: TrainData, cases: Sequence[str], *, before: int = 0, total: int | None = None
) -> list[Record]:
    """Judge cases, which are the next ones after some `before` of a `total`."""
    run.task.begin_evaluation()
    records: list[Record] = []
    with torch.inference_mode(), run.precision.autocast():
        for item in data.judged_items(cases):
            records += run.task.evaluation_step(run.model, item, final=True)
            log.info("case %d of %d: %s", before + len(records), total or len(cases), records[-1]["case_id"])
    return records


def predict_run(
    run_dir: Path,
    config: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    trained: Mapping[str, Any] | None = None,
    others: Sequence[tuple[Path, Mapping[str, Any]]] = (),
    output_format: str = "nifti",
    checkpoint: str = "best",
    mirror: bool | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> bool:
    """Segment scans, or predict images, bags, views and tables; return whether every case was predicted.

    Args:
        run_dir: The run's folder.
        config: The run's configuration, with the user's changes.
        source: A folder, one file, or a table.
        out: Folder for the segmentations; folder or `.csv` file for the table of other predictions.
        trained: The run's configuration; None where nothing was changed.
        others: Folders and configurations of runs that segment together with this one, in its windows and settings.
        output_format: Of segmentations: `nifti` or `dicom_seg`.
        checkpoint: `best`, `last` or a checkpoint's name.
        mirror: Average over mirrored copies; None takes the run's setting.
        overwrite: Predict again what is in `out` already.
        device: auto, cpu, cuda or mps.

    Raises:
        UsageError: There is nothing to predict, `out` holds something else, the runs cannot decide together, or
            inference leaves a decision to the validation part that was never taken.
    """
    setup_logging()
    trained = config if trained is None else trained
    config = with_mirror(config, mirror)
    run = load_run(run_dir, config, checkpoint=checkpoint, device=device)
    if run.plan.family == "segmentation":
        runs = [run, *(load_run(path, its, checkpoint=checkpoint, device=device) for path, its in others)]
        reports = Predictor(runs).predict_folder(source, out, overwrite=overwrite, output_format=output_format)
        return all(report.ok for report in reports)
    if others or output_format != "nifti":
        asked = "several runs decide together" if others else "--format is"
        raise UsageError(f"{asked} for segmentations; {run.run_dir.name} is a run of {run.plan.family}")
    if run.task.lacks_decision:
        before = trained["inference"]
        changed = [
            f"inference.{key}={_typed(value)}"
            for key, value in run.config["inference"].items()
            if value != before.get(key)
        ]
        words = ["medtrain evaluate", str(run_dir), *changed]
        words += [f"--checkpoint {checkpoint}"] if checkpoint != "best" else []
        raise UsageError(
            "inference leaves its threshold or temperature to the validation part, and none was chosen for these "
            "weights and settings",
            hint=f"choose it first: {' '.join(words)}",
        )
    return ImagePredictor(run).predict(source, out, overwrite=overwrite)


def with_mirror(config: Mapping[str, Any], mirror: bool | None) -> Mapping[str, Any]:
    """A configuration whose predictions are averaged over mirrored copies, or not; None leaves it as it is."""
    if mirror is None:
        return config
    inference = {**config["inference"], "mirror": mirror}
    if not mirror and inference.get("mirror_in_training") is False:
        inference["mirror_axes"] = None  # without any mirroring, axes are a contradiction
    return {**config, "inference": inference}


def _typed(value: Any) -> str:
    """A setting as it is typed."""
    return json.dumps(value).replace('"', "") if value is not None else "null"
