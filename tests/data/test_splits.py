import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from medtrain.data.case import Case
from medtrain.data.splits import load_splits, make_folds, save_splits, select_fold, split_hash
from medtrain.errors import DataError, UsageError


def cases_of(ids: list[str], groups: list[str] | None = None) -> list[Case]:
    return [Case(name, (), None, group) for name, group in zip(ids, groups or ids)]


@pytest.mark.parametrize(("count", "folds"), [(208, 5), (20, 5), (23, 5), (7, 3), (5, 5)])
def test_folds_are_nnunets(count: int, folds: int) -> None:
    ids = [f"case_{index}" for index in range(count)]  # unpadded, so that sorting matters
    keys = np.sort(ids)
    expected = [
        {"train": keys[train].tolist(), "val": keys[val].tolist()}
        for train, val in KFold(folds, shuffle=True, random_state=12345).split(keys)
    ]
    assert make_folds(cases_of(ids[::-1]), folds) == expected


def test_groups_of_one_do_not_change_the_folds() -> None:
    ids = [f"scan_{index:02d}" for index in range(20)]
    named_otherwise = cases_of(ids, [f"patient {97 - index}" for index in range(20)])
    assert make_folds(named_otherwise) == make_folds(cases_of(ids))


def test_patients_are_never_divided_and_every_case_is_validated_once() -> None:
    ids = [f"p{patient:02d}_{scan}" for patient in range(13) for scan in range(1 + patient % 4)]
    cases = cases_of(ids, [name[:3] for name in ids])
    folds = make_folds(cases)
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(ids)
    for fold in folds:
        assert not {name[:3] for name in fold["train"]} & {name[:3] for name in fold["val"]}
        assert sorted(fold["train"] + fold["val"]) == sorted(ids)
        assert fold["val"] == sorted(fold["val"])


def test_too_few_patients() -> None:
    with pytest.raises(UsageError, match="3 patients cannot be divided into 5 folds") as error:
        make_folds(cases_of(list("aabbc"), list("aabbc")))
    assert error.value.hint == "data.num_folds=3, or data.fold=null to train on every case"


def test_choosing_a_fold() -> None:
    cases = cases_of(list("edcba"))
    folds = make_folds(cases)
    assert select_fold(folds, 2, cases) is folds[2]
    assert select_fold(folds, None, cases) == {"train": list("abcde"), "val": []}
    with pytest.raises(UsageError, match=r"data\.fold=5, but there are 5 folds"):
        select_fold(folds, 5, cases)


def test_splits_are_saved_and_hashed(tmp_path: Path) -> None:
    cases = cases_of([f"c{index}" for index in range(12)])
    folds = make_folds(cases)
    save_splits(tmp_path / "splits_final.json", folds)
    assert load_splits(tmp_path / "splits_final.json", cases) == folds
    assert split_hash(folds) == split_hash([{part: ids[::-1] for part, ids in fold.items()} for fold in folds])
    assert split_hash(folds) != split_hash(folds[::-1])
    assert split_hash(folds[0]) == split_hash([folds[0]])
    assert split_hash(folds) != split_hash(make_folds(cases, seed=1))
    assert len(split_hash(folds)) == 16


def test_a_given_split_is_checked_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    folds = [
        {"train": ["scan_01", "scan_1o", "scan_02"], "val": ["scan_03"]},
        {"train": [], "val": ["scan_01", "scan_01"]},
    ]
    path.write_text(json.dumps(folds))
    cases = cases_of(["scan_01", "scan_02", "scan_03", "scan_10"], ["ann", "bob", "bob", "cy"])
    with pytest.raises(DataError) as error:
        load_splits(path, cases)
    assert [(str(problem), problem.hint) for problem in error.value.problems] == [
        (
            "mine.json, fold 0: train names cases that the data set does not have: scan_1o",
            "did you mean scan_10?",
        ),
        ("mine.json, fold 0: patients in both train and val: bob", None),
        ("mine.json, fold 1: val names a case twice: scan_01", None),
        ("mine.json, fold 1: train is empty", None),
    ]


@pytest.mark.parametrize("content", ["{}", "[]", '[{"train": ["a"]}]', '[{"train": ["a"], "val": [1]}]', "[3]"])
def test_a_file_that_is_no_split(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match="expected a list of"):
        load_splits(tmp_path / "s.json", cases_of(["a"]))


def test_broken_and_missing_split_files(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('[\n{"train": [}')
    with pytest.raises(DataError, match=r"not valid JSON: line 2, column 12"):
        load_splits(tmp_path / "s.json", [])
    with pytest.raises(UsageError, match=r"data\.splits: no such file: \S+t\.json"):
        load_splits(tmp_path / "t.json", [])
