"""What `medtrain data download` and `medtrain data inspect` print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from medtrain.data.fetch import Report
    from medtrain.data.inspect_outliers import Suspect

_LINE_EVERY_S = 15.0
_SHOWN_SUSPECTS = 20


def task_table() -> Table:
    """The tasks of the Decathlon."""
    from rich.table import Table

    from medtrain.data.decathlon import TASKS

    table = Table(box=None, pad_edge=False, header_style="bold", title="Medical Segmentation Decathlon (CC-BY-SA 4.0)")
    table.title_justify = "left"
    for title in ("Task", "Folder", "What"):
        table.add_column(title)
    table.add_column("Archive, about", justify="right")
    for task in TASKS:
        table.add_row(task.preset, task.folder, task.about, f"{task.size / 1e9:.2g} GB")
    return table


def suspects_table(cases: Sequence[Suspect]) -> Table:
    """The most suspicious cases."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", title="Suspicious cases", title_justify="left")
    table.add_column("Case", overflow="fold")
    table.add_column("Suspicion", justify="right")
    table.add_column("Why", overflow="fold")
    for case in cases[:_SHOWN_SUSPECTS]:
        more = f" (and {len(case.flags) - 2} more)" if len(case.flags) > 2 else ""
        why = "\n".join(flag.message for flag in case.flags[:2]) + more
        table.add_row(Text(case.case_id), f"{case.suspicion:.1f}", Text(why))
    if len(cases) > _SHOWN_SUSPECTS:
        table.add_row(f"... {len(cases) - _SHOWN_SUSPECTS} more", "", "all are in outliers.csv")
    return table


def name_files(files: Sequence[str]) -> str:
    """File names in a line, of many sheets the first and the last."""
    sheets = [name for name in files if name.endswith(".png")]
    others = [name for name in files if not name.endswith(".png")]
    return ", ".join([*others, f"{sheets[0]} to {sheets[-1]}" if len(sheets) > 1 else "".join(sheets)])


@contextmanager
def transfer_progress() -> Iterator[tuple[Report, Callable[[str], None]]]:
    """What bytes and remarks of a download are reported to: a bar on a terminal's stderr, a line now and then else."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    from medtrain.data.fetch import format_bytes

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        said = time.monotonic()

        def report(what: str, done: int, total: int | None) -> None:
            nonlocal said
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said > _LINE_EVERY_S:
                said = time.monotonic()
                of = f" of {format_bytes(total)}" if total else ""
                typer.echo(f"{what}: {format_bytes(done)}{of}", err=True)

        yield report, lambda text: console.print(Text(text), soft_wrap=True)
