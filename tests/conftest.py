"""Fixtures and rules that every test shares."""

from __future__ import annotations

import os

# before torch is imported anywhere: one thread makes sums reproducible and leaves the other cores to the user
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("FORCE_COLOR", None)

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_VARIABLE = "MEDTRAIN_DATA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    needs_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if needs_cuda and not _cuda_available():
        for item in needs_cuda:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
    if _data_folder() is None:
        reason = f"no real scans: set {DATA_VARIABLE} to the folder that holds Task04_Hippocampus"
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same state of the global random generators, torch's if it is loaded."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging_left_as_found() -> Iterator[None]:
    """Take down what a command set up, so that no log line turns up in a later test's output."""
    yield
    log = sys.modules.get("medtrain.run.log")
    if log is not None:
        log.close_logging()


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one, so that relative outputs stay out of the source tree."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def medtrain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command line in this process and return its exit code."""
    from medtrain.cli.app import main

    def run(*words: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["medtrain", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    return run


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The folder Task04_Hippocampus of the Medical Segmentation Decathlon; the test is skipped without it."""
    folder = _data_folder()
    if folder is None:
        pytest.skip(f"no real scans: set {DATA_VARIABLE} to the folder that holds Task04_Hippocampus")
    return folder


def _data_folder() -> Path | None:
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    candidates = (Path(named), Path(named) / "Task04_Hippocampus")
    return next((path.resolve() for path in candidates if (path / "dataset.json").is_file()), None)


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()
