"""What can be said of a search as a whole: why nothing can be used of it, and how many trials it may still have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from medtrain.errors import UsageError
from medtrain.sweep.assignment import Counts
from medtrain.sweep.result import Constraint


def why_none(trials: Sequence[FrozenTrial], constraints: Sequence[Constraint]) -> str:
    """Why none of the trials can be used, in one line.

    Args:
        trials: Of a search, by number; none is complete and meets every constraint.
        constraints: Of the search.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if complete:
        missed = [text for constraint in constraints if (text := _miss(constraint, complete))]
        together = "each is met by some trial, but no trial meets all: " + ", ".join(map(str, constraints))
        return "; ".join(missed) or together
    ended = [trial for trial in trials if trial.state.is_finished()]
    failed = [trial for trial in ended if trial.user_attrs.get("failure")]
    if failed:
        return f"the last that failed: {failed[-1].user_attrs.get('message') or failed[-1].user_attrs['failure']}"
    return "every trial was pruned" if ended else "none has ended"


def _miss(constraint: Constraint, trials: Sequence[FrozenTrial]) -> str | None:
    """A constraint that no trial meets, with the best value; None if one does."""
    metrics = [trial.user_attrs.get("metrics", {}) for trial in trials]
    if any(constraint.violation(values) <= 0 for values in metrics):
        return None
    values = [float(value) for found in metrics if (value := found.get(constraint.metric)) is not None]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return f"{constraint}: no trial has a value of it"
    best = f"smallest was {_short(min(values))}" if constraint.sign == "<=" else f"largest was {_short(max(values))}"
    return f"{constraint}: the {best}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def check_number(wanted: int | None, counts: Counts, *, size: int | None, exhausted: bool) -> None:
    """See that a new number of trials can be had.

    Args:
        wanted: `sweep.n_trials`.
        counts: The trials so far.
        size: Points of the space; None is infinitely many.
        exhausted: Whether all of them were tried.

    Raises:
        UsageError: More are finished, or there are no further points.
    """
    if wanted is None:
        return
    if wanted < counts.finished:
        raise UsageError(
            f"sweep.n_trials={wanted}, and {counts.finished} trials are finished already",
            hint=f"{counts.finished} ends the search as it is, more continue it",
        )
    if size is not None and wanted > size and exhausted and counts.running + counts.waiting == 0:
        raise UsageError(
            f"sweep.n_trials={wanted}, and every one of the {size} points of the space was tried",
            hint="begin a new sweep with more values; `sweep.warm_start=[FOLDER]` takes over these trials",
        )
