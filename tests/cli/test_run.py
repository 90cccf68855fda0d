"""The funnel: every error becomes lines on stderr and an exit code."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import typer

from medtrain.cli import _run
from medtrain.cli._run import end, handle_errors, set_debug
from medtrain.engine.launch import EXIT_DONE, EXIT_STOPPED, Outcome
from medtrain.errors import ConfigError, DataError, MedtrainError, NonFiniteError, Problem, UsageError


def funnel(error: BaseException, capsys: pytest.CaptureFixture[str], *, debug: bool = False) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as caught, handle_errors(debug):
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return caught.value.exit_code, captured.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MedtrainError("it failed"), 1, "error: it failed\n"),
        (MedtrainError("it failed", hint="do this"), 1, "error: it failed\nhint: do this\n"),
        (UsageError("wrong word", hint="right word"), 2, "error: wrong word\nhint: right word\n"),
        (NonFiniteError("the loss is nan"), 3, "error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            ConfigError([Problem("model.x", "unknown key", "did you mean `model.y`?", "command line")]),
            2,
            "error: model.x: unknown key (command line)\nhint: did you mean `model.y`?\n",
        ),
        (
            ConfigError([Problem("a", "wrong", "try b", "file"), Problem("c", "missing")]),
            2,
            "error: a: wrong (file); try b\nerror: c: missing\n",
        ),
        (
            DataError([Problem("x.nii.gz", "truncated"), Problem("y.nii.gz", "missing")], heading="2 files are bad"),
            1,
            "error: 2 files are bad\n  x.nii.gz: truncated\n  y.nii.gz: missing\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"),
            1,
            "error: the disk is full: /full/file\n"
            "hint: free some space, or choose another place with run.root=FOLDER and data.store=FOLDER\n",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1, "error: no such file or directory: x\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: permission denied: x\n"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "error: ZeroDivisionError: division by zero\n"
            "hint: this is not expected; run the command again with --debug to see where it comes from\n",
        ),
    ],
)
def test_lines_and_codes(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert funnel(error, capsys) == (code, text)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in funnel(ValueError("x"), capsys)[1]
    text = funnel(ValueError("x"), capsys, debug=True)[1]
    assert text.startswith("Traceback (most recent call last):")
    assert "\nerror: ValueError: x\n" in text
    monkeypatch.setattr(_run, "_state", {"debug": False})
    set_debug(True)
    assert "Traceback" in funnel(ValueError("x"), capsys)[1]


@pytest.mark.parametrize("error", [typer.Exit(75), SystemExit(4)])
def test_an_exit_is_passed_on(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)), handle_errors():
        raise error
    assert capsys.readouterr().err == ""


def test_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with handle_errors():
        print("done")
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    ("code", "told"), [(EXIT_DONE, ""), (EXIT_STOPPED, "continue with: medtrain resume outputs/liver/run")]
)
def test_a_command_says_how_to_continue_what_it_began(code: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(typer.Exit) as caught:
        end(Outcome(Path("outputs/liver/run"), code))
    assert caught.value.exit_code == code
    assert "".join(caplog.messages) == told
