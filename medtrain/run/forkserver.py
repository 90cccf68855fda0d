"""The server that Python forks processes from: started so that signals that stop a run do not reach it.

A scheduler sends them to every process of a job, and Ctrl-C goes to the whole process group. Without its server nobody
could tell how a process ended. What is forked from it begins with these signals blocked as well.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


def start_forkserver() -> None:
    """Start the server, and its helper, with the signals blocked; nothing happens when it runs."""
    from multiprocessing import forkserver, resource_tracker  # not on every system

    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_signals() -> None:
    """Let a process that was forked from the server hear the signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
