"""Read the metrics of a run back from its folder."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All logged rows, `{"step", "epoch", metric: value}`, from metrics.jsonl or, without it, metrics.csv.

    A row holds what was logged at its step only. Rows that cannot be read end the list: a running process may be
    writing the last one.
    """
    rows: list[dict[str, float]] = []
    path = run_dir / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            rows.append({key: math.nan if value is None else value for key, value in values.items()})
        return rows
    path = run_dir / "metrics.csv"
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    rows.append({key: float(cell) for key, cell in row.items() if cell})
                except (TypeError, ValueError):
                    break
    return rows


def evaluations(rows: list[dict[str, float]], monitor: str) -> list[dict[str, float]]:
    """The rows with an evaluation, training numbers left out.

    Args:
        rows: What `read_metrics` returned.
        monitor: Key of the monitored metric, e.g. `val/dice`.
    """
    part = monitor.partition("/")[0] + "/"
    return [
        {key: value for key, value in row.items() if key in ("step", "epoch") or key.startswith(part)}
        for row in rows
        if monitor in row
    ]
