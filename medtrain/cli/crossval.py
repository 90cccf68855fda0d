"""`medtrain crossval`: train every fold and put the results together."""

from __future__ import annotations

from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides
from medtrain.cli._run import handle_errors


def crossval(
    overrides: Overrides = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Folds to train at the same time; one per GPU if not given."),
    ] = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Train every fold of a cross-validation; a table over folds and over all cases, and an ensemble.

    Takes what `medtrain train` takes, but data.fold; limits such as trainer.max_time hold for each fold. All folds
    share one plan and one preparation, and each is an ordinary run below one folder:

        medtrain crossval data=msd data.root=DIR data.num_folds=5 trainer.max_time=1h

    Of segmentations, the post-processing (keep only the largest component of a class) is chosen on the held-out cases:
    where it raises the mean Dice and lowers that of no class. Then:

        medtrain predict FOLDER SCANS OUT    # all models together, with the chosen post-processing
        medtrain resume FOLDER               # after Ctrl-C, a kill or a failed fold

    A fold that fails is reported, the others go on, and the exit code is 1.
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config
        from medtrain.crossval.launch import start_crossval

        composed = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ())
        raise typer.Exit(
            start_crossval(composed.tree, overrides=composed.overrides, imports=imports or (), workers=workers)
        )
