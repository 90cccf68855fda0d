"""Threads that work on cases: how many, how much memory they may hold, and how their problems are gathered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from medtrain.data.case import Case
from medtrain.errors import DataError, Problem
from medtrain.run.threads import available_threads

Progress = Callable[[int, int, str], None]
"""Called with (done, total, case id) after each case."""

MEMORY_BYTES = 4 * 2**30
"""What the cases being worked on may hold together."""

_MAX_WORKERS = 8
_T = TypeVar("_T")


class MemoryGate:
    """Lets threads hold memory up to a total; a case larger than the total goes alone.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int = MEMORY_BYTES) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes fit beside what others hold, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + amount <= self._total)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


def usable_cores() -> int:
    """Threads this process may use, at most 8: what reads and resamples shares them."""
    return min(_MAX_WORKERS, available_threads())


def for_each_case(
    cases: Sequence[Case], work: Callable[[Case], _T], *, workers: int | None = None, progress: Progress | None = None
) -> dict[str, _T]:
    """Run `work` on every case in threads; data problems are gathered, anything else stops at once.

    Args:
        cases: In the order to be started.
        work: Called with each.
        workers: Threads; None for one per usable core, at most 8.
        progress: Called after each case.

    Returns:
        Results by case id.

    Raises:
        DataError: The problems of all cases.
    """
    problems: list[Problem] = []
    done: dict[str, _T] = {}
    with ThreadPoolExecutor(max_workers=workers or usable_cores(), thread_name_prefix="cases") as pool:
        futures = {pool.submit(work, case): case for case in cases}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                case = futures[future]
                try:
                    done[case.case_id] = future.result()
                except DataError as error:
                    problems.extend(error.problems)
                if progress is not None:
                    progress(count, len(cases), case.case_id)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        problems.sort(key=lambda problem: problem.where)
        raise DataError(problems, heading=f"{len(problems)} files cannot be used:")
    return done
