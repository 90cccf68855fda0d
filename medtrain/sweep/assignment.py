"""What a worker is given to train, and how trials and studies are marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial

from medtrain.sweep.result import Definition

Origin = Literal["default", "warm_start", "sampler", "again"]
Outcome = Literal["complete", "pruned", "failed", "again", "lost"]
"""`again`: put back, to be tried once more; `lost`: another worker has taken it over, and this result is dropped."""

ORIGIN = "origin"
"""User attribute of a trial: where its point comes from."""
ATTEMPT = "attempt"
"""User attribute of a trial: how often it has crashed or been killed."""
IMPORTED = "imported_from"
"""User attribute of a trial that was trained in an earlier sweep: its folder."""
DUPLICATE = "duplicate_of"
"""User attribute of a trial that is not trained: the earlier trial that has the same point."""
SURPLUS = "surplus"
"""User attribute of a trial that is not trained: another worker began the last one at the same time."""

DEFINITION = "definition"
"""User attribute of a study: what it is about."""
SWEEP = "sweep"
"""User attribute of a study: its section `sweep`, where that was changed."""
READY = "ready"
"""User attribute of a study whose first points are all there."""


@dataclass(frozen=True)
class Assignment:
    """A trial that this worker is to train.

    Args:
        trial_id: Its id in the storage.
        number: Its number in the study, which names its folder.
        params: The point of the space.
        attempt: How often it has crashed or been killed.
        origin: Where the point comes from; `again` is a trial that was begun before.
    """

    trial_id: int
    number: int
    params: Mapping[str, Any]
    attempt: int = 0
    origin: Origin = "sampler"


@dataclass(frozen=True)
class Counts:
    """How many trials of a study are in which state.

    Args:
        complete: Finished with values.
        pruned: Given up, or told to the sampler as bad places.
        failed: Failed for good.
        running: Being trained.
        waiting: To be trained: points that were set beforehand, or interrupted trials.
    """

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def finished(self) -> int:
        """Trials that have ended, one way or another."""
        return self.complete + self.pruned + self.failed


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that the sweep was asked for."""
    return not {IMPORTED, DUPLICATE, SURPLUS} & trial.user_attrs.keys()


def definition_of(attrs: Mapping[str, Any]) -> Definition:
    """What a study is about, from its user attributes."""
    definition = Definition.from_json(attrs[DEFINITION])
    return dataclasses.replace(definition, sweep=attrs.get(SWEEP, definition.sweep))
