"""The device of a run and the CPU threads it uses."""

from __future__ import annotations

import os

import torch

from medtrain.errors import UsageError


def available_cores() -> int:
    """Cores this process may use: its affinity, and the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


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
