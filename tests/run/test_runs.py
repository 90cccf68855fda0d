from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medtrain.errors import UsageError
from medtrain.run.folder import RunFolder
from medtrain.run.runs import list_runs, print_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs in two experiments: done, killed, failed, unreadable."""
    root = tmp_path / "outputs"
    done = RunFolder.create(experiment="liver", root=root)
    done.start()
    done.heartbeat(30, best={"metric": "val/dice", "value": 0.87654, "step": 30})
    done.finish("done", step=40, message="reached the limit")
    killed = RunFolder.create(experiment="liver", root=root)
    killed.start()
    _edit(killed.path, pid=2**22 + 1, started="2999-01-01T00:00:00+00:00")
    failed = RunFolder.create(experiment="spleen", root=root)
    failed.finish("failed", step=3, message="RuntimeError: boom [bold]")
    _edit(failed.path, started="2020-01-01T00:00:00+00:00")
    unreadable = RunFolder.create(experiment="spleen", root=root)
    (unreadable.path / "status.json").write_text("{")
    (root / "notes").mkdir()
    return root


def _edit(path: Path, **changes: object) -> None:
    file = path / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_every_run_once_oldest_first(root: Path) -> None:
    runs = list_runs(root)
    assert [run.status for run in runs] == ["unknown", "failed", "done", "killed"]
    assert (runs[2].metric, runs[2].best, runs[2].best_step, runs[2].step) == ("val/dice", 0.87654, 30, 40)
    assert runs[3].best is None


def test_one_experiment_one_run_and_no_folder(root: Path) -> None:
    assert len(list_runs(root / "liver")) == 2
    (run,) = list_runs(list_runs(root)[2].run)
    assert run.status == "done"
    with pytest.raises(UsageError, match="is not a folder"):
        list_runs(root / "nowhere")


def test_the_command_prints_a_table_or_json(root: Path) -> None:
    from medtrain.cli.app import app

    table = CliRunner().invoke(app, ["runs", str(root)])
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["Run", "Status", "Step", "Best", "Started", "Note"]
    assert len(lines) == 5
    assert "val/dice 0.8765 at 30" in lines[3]
    assert "RuntimeError: boom [bold]" in lines[2]
    as_json = CliRunner().invoke(app, ["runs", str(root), "--format", "json"])
    rows = json.loads(as_json.stdout)
    assert [row["status"] for row in rows] == ["unknown", "failed", "done", "killed"]
    assert rows[2]["best"] == 0.87654


_LONG = "DataError: " + "\n".join(f"case_{number:03}: the label does not fit the image" for number in range(40))


@pytest.fixture
def short(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder by its short name; the failed run has a long message."""
    (failed,) = [run for run in list_runs(root) if run.status == "failed"]
    _edit(Path(failed.run), message=_LONG)
    monkeypatch.chdir(root.parent)
    return Path(root.name)


@pytest.mark.parametrize("width", [50, 80, 100, 130, 200])
def test_on_a_terminal_paths_stay_whole_and_messages_are_one_line(
    short: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    runs = list_runs(short)
    print_runs(runs, output="table")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("outputs")] == [run.run for run in runs]
    (note,) = [line for line in lines if "DataError: case_000" in line]
    assert note.endswith("...")
    assert len(note) <= width
    if width >= 80:
        assert max(map(len, lines)) <= width
    assert ("Started" in lines[0]) == (width >= 100)
    assert ("Note" in lines[0]) == (width >= 130)
    # below the run otherwise, for runs that did not end well
    assert len(lines) == 5 + sum(bool(run.message) and run.status != "done" for run in runs) * (width < 130)


def test_in_a_pipe_every_run_is_one_line_of_reasonable_length(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = list_runs(short)
    print_runs(runs, output="table")
    header, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [run.run for run in runs]
    assert lines[1][header.index("Note") :] == "DataError: " + _LONG[11:77].replace("\n", " ") + "..."
    assert all(line[header.index("Step") :].lstrip()[0].isdigit() for line in lines)
    print_runs(runs, output="json")
    assert json.loads(capsys.readouterr().out)[1]["message"] == _LONG


def test_the_command_without_runs(tmp_path: Path) -> None:
    from medtrain.cli.app import app

    empty = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "no runs below" in empty.stderr
    assert json.loads(CliRunner().invoke(app, ["runs", str(tmp_path), "--format", "json"]).stdout) == []
    missing = CliRunner().invoke(app, ["runs", str(tmp_path / "x")])
    assert missing.exit_code == 2
    assert "error:" in missing.stderr
