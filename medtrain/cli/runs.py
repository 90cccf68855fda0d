"""`medtrain runs`: the runs in a folder, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug
from medtrain.cli._run import handle_errors


def runs(
    root: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.", show_default=False)] = Path(
        "outputs"
    ),
    debug: Debug = False,
) -> None:
    """List the runs below a folder (`outputs` if not given): what each is, how it stands, how good it is."""
    with handle_errors(debug):
        from medtrain.run.runs import list_runs

        for row in list_runs(root):
            typer.echo(row)
