"""Find runs and say how they stand."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medtrain.errors import UsageError
from medtrain.run.folder import State, read_status

if TYPE_CHECKING:
    from rich.text import Text

_DEPTH = 4
_COLUMNS = ("Run", "Status", "Step", "Best", "Started")
_GAP, _INDENT = "  ", "    "
_NOTE, _LEAST_NOTE = 80, 24  # characters of a message: at most, and the least that is worth a column
_STYLES = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red", "killed": "red"}


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a list.

    Args:
        run: The run's folder.
        status: How it stands; `killed` if it says it is running and its process is dead.
        step: Optimizer steps done.
        metric: The monitored metric, None before the first evaluation.
        best: Its best value.
        best_step: Where that was reached.
        started: ISO 8601.
        updated: When the run last gave a sign of life, ISO 8601.
        message: Why it stopped or failed.
    """

    run: str
    status: State
    step: int
    metric: str | None
    best: float | None
    best_step: int | None
    started: str
    updated: str
    message: str


def list_runs(root: str | os.PathLike[str]) -> list[RunSummary]:
    """All runs below a folder, the oldest first.

    Args:
        root: A folder of experiments, an experiment, or one run.

    Raises:
        UsageError: The folder does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="`medtrain runs FOLDER` looks below another folder")
    return sorted(map(_summarize, _find(folder, _DEPTH)), key=lambda run: (run.started, run.run))


def print_runs(runs: Sequence[RunSummary], *, output: Literal["table", "json"]) -> None:
    """Write the list to stdout, as a table for people or as JSON for programs; only JSON has the whole messages."""
    if output == "json":
        sys.stdout.write(json.dumps([dataclasses.asdict(run) for run in runs], indent=2) + "\n")
        return
    from rich.console import Console

    console = Console(highlight=False)
    for line in _table(runs, console.width if console.is_terminal else None):
        console.print(line, soft_wrap=True)  # a path that is folded cannot be copied


def _table(runs: Sequence[RunSummary], width: int | None) -> Iterator[Text]:
    """The lines of the list, fitted to a terminal's width; messages are cut, paths never."""
    from rich.text import Text

    rows = [_COLUMNS, *map(_cells, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None and _total(widths) > width:
        widths.pop()  # when a run started is in its usual name as well
    room = _NOTE if width is None else min(_NOTE, width - _total(widths) - len(_GAP))
    notes = ["Note", *(" ".join(run.message.split()) for run in runs)]
    for row, note in zip(rows, notes, strict=True):
        line = Text(style="bold" if row is rows[0] else "")
        for name, cell, cell_width in zip(_COLUMNS, row, widths):
            padded = cell.rjust(cell_width) if name == "Step" else cell.ljust(cell_width)
            line.append(padded + _GAP, style=_STYLES.get(cell, "") if name == "Status" else "")
        if room >= _LEAST_NOTE:
            line.append(_cut(note, room))
        line.rstrip()
        yield line
        if room < _LEAST_NOTE and note and row is not rows[0] and row[1] != "done":
            yield Text(_INDENT + _cut(note, min(_NOTE, (width or _NOTE) - len(_INDENT))), style="dim")


def _cells(run: RunSummary) -> tuple[str, ...]:
    best = "-" if run.best is None else f"{run.metric} {run.best:.4f} at {run.best_step}"
    return run.run, run.status, str(run.step), best, run.started[:16].replace("T", " ")


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


def _find(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "status.json").is_file():
        yield folder
        return
    if depth == 0:
        return
    for entry in os.scandir(folder):
        # `latest` is a link to a run that is found by its own name
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _find(Path(entry.path), depth - 1)


def _summarize(run_dir: Path) -> RunSummary:
    status = read_status(run_dir)
    best = status.best
    return RunSummary(
        run=str(run_dir),
        status=status.state,
        step=status.step,
        metric=best["metric"] if best else None,
        best=best["value"] if best else None,
        best_step=best["step"] if best else None,
        started=status.started,
        updated=status.updated,
        message=status.message,
    )
