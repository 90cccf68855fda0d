"""The folder of a sweep: a run's folder with trials in the place of checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

from medtrain.run.folder import RunFolder
from medtrain.sweep.result import TrialResult

RESULT = "result.json"
"""In the folder of every trial: what became of it."""


class SweepFolder(RunFolder):
    """A sweep's folder."""

    FOLDERS: ClassVar[tuple[str, ...]] = ("trials",)

    @property
    def journal(self) -> Path:
        """The study, where no other storage was chosen."""
        return self.path / "journal.log"

    @property
    def best(self) -> Path:
        """The winner, as an experiment."""
        return self.path / "best.yaml"

    @property
    def reruns(self) -> Path:
        """Runs of the best configurations, trained again."""
        return self.path / "rerun"

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    @staticmethod
    def is_sweep(path: Path) -> bool:
        """Whether a folder is a sweep's."""
        return (path / "trials").is_dir() and (path / "config.yaml").is_file()


def read_result(place: Path) -> TrialResult | None:
    """What became of a trial; None when it has not ended in a way that stays."""
    try:
        result = TrialResult.from_json(json.loads((place / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return result if result.is_final else None


def drop_checkpoints(place: Path) -> None:
    """Free the disk of a trial that will not win: its checkpoints go, its numbers stay."""
    for folder in (place / "checkpoints", *place.glob("fold*/checkpoints")):
        shutil.rmtree(folder, ignore_errors=True)
