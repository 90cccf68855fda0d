"""`medtrain predict`: apply a run to new scans, images and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug, Imports, Overrides
from medtrain.cli._run import EXIT_FAILED, handle_errors
from medtrain.cli.evaluate import CheckpointOption, DeviceOption, RunArgument

_IN = "A scan or image, a folder of them, or a table with the columns of the training table."
_OUT = "Folder for the segmentations; for everything else a folder, or the table to write (.csv)."


def predict(
    run: RunArgument,
    source: Annotated[Path, typer.Argument(metavar="IN", help=_IN)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=_OUT)],
    overrides: Overrides = None,
    checkpoint: CheckpointOption = "best",
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Average over mirrored copies (slower, more accurate).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is in OUT already.")] = False,
    device: DeviceOption = "auto",
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Segment scans, or classify, grade or measure images, bags and rows of a table, with a run's best weights.

    Each segmentation has the geometry of its scan and the label values of the training data. Of everything else
    `predictions.csv` tells the chosen class, probabilities and scores, and `predictions_attention.csv` which instance
    decided. Of bags, IN is a folder with one folder per bag. What cannot be read is reported, the others go on, and
    the exit code is 1. Started again, it continues where it stopped. Overrides may change `inference.*`, and
    `model.weights`, the file that a frozen network came from.
    """
    with handle_errors(debug):
        from medtrain.config.saved import load_saved
        from medtrain.engine.build import check_evaluation
        from medtrain.inference.evaluate import predict_run

        trained = load_saved(run, imports=imports or ())
        config = load_saved(run, overrides or (), imports=imports or ())
        check_evaluation(trained, config)
        complete = predict_run(
            run,
            config,
            source,
            out,
            trained=trained,
            checkpoint=checkpoint,
            mirror=mirror,
            overwrite=overwrite,
            device=device,
        )
        if not complete:
            raise typer.Exit(EXIT_FAILED)
