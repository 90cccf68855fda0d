"""`medtrain train`: train from scratch in a new run folder."""

from __future__ import annotations

import time

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides, Processes
from medtrain.cli._run import end, handle_errors


def train(
    overrides: Overrides = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    nproc: Processes = 1,
    debug: Debug = False,
) -> None:
    """Train a model.

    `model` and `data` are enough: everything else follows from the data, and `medtrain show` says how. Segmentation:

        medtrain train
        medtrain train model=unet data=msd_liver data.root=/data/Task03_Liver
        medtrain train data=msd data.root=DIR data.fold=0 trainer.max_time=20min optimizer.lr=1e-3

    Labelled images; `medtrain list task --long` tells which task answers which question:

        medtrain train data=phantom_images
        medtrain train model=resnet18 data=image_folder data.root=FOLDER
        medtrain train data=csv data.path=labels.csv data.images=file data.targets=grade task=ordinal
    """
    started = time.monotonic()
    with handle_errors(debug):
        from medtrain.config.compose import load_config

        composed = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ())
        if nproc > 1:
            from medtrain.cli._processes import relaunch

            raise typer.Exit(relaunch(nproc))
        from medtrain.engine.launch import start_run

        end(start_run(composed.tree, overrides=composed.overrides, started=started))
