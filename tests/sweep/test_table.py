from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from medtrain.sweep import table
from medtrain.sweep.table import SweepTable
from tests.sweep.report.studies import DICE, LATENCY

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(table.time, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(table, "is_live", lambda: False)
    caplog.set_level(logging.INFO)
    return caplog


def _messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_for_every_event_in_a_pipe(lines: pytest.LogCaptureFixture, clock: Clock) -> None:
    shown = SweepTable([DICE], 60, Path("out"))
    shown.started(0, {"optimizer.lr": 0.01, "loss": "focal", "loss.gamma": 2.3456})
    shown.started(1, {"optimizer.lr": 0.02, "loss": "dice_ce"}, again=True)
    clock.now += 125
    shown.finished(0, "complete", {"val/dice": 0.8812345, "n": 3}, "", best=True)
    shown.finished(1, "pruned", {}, "pruned by the sweep at 40 % of its budget", best=False)
    shown.finished(2, "failed", {}, "out of memory", best=False)  # never said that it started
    shown.finished(3, "again", {}, "killed by signal 9", best=False)
    shown.finished(4, "stopped", {"val/dice": 0.5}, "", best=False)
    shown.finished(5, "lost", {}, "", best=False)
    shown.close()
    assert _messages(lines) == [
        "trial 0 starts: lr 0.01, loss focal, gamma 2.35",
        "trial 1 starts again: lr 0.02, loss dice_ce",
        "trial 0 complete: val/dice 0.8812, the best so far, 2 min 05 s (1/60)",
        "trial 1 pruned by the sweep at 40 % of its budget, 2 min 05 s (2/60)",
        "trial 2 failed: out of memory (3/60)",
        "trial 3 crashed and is tried again: killed by signal 9 (3/60)",
        "trial 4 is saved, to be continued (3/60)",
        "trial 5 was taken over by another worker (3/60)",
    ]
    levels = {record.getMessage().split()[1]: record.levelname for record in lines.records}
    assert (levels["2"], levels["3"], levels["4"]) == ("WARNING", "WARNING", "INFO")
    assert all(getattr(record, "screen", True) for record in lines.records)


def test_several_objectives(lines: pytest.LogCaptureFixture) -> None:
    shown = SweepTable([DICE, LATENCY], None, Path("out"))
    shown.started(0, {})
    shown.finished(0, "complete", {"val/dice": 0.9, "latency_ms": 12.5}, "", best=True)
    assert _messages(lines)[0] == "trial 0 starts: the configuration as it is"
    assert _messages(lines)[1].startswith("trial 0 complete: val/dice 0.9000, latency_ms 12.50, on the front")
    assert _messages(lines)[1].endswith("(1)")


def test_running_trials_are_named_once_a_minute(lines: pytest.LogCaptureFixture, clock: Clock) -> None:
    shown = SweepTable([DICE], 10, Path("out"))
    shown.started(3, {"optimizer.lr": 0.01})
    shown.started(4, {"optimizer.lr": 0.02})
    for second in range(1, 121):
        clock.now += 1
        shown.progress(3, second / 2, {"val/dice": 0.5 + second / 1000} if second % 50 == 0 else {"train/loss": 1.0})
    progress = [line for line in _messages(lines) if "running" in line]
    assert progress == [
        "0/10 trials; 1 min 00 s so far; running: trial 3 30 % 0.5500, trial 4 0 %",
        # 0.6 trials took two minutes, 9.4 are left
        "0/10 trials; about 31 min 20 s left; 2 min 00 s so far; running: trial 3 60 % 0.6000, trial 4 0 %",
    ]
    shown.progress(99, 5, {})  # of a trial that has just ended


def test_a_continued_sweep_reckons_with_this_session_only(lines: pytest.LogCaptureFixture, clock: Clock) -> None:
    shown = SweepTable([DICE], 20, Path("out"), counts={"complete": 8, "pruned": 2})
    assert shown._summary() == ["10/20 trials", "2 pruned", "0.0 s so far"]  # no pace yet
    shown.started(10, {})
    clock.now += 60
    shown.finished(10, "failed", {}, "", best=False)
    # one in a minute: nine are left
    assert SweepTable([DICE], 10, Path("out"), counts={"complete": 10})._summary() == ["10/10 trials", "0.0 s so far"]
    assert shown._summary() == ["11/20 trials", "about 9 min 00 s left", "2 pruned", "1 failed", "1 min 00 s so far"]


def _terminal(monkeypatch: pytest.MonkeyPatch, width: int, height: int = 24) -> io.StringIO:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, height=height)
    monkeypatch.setattr(table, "console", lambda: terminal)
    monkeypatch.setattr(table, "is_live", lambda: True)
    return screen


def _last_frame(screen: io.StringIO) -> list[str]:
    """What the terminal shows at the end."""
    frame = screen.getvalue().rpartition("\x1b[2K")[2]
    return [line.rstrip() for line in _ESCAPE.sub("", frame).replace("\r", "").split("\n") if line.strip()]


_BEST = (2, {"val/dice": 0.8931}, {"optimizer.lr": 0.0032, "loss": "dice_ce"})


def test_the_live_table(monkeypatch: pytest.MonkeyPatch, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    screen = _terminal(monkeypatch, 100)
    shown = SweepTable([DICE], 60, Path("out"), counts={"complete": 5}, best=_BEST)
    shown.started(7, {"optimizer.lr": 0.01, "loss": "focal", "loss.gamma": 2.3456})
    shown.started(8, {"optimizer.lr": 0.02, "loss": "dice_ce"})
    clock.now += 30
    shown.progress(7, 50, {"val/dice": 0.8123})
    top, best, header, first, second = _last_frame(screen)
    assert top == "5/60 trials  about 54 min 30 s left  30 s so far"
    assert best == "best val/dice 0.8931, trial 2: lr 0.0032, loss dice_ce"
    assert header.split() == ["trial", "done", "val/dice"]
    assert re.fullmatch(r" +7 +\S+ +50 % +0\.8123 +lr 0\.01, loss focal, gamma 2\.35", first)
    assert re.fullmatch(r" +8 +\S+ +0 % +- +lr 0\.02, loss dice_ce", second)
    shown.finished(7, "complete", {"val/dice": 0.9}, "", best=True)
    assert _last_frame(screen)[1] == "best val/dice 0.9000, trial 7: lr 0.01, loss focal, gamma 2.35"
    shown.close()
    shown.close()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1  # the cursor is back
    on_screen = {record.getMessage().split(":")[0]: getattr(record, "screen", True) for record in caplog.records}
    assert on_screen == {"trial 7 starts": False, "trial 8 starts": False, "trial 7 complete": True}


@pytest.mark.parametrize("width", [24, 36, 50, 60, 200])
def test_narrow_terminals_keep_the_numbers(monkeypatch: pytest.MonkeyPatch, clock: Clock, width: int) -> None:
    screen = _terminal(monkeypatch, width)
    shown = SweepTable([DICE], 60, Path("out"), best=_BEST)
    shown.started(7, {f"model.some_long_name_{index}": "value" for index in range(8)})
    clock.now += 30
    shown.progress(7, 50, {"val/dice": 0.8123})
    frame = _last_frame(screen)
    shown.close()
    assert all(len(line) <= width for line in frame)
    assert len(frame) == 4  # nothing is folded
    assert frame[0].startswith("0/60 trials  about")
    assert "50 %" in frame[3]
    assert "0.8123" in frame[3]


def test_more_trials_than_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = _terminal(monkeypatch, 80, height=12)
    shown = SweepTable([DICE], 60, Path("out"))
    for number in range(16):
        shown.started(number, {"optimizer.lr": 0.01})
    frame = _last_frame(screen)
    shown.close()
    assert len(frame) == 9
    assert frame[-1].strip() == "and 10 more"


def test_it_is_not_redrawn_more_often_than_can_be_read(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = _terminal(monkeypatch, 80)
    shown = SweepTable([DICE], 60, Path("out"))
    shown.started(7, {"optimizer.lr": 0.01})
    before = len(screen.getvalue())
    for _ in range(100):
        clock.now += 0.001
        shown.progress(7, 50, {"val/dice": 0.8})
    assert len(screen.getvalue()) == before
    clock.now += 1
    shown.refresh()
    assert "50 %" in _last_frame(screen)[-1]
    shown.close()


def test_braces_of_a_value_are_no_markup(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = _terminal(monkeypatch, 80)
    shown = SweepTable([DICE], None, Path("out"))
    shown.started(7, {"model.channels": "[bold]", "data.patch_size": "[32,32,32]"})
    assert _last_frame(screen)[-1].endswith("channels [bold], patch_size [32,32,32]")
    shown.close()
