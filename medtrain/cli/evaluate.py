"""`medtrain evaluate`: judge a run on its validation, test or training cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medtrain.cli._latest import lacks_judged, resolve
from medtrain.cli._options import Debug, Imports, Overrides
from medtrain.cli._run import handle_errors

_RUN = "The run's folder; EXPERIMENT/latest is its newest run that has what is needed."
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help=_RUN, show_default=False)]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="NAME", help="`best`, `last` or a checkpoint such as step_00001200.")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or mps.")]


def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    checkpoint: CheckpointOption = "best",
    part: Annotated[str, typer.Option("--part", help="`val`, `test` or `train`: the cases to judge.")] = "val",
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="ID", help="Judge and draw this case, of any part; may be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    imports: Imports = None,
    debug: Debug = False,
) -> None:
    """Judge a run's weights on its validation, test or training cases.

    Segmentations are judged whole and on their own grid, labels over the whole part, with intervals by patient and
    subgroups. Prints the tables and the worst cases and writes `cases.csv`, `summary.json`, other tables and pictures
    to the run's `evaluation` folder, or to a folder below it when the choice differs from the run's own final
    evaluation. Overrides may change `inference.*`, `task.report`, `task.nsd_tolerance_mm`, `task.lesions`,
    `task.lesion_iou`, `data.root`, `data.path`, `data.store` and `model.weights`. Subgroups of segmentations are
    columns of a table of cases, and lesions are counted one by one:

        medtrain evaluate RUN task.lesions=[tumour] task.report.metadata=cases.csv task.report.subgroups=[site]

    Thresholds and the temperature that inference leaves to the validation part are chosen there, whichever part is
    judged:

        medtrain evaluate RUN --part test inference.threshold=youden task.report.subgroups=[sex]

    To see what is wrong with a case:

        medtrain evaluate RUN --case liver_017

    RUN may be the folder of a cross-validation: each fold judges the cases that it was not trained on, under the same
    overrides, and their evaluations are put together. Without any options the final evaluations are put together again.
    """
    with handle_errors(debug):
        from medtrain.crossval.folder import is_crossval

        run = resolve(run, lacks_judged)
        if is_crossval(run):
            from medtrain.crossval.judge import judge_folds
            from medtrain.crossval.launch import evaluate_crossval
            from medtrain.errors import UsageError

            if part != "val":
                raise UsageError(
                    f"{run} is a cross-validation: its folds are put together on the cases that each has not seen",
                    hint=f"judge one of its runs: medtrain evaluate {run / 'fold_0'} --part {part}",
                )
            if overrides or cases or checkpoint != "best" or device != "auto":
                judge_folds(
                    run,
                    overrides or (),
                    checkpoint=checkpoint,
                    cases=cases or (),
                    device=device,
                    imports=imports or (),
                )
            else:
                evaluate_crossval(run, imports=imports or ())
            return
        from medtrain.config.saved import load_saved
        from medtrain.engine.build import check_evaluation
        from medtrain.inference.evaluate import evaluate_run

        before = load_saved(run, imports=imports or ())
        config = load_saved(run, overrides or (), imports=imports or ())
        check_evaluation(before, config)
        evaluate_run(run, config, trained=before, checkpoint=checkpoint, part=part, cases=cases or (), device=device)
