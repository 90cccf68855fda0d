"""`medtrain predict`: apply a run to new scans, images and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from medtrain.cli._latest import lacks_weights, resolve
from medtrain.cli._options import Debug, Imports, Overrides
from medtrain.cli._run import EXIT_FAILED, handle_errors
from medtrain.cli.evaluate import CheckpointOption, DeviceOption, RunArgument

_IN = "A scan (NIfTI or DICOM) or image, a folder of them, or a table with the columns of the training table."
_OUT = "Folder for the segmentations; for everything else a folder, or the table to write (.csv)."


class SegmentationFormat(StrEnum):
    """Files that segmentations are written to."""

    NIFTI = "nifti"
    DICOM_SEG = "dicom_seg"


class Member(NamedTuple):
    """A run, with the user's changes and without."""

    path: Path
    config: Mapping[str, Any]
    trained: Mapping[str, Any]


def predict(
    run: RunArgument,
    source: Annotated[Path, typer.Argument(metavar="IN", help=_IN)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=_OUT)],
    overrides: Overrides = None,
    checkpoint: CheckpointOption = "best",
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Average over mirrored copies (slower, more accurate).")
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="Let this run decide together with RUN; may be repeated."),
    ] = None,
    output_format: Annotated[
        SegmentationFormat, typer.Option("--format", help="Of segmentations; dicom_seg is for scans that are DICOM.")
    ] = SegmentationFormat.NIFTI,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is in OUT already.")] = False,
    device: DeviceOption = "auto",
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Segment scans, or classify, grade or measure images, bags and rows of a table, with a run's best weights.

    RUN may be a cross-validation: all of its runs decide together, with the post-processing that it chose. Scans are
    NIfTI files, or DICOM series (slices, or an enhanced object with all frames) in IN and in folders below it. Of a
    model of several channels, files or folders of series CASE_0000, CASE_0001 ... are one scan.

    Each segmentation has the geometry of its scan and the label values of the training data. Of everything else
    `predictions.csv` tells the chosen class, probabilities and scores, and `predictions_attention.csv` which instance
    decided. Of bags, IN is a folder with one folder per bag. What cannot be read is reported, the others go on, and
    the exit code is 1. Started again, it continues where it stopped. Overrides may change `inference.*`,
    `model.weights`, the file that a frozen network came from, `data.root`, below which images of a table are, and
    `data.cascade_from`, where the first stage of a cascade is.
    """
    with handle_errors(debug):
        from medtrain.inference.evaluate import predict_run

        members: list[Member] = []
        for path in (run, *(others or ())):
            members += _members(path, overrides or (), imports or ())
        first, *more = members
        complete = predict_run(
            first.path,
            first.config,
            source,
            out,
            trained=first.trained,
            others=[(member.path, member.config) for member in more],
            output_format=output_format.value,
            checkpoint=checkpoint,
            mirror=mirror,
            overwrite=overwrite,
            device=device,
        )
        if not complete:
            raise typer.Exit(EXIT_FAILED)


def _members(path: Path, overrides: Sequence[str], imports: Sequence[str]) -> list[Member]:
    """A run, or the runs of a cross-validation with the post-processing that it chose."""
    from medtrain.config.saved import load_saved
    from medtrain.crossval.folder import CrossvalFolder, is_crossval
    from medtrain.engine.build import check_prediction
    from medtrain.errors import UsageError

    path = resolve(path, lacks_weights)
    places = [path]
    keep_largest: Sequence[str] | None = None
    if is_crossval(path):
        record = CrossvalFolder.open(path).read_record()
        if not record.members:
            raise UsageError(f"no fold of {path} is trained yet", hint=f"medtrain resume {path}")
        places = [path / name for name in record.members]
        if not any(override.startswith("inference.keep_largest=") for override in overrides):
            keep_largest = record.postprocess.get("keep_largest")
    members = []
    for place in places:
        trained = load_saved(place, imports=imports)
        config = load_saved(place, overrides, imports=imports)
        check_prediction(trained, config)
        if keep_largest is not None and "keep_largest" in config["inference"]:
            config = {**config, "inference": {**config["inference"], "keep_largest": list(keep_largest)}}
        members.append(Member(place, config, trained))
    return members
