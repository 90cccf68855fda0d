"""Metrics of a cross-validation whose folds have decided for themselves, such as on a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medtrain.compare.judged import JudgedRun
from medtrain.metrics.bootstrap import Statistic
from medtrain.tasks.base import Record
from medtrain.tasks.outcome import Table


def folds_of(run: JudgedRun, other: JudgedRun, cases: Sequence[str]) -> list[str] | None:
    """The fold of every case [N] by which a run is judged; None where all cases are judged together.

    A run without folds of its own is judged by those of the other, so that both have the mean over the same folds.

    Args:
        run: Whose metrics are asked for.
        other: What it is compared with.
        cases: Case ids.
    """
    divided = next((item for item in (run, other) if item.by_fold), None)
    return None if divided is None else [str(divided.records[case]["fold"]) for case in cases]


def samples_statistic(run: JudgedRun, records: Sequence[Record], folds: Sequence[str] | None) -> Statistic:
    """Metrics of samples at given indices: of all together, or the mean over the folds that define them.

    Args:
        run: What has judged them.
        records: Of all samples.
        folds: Of every sample [N], each judged under what it had decided; None for all together.
    """
    table = Table(records)
    if folds is None:
        return lambda index: run.task.summarize(table.take(index))
    names, place = np.unique(np.asarray(folds, dtype=str), return_inverse=True)

    def statistic(index: np.ndarray) -> dict[str, float]:
        found = []
        for number, name in enumerate(names.tolist()):
            chosen = index[place[index] == number]
            if chosen.size:
                if run.by_fold:
                    run.task.use_decision(run.by_fold[name])
                found.append(run.task.summarize(table.take(chosen)))
        return _means(found)

    return statistic


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for key in dict.fromkeys(key for metrics in found for key in metrics):
        values = [metrics[key] for metrics in found if not math.isnan(metrics.get(key, math.nan))]
        means[key] = math.fsum(values) / len(values) if values else math.nan
    return means
