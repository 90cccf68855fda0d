"""What can be learned from a sweep: what it cost and saved, why trials failed, and what to try next."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medtrain.config.space import Dimension
from medtrain.sweep.report.records import Record, SweepState

_EDGE = 0.05  # of a range
_LEAST_FOR_ADVICE = 20  # trials


@dataclass(frozen=True)
class Savings:
    """What the pruner saved.

    Args:
        num_pruned: Trials that it ended.
        mean_spent: Part of its budget that such a trial used, on average, in [0, 1].
        trials: What was not spent, in whole trials.
        seconds: The same in computing time of a trial.
        fraction: Part of what the finished trials would have cost without pruning.
    """

    num_pruned: int
    mean_spent: float
    trials: float
    seconds: float
    fraction: float


def savings(sweep: SweepState) -> Savings | None:
    """What pruning saved; None when nothing was pruned.

    Args:
        sweep: The sweep.
    """
    pruned = [(record, sweep.spent(record)) for record in sweep.records if record.was_stopped_early]
    pruned = [(record, spent) for record, spent in pruned if spent > 0]  # NaN too: never told how far it was
    if not pruned:
        return None
    unspent = sum(1 - spent for _, spent in pruned)
    seconds = sum(record.seconds * (1 - spent) / spent for record, spent in pruned if math.isfinite(record.seconds))
    return Savings(
        num_pruned=len(pruned),
        mean_spent=1 - unspent / len(pruned),
        trials=unspent,
        seconds=seconds,
        fraction=unspent / (len(pruned) + len(sweep.select("complete"))),
    )


@dataclass(frozen=True)
class FailureGroup:
    """Trials that ended badly for the same reason.

    Args:
        failure: The reason in one word.
        message: Of the first of them.
        numbers: Which trials.
    """

    failure: str
    message: str
    numbers: tuple[int, ...]


def failure_groups(sweep: SweepState) -> list[FailureGroup]:
    """Why trials ended badly, the most frequent reason first; messages that differ in numbers only are one reason.

    Args:
        sweep: The sweep.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sweep.records:
        if record.state == "failed" or (record.state == "pruned" and record.failure):
            kind = re.sub(r"\d+(?:\.\d+)?", "#", record.message)
            groups.setdefault((record.failure or "failed", kind), []).append(record)
    found = [
        FailureGroup(failure, records[0].message, tuple(record.number for record in records))
        for (failure, _), records in groups.items()
    ]
    return sorted(found, key=lambda group: -len(group.numbers))


def advice(sweep: SweepState) -> list[str]:
    """What the trials suggest for a next sweep, a sentence each.

    Args:
        sweep: The sweep.
    """
    if sweep.is_multi or not sweep.best or sweep.num_finished < _LEAST_FOR_ADVICE:
        return []
    best = sweep.best[0]
    lines = []
    if best.is_default:
        if sweep.is_default_near:
            lines.append("No trial was better than the one nearest to the configuration as it is: widen the space.")
        else:
            lines.append("No trial was better than the configuration as it is: keep it, or search in other places.")
    for dimension in sweep.definition.space.dimensions:
        if end := _edge(dimension, sweep.best[:5]):
            lines.append(f"The best values of {dimension.key} lie at the {end} end of its range: widen it if you can.")
    since = sum(record.number > best.number and record.is_finished for record in sweep.records)
    if since >= max(_LEAST_FOR_ADVICE, sweep.num_finished // 2):
        lines.append(f"The last {since} trials found nothing better: more of them are unlikely to help.")
    return lines


def _edge(dimension: Dimension, best: Sequence[Record]) -> str | None:
    """At which end of its range most of the best trials lie, the very best among them."""
    if dimension.kind == "choice" or dimension.key not in best[0].params or len(best) < 3:
        return None
    assert dimension.low is not None
    assert dimension.high is not None
    scale = math.log if dimension.log else float
    low, span = scale(dimension.low), scale(dimension.high) - scale(dimension.low)
    places = [(scale(record.params[dimension.key]) - low) / span for record in best if dimension.key in record.params]
    for name, distances in (("lower", places), ("upper", [1 - place for place in places])):
        if distances[0] <= _EDGE and sum(distance <= _EDGE for distance in distances) > len(best) / 2:
            return name
    return None
