"""How many threads a process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtrain.config.compose import load_config
from medtrain.data.workers import usable_cores
from medtrain.engine.derive import derive
from medtrain.run import threads
from medtrain.run.threads import available_threads


@pytest.fixture(autouse=True)
def _six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 6)
    monkeypatch.setattr("medtrain.engine.derive.available_cores", lambda: 6)


@pytest.mark.parametrize(
    ("limit", "processes", "expected"),
    [
        (None, 1, 6), (None, 2, 3), (None, 12, 1), ("1", 1, 1), ("4", 1, 4), ("4", 2, 3), ("2", 2, 2), ("32", 1, 6),
        ("3,1", 1, 3),  # one number for each level of nesting
        ("0", 1, 6), ("many", 1, 6), ("", 1, 6),
    ],
)  # fmt: skip
def test_the_cores_and_omp_num_threads_decide(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, processes: int, expected: int
) -> None:
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert available_threads(processes) == expected


@pytest.mark.parametrize(("limit", "expected"), [("1", 3), ("2", 2)])
def test_what_torchrun_sets_is_no_wish_of_the_user(monkeypatch: pytest.MonkeyPatch, limit: str, expected: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert available_threads(2) == expected


@pytest.mark.parametrize("limit", ["1", "3"])
def test_a_run_and_what_reads_cases_heed_omp_num_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    words = ["data=phantom", "data.num_cases=5", "data.num_test_cases=0", f"data.root={tmp_path / 'phantom'}"]
    derivation = derive(load_config([*words, f"data.store={tmp_path / 'store'}", "trainer.device=cpu"]).tree)
    values = {value.key: value for value in derivation.values}
    assert derivation.config["trainer"]["num_threads"] == int(limit)
    assert values["trainer.num_threads"].reason == f"OMP_NUM_THREADS={limit}"
    assert usable_cores() == int(limit)


def test_one_function_counts_threads() -> None:
    """Nothing else asks the machine: what it found would ignore a container's quota or OMP_NUM_THREADS."""
    package = Path(threads.__file__).parent.parent
    asking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(
            word in path.read_text(encoding="utf-8")
            for word in ("cpu_count(", "sched_getaffinity(", "get_num_threads()")
        )
    }
    # the pool deals out the numbers of cores; a first stage puts back what it found
    assert asking == {"run/threads.py", "sweep/pool.py", "inference/cascade.py"}
