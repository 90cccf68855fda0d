"""Content digests of files, remembered by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.data.case import Case
from medtrain.errors import DataError, Problem
from medtrain.run.atomic import atomic_write

_CHUNK_BYTES = 1 << 20


class DigestCache:
    """Digests of the files of data sets, kept in one JSON file. Safe to use from several threads.

    Several processes may save at the same time: the last one wins and the others' new digests are computed again.

    Args:
        path: The JSON file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _load(path)
        self._new: dict[str, list[int | str]] = {}
        self._lock = threading.Lock()

    def digest(self, file: Path) -> str:
        """The content digest of a file, 32 hexadecimal digits.

        Raises:
            OSError: The file cannot be read.
        """
        status = file.stat()
        name = str(file.absolute())
        with self._lock:
            entry = self._known.get(name)
        if entry is not None and entry[:2] == [status.st_size, status.st_mtime_ns]:
            return str(entry[2])
        digest = hashlib.blake2b(digest_size=16)
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        fresh: list[int | str] = [status.st_size, status.st_mtime_ns, digest.hexdigest()]
        with self._lock:
            self._known[name] = self._new[name] = fresh
        return digest.hexdigest()

    def of_case(self, case: Case) -> list[str]:
        """Digests of a labelled case's files: the channels, then the label.

        Raises:
            DataError: A file cannot be read.
        """
        assert case.label is not None, f"{case.case_id} has no label"
        found = []
        for file in (*case.images, case.label):
            try:
                found.append(self.digest(file))
            except OSError as error:
                message = (
                    "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
                )
                raise DataError([Problem(where=str(file), message=message)]) from None
        return found

    def save(self) -> None:
        """Add what is new to the file, atomically."""
        with self._lock:
            if self._new:
                merged = {**_load(self.path), **self._new}
                atomic_write(self.path, json.dumps(merged), sync=False)
                self._new = {}


def digest_of(value: Mapping[str, Any]) -> str:
    """Thirty-two hexadecimal digits that name JSON-able data."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _load(path: Path) -> dict[str, list[int | str]]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # a cache: damaged means empty
        return {}
    return data if isinstance(data, dict) else {}
