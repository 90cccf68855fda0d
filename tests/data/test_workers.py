import threading

import pytest

from medtrain.data.case import Case
from medtrain.data.workers import MemoryGate, for_each_case, usable_cores
from medtrain.errors import DataError, Problem

CASES = [Case(str(index), (), None, str(index)) for index in range(20)]


def test_threads_hold_no_more_than_the_gate_allows() -> None:
    gate, lock = MemoryGate(10), threading.Lock()
    held: list[int] = []
    highest = 0

    def work(case: Case) -> int:
        nonlocal highest
        amount = 25 if case.case_id == "7" else 4
        with gate.hold(amount):
            with lock:
                held.append(amount)
                assert held == [25] or 25 not in held  # what is larger than the gate goes alone
                highest = max(highest, sum(held))
            with lock:
                held.remove(amount)
        return amount

    results = for_each_case(CASES, work, workers=6)
    assert results == {case.case_id: 25 if case.case_id == "7" else 4 for case in CASES}
    assert highest <= 25


def test_data_problems_are_gathered_and_sorted() -> None:
    def work(case: Case) -> None:
        if case.case_id in ("11", "3"):
            raise DataError([Problem(where=case.case_id, message="bad")])

    with pytest.raises(DataError) as error:
        for_each_case(CASES, work, workers=3)
    assert [problem.where for problem in error.value.problems] == ["11", "3"]
    assert str(error.value).startswith("2 files cannot be used:")


def test_other_errors_are_raised_as_they_are() -> None:
    def work(case: Case) -> None:
        if case.case_id == "5":
            raise KeyError(case.case_id)

    with pytest.raises(KeyError, match="5"):
        for_each_case(CASES, work, workers=2)


def test_usable_cores_are_few() -> None:
    assert 1 <= usable_cores() <= 8
