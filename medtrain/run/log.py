"""Logging for the whole program: one console on stderr, one log file per process in the run folder.

Modules use `logging.getLogger(__name__)`. What a program may read (`show`, `list --format json`) goes to stdout,
never through here. A record logged with `extra={"screen": False}` goes to the file only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

Level = Literal["debug", "info", "warning", "error"]

_ROOT = logging.getLogger("medtrain")
_WARNINGS = logging.getLogger("py.warnings")
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


class _LastingConsole(Console):
    """Falls silent when whoever reads it is gone (`train 2>&1 | tee log` after Ctrl-C, a closed terminal).

    The run goes on, or stops as it was asked to: its folder has the log. Rich would end the program.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # stderr is no file under test runners
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@functools.cache
def console() -> Console:
    """The one console: log lines, tables and the live progress share it, so that they never garble each other."""
    return _LastingConsole(stderr=True, highlight=False)


def is_live() -> bool:
    """Whether stderr is a terminal on which a progress bar can be redrawn.

    MEDTRAIN_NO_PROGRESS, a dumb terminal and a pipe (even with FORCE_COLOR, which many CI systems set) say no.
    """
    if os.environ.get("MEDTRAIN_NO_PROGRESS"):
        return False
    return sys.stderr.isatty() and console().is_terminal and not console().is_dumb_terminal


def setup_logging(*, level: Level = "info", run_dir: Path | None = None, rank: int = 0) -> None:
    """Send medtrain's log records and Python's warnings to the console and, with a run folder, to its log file.

    Calling it again replaces the earlier setting: once at the start of a command, again when the run folder is known.

    Args:
        level: The least severe records shown on the console; the file has `info` and above, or `debug` when asked for.
        run_dir: The run folder; log.txt in it is appended to, or log.rank<N>.txt by the other processes.
        rank: Process number of a distributed run; only process 0 writes to the console.
    """
    close_logging()
    number = logging.getLevelNamesMapping()[level.upper()]
    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append(_ConsoleHandler(number))
    if run_dir is not None:
        path = run_dir / ("log.txt" if rank == 0 else f"log.rank{rank}.txt")
        handlers.append(_FileHandler(path, min(number, logging.INFO)))
    if not handlers:
        handlers.append(logging.NullHandler())
    _ROOT.setLevel(min(number, logging.INFO))
    _ROOT.propagate = False
    for logger in (_ROOT, _WARNINGS):
        for handler in handlers:
            logger.addHandler(handler)
    _WARNINGS.propagate = False
    logging.captureWarnings(True)


def close_logging() -> None:
    """Undo `setup_logging`: close the log file and leave Python's logging as it was."""
    for handler in _own_handlers():
        _ROOT.removeHandler(handler)
        _WARNINGS.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)
    _ROOT.propagate = _WARNINGS.propagate = True
    _ROOT.setLevel(logging.NOTSET)


def _own_handlers() -> list[logging.Handler]:
    kinds = (_ConsoleHandler, _FileHandler, logging.NullHandler)
    return [handler for handler in list(_ROOT.handlers) if isinstance(handler, kinds)]


class _ConsoleHandler(logging.Handler):
    """Prints `12:34:56 message`; warnings and errors are marked by a word, and by colour on a terminal."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "screen", True)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return text
        time, _, rest = text.partition(" ")
        return f"{time} {record.levelname.lower()}: {rest}"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            style = _STYLES.get(record.levelno, "dim" if record.levelno < logging.INFO else "")
            console().print(Text(self.format(record), style=style), soft_wrap=True)
        except Exception:
            self.handleError(record)


class _FileHandler(logging.FileHandler):
    """Appends to the log file; gives up with one line on stderr when the disk refuses."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(path, encoding="utf-8")
        self.setLevel(level)
        self.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._broken = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._broken = True
            print(f"warning: cannot write {self.baseFilename}: {error.strerror}", file=sys.stderr)
        else:
            super().handleError(record)
