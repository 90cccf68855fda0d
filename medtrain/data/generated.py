"""Folders of generated data: written once, found again, and never over somebody's files."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medtrain.errors import UsageError
from medtrain.run.atomic import atomic_dir, remove_leftovers

MARKER = "phantom.json"
"""File of a generated folder that says what was asked for and which files are generated ones."""

_LOG = logging.getLogger(__name__)


def generate(root: str | None, wanted: Mapping[str, Any], write: Callable[[Path], None], *, what: str) -> Path:
    """Write generated files into a folder unless it holds these very ones; return the folder.

    Args:
        root: The folder.
        wanted: What the files follow from; a folder of other values is written anew.
        write: Called with an empty folder, which takes the place of `root` once it is complete.
        what: How much is written, for people, such as `20 cases`.

    Raises:
        UsageError: No root, or the folder holds files that were not generated.
    """
    if root is None:
        raise UsageError("data.root is not set: where may the phantom be written?", hint="data.root=outputs/phantom")
    folder = Path(root).expanduser()
    while not _is_complete(folder, wanted):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        _say(f"generating the phantom in {folder}: {what}")
        # another process may be making the same: whoever comes first wins
        with atomic_dir(folder, existing="replace" if folder.exists() else "keep", sync=False) as temporary:
            write(temporary)
            found = sorted(path for path in temporary.rglob("*") if path.is_file())
            files = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in found}
            marker = json.dumps({"parameters": wanted, "files": files}, indent=1)
            (temporary / MARKER).write_text(marker, encoding="utf-8")
    return folder


def _say(text: str) -> None:
    """Log, or write to stderr in commands without a log, such as `show`: no files without a word."""
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info(text)
    else:
        print(text, file=sys.stderr)


def _is_complete(root: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very phantom; False where it may be (over)written.

    Raises:
        UsageError: The folder holds files that this module did not write.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found: dict[str, Any] = {}
    if (root / MARKER).is_file():
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
        if found["parameters"] == wanted and _is_whole(root, found["files"]):
            return True
    ours = {*found.get("files", []), MARKER}
    foreign = [str(path) for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in ours]
    if not found or foreign:
        held = f" such as {foreign[0]}" if foreign else ""
        raise UsageError(
            f"data.root={root} holds files that are not this phantom's{held}; they are not overwritten",
            hint=f"data.root={root}_2, or the folder of another data source",
        )
    return False


def _is_whole(root: Path, files: Mapping[str, int]) -> bool:
    """Whether every file is there and as long as it was: they are not synced, and a crash may cut them."""
    try:
        return all((root / name).stat().st_size == size for name, size in files.items())
    except FileNotFoundError:
        return False
