"""The points that a sweep begins with: the configuration as it is, and what earlier sweeps have found."""

from __future__ import annotations

import logging
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from medtrain.sweep.points import FIXED
from medtrain.sweep.result import Definition

log = logging.getLogger(__name__)


def first_points(definition: Definition) -> list[FrozenTrial]:
    """The trials that a study begins with: some finished elsewhere, the others waiting.

    Raises:
        MedtrainError: A warm start cannot be read.
    """
    trials: list[FrozenTrial] = []
    if definition.default is not None and definition.sweep["try_default"]:
        trials.append(waiting(definition.default, "default"))
    return trials


def waiting(params: Any, origin: str) -> FrozenTrial:
    """A trial whose point is set beforehand."""
    return create_trial(state=TrialState.WAITING, system_attrs={FIXED: dict(params)}, user_attrs={"origin": origin})
