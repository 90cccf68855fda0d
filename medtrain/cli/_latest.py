"""What `latest` stands for: the newest run that a command can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from medtrain.errors import UsageError

NAME = "latest"
Lacks = Callable[[Path], str | None]
"""What keeps a command from using a run, in words; None if nothing does."""


def resolve(path: Path, lacks: Lacks) -> Path:
    """The folder that was given; for `EXPERIMENT/latest`, the newest run of the experiment that the command can use.

    Says on stderr which one that is. `latest` alone is the newest run below `outputs`.

    Args:
        path: As typed.
        lacks: What keeps the command from using a run.

    Raises:
        UsageError: There is no such run.
    """
    if path.name != NAME or (path.is_dir() and not path.is_symlink()):
        return path
    from medtrain.run.runs import list_runs

    parent = path.parent
    if len(path.parts) == 1 and not path.is_symlink():
        parent = Path("outputs")
    runs = [Path(run.run) for run in reversed(list_runs(parent))]
    passed: list[str] = []
    for run in runs:
        reason = lacks(run)
        if reason is None:
            newer = f", for {'; '.join(passed)}" if passed else ""
            typer.echo(f"{NAME}: {run}{newer}", err=True)
            return run
        passed.append(f"{run.name} {reason}")
    raise UsageError(
        f"no run in {parent} can be used: {'; '.join(passed)}" if passed else f"there is no run in {parent}",
        hint=f"`medtrain runs {parent}` tells how they stand" if passed else "`medtrain runs` lists the runs",
    )


def lacks_weights(run: Path) -> str | None:
    """What keeps a run or a cross-validation from being applied."""
    from medtrain.crossval.folder import CrossvalFolder, is_crossval

    if is_crossval(run):
        return None if CrossvalFolder.open(run).read_record().members else "has no trained fold"
    return lacks_checkpoint(run)


def lacks_judged(run: Path) -> str | None:
    """What keeps a run or a cross-validation from being judged: unlike its ensemble, that needs no finished record."""
    from medtrain.crossval.folder import CrossvalFolder, is_crossval

    if is_crossval(run):
        folder = CrossvalFolder.open(run)
        done = any(folder.is_done(fold) for fold in range(folder.read_record().num_folds))
        return None if done else "has no trained fold"
    return lacks_checkpoint(run)


def lacks_checkpoint(run: Path) -> str | None:
    """What keeps a single run from being exported."""
    from medtrain.crossval.folder import is_crossval
    from medtrain.engine.checkpoint import CheckpointFolder
    from medtrain.sweep.folder import SweepFolder

    if is_crossval(run):
        return "is a cross-validation"
    if SweepFolder.is_sweep(run):
        return "is a sweep"
    return None if CheckpointFolder(run / "checkpoints").last() else "has no checkpoint"


def lacks_plan(run: Path) -> str | None:
    """What keeps a run, a cross-validation or a sweep from being continued."""
    from medtrain.sweep.folder import SweepFolder

    planned = SweepFolder.is_sweep(run) or ((run / "config.yaml").is_file() and (run / "plan.json").is_file())
    return None if planned else "ended before it was planned"
