from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medtrain.errors import MedtrainError
from medtrain.run import atomic
from medtrain.run.atomic import atomic_dir, atomic_write, atomic_write_json, process_alive, remove_leftovers


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "a much longer text\r\n")
    atomic_write(path, b"short")
    assert path.read_bytes() == b"short"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_write_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(MedtrainError, match=r"the disk is full: cannot write .*a\.txt") as caught:
        atomic_write(path, "new")
    assert caught.value.hint is not None
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_other_os_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "a", "x")


def test_a_forbidden_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(atomic.os, "fsync", read_only)
    with pytest.raises(MedtrainError, match=r"cannot write .*a: Read-only file system"):
        atomic_write(tmp_path / "a", "x")


def test_json_floats_round_trip_and_nan_is_null(tmp_path: Path) -> None:
    values = {"third": 1 / 3, "tiny": 5e-324, "list": [0.1, float("nan"), (float("inf"),)], "n": 3, "flag": True}
    atomic_write_json(tmp_path / "a.json", values)
    read = json.loads((tmp_path / "a.json").read_text())
    assert read == {"third": 1 / 3, "tiny": 5e-324, "list": [0.1, None, [None]], "n": 3, "flag": True}


def test_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step_1"
    with atomic_dir(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"

    def fail_half_way() -> None:
        with atomic_dir(tmp_path / "step_2") as folder:
            (folder / "x").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.parametrize(("existing", "expected"), [("keep", "first"), ("replace", "second"), ("fail", "first")])
def test_folder_that_is_already_there(tmp_path: Path, existing: str, expected: str) -> None:
    target = tmp_path / "case"
    with atomic_dir(target) as folder:
        (folder / "x").write_text("first")

    def again() -> None:
        with atomic_dir(target, existing=existing) as folder:  # type: ignore[arg-type]
            (folder / "x").write_text("second")

    if existing == "fail":
        with pytest.raises(FileExistsError):
            again()
    else:
        again()
    assert (target / "x").read_text() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


def test_full_disk_while_filling_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MedtrainError, match="the disk is full"), atomic_dir(tmp_path / "case"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = tmp_path / f".case.{_dead_pid()}.0123abcd@{host}.tmp"
    dead.mkdir()
    (dead / "x").write_text("1")
    live = tmp_path / f".case.{os.getpid()}.0123abcd@{host}.tmp"
    live.write_text("1")
    foreign = tmp_path / ".case.1.0123abcd@elsewhere.example.tmp"
    foreign.write_text("1")
    old_foreign = tmp_path / ".case.2.0123abcd@elsewhere.example.tmp"
    old_foreign.write_text("1")
    os.utime(old_foreign, (0, 0))
    (tmp_path / ".case.tmp").write_text("a user's own file")
    assert set(remove_leftovers(tmp_path)) == {dead.name, old_foreign.name}
    assert {p.name for p in tmp_path.iterdir()} == {live.name, foreign.name, ".case.tmp"}


def test_the_name_of_a_killed_writer_is_recognised(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom medtrain.run.atomic import atomic_dir\n"
        "with atomic_dir(sys.argv[1]) as folder:\n    (folder / 'x').write_text('1')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "case")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(remove_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_process_alive() -> None:
    assert process_alive(os.getpid())
    assert not process_alive(_dead_pid())
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # ends when the process does
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
    assert not process_alive(zombie.pid)
    zombie.wait()
    zombie.stdout.close()
