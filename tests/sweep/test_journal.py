"""The journal: what a killed process, a full disk and several writers leave behind."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from medtrain.errors import MedtrainError
from medtrain.run.lock import Holder
from medtrain.sweep import journal
from medtrain.sweep.journal import LOCK_SUFFIX, Journal, JournalFile, journal_lock
from medtrain.sweep.storage import open_storage


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {f"k{number}": number}, **more}


def log_of(path: Path) -> list[dict[str, Any]]:
    return list(JournalFile(path).read_logs(0))


def test_what_is_appended_is_read_from_any_record_on(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "x.log")
    file.append_logs([record(0), record(1)])
    other = JournalFile(tmp_path / "x.log")
    assert list(other.read_logs(0)) == [record(0), record(1)]
    file.append_logs([record(2)])
    assert list(other.read_logs(2)) == [record(2)]
    assert list(other.read_logs(1)) == [record(1), record(2)]
    assert not (tmp_path / ("x.log" + LOCK_SUFFIX)).exists()


@pytest.mark.parametrize("text", ["a", "Gr\u00fc\u00dfe"])
def test_a_half_written_record_is_cut_off_at_every_byte(text: str, tmp_path: Path) -> None:
    """A process may be killed after any byte: the study opens as it was before, and goes on."""
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0), record(1)])
    whole = path.read_bytes()
    JournalFile(path).append_logs([record(2, text=text)])
    added = path.read_bytes()[len(whole) :]
    for length in range(len(added)):
        path.write_bytes(whole + added[:length])
        reader = JournalFile(path)
        assert list(reader.read_logs(0)) == [record(0), record(1)]
        JournalFile(path).append_logs([record(3)])
        assert list(reader.read_logs(2)) == [record(3)]
        assert log_of(path) == [record(0), record(1), record(3)]
        assert path.read_bytes().count(b"\n") == 3


def test_optunas_own_backend_cannot_go_on_after_that(tmp_path: Path) -> None:
    """Why there is one of ours; when this fails, it may go."""
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0)])
    path.write_bytes(path.read_bytes() + b'{"op_co')
    JournalFileBackend(str(path)).append_logs([record(1), record(2)])
    with pytest.raises(ValueError):
        list(JournalFileBackend(str(path)).read_logs(0))


@pytest.mark.parametrize("tail", [b"\0" * 70_000, b"\0\0\n", b"[]\n", b"\n", b"{}\n", b"x" * 200_000])
def test_garbage_at_the_end_is_cut_off(tail: bytes, tmp_path: Path) -> None:
    """After a power cut the file may be longer than what was written to it."""
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0)])
    path.write_bytes(path.read_bytes() + tail)
    assert log_of(path) == [record(0)]
    JournalFile(path).append_logs([record(1)])
    assert log_of(path) == [record(0), record(1)]


def test_a_file_of_nothing_but_garbage_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"\0" * 100)
    JournalFile(path).append_logs([record(0)])
    assert path.read_bytes() == json.dumps(record(0), separators=(",", ":")).encode() + b"\n"


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0), record(1), record(2)])
    path.write_bytes(path.read_bytes().replace(b'"k1"', b'"k\x001'))
    with pytest.raises(MedtrainError, match="record 2 cannot be read"):
        log_of(path)


def test_a_record_that_is_repaired_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0), record(1)])
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"k0"', b'"k\x000'))
    parse, parsed = journal._parse, []

    def repaired_in_between(line: bytes) -> Any:
        parsed.append(line)
        if len(parsed) == 2:
            path.write_bytes(good)
        return parse(line)

    monkeypatch.setattr(journal, "_parse", repaired_in_between)
    assert log_of(path) == [record(0), record(1)]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    storage = Journal(JournalFile(path))
    study = optuna.create_study(storage=storage, study_name="s")
    before = path.read_bytes()
    write = os.pwrite

    def half(descriptor: int, data: Any, offset: int) -> int:
        if offset > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data)[: len(data) // 2], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(MedtrainError, match=r"the disk is full: cannot write .*x\.log"):
            study.set_user_attr("key", "value")
    assert path.read_bytes() == before
    assert not (tmp_path / ("x.log" + LOCK_SUFFIX)).exists()
    study.set_user_attr("key", "other")
    assert optuna.load_study(storage=Journal(JournalFile(path)), study_name="s").user_attrs == {"key": "other"}


def test_a_write_that_comes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, bytes(data)[:5], offset))
    JournalFile(tmp_path / "x.log").append_logs([record(0), record(1)])
    assert log_of(tmp_path / "x.log") == [record(0), record(1)]


def test_a_journal_that_is_only_read_need_not_be_writable(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    JournalFile(path).append_logs([record(0)])
    stamp = path.stat().st_mtime_ns
    assert log_of(path) == [record(0)]
    assert path.stat().st_mtime_ns == stamp


def killed_holder(path: Path) -> None:
    """Leave the lock of a process that was killed while it held it."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom medtrain.sweep.journal import journal_lock\n"
        "with journal_lock(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert Path(f"{path}{LOCK_SUFFIX}").exists()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    killed_holder(path)
    start = time.monotonic()
    JournalFile(path).append_logs([record(0)])
    assert time.monotonic() - start < journal.GRACE_S / 2
    assert log_of(path) == [record(0)]


def test_the_lock_of_another_machine_is_taken_over_when_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "GRACE_S", 0.05)
    path = tmp_path / "x.log"
    holder = {"pid": 1, "pid_start": 2, "host": "elsewhere", "token": "t"}
    Path(f"{path}{LOCK_SUFFIX}").write_text(json.dumps(holder), encoding="utf-8")
    JournalFile(path).append_logs([record(0)])
    assert log_of(path) == [record(0)]


def test_a_process_that_keeps_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PATIENCE_S", 0.05)
    path = tmp_path / "x.log"
    holder = {**vars(Holder.this_process()), "pid": os.getppid(), "pid_start": None}
    Path(f"{path}{LOCK_SUFFIX}").write_text(json.dumps(holder), encoding="utf-8")
    with pytest.raises(MedtrainError, match=rf"process {os.getppid()} on {socket.gethostname()} has kept the lock"):
        JournalFile(path).append_logs([record(0)])


def test_optunas_lock_and_ours_exclude_each_other(tmp_path: Path) -> None:
    """optuna-dashboard may write to the same journal."""
    path = str(tmp_path / "x.log")
    theirs = optuna.storages.journal.JournalFileSymlinkLock(path)
    order = []

    def wait_for_ours() -> None:
        theirs.acquire()
        order.append("theirs")
        theirs.release()

    def wait_for_theirs() -> None:
        with journal_lock(Path(path)):
            order.append("ours")

    with journal_lock(Path(path)):
        thread = threading.Thread(target=wait_for_ours)
        thread.start()
        thread.join(0.1)
        order.append("ours")
    thread.join()
    theirs.acquire()
    thread = threading.Thread(target=wait_for_theirs)
    thread.start()
    thread.join(0.1)
    order.append("theirs")
    theirs.release()
    thread.join()
    assert order == ["ours", "theirs", "theirs", "ours"]


def _append_many(path: Path, worker: int, count: int) -> None:
    file = JournalFile(path)
    for number in range(count):
        file.append_logs([record(number, worker=worker)])


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_several_writers_lose_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    context = multiprocessing.get_context("spawn")
    make: Any = threading.Thread if kind == "threads" else context.Process
    writers = [make(target=_append_many, args=(path, worker, 12)) for worker in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(entry["worker"], entry["user_attr"]) for entry in log_of(path)]
    assert sorted(found, key=str) == sorted(((w, {f"k{n}": n}) for w in range(4) for n in range(12)), key=str)


def test_optuna_reads_what_we_write_and_we_read_what_optuna_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    ours = optuna.create_study(storage=open_storage(path), study_name="s")
    ours.enqueue_trial({"x": 0.5})
    theirs = optuna.load_study(storage=JournalStorage(JournalFileBackend(path)), study_name="s")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]
    assert ours.trials[0].params == {"x": 0.5}


class TestWaitingTrials:
    """A trial that waits is given to one worker only."""

    def pair(self, tmp_path: Path) -> tuple[Journal, Journal, int]:
        first, second = (Journal(JournalFile(tmp_path / "x.log")) for _ in range(2))
        study_id = first.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
        trial_id = first.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
        return first, second, trial_id

    def test_the_second_worker_does_not_get_it(self, tmp_path: Path) -> None:
        first, second, trial_id = self.pair(tmp_path)
        assert first.set_trial_state_values(trial_id, TrialState.RUNNING)
        assert not second.set_trial_state_values(trial_id, TrialState.RUNNING)
        assert not first.set_trial_state_values(trial_id, TrialState.RUNNING)

    def test_nor_does_one_that_had_it_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both see it waiting; the other writes first. Optuna then tells both that it is theirs."""
        first, second, trial_id = self.pair(tmp_path)
        assert first.set_trial_state_values(trial_id, TrialState.RUNNING)
        first.set_trial_state_values(trial_id, TrialState.WAITING)
        won_by_second = []
        write = first._write_log

        def second_is_faster(code: int, fields: dict[str, Any]) -> None:
            if not won_by_second:
                won_by_second.append(second.set_trial_state_values(trial_id, TrialState.RUNNING))
            write(code, fields)

        monkeypatch.setattr(first, "_write_log", second_is_faster)
        won_by_first = first.set_trial_state_values(trial_id, TrialState.RUNNING)
        assert (won_by_first, won_by_second) == (False, [True])

    def test_a_finished_one_is_nobodys(self, tmp_path: Path) -> None:
        first, second, trial_id = self.pair(tmp_path)
        first.set_trial_state_values(trial_id, TrialState.FAIL)
        with pytest.raises(UpdateFinishedTrialError):
            second.set_trial_state_values(trial_id, TrialState.RUNNING)
