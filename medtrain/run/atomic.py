"""Write files and folders so that a reader, or a run resumed after a crash, never sees half of one.

Everything is written beside its destination, synced to the disk and renamed. What a killed process leaves behind
carries its process id in the name, so that `remove_leftovers` can tell it from the work of a live one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from medtrain.errors import MedtrainError

_LEFTOVER = re.compile(r"^\..+\.(\d+)\.[0-9a-f]{8}@(.+)\.tmp$")
_FOREIGN_LEFTOVER_AGE_S = 24 * 3600.0


def atomic_write(path: str | os.PathLike[str], content: bytes | str, *, sync: bool = True) -> None:
    """Replace the file at `path` by `content` in one step.

    Args:
        path: Destination; its folder must exist.
        content: Text is encoded as UTF-8, with line ends as they are.
        sync: Wait until the bytes are on the disk. False for files that may be lost in a power cut.

    Raises:
        MedtrainError: The disk is full, or the folder cannot be written to.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = _temporary_beside(target)
    with disk_errors(target):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(target)
            if sync:
                _sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_json(path: str | os.PathLike[str], value: Any, *, sync: bool = True) -> None:
    """Write `value` as indented JSON in one step; floats round-trip exactly.

    Args:
        path: Destination; its folder must exist.
        value: JSON-able data. NaN and infinity, which JSON does not have, are written as null.
        sync: As in `atomic_write`.

    Raises:
        MedtrainError: The disk is full, or the folder cannot be written to.
    """
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    atomic_write(path, text + "\n", sync=sync)


@contextlib.contextmanager
def atomic_dir(
    path: str | os.PathLike[str], *, existing: Literal["fail", "keep", "replace"] = "fail", sync: bool = True
) -> Iterator[Path]:
    """Fill a temporary folder; it appears at `path`, synced and complete, when the block ends without an error.

    Args:
        path: Destination folder; its parent must exist.
        existing: When `path` is there at the end: raise FileExistsError, keep it and discard ours (the winner of a
            race has written the same), or put ours in its place.
        sync: Wait until every file and the folder's name are on the disk; thousands of small ones take half a minute.

    Yields:
        The folder to write into.

    Raises:
        MedtrainError: The disk is full, or the folder cannot be written to.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    with disk_errors(target):
        temporary.mkdir()
        try:
            yield temporary
            if sync:
                sync_tree(temporary)
            _move_folder(temporary, target, existing)
            if sync:
                _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a full, read-only or forbidden disk into one clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MedtrainError(
                f"the disk is full: cannot write {os.fspath(path)}",
                hint="free some space, then start the same command again",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MedtrainError(
                f"cannot write {os.fspath(path)}: {os.strerror(error.errno)}",
                hint="choose a folder you may write to",
            ) from error
        raise


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder below `folder` is on the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def remove_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Delete what killed processes left in `folder` while writing; return the names.

    Entries of live processes on this machine stay. Those of other machines, of which nothing can be known, go after
    a day.
    """
    removed = []
    for entry in sorted(Path(folder).iterdir()):
        match = _LEFTOVER.match(entry.name)
        if match is None:
            continue
        try:
            own = match[2] == socket.gethostname()
            dead = not process_alive(int(match[1])) if own else _age_s(entry) > _FOREIGN_LEFTOVER_AGE_S
        except FileNotFoundError:  # its owner has just finished
            continue
        if dead:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            removed.append(entry.name)
    return removed


def discard(path: str | os.PathLike[str], *, unless: Callable[[Path], bool]) -> bool:
    """Delete a file or folder so that nobody sees half of it, unless it is needed after all.

    It is moved aside first and looked at there: who marks it as needed before that keeps it, and who comes later finds
    nothing at `path`.

    Args:
        path: What to delete.
        unless: Called with it once it is moved aside; True puts it back.

    Returns:
        Whether it is deleted.
    """
    target = Path(path)
    aside = _temporary_beside(target)
    try:
        target.rename(aside)
    except FileNotFoundError:
        return False
    if unless(aside):
        try:
            aside.rename(target)
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise  # else it has been made anew in the meantime
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)
    return True


def process_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended but was not collected by its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # not Linux, or it has just ended
        return not Path("/proc/self/stat").exists()
    return state not in ("Z", "X")


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _temporary_beside(target: Path) -> Path:
    return target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}@{socket.gethostname()}.tmp"


def _move_folder(temporary: Path, target: Path, existing: str) -> None:
    try:
        temporary.rename(target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if existing == "fail":
            raise FileExistsError(errno.EEXIST, "the folder is already there", os.fspath(target)) from error
    if existing == "replace":
        old = _temporary_beside(target)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Sync the folder's own entries, without which a rename may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems cannot sync a folder; the data themselves are synced
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
