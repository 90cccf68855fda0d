"""The command `medtrain`: declares the commands and runs the one that is asked for.

Every command lives in its own module and imports what it needs when it runs, so that `medtrain --help` and
completion answer at once.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Annotated, Any

import typer

import medtrain
from medtrain.cli._run import EXIT_INTERRUPTED, EXIT_USAGE, report, set_debug
from medtrain.cli.compare import compare
from medtrain.cli.crossval import crossval
from medtrain.cli.data import app as data_app
from medtrain.cli.describe import describe
from medtrain.cli.doctor import doctor
from medtrain.cli.evaluate import evaluate
from medtrain.cli.export import export
from medtrain.cli.list_ import list_
from medtrain.cli.plan import plan
from medtrain.cli.predict import predict
from medtrain.cli.resume import resume
from medtrain.cli.runs import runs
from medtrain.cli.show import show
from medtrain.cli.sweep import sweep
from medtrain.cli.train import train
from medtrain.cli.validate import validate

# plain help: readable in a pipe, and importing rich would take longer than everything else together
app = typer.Typer(
    name="medtrain",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(crossval)
app.command()(sweep)
app.command()(resume)
app.command()(evaluate)
app.command()(compare)
app.command()(predict)
app.command()(export)
app.add_typer(data_app, name="data")
app.command()(plan)
app.command()(show)
app.command("list")(list_)
app.command()(describe)
app.command()(validate)
app.command()(runs)
app.command()(doctor)


def _keep_examples(text: str) -> str:
    """Mark the indented blocks of a docstring, so that the parser's help does not join their lines."""
    return re.sub(r"\n+((?: {4}.*(?:\n|$))+)", r"\n\n\b\n\1\n", text)


for _info in (*app.registered_commands, *data_app.registered_commands):
    _docstring = inspect.getdoc(_info.callback) or ""
    _info.help = _keep_examples(_docstring)
    _info.short_help = _docstring.split("\n\n", 1)[0].split(";", 1)[0].replace("\n", " ").rstrip(".") + "."


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medtrain {medtrain.__version__}")
        raise typer.Exit


@app.callback()
def _medtrain(
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train medical-imaging models from composed configuration: segment scans, or classify, grade and measure images.

    Start with `medtrain train`, which needs no data, or with your own scans or images:

        medtrain train data=msd data.root=FOLDER
        medtrain train data=csv data.path=TABLE data.images=COLUMN data.targets=COLUMN

    See what a command line means with `medtrain show`, what there is with `medtrain list`.
    """
    set_debug(debug)


assert app.registered_callback is not None
app.registered_callback.help = _keep_examples(inspect.getdoc(_medtrain) or "")


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        result: Any = app(prog_name="medtrain", standalone_mode=False)
    except Exception as error:
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)


def _report(error: Exception) -> int:
    """Print what the argument parser refused; anything else was reported by its command or is unexpected."""
    format_message = getattr(error, "format_message", None)  # the parser's errors; typer does not export their class
    if format_message is None:
        return report(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(format_message(), file=sys.stderr)
        return EXIT_USAGE
    print(f"error: {_lower(format_message())}", file=sys.stderr)
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"hint: see `{context.command_path} --help`", file=sys.stderr)
    return EXIT_USAGE


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
