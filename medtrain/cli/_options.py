"""The arguments and options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from medtrain.run.provenance import mask_command


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from medtrain.cli.complete import complete_override

    of_sweep = ctx.command.name in ("sweep", "resume")
    return complete_override(ctx.params, incomplete, config_name="sweep" if of_sweep else "train")


def _tell_repeated(ctx: typer.Context, overrides: list[str] | None) -> list[str] | None:
    """Of two values for a key the last one counts, as in Hydra: scripts append to a list. That it does so is said."""
    given: dict[str, list[str]] = {}
    for text in overrides or ():
        key, sign, value = text.lstrip("+").partition("=")
        if sign and not ctx.resilient_parsing:  # completion only looks
            given.setdefault(re.sub(r"\[(\d+)\]", r".\1", key), []).append(value)
    for key, values in given.items():
        if len(set(values)) > 1:
            *others, last = (f"`{word}`" for word in mask_command([f"{key}={value}" for value in values]))
            typer.echo(f"note: {key} is given {len(values)} times: {last} counts, not {', '.join(others)}", err=True)
    return overrides


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Choose components (`model=unet`) and set values (`optimizer.lr=1e-3`); of two for a key the last counts.",
        autocompletion=_complete,
        callback=_tell_repeated,
        show_default=False,
    ),
]
"""The variadic overrides of a command: `def train(overrides: Overrides = None, ...)`."""

ConfigDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config-dir",
        metavar="DIR",
        help="A folder laid out as conf/, searched before the built-in one; may be repeated.",
        show_default=False,
    ),
]

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A Python module that registers your own components, such as my_lab.nets; may be repeated.",
        show_default=False,
    ),
]

Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]

Processes = Annotated[int, typer.Option("--nproc", min=1, help="Processes to train with on this machine, one per GPU.")]
