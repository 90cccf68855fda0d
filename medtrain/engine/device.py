"""The device of a run and its memory."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from medtrain.errors import UsageError


def choose_device(requested: str, *, local_rank: int = 0) -> torch.device:
    """Resolve `auto` and check that an explicit choice exists.

    Args:
        requested: auto, cpu, cuda or mps.
        local_rank: Index of this process on the machine; selects the GPU.

    Raises:
        UsageError: The device was asked for and is not there.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if requested == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"trainer.device=cuda: no CUDA device is available to torch {torch.__version__}",
                hint="use trainer.device=cpu, or run `medtrain doctor` to see why",
            )
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
                hint="start at most one process per GPU",
            )
        return torch.device("cuda", local_rank)
    if requested == "mps" and not torch.backends.mps.is_available():
        raise UsageError("trainer.device=mps: this torch has no MPS device", hint="use trainer.device=cpu")
    return torch.device(requested)


def memory_gib(device: torch.device) -> float:
    """Memory of the device in GiB: the GPU's, or the machine's (within the container's limit)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        limit = "max"
    return (total if limit == "max" else min(total, int(limit))) / 2**30


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in the words of torch, CUDA, cuBLAS or cuDNN."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # what cuBLAS and cuDNN allocate on their own fails in other words
    words = ("out of memory", "allocate memory", "status_alloc_failed", "allocation_failed")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that a training step frees for the next one, instead of returning it to the kernel.

    Feature maps of megabytes are otherwise mapped and unmapped in every step, some 25,000 page faults for a small 3-D
    U-Net: 4 to 12 % of a step on a CPU. Memory in use does not grow, but the process keeps its peak.

    Returns:
        Whether the C library is glibc and took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 64 * 2**20))
