"""Metrics as JSON lines, for programs."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.loggers.base import PERF_PREFIX, Logger
from medtrain.loggers.rows import RowFile
from medtrain.registry import register


@register("logger", "jsonl", runtime=("run_dir",))
class JsonlLogger(Logger):
    """Write metrics.jsonl, one object per logged step, and the timings to perf.jsonl.

    Numbers are exact. JSON has no NaN and no infinity: they are written as null and as 1e999, which parsers read as
    infinity. metrics.jsonl holds no times, so that of a resumed run is identical to that of a run never stopped.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, *, run_dir: Path) -> None:
        self._metrics = _ObjectFile(run_dir / "metrics.jsonl")
        self._perf = _ObjectFile(run_dir / "perf.jsonl")

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add the numbers to the object of the step."""
        values = {key: float(scalars[key]) for key in sorted(scalars)}
        perf = {key: value for key, value in values.items() if key.startswith(PERF_PREFIX)}
        metrics = {key: value for key, value in values.items() if key not in perf}
        if metrics:
            self._metrics.put({"step": step, "epoch": epoch, **metrics})
        if perf:
            now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._perf.put({"step": step, "epoch": epoch, "time": now, **perf})

    def resume(self, step: int) -> None:
        """Drop later objects."""
        self._metrics.resume(step)
        self._perf.resume(step)

    def flush(self) -> None:
        """Bring the objects to the disk."""
        self._metrics.file.sync()
        self._perf.file.sync()

    def close(self) -> None:
        """Bring the objects to the disk and close the files."""
        self.flush()
        self._metrics.file.close()
        self._perf.file.close()


class _ObjectFile:
    """One JSON object per step; objects of one step are merged."""

    def __init__(self, path: Path) -> None:
        self.file = RowFile(path)
        self._last: dict[str, Any] = {}

    def put(self, values: dict[str, Any]) -> None:
        same = self._last.get("step") == values["step"]
        merged = {**self._last, **values} if same else values
        head = [key for key in ("step", "epoch", "time") if key in merged]
        self._last = {key: merged[key] for key in (*head, *sorted(merged.keys() - set(head)))}
        self.file.put(_dump(self._last), replace_last=same)

    def resume(self, step: int) -> None:
        lines = [line for line in self.file.lines() if _step(line) <= step]
        self.file.rewrite(lines)
        self._last = {key: math.nan if v is None else v for key, v in json.loads(lines[-1]).items()} if lines else {}


def _step(line: str) -> float:
    """The line's step; infinite for what a power cut has garbled, which is always later than a checkpoint."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _dump(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {_number(value)}" for key, value in values.items()) + "}"


def _number(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "null" if math.isnan(value) else f"{'-' if value < 0 else ''}1e999"
    return json.dumps(value)
