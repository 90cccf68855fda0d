"""`medtrain sweep`: search for good settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides
from medtrain.cli._run import handle_errors
from medtrain.errors import UsageError


def sweep(
    overrides: Overrides = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="SWEEP", help="Write the report of a sweep as it stands, running or not."),
    ] = None,
    worker: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--worker",
            metavar="STORAGE STUDY",
            help="Join a study from this machine; `sweep.workers=N` says how many trials at once.",
        ),
    ] = None,
    serve: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--serve",
            metavar="STORAGE HOST:PORT",
            help="Offer a storage to workers that can reach this machine, as grpc://HOST:PORT.",
        ),
    ] = None,
    wandb_init: Annotated[
        bool, typer.Option("--wandb-init", help="Register the sweep with W&B, which then hands out its points.")
    ] = False,
    wandb_agent: Annotated[
        str | None, typer.Option("--wandb-agent", metavar="ID", help="Train the trials that W&B hands out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Search for the settings that train best.

    What varies is written as a value of many: a range `interval(0,0.5)`, on a logarithmic scale `tag(log,
    interval(1e-4,1e-1))`, whole numbers `range(2,9,2)`, choices `choice(dice_ce,focal)`, or a plain list `a,b`, which
    makes a grid. Examples:

        medtrain sweep data=phantom optimizer.lr='tag(log, interval(1e-4,1e-1))' loss='choice(dice_ce,focal)'
        medtrain sweep sweep=unet_basics data=msd data.root=DIR sweep.n_trials=50 sweep.workers=2
        medtrain sweep optimizer.lr=1e-3,3e-3 model.dropout=0,0.2

    Every trial is a run of its own in the sweep's folder. Ctrl-C saves the running ones, and `medtrain resume SWEEP`
    continues; `medtrain resume SWEEP sweep.n_trials=100` adds trials.
    """
    with handle_errors(debug):
        from medtrain.sweep import launch

        modes = {"--report": report, "--worker": worker, "--serve": serve, "--wandb-agent": wandb_agent}
        chosen = [name for name, value in modes.items() if value is not None]
        chosen += ["--wandb-init"] if wandb_init else []
        if chosen and chosen[0] != "--wandb-init" and (config_dirs or imports):
            raise UsageError(f"{chosen[0]} takes no --config-dir and no --import: the sweep knows its own")
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", hint="give one of them")
        if report is not None:
            _refuse(overrides, "--report")
            for path in launch.report_sweep(report):
                typer.echo(path)
            return
        if serve is not None:
            _refuse(overrides, "--serve")
            launch.serve_storage(*serve)
            return
        if worker is not None:
            raise typer.Exit(launch.join_sweep(*worker, workers=_workers(overrides)))
        from medtrain.sweep import agent

        if wandb_agent is not None:
            raise typer.Exit(agent.train_for_wandb(wandb_agent, overrides or ()))
        from medtrain.config.sweeps import load_sweep

        config = load_sweep(overrides or (), config_dirs=config_dirs or (), imports=imports or ())
        raise typer.Exit(agent.register_sweep(config) if wandb_init else launch.start_sweep(config))


def _refuse(overrides: list[str] | None, option: str) -> None:
    if overrides:
        raise UsageError(f"{option} takes no overrides: {' '.join(overrides)}")


def _workers(overrides: list[str] | None) -> int | None:
    """`sweep.workers=N`, the one thing that a worker decides for itself."""
    workers = None
    for text in overrides or ():
        key, _, value = text.partition("=")
        if key != "sweep.workers" or not value.isdigit() or int(value) < 1:
            raise UsageError(f"--worker takes nothing but sweep.workers=N: {text}")
        workers = int(value)
    return workers
