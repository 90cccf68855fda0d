"""`medtrain compare`: runs against each other on the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._latest import lacks_weights, resolve
from medtrain.cli._options import Debug, Imports
from medtrain.cli._run import handle_errors


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B...", help="Folders of runs or cross-validations.", show_default=False),
    ],
    part: Annotated[str, typer.Option("--part", help="`val`, `test` or `train`: the cases to compare on.")] = "val",
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The main metric; else what RUN_A was chosen by."),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare runs of different splits on the cases that both have judged.")
    ] = False,
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Draws, and the most exchanges.")] = 1000,
    confidence: Annotated[float, typer.Option("--confidence", help="Share of the draws inside an interval.")] = 0.95,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write all metrics, too: .csv or .json.")
    ] = None,
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Compare runs on the cases that they have judged: the first with each of the others.

    Reads the tables of final evaluations, and computes nothing anew but the metrics. Says of every metric the
    difference, its interval (patients drawn again, both runs with the same), in how many draws B is better, and the p
    value of exchanging A and B patient by patient (exact where all 2^n exchanges of n patients are at most --resamples,
    so up to 9 patients by default); and names the cases in which they differ most:

        medtrain compare RUN_A RUN_B --metric nsd
        medtrain compare RUN_A RUN_B RUN_C --part test --out comparison.csv

    A metric that the final evaluation lacks is taken from the newest evaluation of the same weights that has it, e.g.
    after `medtrain evaluate RUN task.lesions=[tumour]` on each. Metrics that runs have judged by other rules, such as
    another task.nsd_tolerance_mm, are left out, and it is said. Folds of a cross-validation that have chosen thresholds
    are judged each by its own, and their metrics are means over the folds.

    Runs on other data, splits or cases are refused, and it is said what differs. With --common the cases that both
    have judged are compared, unless one of the runs was trained on some of them.
    """
    with handle_errors(debug):
        from rich.console import Console

        from medtrain.compare.runs import check_out, compare_runs, write_comparison
        from medtrain.compare.shown import comparison_notes, comparison_table
        from medtrain.errors import UsageError
        from medtrain.run.log import setup_logging

        setup_logging()
        runs = [resolve(run, lacks_weights) for run in runs]
        if not 0 < confidence < 1:
            raise UsageError(f"--confidence {confidence}: choose a share between 0 and 1, e.g. 0.95")
        if out is not None:
            check_out(out)
        found, main, specs = compare_runs(
            runs,
            part=part,
            metric=metric,
            common=common,
            resamples=resamples,
            confidence=confidence,
            imports=imports or (),
        )
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=100)  # a pipe has no width
        for item in found:
            console.print(comparison_table(item, specs, main=main, part=part, confidence=confidence))
            for note in comparison_notes(item, main=main):
                typer.echo(note)
        if out is not None:
            write_comparison(out, found, main=main, part=part)
            typer.echo(f"written to {out}")
