"""`medtrain data`: check a data set, bring it into the store of prepared cases, and clean that store."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medtrain.cli._data import name_files, suspects_table, task_table, transfer_progress
from medtrain.cli._options import ConfigDirs, Debug, Imports, Overrides
from medtrain.cli._run import EXIT_FAILED, handle_errors

if TYPE_CHECKING:
    from rich.table import Table

    from medtrain.data.case import Dataset
    from medtrain.data.check import CaseSummary, CheckReport
    from medtrain.data.clean import Entry
    from medtrain.data.images.settings import ImageData
    from medtrain.data.inspect_images import ImageInspection
    from medtrain.data.inspect_volumes import Inspection
    from medtrain.data.workers import Progress
    from medtrain.errors import Problem

app = typer.Typer(
    name="data", help="Get a data set, look at it, prepare it for training, clean up.", no_args_is_help=True
)


@app.command()
def check(
    overrides: Overrides = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read headers only: shapes and positions, no voxels or pixels.")
    ] = False,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Describe a data set and name everything that is wrong with its files; exit code 1 if anything is.

    Of labelled images also patients and identical images in two parts. Example:
        medtrain data check data=msd data.root=/data/Task03_Liver
        medtrain data check data=csv data.path=labels.csv data.images=[file] data.targets=[grade]
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config
        from medtrain.data.check import inspect_dataset
        from medtrain.data.io.folders import FilesError
        from medtrain.data.volume_data import VolumeData
        from medtrain.registry import build

        config = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ()).tree
        settings = build("data", config["data"])
        if not isinstance(settings, VolumeData):
            _check_images(settings, quick=quick)
            return
        known: Sequence[Problem] = ()
        try:
            dataset = settings.discover()
        except FilesError as error:  # the check goes on to what else is wrong
            dataset, known = error.dataset, error.problems
        with _progress("checking") as progress:
            report = inspect_dataset(dataset, known=known, deep=not quick, progress=progress)
        _print_report(dataset, report)
        if report.problems:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def download(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK", help="msd_liver, Task03_Liver ...; without one, all are listed.", show_default=False
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="The folder that gets the task's folder: $MEDTRAIN_DATA, or ./data, where data=msd_* look.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Another address of the archive.", show_default=False)
    ] = None,
    md5: Annotated[
        str | None,
        typer.Option("--md5", metavar="SUM", help="The checksum of another archive of the task.", show_default=False),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the archive beside the data.")] = False,
    debug: Debug = False,
) -> None:
    """Download a task of the Medical Segmentation Decathlon, check it and unpack it.

    Interrupted, the same command goes on where it was. Nothing has the task's name until all of it is there. Example:

        medtrain data download msd_liver --to /data
    """
    with handle_errors(debug):
        from medtrain.data.decathlon import default_folder, find_task
        from medtrain.data.download import download as bring

        if name is None:
            _print(task_table())
            return
        task = find_task(name)
        folder = (to or default_folder()).expanduser()
        with transfer_progress() as (report, say):
            target = bring(task, folder, url=url, md5=md5, keep=keep, report=report, say=say)
        typer.echo(f"{task.folder} ({task.about}; CC-BY-SA 4.0, cite Antonelli et al. 2022) is in {target}")
        root = "" if folder == default_folder() else f" data.root={shlex.quote(str(target))}"
        typer.echo(f"look at it:  medtrain data inspect data={task.preset}{root}")
        typer.echo(f"train on it: medtrain train model=unet data={task.preset}{root}")


@app.command()
def inspect(
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where to write; outputs/inspect/NAME without it.", show_default=False
        ),
    ] = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Look for labels that are wrong: compare every case with the others, and draw all of them, suspicious ones first.

    Writes sheet_01.png ... (every case with its label), outliers.csv, cases.csv (all numbers) and, of volumes,
    fingerprint.json. Files that are missing or cannot be read are listed, the others are looked at, and the exit code
    is 1. A folder belongs to one data set; of two that have the same name the second gets one of its own. Example:

        medtrain data inspect data=msd data.root=/data/Task03_Liver
        medtrain data inspect data=csv data.path=labels.csv data.images=[file] data.targets=[grade]
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config
        from medtrain.data.inspect_files import claim_folder
        from medtrain.data.io.folders import FilesError
        from medtrain.data.table import TableError
        from medtrain.data.volume_data import VolumeData
        from medtrain.registry import build
        from medtrain.run.log import setup_logging

        setup_logging()
        config = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ()).tree
        settings = build("data", config["data"])
        report: Inspection | ImageInspection
        with _progress("looking at") as progress:
            if isinstance(settings, VolumeData):
                from medtrain.data.inspect_volumes import inspect_volumes

                known: Sequence[Problem] = ()
                try:
                    dataset = settings.discover()
                except FilesError as error:
                    dataset, known = error.dataset, error.problems
                folder = claim_folder(out, dataset.dataset_name, dataset.root)
                report = inspect_volumes(settings, dataset, folder, known=known, progress=progress)
            else:
                from medtrain.data.inspect_images import inspect_images

                told: dict[str, Any] = {}
                try:
                    sample_set = settings.read()
                except TableError as error:
                    sample_set, told = error.sample_set, {"known": error.problems, "missing": error.missing}
                table = config["data"].get("path")
                folder = claim_folder(out, sample_set.set_name, sample_set.root, table and Path(table))
                report = inspect_images(settings, sample_set, folder, progress=progress, **told)
        suspicious = [case for case in report.cases if case.flags]
        if suspicious:
            _print(suspects_table(suspicious))
        if not report.compared:
            typer.echo("too few cases to compare with each other")
        typer.echo(
            f"{len(suspicious)} of {len(report.cases)} cases are unlike the others or cannot be used; in {folder}:"
        )
        typer.echo("  " + name_files([path.name for path in report.files]))
        _print_problems("problem", report.problems)
        if report.problems:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def prepare(
    overrides: Overrides = None,
    config_dirs: ConfigDirs = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Crop, resample and index every case once, as `medtrain train` with the same values would.

    What is prepared already is kept. Example:

        medtrain data prepare data=msd data.root=/data/Task03_Liver
    """
    with handle_errors(debug):
        from medtrain.config.compose import load_config

        config = load_config(overrides or (), config_dirs=config_dirs or (), imports=imports or ()).tree
        from medtrain.engine.derive import derive

        with _progress("scanning") as progress:
            derived = derive(config, progress=progress)
        done: list[str] = []
        with _progress("preparing") as progress:

            def count(number: int, total: int, case_id: str) -> None:
                done.append(case_id)
                progress(number, total, case_id)

            prepared = derived.settings.prepare(derived.plan, derived.found, progress=count)
        total, new = len(prepared.case_ids), len(done)
        rows = [("cases", f"{total} prepared: {new} now, {total - new} before")]
        rows += [(key, f"{value} ({why})") for key, value, why in derived.plan.facts()]
        rows.append(("store", config["data"]["store"]))
        _print(_facts(derived.found.dataset_name, rows))


@app.command()
def clean(
    store: Annotated[
        Path | None, typer.Argument(metavar="STORE", help="The folder data.store of the runs.", show_default=False)
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="Keep what was used within so many days.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Remove prepared cases that nothing has used for a while; whatever needs one again prepares it anew.

    Running trainings keep what they use: they note it once an hour. Example:

        medtrain data clean outputs/store --days 14 --dry-run
    """
    with handle_errors(debug):
        from medtrain.data.clean import DAY_S, list_entries, remove_entries
        from medtrain.data.store import format_size
        from medtrain.data.volume_data import VolumeData

        root = store or Path(VolumeData.store)
        before = time.time() - days * DAY_S
        entries = list_entries(root)
        gone = [entry for entry in entries if entry.last_used < before]
        if not dry_run:
            gone = remove_entries(root, gone, before=before)
        _print(_store_table(root, entries, {entry.path for entry in gone}, "would go" if dry_run else "removed"))
        whole, freed = (format_size(sum(entry.size for entry in part)) for part in (entries, gone))
        if gone:
            typer.echo(f"{freed} of {whole} {'would be freed' if dry_run else 'freed'}: not used for {days} days")
        else:
            typer.echo(f"nothing to remove: all of {whole} was used within {days} days")


def _check_images(settings: ImageData, *, quick: bool) -> None:
    from medtrain.data.sources.check import check_source

    with _progress("checking") as progress:
        report = check_source(settings, decode=not quick, progress=progress)
    for line in report.summary:
        typer.echo(line)
    _print_problems("warning", report.warnings)
    _print_problems("problem", report.problems)
    if report.problems:
        raise typer.Exit(EXIT_FAILED)
    typer.echo("no problems found")


def _print_report(dataset: Dataset, report: CheckReport) -> None:
    _print(_facts(dataset.dataset_name, list(_describe(dataset, report))))
    if any(case.voxels for case in report.cases):
        _print(_label_table(dataset, report.cases))
    _print_problems("warning", report.warnings)
    _print_problems("problem", report.problems)
    if not report.problems:
        typer.echo("no problems found")


def _describe(dataset: Dataset, report: CheckReport) -> Iterator[tuple[str, str]]:
    """What the data set is, one (topic, text) per line."""
    patients = len({case.group for case in dataset.cases})
    yield "folder", str(dataset.root)
    test = f", {len(dataset.test_cases)} without a label" if dataset.test_cases else ""
    yield "cases", f"{len(dataset.cases)} labelled, of {patients} patients{test}"
    yield "channels", ", ".join(dataset.channel_names)
    cases = [*report.cases, *report.test_cases]
    if not cases:
        return
    yield "shape (D H W)", _span([case.shape for case in cases])
    yield "spacing in mm", _span([case.spacing for case in cases])
    yield "orientation", _tally(case.orientation for case in cases)
    yield "stored as", _tally(case.dtype for case in cases)
    ranges = [case.intensity for case in cases if case.intensity is not None]
    if ranges:
        yield "intensity", f"{min(low for low, _ in ranges):g} to {max(high for _, high in ranges):g}"


def _label_table(dataset: Dataset, cases: Sequence[CaseSummary]) -> Table:
    from rich.table import Table

    declared = {value: name for name, value in dataset.labels.items()}
    if dataset.ignore_value is not None:
        declared[dataset.ignore_value] = "(ignored)"
    total = sum(sum(case.voxels.values()) for case in cases)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, side in [("Value", "right"), ("Label", "left"), ("Cases", "right"), ("Voxels", "right")]:
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    table.add_column("Median volume", justify="right")
    for value in sorted({*declared, *(value for case in cases for value in case.voxels)}):
        holders = [case for case in cases if case.voxels.get(value)]
        share = sum(case.voxels[value] for case in holders) / total
        volumes = [case.voxels[value] * case.spacing[0] * case.spacing[1] * case.spacing[2] / 1000 for case in holders]
        volume = _volume(median(volumes)) if holders and value else ""
        table.add_row(str(value), declared.get(value, "not declared"), str(len(holders)), f"{share:.3%}", volume)
    return table


def _store_table(root: Path, entries: Sequence[Entry], gone: Collection[Path], fate: str) -> Table:
    """The prepared cases by data set and spacing, those that go apart from those that stay."""
    from rich.table import Table
    from rich.text import Text

    from medtrain.data.store import format_size

    groups: dict[tuple[str, str, bool], list[Entry]] = {}
    for entry in entries:
        if entry.is_case:
            spacing = _by(entry.spacing) if entry.spacing else "unreadable" if entry.images is None else "images"
            groups.setdefault((entry.source or "unknown", spacing, entry.path in gone), []).append(entry)
    table = Table(box=None, pad_edge=False, header_style="bold", title=str(root), title_justify="left")
    table.add_column("Data set", overflow="fold")
    for title in ("Spacing in mm", "Cases", "Size", "Last used", ""):
        table.add_column(title, justify="left" if title in ("Spacing in mm", "") else "right")
    for (source, spacing, goes), group in sorted(groups.items()):
        size = format_size(sum(entry.size for entry in group))
        used = time.strftime("%Y-%m-%d", time.localtime(max(entry.last_used for entry in group)))
        count = sum(1 if entry.images is None else entry.images for entry in group)
        table.add_row(Text(source), spacing, str(count), size, used, fate if goes else "")
    return table


def _print_problems(kind: str, problems: Sequence[Problem]) -> None:
    if not problems:
        return
    typer.echo(f"{len(problems)} {kind}{'' if len(problems) == 1 else 's'}:")
    for problem in problems:
        typer.echo(f"  {problem}" + (f"; {problem.hint}" if problem.hint else ""))


def _facts(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for topic, text in rows:
        table.add_row(topic, Text(text))  # brackets in paths are no markup
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe has no width: keep lines whole
    console.print(table)
    console.print()


@contextmanager
def _progress(verb: str) -> Iterator[Progress]:
    """A bar on a terminal's stderr that vanishes when done; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None)

        def update(done: int, total: int, case_id: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{verb} {case_id}")

        yield update


def _span(rows: Sequence[Sequence[float]]) -> str:
    """Smallest, median and largest per axis; once if they are all the same."""
    axes = list(zip(*rows))
    low, middle, high = ([pick(axis) for axis in axes] for pick in (min, median, max))
    return _by(low) if low == high else f"{_by(low)} to {_by(high)}, median {_by(middle)}"


def _volume(millilitres: float) -> str:
    return f"{millilitres:,.0f} mL" if millilitres >= 100 else f"{millilitres:.3g} mL"


def _tally(values: Iterable[Any]) -> str:
    counts = Counter(values).most_common()
    return ", ".join(f"{value} ({count})" for value, count in counts) if len(counts) > 1 else str(counts[0][0])


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
