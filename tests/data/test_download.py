"""Downloads from a server on this machine that breaks off, lies, forgets and changes its mind."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medtrain.cli.app import app
from medtrain.data.decathlon import TASKS, Task, find_task
from medtrain.data.download import download, unpack
from medtrain.data.fetch import ATTEMPTS, CONNECT_S, TIMEOUT_S, Origin, fetch, format_bytes
from medtrain.data.msd import MsdData
from medtrain.errors import MedtrainError, UsageError

TASK = Task("msd_hippocampus", "Task04_Hippocampus", "hippocampus, MR", 1000, "0" * 32)
CASES = ("hippocampus_001", "hippocampus_003")


def nifti(seed: int) -> bytes:
    voxels = np.random.default_rng(seed).integers(0, 2, (5, 6, 7)).astype(np.uint8)
    return nib.Nifti1Image(voxels, np.eye(4)).to_bytes()


def task_files() -> dict[str, bytes]:
    pairs = [{"image": f"./imagesTr/{c}.nii", "label": f"./labelsTr/{c}.nii"} for c in CASES]
    description = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior"},
        "training": pairs,
        "test": [],
    }
    files = {"dataset.json": json.dumps(description).encode()}
    for seed, case in enumerate(CASES):
        files[f"imagesTr/{case}.nii"] = nifti(seed)
        files[f"labelsTr/{case}.nii"] = nifti(seed + 10)
    return files


def pack(files: dict[str, bytes], top: str = "Task04_Hippocampus/", *, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = pack(task_files())
MD5 = hashlib.md5(ARCHIVE).hexdigest()


@dataclass
class Server:
    """What a file server on 127.0.0.1 does; `asked` is what it was asked for."""

    content: bytes = ARCHIVE
    etag: str | None = '"one"'
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, one per answer
    codes: list[int] = field(default_factory=list)  # sent instead, one per answer
    announced: int | None = None
    no_length: bool = False
    wrong_range: bool = False
    encoding: str | None = None
    on_answer: Callable[[Server], None] | None = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((wanted, condition))
        if self.on_answer is not None:
            self.on_answer(self)
        if self.codes:
            handler.send_error(self.codes.pop(0))
            return
        start = 0
        if wanted and self.ranges and condition in (None, self.etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            first = start + 1 if self.wrong_range else start
            handler.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag is not None:
            handler.send_header("ETag", self.etag)
        if self.encoding is not None:
            handler.send_header("Content-Encoding", self.encoding)
        if not self.no_length:
            length = len(body) if self.announced is None else self.announced - start
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body[: self.break_after.pop(0)] if self.break_after else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behaviour.url = f"http://127.0.0.1:{running.server_address[1]}/Task04_Hippocampus.tar"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield behaviour
    running.shutdown()
    thread.join()
    running.server_close()


@dataclass
class Told:
    """What a caller hears."""

    said: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    reports: list[tuple[str, int, int | None]] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "say": self.said.append,
            "wait": self.waited.append,
            "report": lambda what, done, total: self.reports.append((what, done, total)),
        }


def bring(server: Server, to: Path, told: Told | None = None, **options: Any) -> Path:
    return download(TASK, to, **{"url": server.url, "md5": MD5, **options}, **(told or Told()).arguments)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_task_is_downloaded_whole(server: Server, tmp_path: Path) -> None:
    told = Told()
    folder = bring(server, tmp_path / "new" / "place", told)
    assert folder == tmp_path / "new" / "place" / "Task04_Hippocampus"
    assert {name: (folder / name).read_bytes() for name in everything(folder)} == task_files()
    assert os.listdir(folder.parent) == ["Task04_Hippocampus"]
    assert len(MsdData(root=str(folder)).discover().cases) == 2
    assert server.asked == [(None, None)]
    size = len(ARCHIVE)
    assert told.said == [f"{format_bytes(size)} to download; {format_bytes(2 * size)} needed to unpack it"]
    assert {what for what, _, _ in told.reports} == {"downloading", "checking", "unpacking"}
    assert ("downloading", len(ARCHIVE), len(ARCHIVE)) in told.reports


def test_what_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    folder = bring(server, tmp_path)
    (folder / "mine").write_text("kept")
    told = Told()
    assert bring(server, tmp_path, told) == folder
    assert told.said == [f"{folder} is there already"]
    assert len(server.asked) == 1
    assert (folder / "mine").exists()


def test_what_a_process_left_that_had_just_finished_is_removed(server: Server, tmp_path: Path) -> None:
    bring(server, tmp_path)
    work = tmp_path / ".Task04_Hippocampus.download"
    work.mkdir()
    (work / "Task04_Hippocampus.tar").write_bytes(ARCHIVE)
    bring(server, tmp_path)
    assert os.listdir(tmp_path) == ["Task04_Hippocampus"]


def test_something_else_has_the_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Task04_Hippocampus").mkdir()
    with pytest.raises(UsageError, match=r"holds no dataset\.json"):
        bring(server, tmp_path)
    assert server.asked == []


def test_broken_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000, 0, 5000, 17]
    told = Told()
    folder = bring(server, tmp_path, told)
    assert server.asked == [
        (None, None),
        ("bytes=1000-", '"one"'),
        ("bytes=1000-", '"one"'),
        ("bytes=6000-", '"one"'),
        ("bytes=6017-", '"one"'),
    ]
    assert told.said[1] == f"the connection broke off at 1,000 of {len(ARCHIVE):,} bytes; next attempt in 1 s"
    assert told.waited == [1, 2, 1, 1]  # more after an attempt that brought nothing
    assert everything(folder) == set(task_files())


def test_a_later_call_continues(server: Server, tmp_path: Path) -> None:
    server.break_after = [2000] + [0] * ATTEMPTS
    told = Told()
    with pytest.raises(MedtrainError, match=r"could not be downloaded: the connection broke off at 2,000 of .* 2.0 kB"):
        bring(server, tmp_path, told)
    assert told.waited == [1, 2, 4, 8, 16, 32]
    assert visible(tmp_path) == []
    server.asked.clear()
    bring(server, tmp_path)
    assert server.asked == [("bytes=2000-", '"one"')]
    assert os.listdir(tmp_path) == ["Task04_Hippocampus"]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [3000]
    told = Told()
    assert everything(bring(server, tmp_path, told)) == set(task_files())
    assert "the server sends the file from its beginning" in told.said


def test_a_server_without_ranges_that_keeps_breaking_off_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [3000] * (ATTEMPTS + 1)
    with pytest.raises(MedtrainError, match="broke off at 3,000"):
        bring(server, tmp_path)
    assert len(server.asked) == ATTEMPTS + 1
    assert visible(tmp_path) == []


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changes_between_attempts_is_not_glued(
    server: Server, tmp_path: Path, honours_if_range: bool
) -> None:
    new = pack({**task_files(), "extra.txt": b"new"})
    old = bytes(len(new))
    server.content, server.break_after = old, [3000]

    def change(server: Server) -> None:
        if len(server.asked) == 2:
            server.content, server.etag = new, '"two"' if honours_if_range else None

    server.on_answer = change
    if not honours_if_range:
        server.etag = None  # only the length could tell
        new += bytes(512)
    folder = bring(server, tmp_path, md5=hashlib.md5(new).hexdigest())
    assert "extra.txt" in everything(folder)
    assert server.asked[1][0] == "bytes=3000-"


def test_progress_with_a_new_file_is_progress_though_less_than_of_the_old_one(server: Server, tmp_path: Path) -> None:
    server.content, server.etag = bytes(len(ARCHIVE)), '"old"'
    server.break_after = [len(ARCHIVE) - 500] + [0] * ATTEMPTS
    with pytest.raises(MedtrainError, match="could not be downloaded"):
        bring(server, tmp_path)
    server.content, server.etag = ARCHIVE, '"new"'
    step = len(ARCHIVE) // (ATTEMPTS + 3)
    server.break_after = [step] * (ATTEMPTS + 2)
    told = Told()
    bring(server, tmp_path, told)
    assert told.waited == [1.0] * (ATTEMPTS + 2)


def test_the_part_of_another_address_is_no_measure_of_progress(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(bytes(10 * len(ARCHIVE)))
    step = len(ARCHIVE) // (ATTEMPTS + 3)
    server.break_after = [step] * (ATTEMPTS + 2)
    fetch(server.url, tmp_path / "f", md5=MD5, need=lambda *sizes: None, **Told().arguments)
    assert (tmp_path / "f").read_bytes() == ARCHIVE


def test_a_file_that_changes_all_the_time_is_given_up(server: Server, tmp_path: Path) -> None:
    server.break_after = [3000] * 100

    def change(server: Server) -> None:
        server.etag = f'"{len(server.asked)}"'

    server.on_answer = change
    with pytest.raises(MedtrainError, match=f"changed {ATTEMPTS} times"):
        bring(server, tmp_path)
    assert len(server.asked) == ATTEMPTS + 1


def test_a_range_that_was_not_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.break_after = [3000]
    server.wrong_range = True
    told = Told()
    bring(server, tmp_path, told)
    assert any("where the rest from 3000 was asked for: starting anew" in line for line in told.said)


@pytest.mark.parametrize("announced", [len(ARCHIVE) - 600, 100])
def test_a_length_too_small_is_found_out(server: Server, tmp_path: Path, announced: int) -> None:
    server.announced = announced
    with pytest.raises(MedtrainError, match=rf"is not the expected file: md5 \w+ of {announced:,} bytes, expected"):
        bring(server, tmp_path)
    assert everything(tmp_path) == set()


def test_a_length_too_large_is_found_out(server: Server, tmp_path: Path) -> None:
    server.announced = len(ARCHIVE) + 77
    told = Told()
    with pytest.raises(MedtrainError, match="could not be downloaded"):
        bring(server, tmp_path, told)
    assert any(f"broke off at {len(ARCHIVE):,} of {len(ARCHIVE) + 77:,}" in line for line in told.said)
    assert any(f"the server's file has {len(ARCHIVE):,}: starting anew" in line for line in told.said)
    assert visible(tmp_path) == []


def test_no_length_is_no_obstacle(server: Server, tmp_path: Path) -> None:
    server.no_length = True
    assert everything(bring(server, tmp_path)) == set(task_files())


def test_the_wrong_file_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>Sign in to the network</html>"
    with pytest.raises(MedtrainError, match=r"not the expected file: md5 \w+ of 35 bytes, expected " + MD5):
        bring(server, tmp_path)
    assert os.listdir(tmp_path) == []
    server.content = ARCHIVE
    assert everything(bring(server, tmp_path)) == set(task_files())


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_missing_file_is_said_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.codes = [code]
    with pytest.raises(MedtrainError, match=f"the server answers {code} .* for {server.url}") as caught:
        bring(server, tmp_path)
    assert "--url" in str(caught.value.hint)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [500, 503, 429]
    told = Told()
    bring(server, tmp_path, told)
    assert told.said[0] == "the server answers 500 Internal Server Error; next attempt in 2 s"
    assert told.waited == [2, 4, 8]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_server_at_all(tmp_path: Path, server: Server, scheme: str) -> None:
    told = Told()
    with pytest.raises(MedtrainError, match="could not be downloaded: no connection: ") as caught:
        bring(server, tmp_path, told, url=f"{scheme}://127.0.0.1:9/x.tar")
    assert "is this machine online, and can it reach 127.0.0.1?" in str(caught.value.hint)
    assert told.waited == [2]  # nothing has ever answered: more waiting would not help


def test_a_network_that_goes_away_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.break_after = [2000]
    opened, told = urllib.request.OpenerDirector.open, Told()

    def gone(opener: Any, request: Any, *, timeout: float) -> Any:
        if server.asked and len(told.waited) < 4:
            raise urllib.error.URLError(OSError(101, "Network is unreachable"))
        return opened(opener, request, timeout=timeout)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", gone)
    assert everything(bring(server, tmp_path, told)) == set(task_files())
    assert told.waited == [1, 2, 4, 8]
    assert "no connection: network is unreachable; next attempt in 2 s" in told.said


def test_the_wait_for_a_connection_is_no_wait_for_an_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, connected = socket.create_connection, []

    def note(address: Any, timeout: float, *rest: Any) -> socket.socket:
        connection = connect(address, timeout, *rest)
        connected.append((timeout, connection))
        return connection

    monkeypatch.setattr(socket, "create_connection", note)
    bring(server, tmp_path)
    assert [(timeout, connection.gettimeout()) for timeout, connection in connected] == [(CONNECT_S, TIMEOUT_S)]


def test_a_server_that_is_reached_and_silent_is_asked_as_often_as_any(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*args: Any, **settings: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", silent)
    with pytest.raises(MedtrainError, match=rf"no answer: timed out \({ATTEMPTS} attempts"):
        bring(server, tmp_path)


def test_an_encoded_answer_is_refused(server: Server, tmp_path: Path) -> None:
    server.encoding = "gzip"
    with pytest.raises(MedtrainError, match="sent encoded as gzip"):
        bring(server, tmp_path)


@pytest.mark.parametrize(
    ("option", "message"), [({"url": "file:///etc/passwd"}, "not an address"), ({"md5": "12"}, "32")]
)
def test_wrong_options(server: Server, tmp_path: Path, option: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bring(server, tmp_path, **option)


def test_too_little_room_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=len(ARCHIVE) + 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        MedtrainError, match=r"not enough room in .* needed .*for the archive and as much for what"
    ) as c:
        bring(server, tmp_path)
    assert str(c.value.hint).startswith(f"free {format_bytes(len(ARCHIVE) - 500)}, or")
    assert not list(tmp_path.rglob("*.part"))


def test_too_little_room_to_begin_anew_leaves_what_is_here(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.break_after = [3000] + [0] * ATTEMPTS
    with pytest.raises(MedtrainError, match="could not be downloaded"):
        bring(server, tmp_path)
    server.ranges = False
    free = 2 * len(ARCHIVE) - 3000
    usage = shutil.disk_usage(tmp_path)._replace(free=free - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MedtrainError, match="not enough room"):
        bring(server, tmp_path)
    (part,) = tmp_path.rglob("*.part")
    assert part.stat().st_size == 3000
    told = Told()
    usage = usage._replace(free=free)  # and what the old part gives back
    bring(server, tmp_path, told)
    assert (
        f"{format_bytes(len(ARCHIVE))} to download; {format_bytes(2 * len(ARCHIVE))} needed to unpack it" in told.said
    )


def test_the_room_that_unpacking_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack({**task_files(), "zeros": bytes(1_000_000)}, mode="w:gz"))
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MedtrainError, match=r"1.0 MB for what is in a.tar.gz"):
        unpack(archive, tmp_path / "target", report=Told().arguments["report"])
    assert visible(tmp_path) == ["a.tar.gz"]


def test_a_disk_that_fills_up_while_downloading(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medtrain.data.fetch.atomic_write_json", full)
        with pytest.raises(MedtrainError, match="the disk is full") as caught:
            bring(server, tmp_path)
    assert "start the same command again" in str(caught.value.hint)
    assert visible(tmp_path) == []
    bring(server, tmp_path)


def test_a_disk_that_fills_up_while_unpacking(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(MedtrainError, match=r"the disk is full: cannot write .*Task04_Hippocampus"):
            bring(server, tmp_path)
    assert visible(tmp_path) == []
    assert everything(tmp_path) == {f".Task04_Hippocampus.download/Task04_Hippocampus.{MD5[:8]}.tar"}
    bring(server, tmp_path)
    assert len(server.asked) == 1  # the archive was kept
    assert os.listdir(tmp_path) == ["Task04_Hippocampus"]


def test_the_archive_can_be_kept_and_used(server: Server, tmp_path: Path) -> None:
    bring(server, tmp_path, keep=True)
    assert visible(tmp_path) == ["Task04_Hippocampus", "Task04_Hippocampus.tar"]
    shutil.rmtree(tmp_path / "Task04_Hippocampus")
    told = Told()
    bring(server, tmp_path, told)
    assert told.said == [f"using {tmp_path / 'Task04_Hippocampus.tar'}"]
    assert len(server.asked) == 1
    assert (tmp_path / "Task04_Hippocampus.tar").read_bytes() == ARCHIVE


def test_a_kept_archive_that_is_another_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Task04_Hippocampus.tar").write_bytes(ARCHIVE[:-1])
    with pytest.raises(UsageError, match="is not the task's archive"):
        bring(server, tmp_path)


def test_two_at_a_time(server: Server, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from medtrain.run.lock import RunLock\n"
        "lock = RunLock(pathlib.Path(sys.argv[1], '.Task04_Hippocampus.lock'), silent=lambda: False)\n"
        "assert lock.acquire() is None\n"
        "print('held', flush=True); sys.stdin.read(); lock.release()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(MedtrainError, match=rf"another process brings .* \(process {other.pid} on "):
            bring(server, tmp_path)
        other.communicate("")
    bring(server, tmp_path)


def test_a_killed_process_is_continued(server: Server, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, os, signal; from medtrain.data.download import download\n"
        "from medtrain.data.decathlon import find_task\n"
        "def report(what, done, total): os.kill(os.getpid(), signal.SIGKILL) if what == 'unpacking' else None\n"
        "download(find_task('msd_hippocampus'), pathlib.Path(sys.argv[1]), url=sys.argv[2], md5=sys.argv[3],\n"
        "         report=report, say=print)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), server.url, MD5], check=False)
    assert done.returncode == -9
    assert visible(tmp_path) == []
    assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))
    bring(server, tmp_path)
    assert os.listdir(tmp_path) == ["Task04_Hippocampus"]
    assert len(server.asked) == 1


def test_ctrl_c_is_continued(server: Server, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(TASK, tmp_path, url=server.url, md5=MD5, report=interrupt, say=print)
    assert visible(tmp_path) == []
    bring(server, tmp_path)
    assert os.listdir(tmp_path) == ["Task04_Hippocampus"]


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("Task04_Hippocampus/../../evil"),
        member("/evil"),
        member("Task04_Hippocampus/link", kind=tarfile.SYMTYPE, link="/etc"),
        member("Task04_Hippocampus/link", kind=tarfile.LNKTYPE, link="../evil"),
        member("Task04_Hippocampus/pipe", kind=tarfile.FIFOTYPE),
    ],
    ids=["up", "deep", "absolute", "symlink", "hardlink", "pipe"],
)
def test_unsafe_archives_are_not_unpacked(tmp_path: Path, evil: tarfile.TarInfo) -> None:
    archive = tmp_path / "in" / "a.tar"
    archive.parent.mkdir()
    archive.write_bytes(ARCHIVE)
    with tarfile.open(archive, "a") as file:
        file.addfile(evil)
    with pytest.raises(MedtrainError, match="nothing is unpacked"):
        unpack(archive, tmp_path / "in" / "Task04_Hippocampus", report=Told().arguments["report"])
    assert everything(tmp_path) == {"in/a.tar"}
    assert not Path("/evil").exists()


def test_hidden_files_of_macos_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    hidden = {"imagesTr/._hippocampus_001.nii": b"x", ".DS_Store": b"x", "._dataset.json": b"x"}
    archive.write_bytes(pack({**hidden, **task_files()}))
    with tarfile.open(archive, "a") as file:
        file.addfile(member("._Task04_Hippocampus"))
        file.addfile(member("__MACOSX/dataset.json"))
    unpack(archive, tmp_path / "target", report=Told().arguments["report"])
    assert everything(tmp_path / "target") == set(task_files())


@pytest.mark.parametrize("top", ["", "./Task04_Hippocampus/", "other/name/"])
def test_the_folder_with_the_description_is_the_task(tmp_path: Path, top: str) -> None:
    (tmp_path / "a.tar").write_bytes(pack(task_files(), top, mode="w:gz"))
    unpack(tmp_path / "a.tar", tmp_path / "target", report=Told().arguments["report"])
    assert everything(tmp_path / "target") == set(task_files())


def without(name: str) -> bytes:
    return pack({key: value for key, value in task_files().items() if key != name})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARCHIVE[: len(ARCHIVE) // 2], "is damaged"),
        (pack(task_files(), mode="w:gz")[:-300], "is damaged"),
        (b"no archive", "is damaged"),
        (without("dataset.json"), "holds no dataset.json"),
        (without("labelsTr/hippocampus_003.nii"), "is not a whole task: labelsTr/hippocampus_003.nii: no such file"),
    ],
)
def test_damaged_archives_leave_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(MedtrainError, match=message):
        unpack(tmp_path / "a.tar", tmp_path / "target", report=Told().arguments["report"])
    assert os.listdir(tmp_path) == ["a.tar"]


def test_the_same_file_is_known_by_all_that_is_said() -> None:
    one = Origin("u", 5, '"a"', "Mon")
    assert one.same_file(Origin("u", 5, '"a"', None))
    assert not one.same_file(Origin("u", 6, '"a"', "Mon"))
    assert not one.same_file(Origin("u", 5, '"b"', "Mon"))
    assert not one.same_file(Origin("u", 5, None, "Tue"))
    assert not one.same_file(Origin("v", 5, '"a"', "Mon"))


def test_another_address_does_not_continue_the_part_of_the_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(bytes(100))
    (tmp_path / "f.json").write_text(json.dumps({"url": "http://x", "length": 9, "etag": None, "modified": None}))
    fetch(server.url, tmp_path / "f", md5=MD5, need=lambda *sizes: None, **Told().arguments)
    assert server.asked == [(None, None)]
    assert (tmp_path / "f").read_bytes() == ARCHIVE
    assert visible(tmp_path) == ["f"]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["data", "download", *words])


def test_the_command(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("msd_hippocampus", "--to", str(tmp_path), "--url", server.url, "--md5", MD5.upper())
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    train = f"train on it: medtrain train model=unet data=msd_hippocampus data.root={tmp_path}/Task04_Hippocampus"
    assert result.stdout.splitlines()[-1] == train
    again = run(*words)
    assert (again.exit_code, "is there already" in again.stderr) == (0, True)
    monkeypatch.setenv("MEDTRAIN_DATA", str(tmp_path))
    result = run("Task04_Hippocampus")
    assert result.stdout.splitlines()[-1] == "train on it: medtrain train model=unet data=msd_hippocampus"


def test_the_command_lists_the_tasks() -> None:
    lines = run().stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:] if line] == [[task.preset, task.folder] for task in TASKS]
    result = run("msd_livr")
    assert (result.exit_code, result.stderr.splitlines()[1]) == (2, "hint: did you mean msd_liver?")


def test_tasks_are_those_of_the_presets() -> None:
    for task in TASKS:
        preset = Path("conf/data") / f"{task.preset}.yaml"
        assert preset.read_text().rstrip().endswith(f"/{task.folder}")
        assert find_task(task.folder) is find_task(task.preset) is task
        assert len(task.md5) == 32
    assert len(list(Path("conf/data").glob("msd_*.yaml"))) == len(TASKS) == 10


@pytest.mark.parametrize(
    ("root", "command"),
    [
        ("{tmp}/Task03_Liver", "medtrain data download msd_liver --to {tmp}`"),
        ("{tmp}/data/Task03_Liver", "medtrain data download msd_liver`"),
        ("{tmp}/nowhere", "medtrain data download NAME`"),
    ],
)
def test_missing_data_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, command: str
) -> None:
    monkeypatch.setenv("MEDTRAIN_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError, match="no such folder") as caught:
        MsdData(root=root.format(tmp=tmp_path)).discover()
    assert command.format(tmp=tmp_path) in str(caught.value.hint)


def test_the_default_folder_needs_no_option(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDTRAIN_DATA", raising=False)
    result = CliRunner().invoke(app, ["train", "data=msd_liver"])
    assert result.exit_code == 2
    assert "`medtrain data download msd_liver`" in result.stderr
