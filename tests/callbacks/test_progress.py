from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from medtrain.callbacks import progress
from medtrain.callbacks.progress import ProgressDisplay, describe, format_duration

_SCALARS = {
    "train/loss": 0.43216,
    "train/lr": 0.0095,
    "perf/samples_per_s": 12.34,
    "perf/data_wait": 0.021,
    "train/grad_norm": 1.0,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (-5, "0:00"), (float("inf"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_line_shows_what_is_known(view: Any) -> None:
    view.step, view.epoch = 20, 3
    parts = describe(view, _SCALARS)
    assert parts == ["step 20/100", "epoch 3", "loss 0.4322", "12.3 samples/s", "lr 9.50e-03", "data wait 2 %"]
    view.total_steps = None  # bounded by time
    assert describe(view, {}) == ["step 20", "epoch 3"]


def test_plain_lines_in_a_pipe_and_time_left(
    view: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1000.0, 1004.0, 1010.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    display = ProgressDisplay()
    display.on_fit_start(view)
    with caplog.at_level(logging.INFO):
        view.log(display, 50, _SCALARS)  # nothing is known yet
        view.log(display, 55, _SCALARS)  # 4 s later: not yet
        view.seconds_left = 40.0
        view.log(display, 60, _SCALARS)
    assert [record.getMessage().rpartition("  ")[2] for record in caplog.records] == ["data wait 2 %", "left 0:40"]
    display.on_fit_end(view, "done")


def test_the_bar_comes_and_goes_and_leaves_log_lines_whole(
    view: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=150)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    monkeypatch.setattr(progress, "is_live", lambda: True)
    display = ProgressDisplay()
    display.on_fit_start(view)
    view.progress, view.seconds_left = 0.25, 75.0
    with caplog.at_level(logging.INFO):
        view.log(display, 25, _SCALARS)
        terminal.print("a log line in between")
        view.evaluate(display, 25, val_dice=0.5)
    display.on_exception(view, RuntimeError())
    display.on_fit_end(view, "failed")  # already stopped
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n")
    assert "a log line in between" in text.split("\n")
    assert re.search(r" 25 %  ?left \d:\d\d  ?step 25/100  epoch 0  loss 0\.4322", text)
    assert screen.getvalue().count("\x1b[?25l") == 1  # cursor hidden
    assert screen.getvalue().count("\x1b[?25h") == 1  # and shown again
    assert all(record.screen is False for record in caplog.records)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "rest"), [(80, "12.3 sa"), (60, "step 25/100")])
def test_a_narrow_terminal_cuts_the_numbers_alone(
    view: Any, monkeypatch: pytest.MonkeyPatch, width: int, rest: str
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    monkeypatch.setattr(progress, "is_live", lambda: True)
    display = ProgressDisplay()
    display.on_fit_start(view)
    view.progress, view.seconds_left = 0.25, 12 * 3600.0
    view.log(display, 25, _SCALARS)
    display.on_fit_end(view, "done")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert [bool(line.strip()) for line in plain.split("\n")] == [True, False]
    first, *_, last = [line for line in plain.split("\r") if "%" in line]
    assert re.fullmatch(r".{16}   0 %", first.rstrip())  # no time left while it is not known
    assert re.match(r"\S{16}  25 % left 12:00:00 step 25/100", last)
    assert rest in last
    assert len(last.rstrip("\n")) <= width


_SCRIPT = """
import logging, types
from medtrain.callbacks.progress import ProgressDisplay
from medtrain.run.log import setup_logging
setup_logging()
log = logging.getLogger("medtrain.test")
view = types.SimpleNamespace(step=1, epoch=0, total_steps=4, progress=0.0, seconds_left=None)
display = ProgressDisplay()
display.on_fit_start(view)
for step in range(1, 5):
    view.step, view.progress = step, step / 4
    display.on_log(view, {"train/loss": 1 / step})
    log.info("a message at step %d", step)
    print(f"printed by a library at step {step}")
display.on_fit_end(view, "done")
log.info("the end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_real_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT], stdout=theirs, stderr=theirs, stdin=theirs, env=env)
    os.close(theirs)
    received = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        received += data
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", received.decode()).replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")]
    for step in range(1, 5):
        assert sum(line.endswith(f" a message at step {step}") for line in lines) == 1
        assert f"printed by a library at step {step}" in lines
    assert any("step 4/4" in line for line in lines)
    assert any(line.endswith(" the end") for line in lines)
