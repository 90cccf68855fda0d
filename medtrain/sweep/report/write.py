"""report.html: what a sweep found and what to type next, in one file; with trials.csv, rerun.csv and the pictures."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtrain.run.atomic import atomic_write
from medtrain.run.folder import read_status
from medtrain.sweep.report.analysis import Savings, advice, savings
from medtrain.sweep.report.html import Cell, commands, details, heading, page, paragraph, picture, table, tiles
from medtrain.sweep.report.importance import Shares, rate
from medtrain.sweep.report.names import count_of, format_duration, format_score, format_spread, format_value
from medtrain.sweep.report.parts import (
    all_trials,
    best_trials,
    by_class,
    command_lines,
    fates,
    path_to_type,
    searched_space,
    settings,
    typed_out,
)
from medtrain.sweep.report.plots import Picture, draw_pictures
from medtrain.sweep.report.records import Record, StudyLike, SweepState, read_sweep
from medtrain.sweep.report.rerun_summary import Lead, RerunRow, choose, lead, summarize_reruns, winner
from medtrain.sweep.report.trials_csv import write_trials

NAME = "report.html"
BEST = "best.yaml"


def write_report(folder: Path, study: StudyLike) -> list[Path]:
    """Write everything there is to see of a sweep as it stands; what there is too little for is left out.

    Args:
        folder: The sweep's folder.
        study: Its study, at any time: empty, running or finished.

    Returns:
        The files: report.html first, then trials.csv, rerun.csv if there is one, and the pictures.
    """
    sweep = read_sweep(folder, study)
    reruns = summarize_reruns(sweep.folder, sweep.definition.objectives)
    trials = write_trials(sweep)
    found = rate(sweep)
    pictures = draw_pictures(sweep, found, reruns)
    path = sweep.folder / NAME
    atomic_write(path, page(f"Sweep {sweep.name}", _parts(sweep, found, reruns, pictures)))
    tables = [trials, sweep.folder / "rerun.csv"] if reruns else [trials]
    return [path, *tables, *(item.path for item in pictures)]


def _parts(
    sweep: SweepState, found: Sequence[Shares], reruns: Sequence[RerunRow], pictures: Sequence[Picture]
) -> list[str]:
    saved = savings(sweep)
    return [
        heading(sweep.name, 1),
        paragraph(_standing(sweep), "faint"),
        tiles(_facts(sweep, saved)),
        _best(sweep, reruns),
        _reruns(sweep, reruns),
        best_trials(sweep),
        _advice(sweep),
        _fates(sweep, saved),
        heading("Pictures") if pictures else "",
        *(picture(item.path, item.title, item.caption) for item in pictures),
        heading("What was searched"),
        searched_space(sweep, found),
        settings(sweep),
        details(f"{_all(len(sweep.records))} (the same as trials.csv)", all_trials(sweep)),
        heading("What to do with it"),
        commands(command_lines(sweep)),
    ]


def _all(count: int) -> str:
    return "The one trial" if count == 1 else f"All {count} trials"


def _standing(sweep: SweepState) -> str:
    status = read_status(sweep.folder)
    now = datetime.datetime.now().astimezone()
    parts = [f"Report of {now:%Y-%m-%d %H:%M}"]
    if status.status != "unknown" and not (status.status == "running" and status.is_mine):
        parts.append(f"the sweep is {status.state}{f' ({status.message})' if status.message else ''}")
    parts += [
        f"{count_of(sweep.counts[state], 'trial')} {state}" for state in ("running", "waiting") if sweep.counts[state]
    ]
    return "; ".join(parts) + "."


def _facts(sweep: SweepState, saved: Savings | None) -> list[tuple[str, str]]:
    facts = []
    if sweep.best and not sweep.is_multi:
        objective = sweep.definition.objectives[0]
        value = sweep.best[0].values[0]
        facts.append((format_score(value), f"best {objective.metric}"))
        if sweep.default is not None:
            gain = value - sweep.default.values[0]
            facts.append((f"{'+' if gain > 0 else ''}{format_spread(gain)}", "against the configuration as it is"))
    elif sweep.best:
        facts.append((str(len(sweep.best)), f"{'trial' if len(sweep.best) == 1 else 'trials'} on the Pareto front"))
    total = sweep.definition.sweep.get("n_trials")
    facts.append((f"{sweep.num_finished}{f' of {total}' if total else ''}", "trials finished"))
    seconds = sum(record.seconds for record in sweep.records if math.isfinite(record.seconds))
    if seconds:
        facts.append((format_duration(seconds), "of training"))
    if saved is not None:
        facts.append((f"{100 * saved.fraction:.0f} %", "saved by pruning"))
    return facts


def _best(sweep: SweepState, reruns: Sequence[RerunRow]) -> str:
    found = choose(sweep, reruns)
    if found is None:
        text = "No trial is complete yet." if sweep.counts["complete"] == 0 else "No trial meets the constraints."
        return heading("The best") + paragraph(text)
    chosen, first = found
    parts = [
        heading("The best"),
        paragraph(_why(sweep, chosen, first)),
        by_class(sweep, chosen),
        paragraph(_about_default(sweep)),
        _point(sweep, chosen),
    ]
    lines = [f"medtrain train experiment={path_to_type(sweep.folder / BEST)}"] if (sweep.folder / BEST).exists() else []
    if lines:
        parts.append(commands(lines))
    exact = commands([shlex.join(["medtrain", "train", *typed_out(sweep, chosen)])])
    parts.append(
        paragraph(
            f"{BEST if lines else 'The command'} keeps the budget of a trial: for the final training, raise it with "
            "trainer.max_steps=NUMBER or trainer.max_time=TIME.",
            "faint",
        )
    )
    parts.append(details("The same, typed out", exact) if lines else exact)
    return "\n".join(filter(None, parts))


def _about_default(sweep: SweepState) -> str:
    """That the configuration as it is was not tried itself; empty when it lies in the space."""
    moved = sweep.definition.default_moved
    if not moved:
        return ""
    places = ", ".join(f"{key}={format_value(value)}" for key, value in moved.items())
    near = next((record for record in sweep.records if record.is_default), None)
    which = "" if near is None else f" Trial {near.number} is only the one nearest to the configuration as it is;"
    text = f"The configuration as it is lies outside of the space that was searched ({places}).{which}"
    return f"{text}{'' if which else ' It was not tried:'} what the search gained against it is not known."


def _why(sweep: SweepState, chosen: Record, first: RerunRow | None) -> str:
    objectives = sweep.definition.objectives
    scores = ", ".join(f"{goal.metric} {format_score(value)}" for goal, value in zip(objectives, chosen.values))
    if first is not None:
        return (
            f"Trial {chosen.number}: {objectives[0].metric} {format_score(first.mean())} on average over "
            f"{count_of(len(first.runs), 'run')} with other seeds or folds ({scores} in the search)."
        )
    if sweep.is_multi:
        more = len(sweep.best) - 1
        others = f"; {count_of(more, 'more trial is', 'more trials are')} on the front" if more else ""
        return f"Trial {chosen.number}, the best of the Pareto front in {objectives[0].metric}: {scores}{others}."
    return f"Trial {chosen.number}: {scores}. A single run: sweep.rerun_best=3 tells how much of it is luck."


def _point(sweep: SweepState, chosen: Record) -> str:
    default = {**(sweep.definition.default or {}), **sweep.definition.default_moved}
    rows = [
        (
            Cell(dimension.key, is_code=True),
            Cell(format_value(chosen.params[dimension.key]), is_code=True),
            Cell(format_value(default[dimension.key]) if dimension.key in default else "", is_code=True, tone="faint"),
        )
        for dimension in sweep.definition.space.active(chosen.params)
        if dimension.key in chosen.params
    ]
    return table(("Parameter", "Best", "As it is"), rows)


def _reruns(sweep: SweepState, reruns: Sequence[RerunRow]) -> str:
    if not reruns:
        return ""
    objectives = sweep.definition.objectives
    searched = {record.number: record for record in sweep.records}
    some_failed = any(row.failed for row in reruns)
    rows: list[Sequence[Any]] = []
    for row in reruns:
        cells = [Cell(str(row.trial), is_number=True), Cell(str(len(row.runs)), is_number=True)]
        for index in range(len(objectives)):
            values = row.values(index)
            span = f"{format_score(min(values))} .. {format_score(max(values))}" if values else "-"
            mean = f"{format_score(row.mean(index))} +- {format_spread(row.std(index))}" if values else "-"
            before = searched[row.trial].values[index] if row.trial in searched else math.nan
            cells += [Cell(text, is_number=True) for text in (mean, span, format_score(before))]
        rows.append([*cells, Cell(str(row.failed), is_number=True)] if some_failed else cells)
    names = [f"{goal.metric}{part}" for goal in objectives for part in ("", " span", " in the search")]
    first = winner(reruns, objectives)
    last = ("Failed",) if some_failed else ()
    text = table(("Trial", "Runs", *names, *last), rows, best=0 if first is not None else None)
    return heading("The best, trained again") + paragraph(_verdict(sweep, reruns)) + text


def _verdict(sweep: SweepState, reruns: Sequence[RerunRow]) -> str:
    """Whether the winner is more than luck."""
    objectives = sweep.definition.objectives
    first, ahead = winner(reruns, objectives), lead(reruns, objectives)
    if first is None:
        return "Mean and standard deviation of each configuration over its runs."
    text = f"Trial {first.trial} has the best mean."
    if sweep.best and sweep.best[0].number != first.trial:
        text = f"Trial {first.trial} has the best mean, although trial {sweep.best[0].number} won the search."
    if ahead is not None:
        text += f" {_gap(ahead)}"
    return f"{text} {_promised(sweep, reruns)}".rstrip()


def _gap(ahead: Lead) -> str:
    """How far the winner is ahead, and what that is worth."""
    gap = f"It leads trial {ahead.other.trial} by {format_spread(ahead.difference)}"
    if not ahead.is_enough:
        few = {0: "no runs with the same seed and fold", 1: "one run of each", 2: "two runs of each"}[ahead.pairs]
        return f"{gap}: {few} cannot tell whether that is luck; sweep.rerun_seeds=5 could."
    gap += f" (standard error {format_spread(ahead.error)} over {ahead.pairs} pairs of runs)"
    return f"{gap}: {'more than luck' if ahead.is_clear else 'luck cannot be ruled out'}."


def _promised(sweep: SweepState, reruns: Sequence[RerunRow]) -> str:
    """Which trials had a value in the search that training them again does not bear out."""
    searched = {record.number: record.values[0] for record in sweep.records}
    far = [str(row.trial) for row in reruns if row.is_far(searched.get(row.trial, math.nan))]
    if not far:
        return ""
    which = f"trial {far[0]} is" if len(far) == 1 else f"trials {', '.join(far)} is"
    return (
        f"The value in the search of {which} more than two standard deviations away from the mean of the runs: expect "
        "what the runs say."
    )


def _advice(sweep: SweepState) -> str:
    lines = advice(sweep)
    return heading("For a next sweep") + "".join(map(paragraph, lines)) if lines else ""


def _fates(sweep: SweepState, saved: Savings | None) -> str:
    if not sweep.records:
        return ""
    parts = [heading("What became of the trials"), fates(sweep)]
    if saved is not None:
        parts.append(
            paragraph(
                f"Pruning ended {count_of(saved.num_pruned, 'trial')} after {100 * saved.mean_spent:.0f} % of "
                f"{'its budget' if saved.num_pruned == 1 else 'their budget on average'}. That "
                f"saved the work of {saved.trials:.1f} whole trials, about "
                f"{format_duration(saved.seconds)}: {100 * saved.fraction:.0f} % of what the sweep would have cost."
            )
        )
    overheads = sorted(record.overhead_s for record in sweep.records if math.isfinite(record.overhead_s))
    if overheads:
        middle = format_duration(overheads[len(overheads) // 2])
        parts.append(paragraph(f"From a trial's start to its first optimizer step: {middle} (median)."))
    return "\n".join(parts)
