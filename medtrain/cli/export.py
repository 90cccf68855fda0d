"""`medtrain export`: write a run's network to files that need no medtrain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medtrain.cli._latest import lacks_checkpoint, resolve
from medtrain.cli._options import Debug, Imports
from medtrain.cli._run import handle_errors
from medtrain.cli.evaluate import CheckpointOption, DeviceOption, RunArgument

if TYPE_CHECKING:
    from medtrain.export.types import ExportedFile


def export(
    run: RunArgument,
    formats: Annotated[
        list[str],
        typer.Option("--format", metavar="FORMAT", help="torchscript, onnx or torch_export; may be repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to make; RUN/export if not given.")
    ] = None,
    checkpoint: CheckpointOption = "best",
    device: DeviceOption = "cpu",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Allowed difference, relative to the largest logit.", min=1e-12)
    ] = 1e-3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in DIR.")] = False,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Write a run's network as TorchScript, ONNX or torch.export, with a manifest of how to use it.

    Each file is compared with the network in memory, on random input and on a case where the data is at hand. The
    folder appears only when all agree. With the second stage of a cascade goes the first, in folders of its own, and
    `predict.py` runs both.
    """
    with handle_errors(debug):
        from medtrain.config.saved import load_saved
        from medtrain.crossval.folder import refuse_crossval
        from medtrain.export.run import export_run

        run = resolve(run, lacks_checkpoint)
        refuse_crossval(run, "medtrain export")
        config = load_saved(run, imports=imports or ())
        files = export_run(
            run, config, formats, out, checkpoint=checkpoint, device=device, tolerance=tolerance, overwrite=overwrite
        )
        typer.echo(_table(files))
        folder = files[0].path.parent
        typer.echo(f"\nexported to {folder}; how to use the files: {folder / 'manifest.json'}{_script_hint(folder)}")


def _script_hint(folder: Path) -> str:
    """How to run the ready script, where the export has one."""
    script = folder / "predict.py"
    if not script.exists():
        return ""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    usage = "IN OUT.csv" if manifest.get("family") == "images" else "SCAN.nii.gz OUT.nii.gz"
    return f"; without medtrain: python {script} {usage}"


def _table(files: Sequence[ExportedFile]) -> str:
    rows = [("format", "file", "size", "max error", "allowed", "same labels", "compared on")]
    for file in files:
        worst = file.worst
        agreement = min(result.label_agreement for result in file.parity)
        kinds = ", ".join(dict.fromkeys(result.kind for result in file.parity))
        rows.append(
            (
                file.format,
                file.path.relative_to(files[0].path.parent).as_posix(),
                _size(file.size_bytes),
                f"{worst.max_abs_error:.1e}",
                f"{worst.allowed:.1e}",
                f"{100 * agreement:.3f} %",
                kinds,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
