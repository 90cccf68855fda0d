"""The tables of a report, and the commands it ends with."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from medtrain import registry
from medtrain.config.space import Dimension
from medtrain.run.provenance import mask_command, mask_secrets
from medtrain.sweep.plan import SearchPlan
from medtrain.sweep.pruners import make_pruner
from medtrain.sweep.report.analysis import failure_groups
from medtrain.sweep.report.html import Cell, heading, paragraph, table
from medtrain.sweep.report.importance import LEAST_COMPLETE, LEAST_TRIALS, Shares
from medtrain.sweep.report.names import elide, format_duration, format_number, format_score, format_value, short_names
from medtrain.sweep.report.records import Record, SweepState
from medtrain.sweep.result import Definition, Objective
from medtrain.sweep.samplers import make_sampler

_ADVICE = {
    "oom": "Allow smaller batches or patches only, or a smaller network.",
    "nonfinite": "Lower the largest learning rate that is searched.",
    "killed": "Killed from outside: often the system, for lack of memory, or the time limit of a job.",
    "crash": "The console of the trial says more.",
    "error": "The settings contradict the data or each other: take such combinations out of the space.",
}
_STATE_TEXTS = {
    "complete": "trained to the end",
    "pruned": "ended early",
    "failed": "without a result",
    "running": "being trained",
    "waiting": "to be trained next",
}
_MOST_CLASSES = 12
_TONES = {"complete": "", "pruned": "faint", "failed": "bad", "running": "good", "waiting": "faint"}


def best_trials(sweep: SweepState) -> str:
    """The best ten, or the Pareto front."""
    if len(sweep.best) < 2:
        return ""
    title = "The Pareto front" if sweep.is_multi else f"The best {len(sweep.best)}"
    over = ", on average over its folds" if sweep.num_folds else ""
    remark = f"A value is that of the trial's best evaluation{over}."
    if sweep.num_finished < LEAST_TRIALS:
        remark += (
            f" How much each parameter matters is told from {LEAST_TRIALS} finished trials on; there are "
            f"{sweep.num_finished}."
        )
    rows = _trials(sweep, sweep.best, best=None if sweep.is_multi else 0, classes=True)
    return heading(title) + paragraph(remark, "faint") + rows


def by_class(sweep: SweepState, record: Record) -> str:
    """What a trial reached for each class in the first objective, and a warning where that is nothing.

    Args:
        sweep: The sweep.
        record: The trial.
    """
    goal = sweep.definition.objectives[0]
    found = record.by_class(goal.metric)
    if not found:
        return ""
    lost = [name for name, value in found.items() if _is_lost(value, goal)]
    rows = [
        (Cell(name), Cell(format_score(value), is_number=True, tone="bad" if name in lost else ""))
        for name, value in found.items()
    ]
    parts = [table(("Class", goal.metric), rows)]
    if lost:
        what = "no value" if all(math.isnan(found[name]) for name in lost) else "0 or no value"
        what = "0" if all(found[name] == 0 for name in lost) else what
        parts.append(
            paragraph(
                f"Warning: {goal.metric} of {', '.join(lost)} is {what}. The mean hides that this trial does not find "
                f"{'it' if len(lost) == 1 else 'them'} at all, or that no case of the validation set has "
                f"{'it' if len(lost) == 1 else 'them'}: see to that before you use it.",
                "bad",
            )
        )
    return "\n".join(parts)


def _is_lost(value: float, goal: Objective) -> bool:
    """Whether nothing of a class was found; an error of 0 is perfect."""
    return math.isnan(value) or (goal.mode == "max" and value == 0)


def all_trials(sweep: SweepState) -> str:
    """Every trial on a line."""
    return _trials(sweep, sweep.records, full=True)


def _trials(
    sweep: SweepState,
    records: Sequence[Record],
    *,
    best: int | None = None,
    full: bool = False,
    classes: bool = False,
) -> str:
    goal = sweep.definition.objectives[0]
    labels = list(dict.fromkeys(name for record in records for name in record.by_class(goal.metric)))
    labels = labels[:_MOST_CLASSES] if classes else []
    keys = [dimension.key for dimension in sweep.definition.space.dimensions]
    keys = [key for key in keys if any(key in record.params for record in records)]
    short = short_names(keys)
    rows = []
    for record in records:
        row = [Cell(str(record.number), is_number=True)]
        if full:
            row.append(Cell(record.state, tone=_TONES[record.state]))
        row += [Cell(format_score(value), is_number=True) for value in record.values]
        row += [_class_cell(record.by_class(goal.metric), label, goal) for label in labels]
        row += [_value(sweep, record, key) for key in keys]
        row.append(Cell(format_duration(record.seconds) if math.isfinite(record.seconds) else "", is_number=True))
        if full:
            spent = sweep.spent(record)
            row.append(Cell(f"{100 * spent:.0f} %" if math.isfinite(spent) else "", is_number=True))
            reason = record.message or ", ".join(f"misses {limit}" for limit in record.violated)
            if record.is_default:
                what = f"{'nearest to ' if sweep.is_default_near else ''}the configuration as it is"
                reason = "; ".join(filter(None, [what, reason]))
            row.append(Cell(elide(reason, 90), tone="faint"))
        rows.append(row)
    names = [objective.metric for objective in sweep.definition.objectives]
    last = ["Time", "Done", "Reason"] if full else ["Time"]
    return table(
        ["Trial", *(["State"] if full else []), *names, *labels, *(short[key] for key in keys), *last],
        rows,
        best=best,
        dense=True,
    )


def _class_cell(found: Mapping[str, float], label: str, goal: Objective) -> Cell:
    value = found.get(label)
    if value is None:
        return Cell("", is_number=True)
    return Cell(format_score(value), is_number=True, tone="bad" if _is_lost(value, goal) else "")


def _value(sweep: SweepState, record: Record, key: str) -> Cell:
    text = elide(format_value(record.params.get(key, "")), 32)
    return Cell(text, is_number=sweep.dimension(key).kind != "choice")


def fates(sweep: SweepState) -> str:
    """How many trials ended how, and why those that failed did."""
    counts = []
    for state, count in sweep.counts.items():
        text = _STATE_TEXTS[state]
        hopeless = sum(bool(record.failure) for record in sweep.select(state)) if state == "pruned" else 0
        if hopeless:
            text += f"; {hopeless} of them ran out of memory or diverged, which the search takes for bad places"
        if count:
            counts.append([Cell(str(count), is_number=True), Cell(state, tone=_TONES[state]), Cell(text, tone="faint")])
    violated = sum(bool(record.violated) for record in sweep.records)
    if violated:
        limits = ", ".join(map(str, sweep.definition.constraints))
        counts.append([Cell(str(violated), is_number=True), Cell("cannot win"), Cell(f"miss {limits}", tone="faint")])
    groups = []
    for group in failure_groups(sweep):
        first = f"trials/{group.numbers[0]:04d}.log"
        numbers = ", ".join(map(str, group.numbers[:8])) + (", ..." if len(group.numbers) > 8 else "")
        groups.append(
            [
                Cell(str(len(group.numbers)), is_number=True),
                Cell(group.failure, tone="bad"),
                Cell(elide(group.message, 160) or "no reason was given"),
                Cell(numbers, tone="faint"),
                Cell(_ADVICE.get(group.failure, ""), tone="faint"),
                Cell(first, is_code=True),
            ]
        )
    header = ("Trials", "Why", "Message of the first", "Which", "What helps", "Console of the first")
    return table(("Trials", "State", ""), counts) + table(header, groups)


def searched_space(sweep: SweepState, found: Sequence[Shares]) -> str:
    """What varied, and how much it mattered."""
    dimensions = sweep.definition.space.dimensions
    rated = [(goal, shares) for goal, shares in zip(sweep.definition.objectives, found) if shares]
    names = [f"Importance for {goal.metric}" if sweep.is_multi else "Importance" for goal, _ in rated]
    rows = [
        [
            Cell(dimension.key, is_code=True),
            Cell(_values(dimension)),
            Cell(_condition(dimension), tone="faint"),
            *(Cell(_percent(shares.get(dimension.key)), is_number=True) for _, shares in rated),
        ]
        for dimension in dimensions
    ]
    return table(("Parameter", "Values", "Only with", *names), rows) + paragraph(_rating(sweep, found), "faint")


def _percent(share: float | None) -> str:
    return "not rated" if share is None else f"{100 * share:.0f} %"


def _rating(sweep: SweepState, found: Sequence[Shares]) -> str:
    """How the importances were found, and what they do not say."""
    if not any(found):
        return f"Importances need {LEAST_TRIALS} trials, {LEAST_COMPLETE} of them complete, with different results."
    text = (
        "Importance is how far the values of the best quarter of the trials differ from those of all (PED-ANOVA, by "
        "Optuna); pruned trials count as bad. Small differences mean little."
    )
    keys = {dimension.key for dimension in sweep.definition.space.dimensions}
    if any(shares.keys() < keys for shares in found if shares):
        text += " A parameter is not rated where too few trials or no good one has it, or all have one value."
    return text


def _values(dimension: Dimension) -> str:
    if dimension.kind == "choice":
        return elide(", ".join(choice or "''" for choice in dimension.choices), 200)
    assert dimension.low is not None
    assert dimension.high is not None
    text = f"{format_number(dimension.low)} .. {format_number(dimension.high)}"
    text += f" in steps of {format_number(dimension.step)}" if dimension.step is not None else ""
    text += ", whole numbers" if dimension.kind == "int" and dimension.step is None else ""
    return text + (", logarithmic" if dimension.log else "")


def _condition(dimension: Dimension) -> str:
    return "; ".join(f"{key}={' or '.join(allowed)}" for key, allowed in dimension.when.items())


def settings(sweep: SweepState) -> str:
    """What was fixed: the configuration, the objectives and how the search was done."""
    definition = sweep.definition
    section = definition.sweep
    better = {"max": "higher is better", "min": "lower is better"}
    goals = [f"{goal.metric} ({better[goal.mode]})" for goal in definition.objectives]
    rows = [
        ("Objectives" if len(goals) > 1 else "Objective", ", ".join(goals)),
        ("Constraints", ", ".join(map(str, definition.constraints))),
        ("Everything else", shlex.join(mask_command(definition.overrides))),
        ("Sampler", _component("sampler", definition)),
        ("Pruner", _component("pruner", definition)),
        ("Folds", ", ".join(map(str, section.get("folds") or ()))),
        ("Warm start", ", ".join(section.get("warm_start") or ())),
        ("Points in the space", f"{definition.space.size or 'infinitely many'}"),
    ]
    return table(("", ""), [[Cell(name, tone="faint"), Cell(text)] for name, text in rows if text])


def _component(group: Literal["sampler", "pruner"], definition: Definition) -> str:
    """Name and settings of a sampler or pruner, as in the configuration, and what `auto` has chosen."""
    values = definition.sampler if group == "sampler" else definition.pruner
    given = ", ".join(f"{key}={value}" for key, value in values.items() if key != "name" and value is not None)
    name = str(values.get("name", "?"))
    if name == "auto":
        name = f"{_chosen(group, definition)}, chosen by auto"
    return name + (f" ({given})" if given else "")


def _chosen(group: Literal["sampler", "pruner"], definition: Definition) -> str:
    """The registered name of what `auto` means in a sweep."""
    plan = SearchPlan.of(definition)
    if group == "sampler":
        made: object = make_sampler(dict(definition.sampler), plan)
    else:
        made = make_pruner(dict(definition.pruner), plan)
    return next(name for name in registry.names(group) if registry.get(group, name).target is type(made))


def typed_out(sweep: SweepState, record: Record) -> list[str]:
    """The overrides of a run by itself that repeats a trial, each key once.

    Args:
        sweep: The sweep.
        record: The trial.
    """
    definition = sweep.definition
    fixed = definition.full_overrides or definition.overrides
    words: dict[str, str] = {}
    for word in (*fixed, *definition.space.overrides(record.params)):
        key = word.partition("=")[0].lstrip("+")
        words.pop(key, None)  # the last one holds, in its place
        words[key] = word
    return list(words.values())


def path_to_type(path: Path) -> str:
    """A path as short as it can be typed from here, quoted for a shell."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def command_lines(sweep: SweepState) -> list[str]:
    """What to type next, with a remark each."""
    folder = path_to_type(sweep.folder)
    total = sweep.definition.sweep.get("n_trials") or sweep.num_finished or 20
    is_done = 0 < (sweep.definition.sweep.get("n_trials") or 0) <= sweep.num_finished
    lines = [
        *([] if is_done else [(f"medtrain resume {folder}", "go on")]),
        (f"medtrain resume {folder} sweep.n_trials={total * 2}", "more trials"),
        (f"medtrain sweep --report {folder}", "this report again"),
        (*_dashboard(sweep),),
    ]
    width = max(len(line) for line, _ in lines)
    return [f"{line:<{width}}    # {remark}" for line, remark in lines]


def _dashboard(sweep: SweepState) -> tuple[str, str]:
    """How to see the study in optuna-dashboard, which reads journals by their path and data bases by their address."""
    storage = str(sweep.definition.sweep.get("storage") or sweep.folder / "journal.log")
    remark = "in the browser, live (pip install optuna-dashboard)"
    scheme, separator, rest = storage.partition("://")
    if scheme == "grpc" and separator:
        return "optuna-dashboard STORAGE", f"on the machine that serves {storage}, with the storage it serves"
    if scheme.startswith("postgres") and separator:
        address = f"postgresql+psycopg://{rest}"
        return f"optuna-dashboard {shlex.quote(mask_secrets(address))}", remark
    if separator:
        return f"optuna-dashboard {shlex.quote(storage)}", remark
    path = Path(storage)
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        return f"optuna-dashboard {shlex.quote(f'sqlite:///{path}')}", remark
    return f"optuna-dashboard {path_to_type(path)}", remark
