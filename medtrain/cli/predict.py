"""`medtrain predict`: segment new scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug, Imports
from medtrain.cli._run import EXIT_FAILED, handle_errors
from medtrain.cli.evaluate import CheckpointOption, DeviceOption, RunArgument


def predict(
    run: RunArgument,
    scans: Annotated[Path, typer.Argument(metavar="IN", help="A folder of NIfTI scans, or one scan.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the segmentations.")],
    checkpoint: CheckpointOption = "best",
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Average over mirrored copies (slower, more accurate).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is in OUT already.")] = False,
    device: DeviceOption = "auto",
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Segment scans with a run's best weights.

    Each segmentation has the geometry of its scan and the label values of the training data. A scan that cannot be
    read is reported, the others go on, and the exit code is 1. Started again, it continues where it stopped.
    """
    with handle_errors(debug):
        from medtrain.config.saved import load_saved
        from medtrain.inference.evaluate import predict_run

        config = load_saved(run, imports=imports or ())
        complete = predict_run(
            run, config, scans, out, checkpoint=checkpoint, mirror=mirror, overwrite=overwrite, device=device
        )
        if not complete:
            raise typer.Exit(EXIT_FAILED)
