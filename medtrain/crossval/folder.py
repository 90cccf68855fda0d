"""The folder of a cross-validation: a run's folder with runs in the place of checkpoints.

<folder>/crossval.json          members, what post-processing was chosen, metrics over folds and over cases
<folder>/config.yaml            the configuration that all folds share, with the shared plan filled in
<folder>/plan.json splits.json  the shared plan, and the folds
<folder>/fold_0/ ...            ordinary runs
<folder>/cases.csv report.md    every case, judged by the fold that did not train on it
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from medtrain.errors import MedtrainError, UsageError
from medtrain.run.atomic import atomic_write_json
from medtrain.run.csvfile import read_table
from medtrain.run.folder import RunFolder, read_status

log = logging.getLogger(__name__)

RECORD = "crossval.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CrossvalRecord:
    """Contents of crossval.json.

    Args:
        num_folds: How many folds there are.
        split_hashes: Of the division of each fold.
        workers: Folds that train at the same time; None is one per GPU, and one on a CPU.
        members: Folders of the folds that are trained, below this one: the ensemble that `medtrain predict` uses.
        failed: Why folds failed, by folder.
        seen: By folder, that the weights a fold begins with were trained on its validation cases.
        postprocess: What is done to the ensemble's label maps: `keep_largest`, as `inference.keep_largest`.
        chosen: How that was decided: Dice of every class before and after, and what was tried.
        metrics: Of the folds (`folds`: mean, std and values by metric) and over all cases (`cases`).
        num_cases: Cases that were judged.
        format: Version of this file.
    """

    num_folds: int
    split_hashes: tuple[str, ...]
    workers: int | None = None
    members: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
    postprocess: Mapping[str, Any] = field(default_factory=lambda: {"keep_largest": []})
    chosen: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    format: int = FORMAT


class CrossvalFolder(RunFolder):
    """A cross-validation's folder."""

    FOLDERS: ClassVar[tuple[str, ...]] = ()
    SUFFIX: ClassVar[str] = "-crossval"
    INPUTS: ClassVar[frozenset[str]] = RunFolder.INPUTS | {RECORD}

    @property
    def record(self) -> Path:
        """What there is and what came out."""
        return self.path / RECORD

    @property
    def cases(self) -> Path:
        """Every case, judged by the fold that did not train on it."""
        return self.path / "cases.csv"

    def fold(self, index: int) -> Path:
        """Folder of a fold's run."""
        return self.path / fold_name(index)

    def is_done(self, index: int) -> bool:
        """Whether a fold is trained and judged."""
        place = self.fold(index)
        return read_status(place).status == "done" and (place / "evaluation" / "summary.json").is_file()

    def done_members(self, record: CrossvalRecord) -> tuple[str, ...]:
        """Names of the folds that are trained and judged; the others are told.

        Raises:
            MedtrainError: None is.
        """
        members = tuple(fold_name(fold) for fold in range(record.num_folds) if self.is_done(fold))
        if not members:
            hint = f"continue it with `medtrain resume {self.path}`"
            raise MedtrainError(f"no fold of {self.path} is done", hint=hint)
        if len(members) < record.num_folds:
            log.warning("%d of %d folds are done; the others are left out", len(members), record.num_folds)
        return members

    def read_record(self) -> CrossvalRecord:
        """Read crossval.json.

        Raises:
            MedtrainError: It cannot be read.
        """
        try:
            values = json.loads(self.record.read_text(encoding="utf-8"))
            known = {item.name for item in dataclasses.fields(CrossvalRecord)}
            record = CrossvalRecord(**{key: value for key, value in values.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise MedtrainError(f"{self.record} cannot be read: {error}") from error
        if record.format > FORMAT:
            raise MedtrainError(
                f"{self.record} has format {record.format}, this medtrain reads format {FORMAT}",
                hint="install the version of medtrain named in env.json",
            )
        return record

    def write_record(self, record: CrossvalRecord) -> None:
        """Write crossval.json."""
        atomic_write_json(self.record, dataclasses.asdict(record))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the folder of a cross-validation.

        Raises:
            UsageError: It is none.
        """
        if not is_crossval(Path(path)):
            raise UsageError(f"{path} is not a cross-validation", hint="`medtrain runs` lists runs")
        return super().open(path)


def judged_by(path: Path, members: Sequence[str], case_id: str) -> str:
    """Name of the fold that judged a case, and is not trained on it.

    Args:
        path: Of the cross-validation.
        members: Names of the folds that are done.
        case_id: Of the case.

    Raises:
        UsageError: None of them has held it out.
    """
    for name in members:
        rows = read_table(path / name / "evaluation" / "cases.csv")
        if any(row["case_id"] == case_id for row in rows):
            return name
    raise UsageError(
        f"--case {case_id}: no fold that is done has held it out ({', '.join(members)})",
        hint=f"{path / 'fold_N' / 'evaluation' / 'cases.csv'} lists the cases of a fold; "
        f"`medtrain resume {path}` finishes folds that are not done",
    )


def is_crossval(path: Path) -> bool:
    """Whether a folder is a cross-validation's."""
    return (path / RECORD).is_file()


def fold_name(index: int) -> str:
    """Name of a fold's folder."""
    return f"fold_{index}"


def refuse_crossval(path: Path, command: str) -> None:
    """Say that a command is for a single run.

    Args:
        path: The folder that was given.
        command: What was asked for, as typed: `medtrain export`.

    Raises:
        UsageError: The folder is a cross-validation's.
    """
    if is_crossval(path):
        members = CrossvalFolder.open(path).read_record().members
        hint = f"{command} {path / members[0]}" if members else f"finish it first: medtrain resume {path}"
        raise UsageError(f"{path} is a cross-validation; {command} takes one of its runs", hint=hint)
