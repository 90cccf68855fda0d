"""`medtrain resume`: continue a run from its newest complete checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._latest import lacks_plan, resolve
from medtrain.cli._options import Debug, Imports, Overrides, Processes
from medtrain.cli._run import end, handle_errors
from medtrain.errors import UsageError

_RUN = "The run's, cross-validation's or sweep's folder; EXPERIMENT/latest is the newest that can be continued."


def resume(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help=_RUN, show_default=False),
    ],
    overrides: Overrides = None,
    imports: Imports = None,
    nproc: Processes = 1,
    debug: Debug = False,
) -> None:
    """Continue a run, a cross-validation or a sweep after Ctrl-C, a kill, a crash, or with a longer limit.

    On a CPU a run bounded by steps continues bit for bit as if it had never stopped. What decides what is learned
    (model, data, loss, optimizer, ...) cannot change; limits, cadences, loggers, task.report and paths can, and stay
    changed. A new limit replaces the old ones:

        medtrain resume outputs/liver/20261120-09-3fa2 trainer.max_steps=20000

    A cross-validation keeps its finished folds and continues the others. A sweep continues its unfinished trials from
    their checkpoints, and can be given more:

        medtrain resume outputs/liver_unet_sweep/20261120-09-41c7 sweep.n_trials=100
    """
    started = time.monotonic()
    with handle_errors(debug):
        from medtrain.sweep.folder import SweepFolder

        typed, run = run, resolve(run, lacks_plan)
        if SweepFolder.is_sweep(run):
            from medtrain.config.sweeps import load_saved_sweep
            from medtrain.sweep.launch import resume_sweep

            if imports:
                raise UsageError("--import is for runs: the sweep knows its own modules")
            if nproc > 1:
                raise UsageError("--nproc is for runs: a sweep has sweep.workers", hint="resume it without --nproc")
            raise typer.Exit(resume_sweep(run, load_saved_sweep(run, overrides or ())))
        from medtrain.crossval.folder import is_crossval

        if is_crossval(run):
            from medtrain.crossval.launch import resume_crossval

            if nproc > 1:
                raise UsageError("--nproc is for runs: a cross-validation trains one fold per GPU")
            raise typer.Exit(resume_crossval(run, overrides=overrides or (), imports=imports or ()))
        from medtrain.config.saved import load_saved
        from medtrain.engine.build import continuation
        from medtrain.engine.launch import resume_run

        before = load_saved(run, imports=imports or ())
        after = load_saved(run, overrides or (), imports=imports or ())
        config = continuation(before, after)
        if nproc > 1:
            from medtrain.cli._processes import relaunch

            raise typer.Exit(relaunch(nproc, typed=typed, meant=run))
        end(resume_run(run, config, before=before, started=started))
