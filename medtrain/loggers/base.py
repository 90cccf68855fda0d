"""Loggers record numbers, pictures and text; a run writes to several at once through a LoggerSet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERF_PREFIX = "perf/"
"""Keys of timings. They differ from run to run, so they never enter the metrics files."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a logger may tell its service about the run.

    Args:
        run_name: The run's folder name, unique within the experiment.
        experiment: The experiment's name.
        config: The resolved configuration, secrets masked.
        note: A remark kept with the run.
        tags: Labels kept with the run.
    """

    run_name: str
    experiment: str
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    tags: tuple[str, ...] = ()


class Logger:
    """Does nothing; override what the service supports."""

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Record numbers at an optimizer step; several calls with one step add to each other."""

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, 3]."""

    def log_text(self, step: int, tag: str, text: str) -> None:
        """Record text in Markdown."""

    def resume(self, step: int) -> None:
        """Forget everything after `step`: the run continues from there. Called before anything is logged."""

    def flush(self) -> None:
        """Bring what was logged to the disk; called before a checkpoint is written."""

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""


class LoggerSet(Logger):
    """Passes everything on to several loggers.

    A logger that fails while training is switched off with one warning: a full quota at a tracking service must not
    cost a run. A full disk does end the run, by the checkpoint that cannot be written.

    Args:
        loggers: Loggers by the name they have in the configuration.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    @property
    def names(self) -> tuple[str, ...]:
        """The loggers still in use."""
        return tuple(self._loggers)

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Pass on to every logger."""
        self._each(lambda logger: logger.log_scalars(step, epoch, scalars))

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Pass on to every logger."""
        assert image.dtype == np.uint8, image.dtype
        assert image.shape[2:] == (3,), image.shape
        self._each(lambda logger: logger.log_image(step, tag, image))

    def log_text(self, step: int, tag: str, text: str) -> None:
        """Pass on to every logger."""
        self._each(lambda logger: logger.log_text(step, tag, text))

    def resume(self, step: int) -> None:
        """Pass on to every logger; an error here is raised, since the record would be wrong."""
        for logger in self._loggers.values():
            logger.resume(step)

    def flush(self) -> None:
        """Pass on to every logger."""
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:
                del self._loggers[name]
                _LOG.warning("logger %s failed and is switched off: %s: %s", name, type(error).__name__, error)
