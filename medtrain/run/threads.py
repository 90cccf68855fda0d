"""How many cores and threads a process may use."""

from __future__ import annotations

import os

LIMIT = "OMP_NUM_THREADS"


def available_cores() -> int:
    """Cores this process may use: its affinity, and the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def thread_limit() -> int | None:
    """What OMP_NUM_THREADS allows one process; None where nobody set it, or it says nothing that can be read."""
    first = os.environ.get(LIMIT, "").partition(",")[0].strip()  # one number for each level of nesting
    if first == "1" and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it where the user does not
        return None
    return int(first) if first.isdecimal() and int(first) > 0 else None


def available_threads(processes: int = 1) -> int:
    """Threads this process may use: its share of the cores, and no more than OMP_NUM_THREADS.

    Args:
        processes: That share the cores; OMP_NUM_THREADS holds for each.
    """
    return max(1, min(available_cores() // processes, thread_limit() or available_cores()))
