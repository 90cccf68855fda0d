"""The pictures of an evaluation: what the task shows of it, and why the model judged some cases as it did."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch import nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.tasks.base import PictureStyle, ReadCases, Record, Task

log = logging.getLogger(__name__)


def draw_evaluation(
    task: Task, model: nn.Module, read: ReadCases, records: Sequence[Record], *, step: int
) -> dict[str, np.ndarray]:
    """What `Task.pictures` and `Task.explanations` draw of the last evaluation, by name.

    Where they fail, that is a sentence in the log: a picture must not cost an evaluation.

    Args:
        task: The task, after the evaluation.
        model: With the weights that were judged.
        read: Reads cases by their ids.
        records: Of all cases.
        step: Optimizer steps behind the weights.

    Raises:
        MedtrainError: A setting is wrong.
    """
    style = PictureStyle(title=f"step {step}")
    drawn: dict[str, np.ndarray] = {}
    try:
        drawn |= task.pictures(records, style)
    except MedtrainError:
        raise
    except Exception as error:
        log.warning("pictures of the evaluation failed: %s: %s", type(error).__name__, error)
    try:
        drawn |= task.explanations(model, read, records, style)
    except UsageError as error:
        log.info("no pictures of what the model saw: %s", error.message)
    except Exception as error:
        log.warning("pictures of what the model saw failed: %s: %s", type(error).__name__, error)
    return drawn
