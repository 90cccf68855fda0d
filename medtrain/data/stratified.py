"""Parts of a data set made of patients and balanced in their classes: shares such as 70/15/15, and folds.

One greedy pass: patients are shuffled, those that weigh most (many samples, or rare classes) go first, and each goes
to the part that then deviates least from its share of every class. The deviation is Pearson's chi-square,
sum over parts p and classes c of (n_pc - t_pc)^2 / t_pc with t_pc = share_p * total_c, so that one sample of a rare
class counts for more than one of a common class. A second pass moves single patients while that makes it smaller.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtrain.data.cells import read_cells
from medtrain.data.io.description import parse_json
from medtrain.data.sample import SampleSet
from medtrain.data.splits import Fold, some
from medtrain.errors import DataError, Problem, UsageError
from medtrain.registry import closest
from medtrain.run.atomic import atomic_write

Parts = dict[str, list[str]]
"""Part name -> ids of its samples, sorted."""

PART_NAMES = ("train", "val", "test")
SPLIT_70_15_15: Mapping[str, float] = {"train": 0.7, "val": 0.15, "test": 0.15}

_MAX_MOVES = 200
_DECIMALS = 9  # ties must not depend on the order in which a processor adds


@dataclass(frozen=True)
class Member:
    """What a split needs to know of a sample.

    Args:
        sample_id: Its id.
        group: The patient.
        strata: What is balanced: one value per target, such as the class; None (unlabelled) is a value too.
    """

    sample_id: str
    group: str
    strata: tuple[Hashable, ...] = ()


def members_of(sample_set: SampleSet) -> list[Member]:
    """The samples of a set as a split sees them: classes are balanced, and labelled with unlabelled entries."""
    strata = sample_set.strata()
    return [Member(sample.sample_id, sample.group, values) for sample, values in zip(sample_set.samples, strata)]


def make_parts(members: Sequence[Member], shares: Mapping[str, float] = SPLIT_70_15_15, *, seed: int = 42) -> Parts:
    """Divide samples into parts; a patient lies in one part, and each part has about its share of every class.

    The result depends on the members and the seed, not on their order.

    Args:
        members: The samples, ids unique.
        shares: Part name -> share; they add up to 1.
        seed: Of the shuffle.

    Raises:
        UsageError: Shares that do not add up to 1, or fewer patients than parts.
    """
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UsageError(f"the shares of the parts must be positive and add up to 1, got {listed}")
    groups, counts = _count(members)
    if len(groups) < len(shares):
        raise UsageError(f"{len(groups)} patients cannot be divided into {len(shares)} parts ({', '.join(shares)})")
    place = _assign(counts, np.array(list(shares.values())), seed)
    parts: Parts = {name: [] for name in shares}
    for (_, ids), part in zip(groups, place):
        parts[list(shares)[part]] += ids
    return {name: sorted(ids) for name, ids in parts.items()}


def make_stratified_folds(members: Sequence[Member], num_folds: int = 5, *, seed: int = 42) -> list[Fold]:
    """Divide samples into folds made of patients, each with about the same share of every class.

    Args:
        members: The samples, ids unique.
        num_folds: At least 2.
        seed: Of the shuffle.

    Returns:
        One {"train": ids, "val": ids} per fold, ids sorted; every sample is validated exactly once.

    Raises:
        UsageError: Fewer patients than folds.
    """
    if num_folds < 2:
        raise UsageError(f"there must be at least 2 folds, got {num_folds}")
    patients = len({member.group for member in members})
    if patients < num_folds:
        raise UsageError(f"{patients} patients cannot be divided into {num_folds} folds")
    parts = make_parts(members, {str(fold): 1 / num_folds for fold in range(num_folds)}, seed=seed)
    everything = [member.sample_id for member in members]
    return [{"train": sorted(set(everything) - set(val)), "val": val} for val in parts.values()]


def parts_from_column(named: Mapping[str, str | None]) -> Parts:
    """Parts as a table or a folder gives them.

    Args:
        named: Sample id -> part; samples without one are left out.

    Raises:
        UsageError: No sample is in train.
    """
    parts: Parts = {name: [] for name in PART_NAMES}
    for sample_id in sorted(named):
        part = named[sample_id]
        if part is not None:
            parts[part].append(sample_id)
    if not parts["train"]:
        raise UsageError("the data set names no samples for training")
    return {name: ids for name, ids in parts.items() if ids}


def load_parts(path: Path, members: Sequence[Member]) -> Parts:
    """Read a given split: JSON {"train": [ids], "val": [ids], "test": [ids]}, or a table with columns id and part.

    Samples that no part names are left out.

    Args:
        path: `.json`, or a table; see `medtrain.data.cells.read_cells`.
        members: The samples of the data set.

    Raises:
        UsageError: There is no such file.
        DataError: Not of that form, ids without a sample, ids or patients in two parts, an empty train; all at once.
    """
    parts = _read_json(path) if path.suffix.lower() == ".json" else _read_columns(path)
    groups = {member.sample_id: member.group for member in members}
    problems: list[Problem] = []
    for name, ids in parts.items():
        unknown = sorted(set(ids) - groups.keys())
        if unknown:
            near = closest(unknown[0], groups)
            problems.append(
                Problem(
                    where=str(path),
                    message=f"{name} names samples that the data set does not have: {some(unknown)}",
                    hint=f"did you mean {near}?" if near else None,
                )
            )
        repeated = sorted(sample_id for sample_id, count in Counter(ids).items() if count > 1)
        if repeated:
            problems.append(Problem(where=str(path), message=f"{name} names a sample twice: {some(repeated)}"))
    if not parts.get("train"):
        problems.append(Problem(where=str(path), message="train is empty"))
    problems += check_parts(parts, groups, where=str(path))
    if problems:
        raise DataError(problems, heading=f"{path} does not fit the data set:")
    return {name: sorted(ids) for name, ids in parts.items()}


def check_parts(
    parts: Mapping[str, Sequence[str]], groups: Mapping[str, str], *, where: str = "split"
) -> list[Problem]:
    """Samples and patients that lie in more than one part.

    Args:
        parts: Part name -> ids.
        groups: Sample id -> patient.
        where: Named by the problems.
    """
    problems: list[Problem] = []
    names = list(parts)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            same = set(parts[first]) & set(parts[second])
            if same:
                problems.append(
                    Problem(where=where, message=f"samples in both {first} and {second}: {some(sorted(same))}")
                )
            patients = [
                {groups[name] for name in parts[part] if name in groups and name not in same}
                for part in (first, second)
            ]
            shared = sorted(patients[0] & patients[1])
            if shared:
                problems.append(Problem(where=where, message=f"patients in both {first} and {second}: {some(shared)}"))
    return problems


def save_parts(path: Path, parts: Mapping[str, Sequence[str]]) -> None:
    """Write parts as JSON that `load_parts` reads, atomically."""
    atomic_write(path, json.dumps({name: list(ids) for name, ids in parts.items()}, indent=1) + "\n")


def parts_hash(parts: Mapping[str, Sequence[str]]) -> str:
    """Sixteen hexadecimal digits that name a split; the order of parts and of ids does not matter."""
    ordered = {name: sorted(ids) for name, ids in parts.items()}
    text = json.dumps(ordered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def absent_strata(parts: Mapping[str, Sequence[str]], members: Sequence[Member]) -> list[tuple[str, int, Hashable]]:
    """Classes that a part has no sample of, though the data set does: (part, target index, value)."""
    strata = {member.sample_id: member.strata for member in members}
    everything = dict.fromkeys(pair for member in members for pair in enumerate(member.strata))
    missing: list[tuple[str, int, Hashable]] = []
    for name, ids in parts.items():
        have = {pair for sample_id in ids for pair in enumerate(strata[sample_id])}
        missing += [(name, target, value) for target, value in everything if (target, value) not in have]
    return sorted(missing, key=repr)


def _count(members: Sequence[Member]) -> tuple[list[tuple[str, list[str]]], np.ndarray]:
    """Patients with their ids, and how many samples of each stratum each has [groups, strata]; the first is all."""
    groups: dict[str, list[str]] = {}
    ordered = sorted(members, key=lambda member: member.sample_id)
    ids = [member.sample_id for member in ordered]
    assert len(set(ids)) == len(ids), "ids must be unique"
    pairs = sorted({pair for member in ordered for pair in enumerate(member.strata)}, key=repr)
    column = {pair: index for index, pair in enumerate(pairs, start=1)}
    for member in ordered:
        groups.setdefault(member.group, []).append(member.sample_id)
    row = {group: index for index, group in enumerate(groups)}
    counts = np.zeros((len(groups), 1 + len(pairs)))
    for member in ordered:
        counts[row[member.group], 0] += 1
        for pair in enumerate(member.strata):
            counts[row[member.group], column[pair]] += 1
    return list(groups.items()), counts


def _assign(counts: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """The part of each group."""
    target = shares[:, None] * counts.sum(axis=0)  # [parts, strata]
    weight = np.round((counts**2 / counts.sum(axis=0)).sum(axis=1), _DECIMALS)
    shuffled = np.random.RandomState(seed).permutation(len(counts))
    order = shuffled[np.argsort(-weight[shuffled], kind="stable")]
    place = np.empty(len(counts), dtype=np.int64)
    have = np.zeros_like(target)
    for group in order:
        added = counts[group]
        cost = (added * (2 * (have - target) + added) / target).sum(axis=1)
        part = int(np.round(cost, _DECIMALS).argmin())
        place[group] = part
        have[part] += added
    _fill_empty(counts, place, have)
    _improve(counts, place, have, target)
    return place


def _fill_empty(counts: np.ndarray, place: np.ndarray, have: np.ndarray) -> None:
    """Give a part without any group the smallest group of the part that has most of them."""
    for part in range(len(have)):
        if (place == part).any():
            continue
        donor = int(np.bincount(place, minlength=len(have)).argmax())
        candidates = np.flatnonzero(place == donor)
        group = candidates[counts[candidates, 0].argmin()]
        _move(counts, place, have, int(group), part)


def _improve(counts: np.ndarray, place: np.ndarray, have: np.ndarray, target: np.ndarray) -> None:
    """Move single groups while the deviation becomes smaller and no part becomes empty."""
    squares = (counts**2) @ (1 / target).T  # [groups, parts]
    rows = np.arange(len(counts))
    for _ in range(_MAX_MOVES):
        slope = 2 * counts @ ((have - target) / target).T
        leave = (squares - slope)[rows, place]
        gain = np.round(squares + slope + leave[:, None], _DECIMALS)
        gain[rows, place] = 0
        gain[np.bincount(place, minlength=len(have))[place] == 1] = 0
        group, part = divmod(int(gain.argmin()), len(have))
        if gain[group, part] >= 0:
            return
        _move(counts, place, have, group, part)


def _move(counts: np.ndarray, place: np.ndarray, have: np.ndarray, group: int, part: int) -> None:
    have[place[group]] -= counts[group]
    have[part] += counts[group]
    place[group] = part


def _read_json(path: Path) -> Parts:
    if not path.is_file():
        raise UsageError(f"no such split file: {path}")
    content = parse_json(path)
    if not isinstance(content, dict) or not content or not all(_is_part(*item) for item in content.items()):
        message = 'expected {"train": [ids], "val": [ids], "test": [ids]}'
        raise DataError([Problem(where=str(path), message=message)])
    return {name: list(ids) for name, ids in content.items()}


def _is_part(name: str, ids: object) -> bool:
    return name in PART_NAMES and isinstance(ids, list) and all(isinstance(sample_id, str) for sample_id in ids)


def _read_columns(path: Path) -> Parts:
    cells = read_cells(path)
    absent = [cells.missing_column(name) for name in ("id", "part") if name not in cells.header]
    if absent:
        raise DataError(absent)
    parts: Parts = {}
    for sample_id, part in zip(cells.column("id"), cells.column("part")):
        parts.setdefault(part, []).append(sample_id)
    wrong = [name for name in parts if name not in PART_NAMES]
    if wrong:
        message = f"the column part holds {some([repr(name) for name in wrong])}; allowed are {', '.join(PART_NAMES)}"
        raise DataError([Problem(where=str(path), message=message)])
    return parts
