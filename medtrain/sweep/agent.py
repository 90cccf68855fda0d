"""Sweeps that W&B conducts, from the command line: register one, or train the trials it hands out."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medtrain.config.compose import load_config
from medtrain.config.sweeps import SweepConfig
from medtrain.errors import MedtrainError
from medtrain.run.log import setup_logging
from medtrain.sweep.folder import RESULT
from medtrain.sweep.launch import EXIT_DONE, EXIT_STOPPED, begin, component_modules
from medtrain.sweep.pool import Ended, Evaluated, TrialPool, divide
from medtrain.sweep.result import Definition
from medtrain.sweep.run import ended_result, trial_task
from medtrain.sweep.wandb import init_sweep, open_sweep, run_agent

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_SAVE_S = 60.0


def register_sweep(config: SweepConfig) -> int:
    """Write a sweep in W&B's format into a new sweep folder and register it where there is a key.

    Args:
        config: A checked configuration of a sweep.

    Returns:
        The exit code.
    """
    setup_logging()
    folder, definition, _ = begin(config)
    try:
        init_sweep(definition, folder.path)
    except BaseException:
        shutil.rmtree(folder.path)  # nothing has begun
        raise
    folder.finish("stopped", step=0, message="W&B conducts this sweep")
    return EXIT_DONE


def train_for_wandb(sweep_id: str, overrides: Sequence[str]) -> int:
    """Train the trials that W&B hands out, until it has no more; return the exit code.

    Args:
        sweep_id: ID, PROJECT/ID, ENTITY/PROJECT/ID, or the address of the sweep's page.
        overrides: What differs on this machine, such as `data.root=DIR`.
    """
    setup_logging()
    sweep = open_sweep(sweep_id)
    definition = sweep.definition
    tree = load_config(definition.overrides, config_dirs=definition.config_dirs, imports=definition.imports).tree
    pool = TrialPool(divide(1, []), preload=component_modules(tree))
    outcome = run_agent(sweep, OneByOne(pool, definition), folder=_folder(definition), overrides=overrides)
    log.info("%d trials done, %d failed, %d stopped", outcome.done, outcome.failed, outcome.stopped)
    return EXIT_STOPPED if outcome.signal is not None else EXIT_DONE


class OneByOne:
    """Trains one trial at a time and waits for it.

    Args:
        pool: With one place.
        definition: Of the sweep.
    """

    def __init__(self, pool: TrialPool, definition: Definition) -> None:
        self._pool, self._definition = pool, definition

    def __call__(self, overrides: list[str], place: Path) -> Mapping[str, float]:
        """Train, or continue what is in `place`; return the metrics at the best evaluation.

        Args:
            overrides: Of the trial's configuration.
            place: Its folder.

        Raises:
            MedtrainError: The trial failed; says why.
        """
        place.mkdir(parents=True, exist_ok=True)
        (place / RESULT).unlink(missing_ok=True)
        task = dataclasses.replace(trial_task(self._definition, overrides, place), watch=None)
        self._pool.start(0, task, log=place.with_suffix(".log"))
        try:
            ended = self._wait()
        except BaseException:
            self._stop()
            raise
        result = ended_result(place, ended, None)
        if result.state != "complete":
            raise MedtrainError(
                result.message or f"the trial is {result.state}", hint=f"see {place.with_suffix('.log')}"
            )
        return result.metrics

    def _wait(self, seconds: float = float("inf")) -> Ended:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self._pool.wait(_LOOK_S):
                if isinstance(event, Evaluated):
                    self._pool.answer(event.key, prune=False)
                elif isinstance(event, Ended):
                    return event
        raise TimeoutError

    def _stop(self) -> None:
        """Let the trial save its state, then end it."""
        self._pool.stop()
        try:
            self._wait(_SAVE_S)
        except TimeoutError:
            self._pool.kill()
        except BaseException:
            self._pool.kill()
            raise


def _folder(definition: Definition) -> Path:
    folder = Path(definition.folder)
    return folder if folder.is_dir() else Path("outputs", folder.name).absolute()
