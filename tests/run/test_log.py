from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from medtrain.run import log
from medtrain.run.log import close_logging, console, is_live, setup_logging

_LOG = logging.getLogger("medtrain.somewhere")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    close_logging()


def test_console_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir=tmp_path)
    _LOG.info("a [bold]line[/bold] that is longer than eighty columns, so a console that wraps would break it in two")
    _LOG.warning("careful")
    _LOG.debug("hidden")
    _LOG.info("file only", extra={"screen": False})
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d\d:\d\d:\d\d a \[bold\]line\[/bold\] that .* in two", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: careful", lines[1])
    written = (tmp_path / "log.txt").read_text().splitlines()
    assert len(written) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARNING careful", written[1])
    assert written[2].endswith("INFO file only")


def test_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir=tmp_path, level="error")
    _LOG.info("for the file")
    _LOG.error("for both")
    assert re.fullmatch(r"\S+ error: for both\n", capsys.readouterr().err)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
    setup_logging(level="debug")
    _LOG.debug("shown")
    assert capsys.readouterr().err.endswith("debug: shown\n")


def test_a_second_setup_replaces_the_first_and_the_file_is_appended_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    setup_logging(run_dir=tmp_path)
    _LOG.info("one")
    setup_logging(run_dir=tmp_path)
    _LOG.info("two")
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_other_ranks_write_to_their_own_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir=tmp_path, rank=1)
    _LOG.warning("from rank 1")
    assert capsys.readouterr().err == ""
    assert "from rank 1" in (tmp_path / "log.rank1.txt").read_text()
    setup_logging(rank=1)
    _LOG.warning("no file yet")
    assert capsys.readouterr().err == ""


def test_warnings_go_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # inside catch_warnings, which has put its own hook in place
        warnings.warn("old thing", stacklevel=1)
        logging.captureWarnings(False)
    assert "old thing" in (tmp_path / "log.txt").read_text()


def test_a_disk_that_refuses_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir=tmp_path)

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    handler = next(h for h in logging.getLogger("medtrain").handlers if isinstance(h, logging.FileHandler))
    assert handler.stream is None or handler.stream.close() is None
    handler.stream = Full()  # type: ignore[assignment]
    _LOG.info("one")
    _LOG.info("two")
    err = capsys.readouterr().err
    assert err.count("No space left on device") == 1
    assert "Traceback" not in err
    assert "two" in err


def test_close_restores_python_logging() -> None:
    setup_logging()
    close_logging()
    root = logging.getLogger("medtrain")
    assert (root.handlers, root.propagate, root.level) == ([], True, logging.NOTSET)


def test_not_live_in_a_pipe_even_with_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    log.console.cache_clear()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console().is_terminal
    assert not is_live()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    log.console.cache_clear()
    assert is_live()
    monkeypatch.setenv("MEDTRAIN_NO_PROGRESS", "1")
    assert not is_live()
    log.console.cache_clear()


def test_a_reader_that_is_gone_does_not_end_the_program(tmp_path: Path) -> None:
    """`medtrain train 2>&1 | tee log`: Ctrl-C ends tee, too."""
    script = (
        "import logging, sys; from pathlib import Path; from medtrain.run.log import setup_logging\n"
        "setup_logging(run_dir=Path(sys.argv[1]))\n"
        "for number in range(3): logging.getLogger('medtrain.x').info('line %d', number)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stderr=writer, stdout=writer, check=False)
    os.close(writer)
    assert process.returncode == 0
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["0", "1", "2"]
