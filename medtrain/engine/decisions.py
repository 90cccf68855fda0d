"""What was chosen on the validation part (thresholds, a temperature), kept in the run's folder.

A decision belongs to certain weights and inference settings; it is never taken on other data than the validation part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.registry import plain
from medtrain.run.atomic import atomic_write_json

FILE_NAME = "decisions.json"


def save_decision(run_dir: Path, step: int, inference: Mapping[str, Any], decision: Mapping[str, float]) -> None:
    """Keep a decision; an empty one needs no keeping.

    Args:
        run_dir: The run's folder.
        step: Optimizer steps behind the weights.
        inference: Settings it was taken with.
        decision: Of `Task.fit_decision`.
    """
    if decision:
        entry = {"step": step, "inference": plain(dict(inference)), "decision": dict(decision)}
        atomic_write_json(run_dir / FILE_NAME, {**_read(run_dir), _key(step, inference): entry})


def read_decision(run_dir: Path, step: int, inference: Mapping[str, Any]) -> dict[str, float]:
    """The decision of these weights and settings; empty where none was taken.

    Args:
        run_dir: The run's folder.
        step: Optimizer steps behind the weights.
        inference: Settings.
    """
    entry = _read(run_dir).get(_key(step, inference), {})
    return dict(entry.get("decision", {}))


def _read(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _key(step: int, inference: Mapping[str, Any]) -> str:
    text = json.dumps([step, plain(dict(inference))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
