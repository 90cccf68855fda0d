"""The file of pretrained weights that a run began with: noted then, so that a moved file can be told from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.errors import ConfigError, Problem
from medtrain.run.atomic import atomic_write_json

_NAME = "weights.json"


def record_weights(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Note the content of the file `model.weights`; nothing is written of a run without one.

    Args:
        run_dir: The run's folder.
        config: Its configuration.
    """
    weights = config["model"].get("weights")
    if _is_file(weights):
        atomic_write_json(run_dir / _NAME, {"path": weights, "sha256": digest_file(Path(weights))})


def check_weights(run_dir: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse other pretrained weights for a run whose checkpoints hold all of its weights: they would have no effect.

    Args:
        run_dir: The run's folder.
        before: The run's configuration.
        after: The same with the user's changes.

    Raises:
        ConfigError: `model.weights` changed, and is not the same file in another place.
    """
    old, new = before["model"].get("weights"), after["model"].get("weights")
    if old == new:
        return
    if _is_file(old) and _is_file(new):
        known = _recorded(run_dir) or _digest_if_there(old)
        if known is not None and known == _digest_if_there(new):
            return
    why = "the run has learned all of its weights, and its checkpoints hold them"
    raise ConfigError(
        [
            Problem(
                "model.weights",
                f"was {old!r} when the run began and cannot become {new!r}: {why}",
                hint="leave it as it was; to begin with other weights start a new run",
            )
        ]
    )


def digest_file(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    if path.is_dir():
        total = hashlib.sha256()
        for part in sorted(path.rglob("*")):
            if part.is_file():
                total.update(f"{part.relative_to(path).as_posix()} {digest_file(part)}\n".encode())
        return total.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_file(weights: Any) -> bool:
    return isinstance(weights, str) and weights != "timm"


def _digest_if_there(weights: str) -> str | None:
    path = Path(weights).expanduser()
    return digest_file(path) if path.exists() else None


def _recorded(run_dir: Path) -> str | None:
    try:
        return str(json.loads((run_dir / _NAME).read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        return None  # a run of an earlier version
