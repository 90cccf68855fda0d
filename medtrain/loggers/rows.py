"""A text file with one row per step, written so that a killed process never leaves half a row behind others."""

from __future__ import annotations

import os
from pathlib import Path

from medtrain.run.atomic import atomic_write


class RowFile:
    """Rows are added at the end; the last one may be replaced by a longer form of itself.

    Every row goes to the operating system in one call, so it survives the death of this process; `sync` brings it to
    the disk.

    Args:
        path: The file; made when the first row is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._last = 0  # where the last row starts
        self._end = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """All complete lines; a torn last one, left by a power cut, is left out."""
        if not self._path.exists():
            return []
        return self._path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]

    def rewrite(self, lines: list[str]) -> None:
        """Replace the whole file in one step; without lines the file is removed."""
        self.close()
        data = [f"{line}\n".encode() for line in lines]
        if data:
            atomic_write(self._path, b"".join(data))
        else:
            self._path.unlink(missing_ok=True)
        self._end = sum(map(len, data))
        self._last = self._end - len(data[-1]) if data else 0

    def put(self, line: str, *, replace_last: bool = False) -> None:
        """Add a row, or replace the last one."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        data = f"{line}\n".encode()
        if not replace_last:
            self._last = self._end
        written = os.pwrite(self._descriptor, data, self._last)
        while written < len(data):  # the disk is nearly full: the next call raises
            written += os.pwrite(self._descriptor, data[written:], self._last + written)
        old_end, self._end = self._end, self._last + len(data)
        if old_end > self._end:
            os.ftruncate(self._descriptor, self._end)

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; writing opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
