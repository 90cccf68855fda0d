"""trials.csv: every trial on a line, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from medtrain.run.atomic import atomic_write
from medtrain.sweep.report.records import Record, SweepState

NAME = "trials.csv"
_FIRST = ("number", "state")
_LAST = (
    "default",
    "violated",
    "percent",
    "step",
    "seconds",
    "overhead_s",
    "failure",
    "message",
    "machine",
    "started",
    "ended",
    "folder",
)


def write_trials(sweep: SweepState) -> Path:
    """Write trials.csv: the objectives, every searched parameter, all other metrics, and what became of each trial.

    Empty cells are parameters that a trial does not have and numbers that there are not. The column `default` holds 1
    for the configuration as it is, or `nearest` where it lies outside of the space.

    Args:
        sweep: The sweep.

    Returns:
        The file.
    """
    objectives = [objective.metric for objective in sweep.definition.objectives]
    keys = [dimension.key for dimension in sweep.definition.space.dimensions]
    others = sorted({name for record in sweep.records for name in record.metrics} - set(objectives))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_FIRST, *objectives, *keys, *others, *_LAST])
    for record in sweep.records:
        writer.writerow(
            [
                record.number,
                record.state,
                *map(_cell, record.values),
                *(_cell(record.params.get(key)) for key in keys),
                *(_cell(record.metrics.get(name)) for name in others),
                *map(_cell, _facts(sweep, record)),
            ]
        )
    path = sweep.folder / NAME
    atomic_write(path, buffer.getvalue())
    return path


def _facts(sweep: SweepState, record: Record) -> list[Any]:
    """What the columns `_LAST` hold."""
    spent = sweep.spent(record)
    return [
        _default(sweep, record),
        "; ".join(record.violated),
        round(100 * spent, 3) if math.isfinite(spent) else None,
        record.step,
        record.seconds,
        record.overhead_s,
        record.failure,
        record.message,
        record.machine,
        record.started.isoformat(timespec="seconds") if record.started else None,
        record.ended.isoformat(timespec="seconds") if record.ended else None,
        record.folder if record.state != "waiting" else None,
    ]


def _default(sweep: SweepState, record: Record) -> int | str:
    """1 for the configuration as it is; `nearest` where that lies outside of the space."""
    return "nearest" if record.is_default and sweep.is_default_near else int(record.is_default)


def _cell(value: Any) -> str:
    """Numbers so that they read back exactly; nothing for what there is not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
