"""Which parameters matter: where the good trials lie, compared with all of them.

PED-ANOVA as Optuna has it: Watanabe, Bansal and Hutter, IJCAI 2023, arXiv:2304.10255; a parameter that only some trials
have is compared among those, and counts by their part of the good ones: arXiv:2601.20800.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from medtrain.config.space import Dimension
from medtrain.sweep.points import canonical, distribution
from medtrain.sweep.report.records import Record, SweepState

LEAST_TRIALS = 20
LEAST_COMPLETE = 10
"""With fewer, the good trials are fewer than the five that Optuna asks for."""

_GOOD = 0.25  # of the trials
_HOPELESS = ("oom", "nonfinite")  # bad places; a crash says nothing about the point

Shares = Mapping[str, float]
"""How much each parameter matters, the most important first; they add up to 1."""


def rate(sweep: SweepState) -> list[Shares]:
    """Rate the parameters for each objective; empty for one with too few trials, or without good and bad ones.

    Pruned trials, and those that ran out of memory or diverged, take part as bad ones.

    Args:
        sweep: The sweep.
    """
    return [_rate(sweep, index) for index in range(len(sweep.definition.objectives))]


def ranked(found: Sequence[Shares]) -> list[str]:
    """The parameters that are rated for some objective, the most important first.

    Args:
        found: What `rate` returned.
    """
    totals = {key: sum(shares.get(key, 0.0) for shares in found) for shares in found for key in shares}
    return sorted(totals, key=lambda key: -totals[key])


def _rate(sweep: SweepState, index: int) -> Shares:
    sign = -1.0 if sweep.definition.objectives[index].mode == "max" else 1.0
    complete = [record for record in sweep.select("complete") if record.params and math.isfinite(record.values[index])]
    bad = [record for record in sweep.select("pruned", "failed") if record.params and _is_bad(record)]
    count = len(complete) + len(bad)
    if count < LEAST_TRIALS or len(complete) < LEAST_COMPLETE:
        return {}
    costs = [sign * record.values[index] for record in complete]
    worst = math.nextafter(max(costs), math.inf)
    costs += [worst] * len(bad)
    num_good = min(math.ceil(_GOOD * count), len(complete) // 2)
    limit = sorted(costs)[num_good - 1]
    if limit == max(costs):  # most are equally bad
        return {}
    trials = [*complete, *bad]
    good = [record for record, cost in zip(trials, costs) if cost <= limit]
    dimensions = [each for each in sweep.definition.space.dimensions if _is_comparable(each, trials, good)]
    return _evaluate(trials, costs, dimensions, quantile=(num_good - 0.5) / count)


def _is_bad(record: Record) -> bool:
    return record.state == "pruned" or record.failure in _HOPELESS


def _is_comparable(dimension: Dimension, trials: Sequence[Record], good: Sequence[Record]) -> bool:
    """Whether enough trials have a parameter, some good ones among them, with different values."""
    values = [record.params[dimension.key] for record in trials if dimension.key in record.params]
    is_among_good = any(dimension.key in record.params for record in good)
    return len(values) >= LEAST_COMPLETE and is_among_good and len(set(values)) > 1


def _evaluate(
    trials: Sequence[Record], costs: Sequence[float], dimensions: Sequence[Dimension], *, quantile: float
) -> Shares:
    """Ask Optuna, in a study made for this."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # takes seconds

    study = optuna.create_study(direction="minimize")
    for record, cost in zip(trials, costs):
        there = [dimension for dimension in dimensions if dimension.key in record.params]
        trial = optuna.create_trial(
            params={each.key: canonical(each, record.params[each.key]) for each in there},
            distributions={each.key: distribution(each) for each in there},
            value=cost,
        )
        study.add_trial(trial)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        # a single trial that lacks a parameter, or has it, is left out of its comparison
        warnings.filterwarnings("ignore", message="Some regimes")
        return get_param_importances(study, evaluator=evaluator, params=[each.key for each in dimensions])
