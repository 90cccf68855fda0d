"""A tiny phantom shared by the end-to-end tests, and settings that train in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

TINY = [
    "data.patch_size=[16,32,32]",
    "data.batch_size=2",
    "model.channels=[4,8,16]",
    "trainer.precision=fp32",
    "trainer.num_threads=1",
    "logger=[csv,jsonl]",
    "callbacks=[metrics_table]",
    "inference.mirror=false",
]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generated cases in the Decathlon's layout, and two test scans."""
    from medtrain.registry import build

    root = tmp_path_factory.mktemp("phantom") / "phantom"
    build("data", {"name": "phantom", "root": str(root), "num_cases": 6, "num_test_cases": 2}).discover()
    return root


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def common(phantom: Path, store: Path) -> list[str]:
    """Overrides that every run of these tests shares."""
    return ["data=msd", f"data.root={phantom}", f"data.store={store}", "data.num_folds=3", *TINY]


@pytest.fixture(autouse=True)
def _narrow_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the encoder `cnn` narrow, whose width is no setting of models of several images."""
    from medtrain.models.cnn import CnnEncoder

    monkeypatch.setitem(CnnEncoder.__init__.__kwdefaults__, "channels", (4, 8))


@pytest.fixture
def broken(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantom to be damaged."""
    root = tmp_path / "broken"
    shutil.copytree(phantom, root)
    return root


def read_rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
