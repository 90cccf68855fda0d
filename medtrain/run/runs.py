"""Find runs and say how they stand."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtrain.errors import MedtrainError
from medtrain.run.folder import State, read_status

_DEPTH = 4
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
        MedtrainError: The folder does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise MedtrainError(f"{folder} is not a folder", hint="`medtrain runs FOLDER` looks below another folder")
    return sorted(map(_summarize, _find(folder, _DEPTH)), key=lambda run: (run.started, run.run))


def print_runs(runs: Sequence[RunSummary], *, output: Literal["table", "json"]) -> None:
    """Write the list to stdout, as a table for people or as JSON for programs."""
    if output == "json":
        sys.stdout.write(json.dumps([dataclasses.asdict(run) for run in runs], indent=2) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # a program that reads it must not find folded cells
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("Run", "Status", "Step", "Best", "Started", "Note"):
        table.add_column(name, justify="right" if name == "Step" else "left", overflow="fold")
    for run in runs:
        best = "-" if run.best is None else f"{run.metric} {run.best:.4f} at {run.best_step}"
        status = Text(run.status, style=_STYLES.get(run.status, ""))
        started = run.started[:16].replace("T", " ")
        table.add_row(Text(run.run), status, str(run.step), Text(best), started, Text(run.message))
    console.print(table)


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
