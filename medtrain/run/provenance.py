"""Where a run came from: versions, machine, code, command. Secrets are masked before anything is written."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medtrain
from medtrain.run.threads import available_cores

MASK = "***"
TYPED = "MEDTRAIN_TYPED"
"""Environment variable of processes that another one started: the command line of that one, as JSON."""

_ALWAYS_SECRET = re.compile(
    r"(?:^|_)(?:passwords?|passwd|secrets?|credentials?|(?:api|access|private|auth|ssh|hf|wandb)_?(?:keys?|tokens?))(?:_|$)"
    r"|^(?:keys?|tokens?)$",
    re.IGNORECASE,
)
_MAYBE_SECRET = re.compile(r"(?:^|_)(?:keys?|tokens?)(?:_|$)", re.IGNORECASE)
_LOOKS_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_\-+=]{16,}")
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bwandb_v\d_[A-Za-z0-9_]{20,}"  # Weights & Biases
    r"|\b(?:ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{20,}"
    r"|\bsk-[A-Za-z0-9_\-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password in a URL
)
_WANDB_KEY = re.compile(r"\b[0-9a-f]{40}\b")  # looks like a git commit or a SHA-1 as well
_HASH_KEY = re.compile(r"sha|commit|hash|digest|revision|checksum", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def environment(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe the software, the machine and the command of this process, without secrets.

    Args:
        argv: The command line; None takes the one that was typed.
    """
    return {
        "command": typed_command(command_line() if argv is None else argv),
        "directory": str(Path.cwd()),
        "medtrain": medtrain.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "git": git_state(Path.cwd()),
        "host": platform.node(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "cpu": {"model": _cpu_model(), "cores": available_cores(), "memory_gib": _memory_gib()},
        "gpu": _gpus(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of medtrain's dependencies, extras included; absent ones are left out."""
    try:
        requirements = importlib.metadata.requires("medtrain") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        requirements = ["torch", "numpy"]
    found = {}
    for requirement in requirements:
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
        assert match is not None, requirement
        try:
            found[match[0].lower()] = importlib.metadata.version(match[0])
        except importlib.metadata.PackageNotFoundError:
            continue
    found.pop("medtrain", None)
    return dict(sorted(found.items()))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files are changed; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def mask_secrets(value: Any, *, key: str = "") -> Any:
    """Copy plain data with everything that looks like a secret replaced by `***`.

    Text under `password`, `secret`, `api_key`, `token` and the like is a secret; under any other key with the word key
    or token (`label_key`) only if it looks random. Known forms of access tokens, and passwords in URLs, are secrets
    wherever they stand.

    Args:
        value: Nested mappings, sequences and primitives.
        key: The key under which `value` stands.
    """
    if isinstance(value, Mapping):
        return {name: mask_secrets(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(item, key=key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    words = re.sub(r"[\W_]+", "_", _CAMEL.sub("_", key))
    if _ALWAYS_SECRET.search(words) or (_MAYBE_SECRET.search(words) and _LOOKS_RANDOM.fullmatch(value)):
        return MASK
    masked = _SECRET_VALUE.sub(MASK, value)
    return masked if _HASH_KEY.search(key) else _WANDB_KEY.sub(MASK, masked)


def command_line() -> list[str]:
    """What was typed, as in `sys.argv`: of the launcher where `--nproc` has started this process."""
    typed: list[str] = json.loads(os.environ.get(TYPED, "null")) or list(sys.argv)
    return typed


def typed_command(argv: Sequence[str]) -> list[str]:
    """A command line as it can be typed, secrets masked: the program by its name, not where Python found it.

    Args:
        argv: As in `sys.argv`.
    """
    if not argv:
        return []
    name = Path(argv[0]).name
    return [*(["python", "-m", "medtrain"] if name == "__main__.py" else [name]), *mask_command(argv[1:])]


def mask_command(argv: Sequence[str]) -> list[str]:
    """Mask the secrets of a command line: `a.token=x`, `--token=x`, `--token x` and known forms of tokens."""
    masked: list[str] = []
    previous = ""
    for word in argv:
        name, sign, value = word.partition("=")
        if sign:
            masked.append(f"{name}={mask_secrets(value, key=name.rpartition('.')[2].lstrip('-'))}")
        else:
            masked.append(mask_secrets(word, key=previous.lstrip("-") if previous.startswith("--") else ""))
        previous = word
    return masked


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_OPTIONAL_LOCKS: looking at a repository must not disturb a commit that runs at the same time
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Memory this process may use: the machine's, or its control group's limit."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = float(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no control groups, or "max"
            limit = math.inf
        total = min(total, limit)
    return round(total / 2**30, 2)


def _gpus() -> list[dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = round(properties.total_memory / 2**30, 2)
            found.append({"model": properties.name, "memory_gib": memory, "cuda": torch.version.cuda})
        return found
    if torch.backends.mps.is_available():
        return [{"model": "Apple MPS", "memory_gib": None, "cuda": None}]
    return []
