"""`medtrain list`: what can be chosen in each group."""

from __future__ import annotations

from typing import Annotated

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports
from medtrain.cli._run import handle_errors


def _complete(incomplete: str) -> list[str]:
    from medtrain.cli.complete import complete_group

    return complete_group(incomplete)


def list_(
    group: Annotated[
        str | None,
        typer.Argument(metavar="GROUP", help="One group only.", autocompletion=_complete, show_default=False),
    ] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Add what each option is.")] = False,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """List the options of each group, or of one group, one per line."""
    with handle_errors(debug):
        from medtrain.config.catalog import options, require_group, summary
        from medtrain.config.imports import import_modules
        from medtrain.config.paths import ALL_GROUPS

        import_modules(imports or ())
        folders = config_dirs or []
        if group is not None:
            names = options(require_group(group), folders)
            width = max((len(name) for name in names), default=0)
            for name in names:
                typer.echo(f"{name:<{width}}  {summary(group, name, folders)}".rstrip() if long else name)
            return
        width = max(len(name) for name in ALL_GROUPS)
        for name in ALL_GROUPS:
            if not long:
                typer.echo(f"{name:<{width}}  {' '.join(options(name, folders))}".rstrip())
                continue
            typer.echo(name)
            inner = max((len(option) for option in options(name, folders)), default=0)
            for option in options(name, folders):
                typer.echo(f"  {option:<{inner}}  {summary(name, option, folders)}".rstrip())
