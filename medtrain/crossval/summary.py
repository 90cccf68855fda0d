"""What a cross-validation comes to: means and spreads over folds, every case by a model that has not seen it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from medtrain.config.saved import load_saved
from medtrain.crossval.components import Choice, HeldOut, Judged, choose_components
from medtrain.crossval.folder import CrossvalFolder, CrossvalRecord
from medtrain.crossval.report import write_crossval_report
from medtrain.data.io.nifti import read_label
from medtrain.engine.build import build_task
from medtrain.engine.distributed import Dist
from medtrain.engine.opening import open_data, read_plan
from medtrain.engine.predictions import FOLDER, prediction_file
from medtrain.metrics.tables import read_cases
from medtrain.run.atomic import atomic_write, atomic_write_json
from medtrain.run.folder import Best, RunFolder
from medtrain.run.log import console
from medtrain.tasks.base import Record, Task

log = logging.getLogger(__name__)

_MAIN = ("dice", "nsd", "hd95_mm", "lesion_f1", "froc")  # of the table on the console; the report has all
_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Member:
    """A fold that is done.

    Args:
        name: Of its folder.
        folder: Its run.
        config: The run's configuration.
        plan: The run's plan.
        metrics: Of its final evaluation, by name without `val/`.
        rows: Its `cases.csv`.
        printed: The metrics worth printing; empty is all.
    """

    name: str
    folder: RunFolder
    config: Mapping[str, Any]
    plan: Any
    metrics: Mapping[str, float]
    rows: list[dict[str, str]]
    printed: tuple[str, ...] = ()


def summarize_folds(
    folder: CrossvalFolder, record: CrossvalRecord, *, overrides: Sequence[str] = (), imports: Sequence[str] = ()
) -> CrossvalRecord:
    """Put the final evaluations of the members together, choose the post-processing, write and print what came out.

    Args:
        folder: Of the cross-validation.
        record: With its members.
        overrides: Of the members' configurations.
        imports: Modules that register the user's components.

    Returns:
        The record with metrics and choice, which is also written.
    """
    members = [read_member(folder, name, imports, overrides=overrides) for name in record.members]
    record, monitor = _put_together(record, members, folder.cases, folder.evaluation)
    folds = record.metrics["folds"]
    choice = _choose(members, earlier=bool(record.chosen)) if members[0].plan.family == "segmentation" else None
    if choice is not None or not record.chosen:  # otherwise what was chosen earlier is the best that is known
        own = members[0].config["inference"].get("keep_largest", ())  # what the judged label maps went through already
        kept = list(dict.fromkeys([*own, *(choice.keep_largest if choice else ())]))
        chosen = choice.to_json() if choice else {}
        record = dataclasses.replace(record, postprocess={"keep_largest": kept}, chosen=chosen)
    folder.write_record(record)
    steps = sum(member.folder.read_status().step for member in members)
    if monitor in folds and folds[monitor]["mean"] is not None:
        _note_best(folder, Best(metric=f"val/{monitor}", value=folds[monitor]["mean"], step=steps))
    write_crossval_report(folder, record)
    console().print(_table(record, members))
    for line in _lines(choice):
        log.info(line)
    _tell_worst(record)
    return record


def summarize_judged(record: CrossvalRecord, members: Sequence[Member], out: Path, *, facts: Mapping[str, Any]) -> None:
    """Put together what the members found under other settings: tables in a folder, and `folds.json`.

    What the cross-validation itself came to, and its post-processing, stay as they are.

    Args:
        record: Of the cross-validation.
        members: With the evaluations to put together.
        out: The folder, made if missing.
        facts: What was judged, to be kept with the metrics.
    """
    out.mkdir(parents=True, exist_ok=True)
    record, _ = _put_together(record, members, out / "cases.csv", out)
    atomic_write_json(out / "folds.json", {**facts, "num_cases": record.num_cases, "metrics": record.metrics})
    console().print(_table(record, members))
    _tell_worst(record)


def _put_together(
    record: CrossvalRecord, members: Sequence[Member], cases: Path, out: Path
) -> tuple[CrossvalRecord, str]:
    """The record with the metrics over folds and over all cases, whose tables are written; and the monitor's name."""
    task = build_task(members[0].config, members[0].plan, _CPU, None)
    monitor = task.monitor.name.removeprefix("val/")
    folds = _over_folds(members, monitor)
    rows = [{"fold": member.name.removeprefix("fold_"), **row} for member in members for row in member.rows]
    rows.sort(key=lambda row: row["case_id"])
    segments = members[0].plan.family == "segmentation"
    whole = _judge_whole(out, task, [_record(row) for row in rows]) if segments else {}
    _write_cases(cases, rows)
    return dataclasses.replace(record, metrics={"folds": folds, **whole}, num_cases=len(rows)), monitor


def _tell_worst(record: CrossvalRecord) -> None:
    worst = record.metrics.get("worst")
    if worst:
        log.info("worst cases: %s", ", ".join(f"{w['case_id']} {w['score']:.4f} ({w['fold']})" for w in worst))


def _judge_whole(out: Path, task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """The metrics over all cases, with intervals by patient; the tables of an evaluation are written."""
    summary = task.summarize(records)
    out.mkdir(exist_ok=True)
    task.write_evaluation(out, records, summary, extra={"part": "val", "folds": True})
    written = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    facts = {key: written[key] for key in ("intervals", "confidence") if key in written}
    folds = {record["case_id"]: f"fold_{record['fold']}" for record in records}
    worst = [{"case_id": case, "score": score, "fold": folds[case]} for case, score in task.worst_cases(records)]
    return {"cases": summary, "worst": worst, **facts}


def _note_best(folder: CrossvalFolder, best: Best) -> None:
    """Keep the mean over the folds in the status, which stays what it is otherwise."""
    status = folder.read_status()
    if status.state == "running" and status.is_mine:
        folder.heartbeat(best["step"], best=best)
    else:
        folder.restore(dataclasses.replace(status, best=best), status.message)


def read_member(
    folder: CrossvalFolder,
    name: str,
    imports: Sequence[str],
    *,
    evaluation: Path | None = None,
    overrides: Sequence[str] = (),
) -> Member:
    """Read what a fold that is done has found.

    Args:
        folder: Of the cross-validation.
        name: The fold's folder below it.
        imports: Modules that register the user's components.
        evaluation: Folder of another evaluation than its final one.
        overrides: What it was made with.
    """
    run = RunFolder.open(folder.path / name)
    config = load_saved(run.path, overrides, imports=imports)
    place = evaluation or run.evaluation
    summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    rows = read_cases(place / "cases.csv")
    printed = tuple(summary.get("printed") or ())
    return Member(name, run, config, read_plan(run, config), _flatten(summary), rows, printed)


def _flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a final evaluation by name: those of labels over the part, or means over the cases."""
    found: dict[str, float] = {name: _float(value) for name, value in summary.get("metrics", {}).items()}
    found |= {name: _float(value) for name, value in summary.get("mean", {}).items()}
    for label, metrics in summary.get("classes", {}).items():
        found |= {f"{name}/{label}": _float(values.get("mean")) for name, values in metrics.items()}
    return found


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _over_folds(members: Sequence[Member], monitor: str) -> dict[str, Any]:
    """Mean and standard deviation (of the sample) over the folds in which a metric is defined; the monitor first."""
    names = list(dict.fromkeys(name for member in members for name in member.metrics))
    names.sort(key=lambda name: name != monitor)
    found: dict[str, Any] = {}
    for name in names:
        values = [member.metrics.get(name, math.nan) for member in members]
        defined = [value for value in values if math.isfinite(value)]
        found[name] = {
            "mean": statistics.fmean(defined) if defined else None,
            "std": statistics.stdev(defined) if len(defined) > 1 else None,
            "values": [value if math.isfinite(value) else None for value in values],
        }
    return found


def _record(row: Mapping[str, str]) -> Record:
    """A row of `cases.csv` as it was before it was written."""
    return {key: value if key in ("case_id", "group", "fold") else _number(value) for key, value in row.items()}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _write_cases(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    columns = list(dict.fromkeys(["case_id", "fold", *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


# ---------------------------------------------------------------------------------------------- post-processing


def _choose(members: Sequence[Member], *, earlier: bool) -> Choice | None:
    """Choose from the label maps that the final evaluations kept; None where some are missing."""
    lost = [
        row["case_id"]
        for member in members
        for row in member.rows
        if not prediction_file(member.folder.evaluation / FOLDER, row["case_id"]).is_file()
    ]
    if lost:
        log.warning(
            "post-processing is not chosen%s: %d predicted label maps are gone, such as that of %s",
            " again, and stays as it was" if earlier else "",
            len(lost),
            lost[0],
        )
        return None
    log.info("choosing the post-processing on %d held-out cases", sum(len(member.rows) for member in members))
    return choose_components(lambda: held_out_cases(members), Judged.of_plan(members[0].plan))


def held_out_cases(members: Sequence[Member]) -> Iterator[HeldOut]:
    """The cases that the members judged, with the label maps that they kept; read one at a time."""
    for member in members:
        data: Any = open_data(member.config, member.plan, Dist.from_environment(), splits=member.folder.splits)
        values = np.array(member.plan.label_values)
        order = np.argsort(values)
        try:
            for row in member.rows:
                case_id = row["case_id"]
                written = read_label(prediction_file(member.folder.evaluation / FOLDER, case_id)).array
                prediction = order[np.searchsorted(values, written, sorter=order)]
                known = data.annotated.get(case_id)  # by output: a softmax has one of the background, too
                known = None if known is None else known[-len(member.plan.judged_names) :]
                yield HeldOut(prediction, data.store.case(case_id).source_label(), known)
        finally:
            data.close()


# --------------------------------------------------------------------------------------------------- on the console


def _table(record: CrossvalRecord, members: Sequence[Member]) -> Table:
    folds, cases = record.metrics["folds"], record.metrics.get("cases", {})
    printed = members[0].printed
    title = f"{len(members)} fold{'s' if len(members) != 1 else ''}, {record.num_cases} held-out cases"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("metric", overflow="fold")
    for name in ("folds: mean", "std", *(("all cases",) if cases else ())):
        table.add_column(name, justify="right", no_wrap=True)
    shown = [name for name in folds if name in printed] if printed else list(folds)
    if cases:
        shown = [name for name in shown if name.partition("/")[0] in _MAIN]
    for name in shown:
        values = [folds[name]["mean"], folds[name]["std"], *([cases.get(name)] if cases else [])]
        table.add_row(Text(name), *map(show_number, values))
    return table


def show_number(value: float | None) -> str:
    """A metric for people."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _lines(choice: Choice | None) -> Iterator[str]:
    if choice is None or not choice.num_cases:
        return
    if not choice.keep_largest:
        yield "post-processing: keeping only largest components helps no class without hurting another"
        return
    before, after = choice.before["mean"], choice.after["mean"]
    names = ", ".join(choice.keep_largest)
    yield f"post-processing: keep the largest component of {names}: mean Dice {before:.4f} becomes {after:.4f}"
