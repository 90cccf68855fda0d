"""`medtrain describe`: what a component does and what can be set."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports
from medtrain.cli._run import handle_errors


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from medtrain.cli.complete import complete_option

    return complete_option(ctx.params, incomplete)


def describe(
    target: Annotated[
        str,
        typer.Argument(
            metavar="GROUP=OPTION",
            help="A component such as `model=unet`, or one key such as `trainer.max_time`.",
            autocompletion=_complete,
        ),
    ],
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Describe a component: what it does, its keys, their types, ranges, defaults and meaning."""
    with handle_errors(debug):
        from medtrain.config.describe import describe_target
        from medtrain.config.imports import import_modules

        import_modules(imports or ())
        width = min(shutil.get_terminal_size((100, 24)).columns, 110)
        typer.echo(describe_target(target, config_dirs=config_dirs or (), width=width), nl=False)
