"""Whole jobs on a pretended GPU: no operation mixes devices, and no training step waits for the device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.test_images import TASKS
from tests.engine.pretend_cuda import PretendCuda, pretended

Command = Callable[..., int]

ON_GPU = ["trainer.device=cuda", "data.num_workers=0", "trainer.max_steps=2", "trainer.eval_every=100%"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    yield from pretended(monkeypatch)


def steps_that_wait(gpu: PretendCuda) -> list[str]:
    """Where the host waited within training steps; explanations are made afterwards."""
    inside = ("engine/loop.py:train_step", "engine/precision.py:step", "engine/precision.py:clip", "engine/ema.py")
    parts = ("losses/", "models/", "tasks/segmentation.py:training_step", "data/transforms/")
    places = [place for place in gpu.waits if "at models/cam.py" not in place]
    return [place for place in places if any(f"at {part}" in place for part in (*inside, *parts))]


def test_segmentation_trains_resumes_and_is_judged(
    common: list[str], phantom: Path, tmp_path: Path, medtrain: Command, gpu: PretendCuda
) -> None:
    run = tmp_path / "run"
    words = [*ON_GPU, "trainer.precision=fp16", "augment=nnunet", "trainer.accumulate=2"]
    assert medtrain("train", *common, *words, f"run.dir={run}") == 0
    assert gpu.operations > 1000
    assert steps_that_wait(gpu) == []
    # on the same device with the precision that suits it
    assert medtrain("resume", run, "trainer.max_steps=3", "trainer.precision=auto") == 0
    assert json.loads((run / "status.json").read_text())["step"] == 3
    assert medtrain("predict", run, phantom / "imagesTs", tmp_path / "out", "--device", "cuda", "--no-mirror") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize(
    "data", [pytest.param(data, marks=[] if data == "phantom_images" else [pytest.mark.slow]) for data in TASKS]
)
def test_labelled_images_train_and_are_judged(data: str, tmp_path: Path, medtrain: Command, gpu: PretendCuda) -> None:
    run = tmp_path / "run"
    words = [
        f"data={data}", f"data.root={tmp_path / data}", f"data.store={tmp_path / 'store'}", *TASKS[data][0], *ON_GPU,
        "logger=[]", "callbacks=[]", "task.report.resamples=20", "trainer.num_threads=1",
    ]  # fmt: skip
    assert medtrain("train", *words, f"run.dir={run}") == 0
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    assert steps_that_wait(gpu) == []


def test_a_plan_that_does_not_fit_the_gpu_says_what_to_type(
    common: list[str],
    medtrain: Command,
    gpu: PretendCuda,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("medtrain.engine.cost._time_steps", fail)
    assert medtrain("plan", *common, "trainer.device=cuda", "--measure") == 0
    shown = capsys.readouterr().out
    assert "a real step does not fit the memory" in shown
    assert "a smaller data.patch_size" in shown
