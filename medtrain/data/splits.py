"""Cross-validation folds made of patients, equal to nnU-Net's where every patient has one case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.data.case import Case
from medtrain.data.io.description import parse_json
from medtrain.errors import DataError, Problem, UsageError
from medtrain.registry import closest
from medtrain.run.atomic import atomic_write

NNUNET_SEED = 12345
"""The seed of nnU-Net's splits_final.json."""

Fold = dict[str, list[str]]


def make_folds(cases: Sequence[Case], num_folds: int = 5, seed: int = NNUNET_SEED) -> list[Fold]:
    """Divide the cases into folds; all cases of a patient go to the same side.

    The same as scikit-learn's `KFold(num_folds, shuffle=True, random_state=seed)` over the patients, sorted by their
    first case id. With one case per patient and the default seed that is nnU-Net's split.

    Args:
        cases: Cases to divide.
        num_folds: Number of folds, at least 2.
        seed: Of the shuffle.

    Returns:
        One {"train": ids, "val": ids} per fold, ids sorted; every case is validated exactly once.

    Raises:
        UsageError: There are fewer patients than folds.
    """
    patients: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda case: case.case_id):
        patients.setdefault(case.group, []).append(case.case_id)
    members = list(patients.values())
    if len(members) < num_folds:
        fewer = f"data.num_folds={len(members)}, or " if len(members) >= 2 else ""
        raise UsageError(
            f"{len(members)} {'patient' if len(members) == 1 else 'patients'} cannot be divided into {num_folds} folds",
            hint=f"{fewer}data.fold=null to train on every case",
        )
    order = np.arange(len(members))
    np.random.RandomState(seed).shuffle(order)
    folds: list[Fold] = []
    for chosen in np.array_split(order, num_folds):
        held_out = set(chosen.tolist())
        val = [case_id for index, ids in enumerate(members) if index in held_out for case_id in ids]
        train = [case_id for index, ids in enumerate(members) if index not in held_out for case_id in ids]
        folds.append({"train": sorted(train), "val": sorted(val)})
    return folds


def select_fold(folds: Sequence[Fold], fold: int | None, cases: Sequence[Case]) -> Fold:
    """The cases to train on and to validate on.

    Args:
        folds: All folds.
        fold: Index of the fold whose "val" part is held out; None trains on every case and holds none out.
        cases: All labelled cases.

    Raises:
        UsageError: There is no such fold.
    """
    if fold is None:
        return {"train": sorted(case.case_id for case in cases), "val": []}
    if not 0 <= fold < len(folds):
        raise UsageError(
            f"data.fold={fold}, but there are {len(folds)} folds",
            hint=f"choose one of 0 to {len(folds) - 1}, or null to train on every case",
        )
    return folds[fold]


def split_hash(folds: Sequence[Fold] | Fold) -> str:
    """Sixteen hexadecimal digits that name a split; the order of ids within a part does not matter."""
    items = [folds] if isinstance(folds, dict) else folds
    ordered = [{part: sorted(fold[part]) for part in ("train", "val")} for fold in items]
    return hashlib.sha256(json.dumps(ordered, separators=(",", ":")).encode()).hexdigest()[:16]


def save_splits(path: Path, folds: Sequence[Fold]) -> None:
    """Write folds as JSON in the layout of nnU-Net's splits_final.json, atomically."""
    atomic_write(path, json.dumps(list(folds), indent=1) + "\n")


def load_splits(path: Path, cases: Sequence[Case]) -> list[Fold]:
    """Read folds from JSON, a list of {"train": [ids], "val": [ids]} such as nnU-Net's splits_final.json.

    Cases that no fold names are left out of the run; that is how a part of a data set is used.

    Args:
        path: The file.
        cases: The labelled cases of the data set.

    Raises:
        UsageError: There is no such file.
        DataError: Not such a list, ids without a case, or a patient on both sides; all of it at once.
    """
    if not path.is_file():
        raise UsageError(f"data.splits: no such file: {path}")
    content = parse_json(path)
    shape = 'expected a list of {"train": [case ids], "val": [case ids]}, one per fold'
    if not isinstance(content, list) or not content or not all(_is_fold(entry) for entry in content):
        raise DataError([Problem(where=str(path), message=shape)])
    folds: list[Fold] = [{"train": list(entry["train"]), "val": list(entry["val"])} for entry in content]
    groups = {case.case_id: case.group for case in cases}
    problems = [problem for index, fold in enumerate(folds) for problem in _check_fold(path, index, fold, groups)]
    if problems:
        raise DataError(problems, heading=f"{path} does not fit the data set:")
    return folds


def _is_fold(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(part), list) and all(isinstance(name, str) for name in entry[part])
        for part in ("train", "val")
    )


def _check_fold(path: Path, index: int, fold: Fold, groups: dict[str, str]) -> list[Problem]:
    where = f"{path.name}, fold {index}"
    problems: list[Problem] = []
    for part in ("train", "val"):
        unknown = sorted(set(fold[part]) - groups.keys())
        if unknown:
            near = closest(unknown[0], groups)
            problems.append(
                Problem(
                    where=where,
                    message=f"{part} names cases that the data set does not have: {some(unknown)}",
                    hint=f"did you mean {near}?" if near else None,
                )
            )
        repeated = sorted({name for name in fold[part] if fold[part].count(name) > 1})
        if repeated:
            problems.append(Problem(where=where, message=f"{part} names a case twice: {some(repeated)}"))
    sides = {part: {groups[name] for name in fold[part] if name in groups} for part in ("train", "val")}
    shared = sorted(sides["train"] & sides["val"])
    if shared:
        problems.append(Problem(where=where, message=f"patients in both train and val: {some(shared)}"))
    if not fold["train"]:
        problems.append(Problem(where=where, message="train is empty"))
    return problems


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
