"""Compare runs on the cases that all of them have judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.compare.folds import folds_of, samples_statistic
from medtrain.compare.judged import JudgedRun, read_judged, some_cases
from medtrain.errors import DataError, Problem, UsageError
from medtrain.metrics.bootstrap import Statistic
from medtrain.metrics.cases import CaseTable
from medtrain.metrics.lesions import COUNTS
from medtrain.metrics.paired import Difference, paired_differences
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.tables import cases_csv
from medtrain.registry import closest
from medtrain.run.atomic import atomic_write, atomic_write_json
from medtrain.tasks.base import Record
from medtrain.tasks.report import patients_of

_SEED = 20260
_TRUTH = ("label", "volume_ml", "target", "event", "time")

Swap = Callable[[np.ndarray], tuple[Mapping[str, float], Mapping[str, float]]]


@dataclass(frozen=True)
class Comparison:
    """A run against the first one.

    Args:
        first: Name of the first run.
        second: Name of the other run.
        num_cases: Cases that both have judged.
        num_patients: Their patients.
        differences: By metric.
        one_sided: Cases in which a metric is defined for one of the two only, (first, second), by metric; they are
            left out of that metric.
        apart: The cases in which the main metric differs most: case, first, second.
        missing: Metrics that only one of the runs has.
        by_fold: Runs that are judged fold by fold, as each fold has decided for itself.
        ruled_out: Metrics that the runs have judged by other rules, with these.
    """

    first: str
    second: str
    num_cases: int
    num_patients: int
    differences: tuple[Difference, ...]
    one_sided: Mapping[str, tuple[int, int]]
    apart: tuple[tuple[str, float, float], ...]
    missing: tuple[str, ...]
    by_fold: tuple[str, ...] = ()
    ruled_out: Mapping[str, str] = field(default_factory=dict)


def compare_runs(
    paths: Sequence[Path],
    *,
    part: str = "val",
    metric: str | None = None,
    common: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    imports: Sequence[str] = (),
) -> tuple[list[Comparison], str, Mapping[str, MetricSpec]]:
    """Compare every run with the first.

    Args:
        paths: Two run folders or more.
        part: `val`, `test` or `train`.
        metric: The main metric; None takes what the first run was chosen by.
        common: Compare on the shared cases where runs were divided differently or judged different cases.
        resamples: Draws of patients, and the most exchanges.
        confidence: Share of the draws inside an interval.
        imports: Modules that register the user's components.

    Returns:
        One comparison per further run, the main metric, and the metrics with unit and direction.

    Raises:
        UsageError: Runs were not evaluated, or there is no such metric.
        DataError: They cannot be compared; says all that differs.
    """
    if len(paths) < 2:
        raise UsageError("a comparison takes two runs or more", hint="medtrain compare RUN_A RUN_B")
    first = read_judged(paths[0], part=part, metric=metric, imports=imports)
    main = metric or first.task.monitor.name.removeprefix("val/")
    judged = first.judged()
    if main not in judged:
        near = closest(main, judged)
        raise UsageError(
            f"--metric {main} is no metric that {first.run_name} was judged by; it has {', '.join(judged)}",
            hint=first.how_to_judge(main) or (f"did you mean {near}?" if near else None),
        )
    runs = [first, *(read_judged(path, part=part, metric=main, like=first, imports=imports) for path in paths[1:])]
    found = []
    for other in runs[1:]:
        cases = matched_cases(runs[0], other, common=common)
        found.append(_compare(runs[0], other, cases, main, resamples=resamples, confidence=confidence))
    return found, main, first.specs()


def matched_cases(first: JudgedRun, second: JudgedRun, *, common: bool) -> list[str]:
    """The cases to compare two runs on, sorted.

    Args:
        first: A run.
        second: Another one.
        common: Take the cases that both have judged.

    Raises:
        DataError: Says all that differs.
    """
    problems: list[Problem] = []
    where = f"{first.run_name} and {second.run_name} cannot be compared"
    if first.family != second.family:
        problems.append(Problem(where, f"one judges {first.family}, the other {second.family}"))
    elif first.family == "segmentation" and not shared_names(first, second)[1:]:
        judged = [f"{run.run_name} judges {', '.join(run.task.class_names[1:])}" for run in (first, second)]
        problems.append(Problem(where, f"no class in common: {', '.join(judged)}"))
    if first.dataset != second.dataset:
        problems.append(Problem(where, f"different data sets: {first.dataset} and {second.dataset}"))
    shared = sorted(first.records.keys() & second.records.keys())
    for run, other in ((first, second), (second, first)):
        seen = [case for case in shared if case in run.trained_on]
        if seen:
            problems.append(
                Problem(where, f"{run.run_name} was trained on {some_cases(seen)}, which {other.run_name} judged")
            )
    differ = [case for case in shared if _truth_differs(first.records[case], second.records[case])]
    if differ:
        problems.append(Problem(where, f"the labels differ in {some_cases(differ)}"))
    splits: list[Problem] = []
    if not common:
        for run, other in ((first, second), (second, first)):
            if alone := sorted(run.records.keys() - other.records.keys()):
                splits.append(Problem(where, f"only {run.run_name} has judged {some_cases(alone)}"))
        if not splits and first.trained_on != second.trained_on and first.trained_on and second.trained_on:
            apart = sorted(first.trained_on ^ second.trained_on)
            splits.append(
                Problem(where, f"different splits: {some_cases(apart)} in the training part of one of them only")
            )
    if not shared:
        problems.append(Problem(where, "they have no judged case in common"))
    if splits and not problems:
        hint = "--common compares them on the cases that both have judged"
        splits[-1] = Problem(splits[-1].where, splits[-1].message, hint)
    if problems or splits:
        raise DataError([*problems, *splits])
    return shared


def shared_names(first: JudgedRun, second: JudgedRun) -> tuple[str, ...]:
    """The background, and the classes or regions that two runs both judge.

    Args:
        first: A run that segments.
        second: Another one.
    """
    names, others = first.task.class_names, second.task.class_names[1:]
    return (names[0], *(name for name in names[1:] if name in others))


def _truth_differs(first: Record, second: Record) -> bool:
    """Whether the labels that both records tell are not the same."""
    for key in first.keys() & second.keys():
        if key.split("/")[0] in _TRUTH:
            one, two = first[key], second[key]
            numbers = isinstance(one, float) and isinstance(two, float)
            same = math.isclose(one, two, rel_tol=1e-6) or (one != one and two != two) if numbers else one == two
            if not same:
                return True
    return False


def _compare(
    first: JudgedRun, second: JudgedRun, cases: Sequence[str], main: str, *, resamples: int, confidence: float
) -> Comparison:
    records = [first.records[case] for case in cases], [second.records[case] for case in cases]
    by_cases = first.family == "segmentation"
    make = _of_cases if by_cases else _of_samples
    one, two, swap = make(first, second, *records)
    keys = [set(run.task.summarize(rows)) for run, rows in zip((first, second), records)]
    shared = {key: spec for key, spec in first.specs().items() if key in keys[0] & keys[1]}
    if main not in shared:
        raise UsageError(
            f"{first.run_name} and {second.run_name} have not both judged {main}",
            hint=second.how_to_judge(main) or f"--metric NAME, one of {', '.join(shared) or 'none'}",
        )
    ruled_out = _ruled_out(first, second, shared)
    if main in ruled_out:
        key = first.ruled_apart(second, main)
        hint = f"judge it alike first: medtrain evaluate {second.path} {_typed(key, first.rules[key])}"
        where = f"{first.run_name} and {second.run_name} cannot be compared"
        raise DataError([Problem(where, f"{main} is judged by other rules ({ruled_out[main]})", hint)])
    shared = {key: spec for key, spec in shared.items() if key not in ruled_out}
    patients = patients_of(records[0])
    differences = paired_differences(
        one, two, patients, shared, swapped=swap, seed=_SEED, resamples=resamples, confidence=confidence
    )
    mine, theirs = (_case_scores(run, rows, main, by_cases=by_cases) for run, rows in zip((first, second), records))
    return Comparison(
        first=first.run_name,
        second=second.run_name,
        num_cases=len(cases),
        num_patients=len(set(patients)),
        differences=tuple(differences),
        one_sided=_one_sided(*records, list(shared)) if by_cases else {},
        apart=_apart(cases, mine, theirs),
        missing=tuple(sorted(keys[0] ^ keys[1])),
        by_fold=tuple(dict.fromkeys(run.run_name for run in (first, second) if run.by_fold)),
        ruled_out=ruled_out,
    )


def _ruled_out(first: JudgedRun, second: JudgedRun, keys: Iterable[str]) -> dict[str, str]:
    """Metrics whose numbers mean different things in two runs, with the settings that say so."""
    apart = {key: first.ruled_apart(second, key) for key in keys}
    return {
        key: f"task.{rule}: {first.run_name} {first.rules[rule]}, {second.run_name} {second.rules[rule]}"
        for key, rule in apart.items()
        if rule
    }


def _typed(key: str, value: Any) -> str:
    """A setting of the task as it is typed."""
    if not isinstance(value, Mapping):
        return f"task.{key}={value}"
    return f"'task.{key}={{{', '.join(f'{name}: {number}' for name, number in value.items())}}}'"


def _of_cases(
    first: JudgedRun, second: JudgedRun, one: Sequence[Record], two: Sequence[Record]
) -> tuple[Statistic, Statistic, Swap]:
    """Means over the cases in which a metric is defined for both."""
    table, count = CaseTable([*one, *two], shared_names(first, second)), len(one)
    lesions = [{key for row in rows for key in row} for rows in (one, two)]
    table.lesions = [name for name in table.lesions if all(f"{COUNTS[0]}/{name}" in keys for keys in lesions)]
    unknown = np.isnan(table.values[:count]) | np.isnan(table.values[count:])
    table.values = np.where(np.concatenate([unknown, unknown]), np.nan, table.values)

    def swapped(mask: np.ndarray) -> tuple[Mapping[str, float], Mapping[str, float]]:
        places = np.arange(count)
        return table.summary(np.where(mask, places + count, places)), table.summary(
            np.where(mask, places, places + count)
        )

    return table.summary, lambda index: table.summary(index + count), swapped


def _of_samples(
    first: JudgedRun, second: JudgedRun, one: Sequence[Record], two: Sequence[Record]
) -> tuple[Statistic, Statistic, Swap | None]:
    """Metrics of all samples together or by fold, each run by its own task."""
    ids = [str(record["case_id"]) for record in one]
    folds = folds_of(first, second, ids), folds_of(second, first, ids)
    alike = type(first.task) is type(second.task) and first.decision == second.decision
    alike = alike and folds[0] == folds[1] and first.by_fold == second.by_fold
    swap: Swap | None = None
    if alike and first.task.class_names == second.task.class_names:
        count = len(one)
        both = samples_statistic(first, [*one, *two], None if folds[0] is None else folds[0] * 2)

        def swap(mask: np.ndarray) -> tuple[Mapping[str, float], Mapping[str, float]]:
            places = np.arange(count)
            return both(np.where(mask, places + count, places)), both(np.where(mask, places, places + count))

    return samples_statistic(first, one, folds[0]), samples_statistic(second, two, folds[1]), swap


def _one_sided(one: Sequence[Record], two: Sequence[Record], keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for key in keys:
        sides = [np.array([float(row.get(key, math.nan)) for row in rows]) for rows in (one, two)]
        known = [~np.isnan(side) for side in sides]
        counts = int((known[0] & ~known[1]).sum()), int((known[1] & ~known[0]).sum())
        if "/" in key and any(counts):
            found[key] = counts
    return found


def _case_scores(run: JudgedRun, records: Sequence[Record], main: str, *, by_cases: bool) -> dict[str, float]:
    """The main metric case by case; for metrics of all samples together, how well each was predicted."""
    if not by_cases:
        return dict(run.task.worst_cases(records, len(records)))
    metric, _, name = main.partition("/")
    found = {}
    for record in records:
        keys = [key for key in record if key.startswith(f"{metric}/") and (not name or key == main)]
        values = [float(record[key]) for key in keys if not math.isnan(float(record[key]))]
        found[str(record["case_id"])] = float(np.mean(values)) if values else math.nan
    return found


def _apart(
    cases: Sequence[str], one: Mapping[str, float], two: Mapping[str, float], count: int = 5
) -> tuple[tuple[str, float, float], ...]:
    pairs = [(case, one[case], two[case]) for case in cases if case in one and case in two]
    pairs = [pair for pair in pairs if abs(pair[2] - pair[1]) > 0]  # NaN is not above 0
    return tuple(sorted(pairs, key=lambda pair: (-abs(pair[2] - pair[1]), pair[0]))[:count])


def check_out(path: Path) -> None:
    """See, before anything is computed, that a comparison can be written to a file.

    Raises:
        UsageError: Of another suffix, or in a folder that does not exist.
    """
    if path.suffix not in (".csv", ".json"):
        raise UsageError(f"--out {path}: name a file that ends in .csv or .json")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")


def write_comparison(path: Path, comparisons: Sequence[Comparison], *, main: str, part: str) -> None:
    """Write what was found: a row per run and metric to `.csv`, everything to `.json`.

    Args:
        path: The file.
        comparisons: Of `compare_runs`.
        main: The main metric.
        part: Of the data.
    """
    check_out(path)
    if path.suffix == ".json":
        facts = {"part": part, "metric": main, "comparisons": [asdict(item) for item in comparisons]}
        atomic_write_json(path, facts)
        return
    rows: list[dict[str, Any]] = [
        {"first_run": item.first, "second_run": item.second, **asdict(difference), "num_cases": item.num_cases}
        for item in comparisons
        for difference in item.differences
    ]
    atomic_write(path, cases_csv(rows))
