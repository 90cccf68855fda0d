"""Where the folder of a data set is, and what to say when it is not there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from medtrain.data.case import Dataset
from medtrain.data.io.nifti import is_nifti
from medtrain.errors import DataError, Problem, UsageError
from medtrain.registry import closest

DESCRIPTION = "dataset.json"

log = logging.getLogger(__name__)


def find_root(root: str | None, *, expected: str | None, source: str) -> Path:
    """The folder that holds `dataset.json`: the one given, or the expected one, or the only one, below it.

    Args:
        root: `data.root` of the config.
        expected: Folder name that the data set usually has, or None.
        source: Where the data can be had, for the error.

    Raises:
        UsageError: The root is not set, not there, empty, or not the folder of a data set.
    """
    example = f"data.root=/path/to/{expected or 'FOLDER'}"
    path = require_folder(root, example=example, source=source, what="scans")
    if (path / DESCRIPTION).is_file():
        return path
    below = sorted(child.parent for child in path.glob(f"*/{DESCRIPTION}") if not child.parent.name.startswith("."))
    if expected is not None:
        below = [folder for folder in below if folder.name == expected]
    if len(below) == 1:
        _tell(below[0])
        return below[0]
    if below:
        names = ", ".join(folder.name for folder in below)
        raise UsageError(f"{path} holds several data sets: {names}", hint=f"data.root={below[0]}")
    above = _description_above(path)
    if above is not None:
        raise UsageError(f"data.root is a folder inside a data set: {path}", hint=f"data.root={above}")
    if not any(path.iterdir()):
        raise UsageError(f"data.root is an empty folder: {path}", hint=f"put the data there ({source})")
    wanted = f" and no {expected}/{DESCRIPTION}" if expected else ""
    raise UsageError(f"{path} holds no {DESCRIPTION}{wanted}", hint=f"{example} ({source})")


@functools.cache
def _tell(folder: Path) -> None:
    """Say once which data set was found below the folder that was given."""
    log.info("data.root: the data set is %s", folder)


def require_folder(root: str | None, *, example: str, source: str, what: str) -> Path:
    """The folder of a data set, which must be there.

    Args:
        root: `data.root` of the config.
        example: What to type.
        source: Where the data can be had, or what the folder holds.
        what: What is looked for.

    Raises:
        UsageError: The root is not set, not there, or a file.
    """
    if root is None:
        raise UsageError(f"data.root is not set: where are the {what}?", hint=f"{example} ({source})")
    path = Path(root).expanduser()
    if not path.exists():
        near = _nearest_folder(path)
        raise UsageError(
            f"data.root: no such folder: {path}",
            hint=f"did you mean data.root={near}?" if near else f"{example} ({source})",
        )
    if not path.is_dir():
        above = _description_above(path)
        hint = example if above is None else f"data.root={above}"
        raise UsageError(f"data.root is a file, not a folder: {path}", hint=hint)
    return path


def _description_above(path: Path) -> Path | None:
    """The folder of the data set that a folder (`imagesTr`) or a file is in."""
    return next((folder for folder in path.absolute().parents[:2] if (folder / DESCRIPTION).is_file()), None)


def _nearest_folder(path: Path) -> Path | None:
    """A folder beside the one that is not there whose name is close to it."""
    if not path.parent.is_dir():
        return None
    near = closest(path.name, [child.name for child in path.parent.iterdir() if child.is_dir()], cutoff=0.8)
    return path.parent / near if near else None


def list_scans(folder: Path) -> list[Path]:
    """The NIfTI files of a folder by name, without hidden ones (`._case.nii.gz`); none if there is no folder."""
    return sorted(path for path in folder.iterdir() if is_nifti(path)) if folder.is_dir() else []


class FilesError(DataError):
    """Files of a data set are missing, misnamed or listed twice; everything else can be looked at.

    Args:
        problems: One per file, case or entry of the list.
        dataset: The cases that could be told, those with missing files too: for a check that goes on to what they hold.
        heading: See `ProblemsError`.
    """

    def __init__(self, problems: Sequence[Problem], *, dataset: Dataset, heading: str) -> None:
        super().__init__(problems, heading=heading)
        self.dataset = dataset


def require_files(dataset: Dataset, problems: Sequence[Problem] = ()) -> Dataset:
    """The data set, if all files of its labelled cases are there; training does without the others.

    Args:
        dataset: What was found.
        problems: What was wrong with the files' names and list, which is said together with what is missing.

    Raises:
        FilesError: Names every file.
    """
    paths: list[Path] = []
    for case in dataset.cases:
        paths += case.images if case.label is None else (*case.images, case.label)
    missing = [Problem(where=str(path), message="no such file") for path in paths if not path.is_file()]
    if missing and not problems:
        heading = f"{len(missing)} of {len(paths)} files of {dataset.root} are missing:"
    else:
        heading = f"{dataset.root} does not fit its {DESCRIPTION}:"
    if missing or problems:
        raise FilesError([*problems, *missing], dataset=dataset, heading=heading)
    return dataset
