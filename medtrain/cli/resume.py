"""`medtrain resume`: continue a run from its newest complete checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug, Imports, Overrides, Processes
from medtrain.cli._run import handle_errors


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    overrides: Overrides = None,
    imports: Imports = None,
    nproc: Processes = 1,
    debug: Debug = False,
) -> None:
    """Continue a run after Ctrl-C, a kill, a crash, or with a longer limit.

    On a CPU a run bounded by steps continues bit for bit as if it had never stopped. What decides what is learned
    (model, data, loss, optimizer, ...) cannot change; limits, cadences, loggers and paths can, and stay changed. A
    new limit replaces the old ones:

        medtrain resume outputs/liver/20261120-09-3fa2 trainer.max_steps=20000
    """
    started = time.monotonic()
    with handle_errors(debug):
        from medtrain.config.saved import load_saved
        from medtrain.engine.build import continuation
        from medtrain.engine.launch import resume_run

        before = load_saved(run, imports=imports or ())
        after = load_saved(run, overrides or (), imports=imports or ())
        config = continuation(before, after)
        if nproc > 1:
            from medtrain.cli._processes import relaunch

            raise typer.Exit(relaunch(nproc))
        outcome = resume_run(run, config, before=before, started=started)
        raise typer.Exit(outcome.exit_code)
