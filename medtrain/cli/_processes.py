"""Start a command again as several processes."""

from __future__ import annotations

import os
import subprocess
import sys

from medtrain.errors import UsageError


def relaunch(processes: int) -> int:
    """Run this command line under torchrun, without its `--nproc`, and return the exit code.

    Raises:
        UsageError: A launcher has started several processes already.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError("--nproc is given, but a launcher has already started these processes", hint="drop --nproc")
    words: list[str] = []
    skip = False
    for word in sys.argv[1:]:
        if skip or word.startswith("--nproc="):
            skip = False
        elif word == "--nproc":
            skip = True
        else:
            words.append(word)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.call([*launcher, "-m", "medtrain", *words])
