"""`medtrain validate`: check configs without running anything."""

from __future__ import annotations

from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports
from medtrain.cli._run import EXIT_USAGE, handle_errors


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from medtrain.cli.complete import complete_override

    return complete_override({**ctx.params, "overrides": ctx.params.get("targets")}, incomplete, config_name="sweep")


def validate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | FILE]...",
            help="Overrides to check together, or files (`my/*.yaml`) of experiments or sweeps to check one by one.",
            autocompletion=_complete,
            show_default=False,
        ),
    ] = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Check configs and list everything that is wrong; exit code 2 when something is.

    With nothing given, every option of every group, every experiment and every debug preset is composed and checked.
    Values that vary are checked as `medtrain sweep` takes them: every choice, and both ends of every range.
    """
    with handle_errors(debug):
        from medtrain.config.check import check_all

        checked = 0
        wrong = 0
        for name, problems in check_all(targets or (), config_dirs=config_dirs or (), imports=imports or ()):
            checked += 1
            wrong += bool(problems)
            typer.echo(f"{'wrong' if problems else 'ok':<5}  {name}")
            for problem in problems:
                line = f"{problem}; {problem.hint}" if problem.hint else str(problem)
                typer.echo(f"error: {name}: {line}" if name != str(problem.where) else f"error: {line}", err=True)
        typer.echo(f"{checked} checked, {wrong} wrong")
        if wrong:
            raise typer.Exit(EXIT_USAGE)
