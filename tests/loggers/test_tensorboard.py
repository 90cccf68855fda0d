from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medtrain.loggers.tensorboard import TensorBoardLogger


def _scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_numbers_pictures_and_text_read_back(tmp_path: Path) -> None:
    logger = TensorBoardLogger(run_dir=tmp_path)
    logger.log_scalars(5, 1, {"train/loss": 0.5, "perf/step_s": 2.0})
    logger.log_image(5, "previews/worst", np.full((4, 6, 3), 200, np.uint8))
    logger.log_text(5, "config", "# hello")
    logger.flush()
    logger.close()
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert _scalars(tmp_path, "train/loss") == [(5, 0.5)]
    assert _scalars(tmp_path, "perf/step_s") == [(5, 2.0)]
    picture = events.Images("previews/worst")[0]
    assert (picture.height, picture.width) == (4, 6)
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"# hello"


def test_resume_replaces_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    first = TensorBoardLogger(run_dir=tmp_path)
    for step in (1, 2, 3, 4):
        first.log_scalars(step, 0, {"x": float(step)})
    first.close()
    second = TensorBoardLogger(run_dir=tmp_path)
    second.resume(2)
    for step in (3, 5):
        second.log_scalars(step, 0, {"x": 10.0 * step})
    second.close()
    assert _scalars(tmp_path, "x") == [(1, 1.0), (2, 2.0), (3, 30.0), (5, 50.0)]


def test_nothing_logged_makes_no_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(run_dir=tmp_path)
    logger.resume(0)
    logger.flush()
    logger.close()
    assert list((tmp_path / "tensorboard").iterdir()) == []


def test_resume_after_logging_is_a_mistake(tmp_path: Path) -> None:
    logger = TensorBoardLogger(run_dir=tmp_path)
    logger.log_scalars(1, 0, {"x": 1.0})
    with pytest.raises(AssertionError):
        logger.resume(0)
    logger.close()
