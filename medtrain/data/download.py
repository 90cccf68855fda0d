"""Get a task of the Medical Segmentation Decathlon: download, check, unpack.

Everything happens in a hidden folder beside the target, so that the data set appears under its name when it is whole,
and a command that was interrupted goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from medtrain.data.decathlon import Task
from medtrain.data.fetch import CHUNK, Report, checksum, fetch, format_bytes
from medtrain.data.io.folders import DESCRIPTION
from medtrain.data.msd import discover_msd
from medtrain.errors import DataError, MedtrainError, UsageError
from medtrain.run.atomic import atomic_dir, disk_errors, remove_leftovers
from medtrain.run.lock import SILENCE_S, RunLock


def download(
    task: Task,
    to: Path,
    *,
    url: str | None = None,
    md5: str | None = None,
    keep: bool = False,
    report: Report,
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Bring a task into a folder, unless it is there; what an interrupted call left is used.

    Args:
        task: Which one.
        to: The folder that gets the task's folder; made if it is missing.
        url: Another address of the archive.
        md5: Its checksum, if the archive there is another one.
        keep: Leave the archive beside the data.
        report: Told how far it is.
        say: Told what is worth a line.
        wait: Called with the seconds to wait before another attempt.

    Returns:
        The task's folder.

    Raises:
        UsageError: The address or the checksum is none, or something else has the folder's name.
        MedtrainError: See `fetch`; or the archive is damaged or unsafe, or there is no room, or another process is at
            the same.
    """
    target, expected = to / task.folder, (md5 or task.md5).lower()
    if len(expected) != 32 or not set(expected) <= set("0123456789abcdef"):
        raise UsageError(f"--md5 {expected}: an md5 sum has 32 hexadecimal digits")
    with disk_errors(to):
        to.mkdir(parents=True, exist_ok=True)
    with _alone(task, to) as work:
        if (target / DESCRIPTION).is_file():
            say(f"{target} is there already")
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed when it had just finished
            return target
        if target.exists():
            raise UsageError(
                f"{target} is there, but holds no {DESCRIPTION}: it is not the task's folder",
                hint="move it away, or choose another folder with --to",
            )
        remove_leftovers(to)
        given, fetched = to / f"{task.folder}.tar", work / f"{task.folder}.{expected[:8]}.tar"
        if given.is_file():
            say(f"using {given}")
            _require_archive(given, expected, report)
        elif not fetched.is_file():
            need = _Need(task, to, say)
            fetch(url or task.url, fetched, md5=expected, report=report, say=say, need=need, wait=wait)
        unpack(given if given.is_file() else fetched, target, report=report)
        if keep and fetched.is_file():
            fetched.replace(given)
        shutil.rmtree(work, ignore_errors=True)
    return target


class _Need:
    """Says once what there is to download, and refuses to begin where there is no room for it."""

    def __init__(self, task: Task, to: Path, say: Callable[[str], None]) -> None:
        self._task, self._to, self._say = task, to, say
        self._said = False

    def __call__(self, length: int, here: int, freed: int) -> None:
        length = length or int(self._task.size)
        parts = f"{format_bytes(length)} for the archive and as much for what is in it"
        _require_room(self._to, 2 * length - here - freed, parts)
        if not self._said:
            self._said = True
            rest = f" of {format_bytes(length)}" if here else ""
            self._say(
                f"{format_bytes(length - here)}{rest} to download; {format_bytes(2 * length)} needed to unpack it"
            )


def unpack(archive: Path, target: Path, *, report: Report) -> None:
    """Unpack a data set; `target` appears when everything is there, and nothing else is ever written.

    The folder that holds dataset.json becomes the target. Hidden files of macOS (`._*`) are left out.

    Args:
        archive: A tar file, compressed or not.
        target: Must not exist.
        report: Told how far it is.

    Raises:
        MedtrainError: The archive is damaged, holds no data set, or names, links or devices that have no place in one;
            or there is no room.
    """
    try:
        with tarfile.open(archive, "r:*") as file:
            members = _choose(file.getmembers(), archive)
            total = sum(member.size for _, member in members)
            _require_room(target.parent, total, f"{format_bytes(total)} for what is in {archive.name}")
            with atomic_dir(target) as folder:
                done = 0
                for name, member in members:
                    _extract(file, member, folder / name)
                    done += member.size
                    report("unpacking", done, total)
                _require_whole(folder, archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise MedtrainError(
            f"{archive} is damaged: {error or 'it ends too early'}", hint="remove it and start the same command again"
        ) from None


def _choose(members: list[tarfile.TarInfo], archive: Path) -> list[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The files of the data set with their names in it; refuses what is unsafe before anything is written."""
    files = []
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
            raise MedtrainError(
                f"{archive} holds a file that would lie elsewhere: {member.name!r}; nothing is unpacked"
            )
        if not (member.isfile() or member.isdir()):
            raise MedtrainError(f"{archive} holds a link or a device: {member.name!r}; nothing is unpacked")
        hidden = any(part.startswith("._") or part in ("__MACOSX", ".DS_Store") for part in path.parts)
        if member.isfile() and not hidden:
            files.append((path, member))
    tops = sorted((path.parent for path, _ in files if path.name == DESCRIPTION), key=lambda path: len(path.parts))
    if not tops:
        raise MedtrainError(f"{archive} holds no {DESCRIPTION}: it is not a task of the Decathlon")
    return [(path.relative_to(tops[0]), member) for path, member in files if path.is_relative_to(tops[0])]


def _extract(file: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one file, without the owner, mode and times that the archive gives it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = file.extractfile(member)
    assert source is not None, member.name
    with source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink, CHUNK)
    if path.stat().st_size != member.size:
        raise tarfile.ReadError("it ends too early")


def _require_whole(folder: Path, archive: Path) -> None:
    """Refuse an archive without some of the files that its dataset.json lists."""
    try:
        discover_msd(folder)
    except DataError as error:
        first = error.problems[0]
        more = f" and {len(error.problems) - 1} more" if len(error.problems) > 1 else ""
        where = first.where.removeprefix(f"{folder}{os.sep}")
        raise MedtrainError(f"{archive} is not a whole task: {where}: {first.message}{more}") from None


def _require_archive(path: Path, md5: str, report: Report) -> None:
    found = checksum(path, report)
    if found != md5:
        raise UsageError(
            f"{path} is not the task's archive: md5 {found}, expected {md5}",
            hint="move it away to download the right one, or name its checksum with --md5",
        )


def _require_room(folder: Path, needed: int, parts: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MedtrainError(
            f"not enough room in {folder}: {format_bytes(needed)} needed ({parts}), {format_bytes(free)} free",
            hint=f"free {format_bytes(needed - free)}, or choose another folder with --to",
        )


@contextmanager
def _alone(task: Task, to: Path) -> Iterator[Path]:
    """Hold the task's lock, so that two processes do not write the same files; gives the folder to work in."""
    work = to / f".{task.folder}.download"

    def silent() -> bool:
        newest = max((entry.stat().st_mtime for entry in work.glob("*")), default=0.0)
        return time.time() - newest > SILENCE_S

    lock = RunLock(to / f".{task.folder}.lock", silent=silent)
    other = lock.acquire()
    if other is not None:
        raise MedtrainError(
            f"another process brings {task.folder} to {to} already (process {other.pid} on {other.host})",
            hint="wait until it is done; if it was stopped, the same command goes on",
        )
    try:
        with disk_errors(work):
            work.mkdir(exist_ok=True)
        yield work
    finally:
        with suppress(OSError):
            work.rmdir()  # unless something in it can be used again
        lock.release()
