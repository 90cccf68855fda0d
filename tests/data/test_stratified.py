from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.stratified import (
    SPLIT_70_15_15,
    Member,
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


def people(labels: list[int] | np.ndarray, groups: list[int] | np.ndarray | None = None) -> list[Member]:
    patients = range(len(labels)) if groups is None else groups
    return [Member(f"s{i:05d}", f"p{group}", (int(y),)) for i, (y, group) in enumerate(zip(labels, patients))]


def test_seventy_fifteen_fifteen_by_hand() -> None:
    members = people([0] * 100 + [1] * 40 + [2] * 20)  # one sample a patient: every class divides evenly
    parts = make_parts(members, SPLIT_70_15_15)
    label = {member.sample_id: member.strata[0] for member in members}
    assert {name: dict(Counter(label[i] for i in ids)) for name, ids in parts.items()} == {
        "train": {0: 70, 1: 28, 2: 14},
        "val": {0: 15, 1: 6, 2: 3},
        "test": {0: 15, 1: 6, 2: 3},
    }


@pytest.mark.parametrize("shares", [SPLIT_70_15_15, {"train": 0.8, "val": 0.2}, {"train": 0.5, "val": 0.5}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_single_samples_deviate_by_less_than_one(rng: np.random.Generator, shares: dict[str, float], seed: int) -> None:
    labels = rng.choice(5, 203, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    parts = make_parts(people(labels), shares, seed=seed)
    for name, share in shares.items():
        chosen = labels[[int(sample_id[1:]) for sample_id in parts[name]]]
        assert abs(len(chosen) - share * len(labels)) < 2
        for value, total in Counter(labels.tolist()).items():
            assert abs((chosen == value).sum() - share * total) < 1


def test_patients_are_whole_and_every_sample_lies_in_one_part(rng: np.random.Generator) -> None:
    groups = rng.integers(0, 60, 300)
    members = people(rng.integers(0, 4, 300), groups)
    parts = make_parts(members)
    assert sorted(name for ids in parts.values() for name in ids) == sorted(member.sample_id for member in members)
    assert check_parts(parts, {member.sample_id: member.group for member in members}) == []
    for name, share in SPLIT_70_15_15.items():
        assert abs(len(parts[name]) / 300 - share) < 0.02
        assert parts[name] == sorted(parts[name])


def test_the_order_of_samples_does_not_matter_and_the_seed_does(rng: np.random.Generator) -> None:
    members = people(rng.integers(0, 4, 200), rng.integers(0, 90, 200))
    mixed = [members[index] for index in rng.permutation(200)]
    assert make_parts(members) == make_parts(mixed)
    assert make_parts(members, seed=1) != make_parts(members, seed=2)
    assert make_stratified_folds(members) == make_stratified_folds(mixed)


def test_a_split_is_the_same_for_ever() -> None:
    parts = make_parts(people([index % 3 for index in range(30)], [index // 2 for index in range(30)]))
    assert parts_hash(parts) == "f637cc160581d3fb"


def test_several_targets_are_balanced_together(rng: np.random.Generator) -> None:
    zones = rng.choice(4, (400, 6), p=[0.5, 0.25, 0.15, 0.1])
    members = [Member(f"s{i:03d}", f"p{i // 2}", tuple(row)) for i, row in enumerate(zones.tolist())]
    parts = make_parts(members)
    for name, share in SPLIT_70_15_15.items():
        chosen = zones[[int(sample_id[1:]) for sample_id in parts[name]]]
        for zone in range(6):
            counts = np.bincount(chosen[:, zone], minlength=4)
            assert np.abs(counts - share * np.bincount(zones[:, zone], minlength=4)).max() <= 3


def test_unlabelled_entries_are_spread_like_a_class() -> None:
    members = [Member(f"s{i:03d}", f"p{i}", (None if i < 40 else 1, i % 2)) for i in range(200)]
    parts = make_parts(members, {"train": 0.8, "val": 0.2})
    assert sum(int(name[1:]) < 40 for name in parts["val"]) == 8


def deviation(folds: list[list[int]], labels: np.ndarray) -> tuple[float, float]:
    """Mean relative deviation of the class counts of the folds, and the largest one of their sizes."""
    share = np.bincount(labels) / len(folds)
    counts = [np.abs(np.bincount(labels[fold], minlength=len(share)) - share) / share for fold in folds]
    size = len(labels) / len(folds)
    return float(np.mean(counts)), max(abs(len(fold) - size) / size for fold in folds)


@pytest.mark.parametrize(
    ("count", "patients", "classes", "folds"), [(500, 120, 5, 5), (300, 40, 5, 4), (200, 30, 2, 3)]
)
def test_folds_are_as_balanced_as_scikit_learns(count: int, patients: int, classes: int, folds: int) -> None:
    rng = np.random.default_rng(3)
    ours, theirs = [], []
    for seed in range(5):
        labels = rng.choice(classes, count, p=rng.dirichlet(np.full(classes, 4.0)))
        labels[:classes] = np.arange(classes)
        groups = rng.integers(0, patients, count)
        found = make_stratified_folds(people(labels, groups), folds, seed=seed)
        ours.append(deviation([[int(name[1:]) for name in fold["val"]] for fold in found], labels))
        reference = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes with fewer samples than folds
            theirs.append(deviation([val.tolist() for _, val in reference.split(labels, labels, groups)], labels))
    assert np.mean(ours, axis=0)[0] <= np.mean(theirs, axis=0)[0]
    assert np.mean(ours, axis=0)[1] <= np.mean(theirs, axis=0)[1]


def test_folds_of_single_samples_have_scikit_learns_counts(rng: np.random.Generator) -> None:
    labels = rng.permutation([0] * 50 + [1] * 30 + [2] * 20)
    folds = make_stratified_folds(people(labels), 5)
    theirs = [np.bincount(labels[val]).tolist() for _, val in StratifiedKFold(5).split(labels, labels)]
    assert [np.bincount(labels[[int(n[1:]) for n in fold["val"]]]).tolist() for fold in folds] == theirs
    assert sorted(name for fold in folds for name in fold["val"]) == [f"s{i:05d}" for i in range(100)]
    for fold in folds:
        assert not set(fold["train"]) & set(fold["val"])
        assert len(fold["train"]) == 80


def test_one_huge_patient_leaves_something_for_every_part() -> None:
    groups = [0] * 90 + [1, 2, 3]
    parts = make_parts(people([0] * 93, groups), SPLIT_70_15_15)
    assert len(parts["train"]) >= 90
    assert parts["val"]
    assert parts["test"]


def test_classes_that_a_part_lacks_are_told() -> None:
    members = people([0] * 10 + [1])
    parts = make_parts(members)
    assert absent_strata(parts, members) == [("test", 0, 1), ("val", 0, 1)]  # train comes first


def test_splits_that_cannot_be_made() -> None:
    with pytest.raises(UsageError, match="2 patients cannot be divided into 3 parts"):
        make_parts(people([0, 1, 0], [1, 2, 2]))
    with pytest.raises(UsageError, match=r"add up to 1, got train 0\.8, val 0\.3"):
        make_parts(people([0, 1, 0]), {"train": 0.8, "val": 0.3})
    with pytest.raises(UsageError, match="positive"):
        make_parts(people([0, 1, 0]), {"train": 1.0, "val": 0.0})
    with pytest.raises(UsageError, match="3 patients cannot be divided into 5 folds"):
        make_stratified_folds(people([0, 1, 0]))
    with pytest.raises(UsageError, match="at least 2 folds"):
        make_stratified_folds(people([0, 1, 0]), 1)


def test_parts_of_the_source() -> None:
    assert parts_from_column({"b": "train", "a": "train", "c": "test", "d": None}) == {
        "train": ["a", "b"],
        "test": ["c"],
    }
    with pytest.raises(UsageError, match="no samples for training"):
        parts_from_column({"a": "val"})


def test_parts_are_saved_hashed_and_read(tmp_path: Path) -> None:
    members = people([0, 1] * 20)
    parts = make_parts(members)
    save_parts(tmp_path / "split.json", parts)
    assert load_parts(tmp_path / "split.json", members) == parts
    lines = [f"{sample_id};{name}" for name, ids in parts.items() for sample_id in ids]
    (tmp_path / "split.csv").write_text("id;part\n" + "\n".join(lines))
    assert load_parts(tmp_path / "split.csv", members) == parts
    assert parts_hash(parts) == parts_hash({name: ids[::-1] for name, ids in reversed(parts.items())})
    assert parts_hash(parts) != parts_hash(make_parts(members, seed=7))


def test_a_given_split_is_checked_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [], "val": ["s00001", "s00001", "s0000x"], "test": ["s00001", "s00002"]}))
    with pytest.raises(DataError) as error:
        load_parts(path, people([0] * 5, [0, 1, 7, 7, 1]))
    assert [problem.message for problem in error.value.problems] == [
        "val names samples that the data set does not have: s0000x",
        "val names a sample twice: s00001",
        "train is empty",
        "samples in both val and test: s00001",
    ]
    assert str(error.value.problems[0].hint).startswith("did you mean s0000")
    path.write_text(json.dumps({"train": ["s00002"], "test": ["s00003"]}))
    with pytest.raises(DataError, match="patients in both train and test: p7"):
        load_parts(path, people([0] * 5, [0, 1, 7, 7, 1]))


@pytest.mark.parametrize("content", ["[]", "{}", '{"training": ["a"]}', '{"train": "a"}', '{"train": [1]}'])
def test_a_file_that_is_no_split(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match="expected"):
        load_parts(tmp_path / "s.json", [])


def test_a_table_that_is_no_split(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,part\na,exam\n")
    with pytest.raises(DataError, match="the column part holds 'exam'; allowed are train, val, test"):
        load_parts(tmp_path / "s.csv", [])
    (tmp_path / "s.csv").write_text("name,parts\na,exam\n")
    with pytest.raises(DataError, match="has no column 'id'"):
        load_parts(tmp_path / "s.csv", [])
    with pytest.raises(UsageError, match="no such split file"):
        load_parts(tmp_path / "t.json", [])


def test_the_members_of_a_sample_set(tmp_path: Path) -> None:
    targets = (Target("grade", ("0", "1")), Target("age", None))
    samples = (Sample("a", (), (1, 5.5), "p"), Sample("b", (), (None, None), "q"))
    assert members_of(SampleSet("set", tmp_path, samples, targets)) == [
        Member("a", "p", (1, "labelled")),
        Member("b", "q", (None, None)),
    ]
