"""The one place where errors become lines on stderr and an exit code.

Every command wraps its body:

    with handle_errors(debug):
        ...

Exit codes: 0 done, 1 the run failed, 2 usage or configuration, 3 stopped on a non-finite loss, 75 stopped by a
signal with a checkpoint saved (raised by the command as `typer.Exit(75)`), 130 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from medtrain.errors import MedtrainError, ProblemsError

if TYPE_CHECKING:
    from medtrain.engine.launch import Outcome

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130

_state = {"debug": False}


def set_debug(debug: bool) -> None:
    """Set what `medtrain --debug COMMAND` asks for; `COMMAND --debug` asks for it too."""
    _state["debug"] = debug


@contextmanager
def handle_errors(debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside into `error:` and `hint:` lines on stderr and `typer.Exit` with the code.

    Args:
        debug: Show the traceback as well; `medtrain --debug` has the same effect.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        code = report(error, debug=debug)
        raise typer.Exit(code) from error


def end(outcome: Outcome) -> NoReturn:
    """End a command that trained with the code of its outcome; say how to continue a run that was stopped.

    It is said here: a fold of a cross-validation or a trial of a sweep is continued by the whole.
    """
    if outcome.exit_code == EXIT_STOPPED:
        log.info("continue with: medtrain resume %s", outcome.run_dir)
    raise typer.Exit(outcome.exit_code)


def report(error: BaseException, *, debug: bool = False) -> int:
    """Print an error for people and return the exit code that belongs to it.

    Args:
        error: Anything that was raised.
        debug: Print the traceback first; `medtrain --debug` has the same effect.
    """
    debug = debug or _state["debug"]
    if debug:
        traceback.print_exception(error)
    lines, code = _explain(error)
    for line in lines:
        print(line, file=sys.stderr)
    return code


def _explain(error: BaseException) -> tuple[list[str], int]:
    if isinstance(error, KeyboardInterrupt):
        return ["error: interrupted"], EXIT_INTERRUPTED
    if isinstance(error, MedtrainError):
        return _describe(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return [], EXIT_FAILED  # `medtrain list | head -1` is no mistake
    if isinstance(error, OSError):
        return _describe_os_error(error), EXIT_FAILED
    text = " ".join(str(error).split())
    name = type(error).__name__
    return [f"error: {name}: {text}" if text else f"error: {name}", _DEBUG_HINT], EXIT_FAILED


_DEBUG_HINT = "hint: this is not expected; run the command again with --debug to see where it comes from"


def _describe(error: MedtrainError) -> list[str]:
    if not isinstance(error, ProblemsError):
        hint = [f"hint: {error.hint}"] if error.hint else []
        return [f"error: {error.message}", *hint]
    if len(error.problems) == 1:
        problem = error.problems[0]
        hint = [f"hint: {problem.hint}"] if problem.hint else []
        return [f"error: {problem}", *hint]
    lines = [f"{problem}; {problem.hint}" if problem.hint else str(problem) for problem in error.problems]
    if error.heading:
        return [f"error: {error.heading}", *(f"  {line}" for line in lines)]
    return [f"error: {line}" for line in lines]


def _describe_os_error(error: OSError) -> list[str]:
    where = f": {error.filename}" if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [
            f"error: the disk is full{where}",
            "hint: free some space, or choose another place with run.root=FOLDER and data.store=FOLDER",
        ]
    reason = error.strerror or str(error) or type(error).__name__
    return [f"error: {reason[:1].lower()}{reason[1:]}{where}"]


def _silence_stdout() -> None:
    """Give stdout a place to flush to, or Python complains once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
