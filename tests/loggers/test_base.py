from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pytest

from medtrain.loggers.base import Logger, LoggerSet


class _Recorder(Logger):
    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._fail_at = fail_at

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        if step == self._fail_at:
            raise ConnectionError("quota exceeded")
        self.calls.append(("scalars", step, epoch, dict(scalars)))

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        self.calls.append(("image", step, tag, image.shape))

    def log_text(self, step: int, tag: str, text: str) -> None:
        self.calls.append(("text", step, tag, text))

    def resume(self, step: int) -> None:
        if self._fail_at == -1:
            raise OSError("cannot read")
        self.calls.append(("resume", step))

    def flush(self) -> None:
        self.calls.append(("flush",))

    def close(self) -> None:
        self.calls.append(("close",))


def test_everything_is_passed_on() -> None:
    a, b = _Recorder(), _Recorder()
    loggers = LoggerSet({"a": a, "b": b})
    loggers.resume(3)
    loggers.log_scalars(4, 1, {"x": 1.0})
    loggers.log_image(4, "worst", np.zeros((2, 3, 3), np.uint8))
    loggers.log_text(4, "note", "hello")
    loggers.flush()
    loggers.close()
    loggers.close()
    assert a.calls == b.calls
    assert a.calls == [
        ("resume", 3),
        ("scalars", 4, 1, {"x": 1.0}),
        ("image", 4, "worst", (2, 3, 3)),
        ("text", 4, "note", "hello"),
        ("flush",),
        ("close",),
    ]


def test_a_logger_that_fails_is_switched_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = _Recorder(), _Recorder(fail_at=2)
    loggers = LoggerSet({"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            loggers.log_scalars(step, 0, {"x": 0.0})
    assert [record.getMessage() for record in caplog.records] == [
        "logger bad failed and is switched off: ConnectionError: quota exceeded"
    ]
    assert (len(good.calls), len(bad.calls)) == (3, 1)
    assert loggers.names == ("good",)


def test_a_logger_that_cannot_resume_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot read"):
        LoggerSet({"bad": _Recorder(fail_at=-1)}).resume(1)


def test_pictures_are_checked() -> None:
    with pytest.raises(AssertionError):
        LoggerSet({}).log_image(1, "x", np.zeros((2, 3, 3), np.float32))
    with pytest.raises(AssertionError):
        LoggerSet({}).log_image(1, "x", np.zeros((3, 2, 2), np.uint8))
