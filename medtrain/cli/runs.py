"""`medtrain runs`: the runs in a folder and how they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._options import Debug
from medtrain.cli._run import handle_errors


def runs(
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="An experiment, or a folder of them.")] = Path(
        "outputs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list for programs.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs below a folder, the oldest first: status, step, best value, and why a run stopped or failed."""
    with handle_errors(debug):
        from medtrain.run.runs import list_runs, print_runs

        found = list_runs(root)
        if not found and not as_json:
            typer.echo(f"no runs below {root}", err=True)
            return
        print_runs(found, output="json" if as_json else "table")
