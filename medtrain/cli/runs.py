"""`medtrain runs`: the runs in a folder and how they stand."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug
from medtrain.cli._run import handle_errors


class Format(enum.StrEnum):
    """How to print the list."""

    table = "table"
    json = "json"


def runs(
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="An experiment, or a folder of them.")] = Path(
        "outputs"
    ),
    output: Annotated[Format, typer.Option("--format", help="A table, or a JSON list for programs.")] = Format.table,
    debug: Debug = False,
) -> None:
    """List the runs below a folder, the oldest first: status, step, best value, and why a run stopped or failed."""
    with handle_errors(debug):
        from medtrain.run.runs import list_runs, print_runs

        found = list_runs(root)
        if found or output is Format.json:
            print_runs(found, output="json" if output is Format.json else "table")
        else:
            typer.echo(f"no runs below {root}", err=True)
