"""`medtrain show`: print a composed config, what was derived, and where each value came from."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides
from medtrain.cli._run import handle_errors

if TYPE_CHECKING:
    from medtrain.engine.derive import Derivation


class Format(StrEnum):
    """How to write the config."""

    YAML = "yaml"
    JSON = "json"
    FLAT = "flat"


def show(
    overrides: Overrides = None,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Fill in references and every value that follows from the data.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Only what differs from the defaults.")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value came from.")] = False,
    form: Annotated[
        Format, typer.Option("--format", help="`flat` is one override per line.", show_default=True)
    ] = Format.YAML,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Print the config that `medtrain train` would use with these overrides.

    Values that are null and follow from the data are named in a comment with the reason. Only data goes to stdout.
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config
        from medtrain.config.render import difference, to_flat, to_json, to_yaml

        composed = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ())
        derivation = _derive(composed.tree) if resolve or not diff else None
        tree: dict[str, Any] = composed.tree if resolve else composed.unresolved
        if diff:
            tree = difference(composed)
        elif resolve and derivation is not None:
            tree = derivation.config
        notes = _notes(derivation, filled=resolve) if not origin else composed.origins
        if form is Format.JSON:
            typer.echo(to_json(tree, composed.origins if origin else None), nl=False)
            for key, note in notes.items() if not origin else ():
                typer.echo(f"{key}: {note}", err=True)
        else:
            write = to_yaml if form is Format.YAML else to_flat
            typer.echo(write(tree, notes.get), nl=False)


def _derive(config: dict[str, Any]) -> Derivation | None:
    """What follows from the data; None, with a note on stderr, when the data cannot be read."""
    from medtrain.engine.derive import derive
    from medtrain.errors import MedtrainError

    try:
        return derive(config, progress=_report if sys.stderr.isatty() else None)
    except MedtrainError as error:
        first = error.message.splitlines()[0]
        typer.echo(f"note: what follows from the data is not shown: {first}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        return None


def _report(done: int, total: int, case_id: str) -> None:
    typer.echo(f"\rreading case {done} of {total}", err=True, nl=done == total)


def _notes(derivation: Derivation | None, *, filled: bool) -> dict[str, str]:
    from medtrain.config.annotations import show as write
    from medtrain.registry import plain

    values = derivation.values if derivation is not None else ()
    if filled:
        return {value.key: f"derived: {value.reason}" for value in values}
    return {value.key: f"derived: {write(plain(value.value))}: {value.reason}" for value in values}
