"""Judge the folds of a cross-validation under other settings, each on the cases that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medtrain.config.saved import load_saved
from medtrain.crossval.folder import CrossvalFolder, judged_by
from medtrain.crossval.launch import evaluate_crossval
from medtrain.crossval.summary import read_member, summarize_judged
from medtrain.engine.build import check_evaluation
from medtrain.inference.evaluate import evaluate_run
from medtrain.run.log import setup_logging


def judge_folds(
    path: Path,
    overrides: Sequence[str],
    *,
    checkpoint: str = "best",
    cases: Sequence[str] = (),
    device: str = "auto",
    imports: Sequence[str] = (),
) -> None:
    """Judge every fold as `medtrain evaluate` judges a run, and put together what they found.

    The tables of each fold lie below its own `evaluation`, those of all cases in `evaluation/val_<checkpoint>` of the
    cross-validation. What it came to in training, and its post-processing, stay as they are.

    Args:
        path: The folder of the cross-validation.
        overrides: As of a run.
        checkpoint: `best`, `last` or a checkpoint's name, of every fold.
        cases: Judge and draw only these, each by the fold that has not seen it.
        device: auto, cpu, cuda or mps.
        imports: Modules that register the user's components.

    Raises:
        MedtrainError: No fold is done.
        ConfigError: Overrides that have no effect on judging.
        UsageError: A case that no fold which is done has held out.
    """
    setup_logging()
    folder = CrossvalFolder.open(path)
    record = folder.read_record()
    members = folder.done_members(record)
    chosen: dict[str, list[str]] = {name: [] for name in members}
    for case in cases:
        chosen[judged_by(folder.path, members, case)].append(case)
    trained = {name: load_saved(folder.path / name, imports=imports) for name in members}
    configs = {name: load_saved(folder.path / name, overrides, imports=imports) for name in members}
    for name in members:  # all of it is told before the first is judged
        check_evaluation(trained[name], configs[name])
    places = {}
    for name in (name for name in members if chosen[name] or not cases):
        run, before, config = folder.path / name, trained[name], configs[name]
        places[name] = evaluate_run(
            run, config, trained=before, checkpoint=checkpoint, cases=chosen[name], device=device
        )
    if cases:
        return
    if all(place == folder.path / name / "evaluation" for name, place in places.items()):
        evaluate_crossval(path, overrides, imports=imports)  # judged as in training, with data elsewhere for instance
        return
    found = [
        read_member(folder, name, imports, evaluation=place, overrides=overrides) for name, place in places.items()
    ]
    facts = {"members": list(members), "checkpoint": checkpoint, "overrides": list(overrides)}
    summarize_judged(record, found, folder.evaluation / f"val_{checkpoint}", facts=facts)
