"""`medtrain runs`: the runs in a folder and how they stand."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug
from medtrain.cli._run import handle_errors


class Format(StrEnum):
    """How to write the list."""

    TABLE = "table"
    JSON = "json"


def runs(
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="An experiment, or a folder of them.")] = Path(
        "outputs"
    ),
    form: Annotated[Format, typer.Option("--format", help="`json` is for programs.")] = Format.TABLE,
    debug: Debug = False,
) -> None:
    """List the runs below a folder, the oldest first: status, step, best value, and why a run stopped or failed.

    Long messages are cut; `--format json` has them whole.
    """
    with handle_errors(debug):
        from medtrain.run.runs import list_runs, print_runs

        found = list_runs(root)
        if not found and form is Format.TABLE:
            typer.echo(f"no runs below {root}", err=True)
            return
        print_runs(found, output=form.value)
