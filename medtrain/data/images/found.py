"""Labelled samples and their division into parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medtrain.data.sample import ImageRef, Sample, SampleSet
from medtrain.data.source import Fold
from medtrain.data.splits import some
from medtrain.data.stratified import (
    PART_NAMES,
    Member,
    Parts,
    absent_strata,
    check_parts,
    load_parts,
    make_parts,
    make_stratified_folds,
    members_of,
    parts_from_column,
    parts_hash,
    save_parts,
)
from medtrain.errors import DataError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundImages:
    """The samples of a set of images, divided.

    Args:
        sample_set: All samples.
        split: Ids of "train", "val" and "test"; the last two may be empty.
    """

    sample_set: SampleSet
    split: Fold

    @property
    def dataset_name(self) -> str:
        """Name of the data set."""
        return self.sample_set.set_name

    @cached_property
    def by_id(self) -> Mapping[str, Sample]:
        """All samples."""
        return {sample.sample_id: sample for sample in self.sample_set.samples}

    def samples(self, part: str) -> list[Sample]:
        """The samples of a part."""
        return [self.by_id[sample_id] for sample_id in self.split[part]]

    def used(self) -> list[Sample]:
        """The samples of all parts."""
        return [sample for part in self.split for sample in self.samples(part)]

    def images(self) -> list[ImageRef]:
        """Every image of the samples used, each once."""
        return list(dict.fromkeys(ref for sample in self.used() for ref in sample.images if ref is not None))

    @property
    def split_hash(self) -> str:
        """Names the division of this run."""
        return parts_hash(self.split)

    def save_splits(self, path: Path) -> None:
        """Write the parts as `load_parts` reads them."""
        save_parts(path, self.split)


def divide(
    sample_set: SampleSet,
    *,
    splits: Path | None,
    fold: int | None,
    num_folds: int,
    shares: Sequence[float],
    seed: int,
) -> FoundImages:
    """Divide samples into parts made of patients.

    A file comes first, then the folds if one is chosen, then what the set says itself, then the shares. A set that
    names what to test but not what to validate on gets its validation part from the rest, in the shares' proportion.

    Args:
        sample_set: The samples.
        splits: File with the parts; see `load_parts`.
        fold: Which fold to validate on; None uses no folds. What the set keeps for testing belongs to no fold.
        num_folds: Number of folds.
        shares: Of train, val and test; 0 leaves a part empty.
        seed: Of the division.

    Raises:
        UsageError: There is no such fold, too few patients, or nothing to train on.
        DataError: A patient lies in two parts, or the file does not fit.
    """
    members = members_of(sample_set)
    own = {sample.sample_id: sample.part for sample in sample_set.samples}
    if splits is not None:
        parts = load_parts(splits, members)
    elif fold is not None:
        parts = _fold(members, own, fold, num_folds, seed)
    elif any(own.values()):
        parts = _own_parts(members, own, shares, seed)
    else:
        parts = make_parts(members, _named(shares), seed=seed)
    split = {name: list(parts.get(name, [])) for name in PART_NAMES}
    if not split["train"]:
        raise UsageError("no sample is left to train on", hint="data.shares=[0.7,0.15,0.15]")
    problems = check_parts(split, {member.sample_id: member.group for member in members})
    if problems:
        raise DataError(problems, heading=f"{sample_set.set_name} is divided wrongly:")
    _warn_of_absent(sample_set, {name: ids for name, ids in split.items() if ids}, members)
    return FoundImages(sample_set, split)


def _named(shares: Sequence[float]) -> dict[str, float]:
    return {name: share for name, share in zip(PART_NAMES, shares) if share > 0}


def _fold(members: Sequence[Member], own: Mapping[str, str | None], fold: int, num_folds: int, seed: int) -> Parts:
    if fold >= num_folds:
        hint = f"choose one of 0 to {num_folds - 1}, or null to divide by data.shares"
        raise UsageError(f"data.fold={fold}, but there are {num_folds} folds", hint=hint)
    kept = sorted(sample_id for sample_id, part in own.items() if part == "test")
    named = any(own.values())
    rest = [member for member in members if own[member.sample_id] in (("train", "val") if named else (None,))]
    return {**make_stratified_folds(rest, num_folds, seed=seed)[fold], "test": kept}


def _own_parts(members: Sequence[Member], own: Mapping[str, str | None], shares: Sequence[float], seed: int) -> Parts:
    parts = parts_from_column(own)
    if "val" in parts or shares[1] == 0:
        return parts
    inside = [member for member in members if own[member.sample_id] == "train"]
    total = shares[0] + shares[1]
    divided = make_parts(inside, {"train": shares[0] / total, "val": shares[1] / total}, seed=seed)
    return {**parts, **divided}


def _warn_of_absent(sample_set: SampleSet, parts: Parts, members: Sequence[Member]) -> None:
    absent: dict[str, list[str]] = {}
    for part, target, value in absent_strata(parts, members):
        classes = sample_set.targets[target].classes
        if classes is not None and isinstance(value, int):
            absent.setdefault(part, []).append(f"{classes[value]} of {sample_set.targets[target].target_name}")
    for part, names in absent.items():
        log.warning("%s has no sample of class %s", part, some(names))
