"""How much memory whole-case prediction may take, and where its accumulators are kept within that."""

from __future__ import annotations

import errno
import logging
import math
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medtrain.errors import UsageError

log = logging.getLogger(__name__)

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*$", re.IGNORECASE)

_SHARE = 0.5
"""Of the memory that is free, what accumulators take when no bound is given; the rest is the network's and others'."""

_DEVICE_SHARE = 0.7
"""Of a GPU's free memory; the rest is the forward pass's."""

_RELEASE_BYTES = 2**26
"""Pages of a file are given back when that much of it was touched, or a quarter of the bound if that is less."""

_RESERVE_BYTES = 2**22
"""Zeros that are written at a time where the system cannot reserve room."""

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GiB` or `800 MB`.

    Raises:
        ValueError: It is no size.
    """
    match = _SIZE.match(text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("not a size in bytes; write a number and B, kB, MB, GB, KiB, MiB or GiB")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise ValueError("a size must be above 0")
    return size


def format_size(size: float) -> str:
    """A size as it is read: `1.5 GiB`, `300 MiB`."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def free_memory() -> int:
    """Main memory in bytes that can still be taken: of the machine, and of the control group that limits the process.

    Files that the system keeps in memory count as free.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if available is not None:
        free = min(free, available * 1024)
    for folder, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        files = _numbers(folder / "memory.stat")
        free = min(free, most - now + files.get("inactive_file", 0) + files.get("active_file", 0))
    return max(free, 0)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of every line by its first word."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


class Store:
    """A zeroed float32 tensor: on a device, in main memory, or in a file that is mapped into memory.

    Args:
        tensor: Flat.
        pages: The mapped file, if it is one.
        release_at: Bytes of the file after whose use its pages are given back.
    """

    def __init__(self, tensor: Tensor, pages: mmap.mmap | None = None, release_at: int = _RELEASE_BYTES) -> None:
        self.tensor = tensor
        self._pages = pages
        self._release_at = release_at
        self._touched = 0

    @property
    def on_disk(self) -> bool:
        """Whether it is a file."""
        return self._pages is not None

    def touched(self, size: int) -> None:
        """Say that so many bytes were read or written; a file's pages leave this process's memory now and then."""
        if self._pages is None:
            return
        self._touched += size
        if self._touched >= self._release_at:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):  # of a shared mapping, what was written stays in the file
                self._pages.madvise(mmap.MADV_DONTNEED)


class Room:
    """What accumulators and temporaries may take beyond the image, the label map and the network's activations.

    Args:
        limit: Bytes; None takes half of the main memory that is free, or 70 % of a GPU's.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def describe(self, device: torch.device) -> str:
        """How much it is, and why, for the log."""
        if self.limit is not None:
            return f"{format_size(self.limit)}, as inference.max_memory says"
        if device.type == "cuda":
            share = f"{format_size(self._device_limit(device))} of the GPU's free memory, else "
        else:
            share = ""
        return f"{share}{format_size(_SHARE * free_memory())}, half of the free main memory (inference.max_memory)"

    def store(self, elements: int, *, temporaries: int, device: torch.device) -> Store:
        """Zeroed memory for accumulators: on the device, else in main memory, else in a file.

        Args:
            elements: float32 numbers.
            temporaries: Bytes that are needed besides.
            device: Where the network is.

        Raises:
            UsageError: Not even the temporaries fit, or no disk holds the file.
        """
        needed = 4 * elements + temporaries
        if device.type == "cuda" and needed <= self._device_limit(device):
            return Store(torch.zeros(elements, dtype=torch.float32, device=device))
        limit = self.limit if self.limit is not None else int(_SHARE * free_memory())
        if device.type == "mps" and needed <= limit:  # shares the main memory
            return Store(torch.zeros(elements, dtype=torch.float32, device=device))
        if needed <= limit:
            if device.type == "cuda":
                log.info("the accumulators, %s, are kept in main memory: the GPU lacks the room", format_size(needed))
            return Store(torch.zeros(elements, dtype=torch.float32))
        given = "" if self.limit is not None else " (half of the free memory)"
        if temporaries > limit:
            raise UsageError(
                f"inference.max_memory: {format_size(limit)}{given} is too little to predict this scan; it needs "
                f"{format_size(temporaries)} beside the network's own memory",
                hint=f"set inference.max_memory={math.ceil(temporaries / 2**20)}MiB or more",
            )
        return self._file(4 * elements, needed, limit, given)

    def _device_limit(self, device: torch.device) -> float:
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        spare = _DEVICE_SHARE * (free + cached)
        return spare if self.limit is None else min(spare, self.limit)

    def _file(self, size: int, needed: int, limit: int, given: str) -> Store:
        for folder in _scratch_folders():
            try:
                with tempfile.TemporaryFile(dir=folder) as file:  # without a name: gone with the process
                    _reserve(file.fileno(), size, folder)  # a full disk is found now
                    pages = mmap.mmap(file.fileno(), size)
            except OSError:
                continue
            log.info(
                "%s for accumulators do not fit into inference.max_memory, %s%s: they are kept in a file in %s",
                format_size(needed),
                format_size(limit),
                given,
                folder,
            )
            return Store(torch.frombuffer(pages, dtype=torch.float32), pages, min(_RELEASE_BYTES, limit // 4))
        raise UsageError(
            f"inference.max_memory: {format_size(limit)}{given} do not hold {format_size(needed)} of accumulators, and "
            f"no temporary folder on a disk has {format_size(size)} to spare for them",
            hint=f"set inference.max_memory={math.ceil(needed / 2**20)}MiB, or TMPDIR to a folder on a larger disk",
        )


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Give a new file its length, on blocks of the disk: writing into a hole of a mapped file can kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    if shutil.disk_usage(folder).free < size:  # macOS; known before all of it is written
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    zeros = memoryview(bytes(min(size, _RESERVE_BYTES)))
    done = 0
    while done < size:
        done += os.write(descriptor, zeros[: size - done])


def _scratch_folders() -> Sequence[Path]:
    """Temporary folders that are on a disk, not in memory."""
    folders = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir() and _file_system(folder) not in _IN_MEMORY]


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, empty where nobody says."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    real = folder.resolve()
    holding = [(len(where), kind) for where, kind in mounts if real.is_relative_to(where)]
    return max(holding)[1] if holding else ""
