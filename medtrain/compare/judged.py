"""What a run has said of the cases it has judged, read back from its folder."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medtrain.config.saved import load_saved
from medtrain.crossval.folder import CrossvalFolder, is_crossval
from medtrain.engine.build import build_task
from medtrain.engine.opening import read_plan
from medtrain.errors import DataError, MedtrainError, Problem, UsageError
from medtrain.metrics.cases import metric_specs, tolerance_of
from medtrain.metrics.lesions import COUNTS, LESION_METRICS
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.tables import read_cases
from medtrain.registry import plain
from medtrain.run.folder import RunFolder
from medtrain.tasks.base import Record, Task

log = logging.getLogger(__name__)

_SHOWN = 3
_FITS = 2
_TEXTS = ("case_id", "group", "fold")
_RULES = {"nsd": "nsd_tolerance_mm", **{spec.name: "lesion_iou" for spec in LESION_METRICS}}
"""The setting of the task by which a metric is judged."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class JudgedRun:
    """An evaluation of a run, or of a cross-validation over all cases.

    Args:
        run_name: Of the folder, for tables.
        path: The run's folder.
        evaluation: Folder of the tables.
        dataset: Name of the data set.
        family: Which kind of cases it judges, as of `DataPlan`.
        part: `val`, `test` or `train`.
        task: Computes metrics from records.
        decision: What the validation part had decided.
        records: Of all cases, by case id.
        trained_on: Case ids of its training part; empty for a cross-validation, which judges what each fold held out.
        split_hash: Of the division of the cases.
        by_fold: What each fold of a cross-validation had decided, by fold; empty where nothing was left to them.
        rules: Settings of the task that say how a case is judged: `nsd_tolerance_mm`, `lesion_iou`.
        changed: Settings of the evaluation that are not those of the run, by dotted key.
    """

    run_name: str
    path: Path
    evaluation: Path
    dataset: str
    family: str
    part: str
    task: Task
    decision: Mapping[str, float]
    records: Mapping[str, Record]
    trained_on: frozenset[str]
    split_hash: str
    by_fold: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)

    def specs(self) -> dict[str, MetricSpec]:
        """Metrics with direction and unit, those of a final evaluation included."""
        known = dict(self.task.metrics())
        if self.family != "segmentation":
            return known
        names = tuple(self.task.class_names)
        columns = {key for record in self.records.values() for key in record}
        lesions = [name for name in names[1:] if f"{COUNTS[0]}/{name}" in columns]
        return {**metric_specs(names, lesions, froc=True), **known}

    def judged(self) -> dict[str, MetricSpec]:
        """Those of `specs` that it was judged by: lesions and surfaces only where they were asked for."""
        found = self.task.summarize(list(self.records.values()))
        return {key: spec for key, spec in self.specs().items() if key in found}

    def how_to_judge(self, metric: str) -> str | None:
        """What to type so that it has a metric of lesions; None if that is of no use.

        Args:
            metric: Such as `lesion_f1/tumour`.
        """
        kind, _, name = metric.partition("/")
        if _RULES.get(kind) != "lesion_iou" or self.family != "segmentation" or is_crossval(self.path):
            return None
        names = self.task.class_names[1:]
        if name and name not in names:
            return None
        words = "" if self.part == "val" else f" --part {self.part}"
        return f"judge it first: medtrain evaluate {self.path}{words} task.lesions=[{name or names[-1]}]"

    def ruled_apart(self, other: JudgedRun, metric: str) -> str:
        """The setting by which a metric has another meaning in another run; empty where it means the same.

        Args:
            other: The other run.
            metric: Such as `nsd` or `nsd/liver`.
        """
        kind, _, name = metric.partition("/")
        key = _RULES.get(kind)
        if key is None or key not in self.rules or key not in other.rules:
            return ""
        names = [name] if name else [n for n in self.task.class_names[1:] if n in other.task.class_names[1:]]
        mine, theirs = self.rules[key], other.rules[key]
        return key if any(tolerance_of(mine, n) != tolerance_of(theirs, n) for n in names) else ""


def read_judged(
    path: Path,
    *,
    part: str = "val",
    metric: str | None = None,
    like: JudgedRun | None = None,
    imports: Sequence[str] = (),
) -> JudgedRun:
    """Read the final evaluation of a run, or its newest one of another part.

    Where that has not judged the metric, or by other rules than another run, the newest one that has is read, if there
    is one of the same weights.

    Args:
        path: The folder of a run or of a cross-validation.
        part: `val`, `test` or `train`.
        metric: What is asked for; None for what there is.
        like: The run to compare with.
        imports: Modules that register the user's components.

    Raises:
        UsageError: It is no run, or was not evaluated on the part; says what to type.
    """
    if part not in ("val", "test", "train"):
        raise UsageError(f"--part {part}: choose val, test or train")
    if is_crossval(path):
        return _read_crossval(path, part, imports)
    folder = RunFolder.open(path)
    places = _find_evaluations(folder, part)
    found = _read_evaluation(path, places[0], part, imports)
    fits = _fitness(found, metric, like)
    for place in places[1:]:
        if fits == _FITS:
            break
        other = _read_evaluation(path, place, part, imports)
        if _fitness(other, metric, like) > fits:
            found, fits = other, _fitness(other, metric, like)
    if found.evaluation != folder.evaluation:
        has = f", which has {metric}" if metric and found.evaluation != places[0] else ""
        settings = ", ".join(f"{key}={value}" for key, value in found.changed.items())
        said = f"{has}, judged with {settings}" if settings else has
        log.info("%s: taking %s%s", folder.path.name, found.evaluation.relative_to(folder.path), said)
    return found


def _fitness(run: JudgedRun, metric: str | None, like: JudgedRun | None) -> int:
    """How well an evaluation serves: whether it has the metric, and by the same rules."""
    if metric is None:
        return _FITS
    if metric not in run.judged():
        return 0
    return 1 if like is not None and run.ruled_apart(like, metric) else _FITS


def _read_evaluation(path: Path, evaluation: Path, part: str, imports: Sequence[str]) -> JudgedRun:
    folder = RunFolder.open(path)
    summary = _read_json(evaluation / "summary.json")
    decision = _decision(summary)
    if evaluation != folder.evaluation and "task" not in summary:
        log.warning("%s does not say by which rules it has judged: taken for those of the run", evaluation)
    task, family, config, changed = _task(folder, imports, summary)
    task.use_decision(decision)
    data = _read_json(folder.path / "data.json")
    return JudgedRun(
        run_name=folder.path.name,
        path=path,
        evaluation=evaluation,
        dataset=str(data.get("dataset", "")),
        family=family,
        part=part,
        task=task,
        decision=decision,
        records=_read_records(evaluation / "cases.csv"),
        trained_on=frozenset() if part == "train" else _trained_on(folder.splits, config),
        split_hash=str(data.get("split_hash", "")),
        rules=_rules(config),
        changed=changed,
    )


def _read_crossval(path: Path, part: str, imports: Sequence[str]) -> JudgedRun:
    if part != "val":
        raise UsageError(f"--part {part}: a cross-validation has judged the cases that its folds held out (val)")
    folder = CrossvalFolder.open(path)
    members = folder.read_record().members
    if not folder.cases.is_file() or not members:
        raise UsageError(f"{path} is not done", hint=f"go on with it: medtrain resume {path}")
    first = RunFolder.open(folder.path / members[0])
    task, family, config, _ = _task(first, imports, {})
    data = _read_json(first.path / "data.json")
    records = _read_records(folder.cases)
    summaries = {member: _read_json(folder.path / member / "evaluation" / "summary.json") for member in members}
    decided = {member.removeprefix("fold_"): _decision(summary) for member, summary in summaries.items()}
    return JudgedRun(
        run_name=folder.path.name,
        path=path,
        evaluation=folder.path,
        dataset=str(data.get("dataset", "")),
        family=family,
        part=part,
        task=task,
        decision={},
        records=records,
        trained_on=frozenset(),
        split_hash="",
        by_fold=decided if any(decided.values()) else {},
        rules=_rules(config),
    )


def _rules(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config["task"][key] for key in _RULES.values() if key in config.get("task", {})}


def _decision(summary: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in (summary.get("decision") or {}).items()}


def _task(
    folder: RunFolder, imports: Sequence[str], summary: Mapping[str, Any]
) -> tuple[Task, str, Mapping[str, Any], dict[str, Any]]:
    """The task that judges, without what only an evaluation writes; its family, its settings, and where they differ.

    Args:
        folder: Of the run.
        imports: Modules that register the user's components.
        summary: Of an evaluation, whose settings may differ from the run's.
    """
    config = load_saved(folder.path, imports=imports)
    changed: dict[str, Any] = {}
    for part in ("inference", "task"):
        own, settings = plain(config[part]), summary.get(part) or {}
        known = {key: settings.get(key, value) for key, value in own.items()}
        changed |= {f"{part}.{key}": value for key, value in known.items() if value != own[key] and key != "report"}
        config = {**config, part: known}
    judging = {key: value for key, value in config["task"].items() if key != "report"}
    plan = read_plan(folder, config)
    return build_task({**config, "task": judging}, plan, _CPU, None), plan.family, config, changed


def _find_evaluations(folder: RunFolder, part: str) -> list[Path]:
    """The run's own final evaluation if it is of the part, then others of the same weights; else all, the newest first.

    Raises:
        UsageError: There is none; says what to type.
    """

    def is_whole(place: Path) -> bool:
        return (place / "cases.csv").is_file() and (place / "summary.json").is_file()

    others = sorted(folder.evaluation.glob(f"{part}_step_*"), key=lambda place: place.stat().st_mtime, reverse=True)
    there = [place for place in others if is_whole(place)]
    if part == "val" and is_whole(folder.evaluation):
        step = str(_read_json(folder.evaluation / "summary.json").get("checkpoint"))
        return [folder.evaluation, *(place for place in there if place.name == f"{part}_{step}")]
    if not there:
        words = "" if part == "val" else f" --part {part}"
        raise UsageError(
            f"{folder.path} has not been evaluated on its {part} part",
            hint=f"evaluate it first: medtrain evaluate {folder.path}{words}",
        )
    return there


def _trained_on(splits: Path, config: Mapping[str, Any]) -> frozenset[str]:
    content = _read_json(splits)
    if isinstance(content, list):  # folds; with data.fold=null everything is in one
        fold = config["data"].get("fold")
        content = content[0 if fold is None else int(fold) % len(content)]
    return frozenset(str(case) for case in content.get("train", ()))


def _read_records(path: Path) -> dict[str, Record]:
    """Rows of `cases.csv` as they were before they were written.

    Raises:
        DataError: A case was judged twice: there is no saying which result is compared.
    """
    rows = read_cases(path)
    counts = Counter(row["case_id"] for row in rows)
    if twice := [case for case, count in counts.items() if count > 1]:
        folds = sorted({row["fold"] for row in rows if counts[row["case_id"]] > 1 and row.get("fold")})
        words = f", of the folds {' and '.join(folds)}" if folds else ""
        hint = f"compare the runs of the folds: medtrain compare {path.parent / 'fold_0'} ..." if folds else None
        raise DataError([Problem(str(path), f"{some_cases(twice)} in several rows{words}", hint)])
    return {row["case_id"]: {key: _value(key, text) for key, text in row.items()} for row in rows}


def some_cases(cases: Sequence[str]) -> str:
    """How many cases there are, and the first of them by name."""
    rest = len(cases) - _SHOWN
    return (
        f"{len(cases)} case{'s' if len(cases) > 1 else ''} ({', '.join(cases[:_SHOWN])}{', ...' if rest > 0 else ''})"
    )


def _value(key: str, text: str) -> Any:
    if key in _TEXTS or key.startswith("column/"):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MedtrainError(f"{path} cannot be read: {error}") from error
