"""Examine the machine: what is installed, what it can compute on, and what will go wrong before it does."""

from __future__ import annotations

import importlib
import importlib.metadata
import netrc
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from medtrain import registry
from medtrain.errors import MedtrainError

Status = Literal["ok", "note", "warning", "error"]

_GIB = 2**30
_LITTLE_MEMORY_GIB = 4.0
_LITTLE_SHM_GIB = 1.0
_LITTLE_DISK_GIB = 10.0
_NO_DISK_GIB = 0.5
_MEANT_FOR_DEVELOPERS = ("bench", "dev")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        topic: What: `python`, `packages`, `torch`, `disk`, ...
        status: ok; note (worth knowing); warning (will work, with a drawback); error (will not work).
        message: What was found, one line.
        hint: What to do about a warning or an error.
        facts: The values behind the message, for programs.
    """

    topic: str
    status: Status
    message: str
    hint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def examine(outputs: Path = Path("outputs")) -> list[Check]:
    """Look at everything; takes a few seconds because torch is imported.

    Args:
        outputs: Where runs will be written.
    """
    metadata = importlib.metadata.metadata("medtrain")
    requirements = [Requirement(text) for text in importlib.metadata.requires("medtrain") or []]
    return [
        check_python(metadata["Requires-Python"]),
        *check_packages(requirements, installed_version),
        *check_extras(metadata.get_all("Provides-Extra") or [], requirements, installed_version),
        *check_torch(),
        check_memory(),
        *check_shared_memory(),
        check_disk(outputs),
        check_wandb(os.environ),
        check_components(),
        check_plugins(),
    ]


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing will keep medtrain from training."""
    return all(check.status != "error" for check in checks)


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(required: str, running: str | None = None) -> Check:
    """Compare the interpreter with `requires-python`.

    Args:
        required: A version range such as `>=3.11`.
        running: A version; None takes this interpreter's.
    """
    running = platform.python_version() if running is None else running
    facts = {"version": running, "required": required, "executable": sys.executable}
    if Version(running) in SpecifierSet(required, prereleases=True):
        return Check("python", "ok", f"{running} (needs {required})", facts=facts)
    return Check("python", "error", f"{running}, medtrain needs {required}", "install a newer Python", facts)


def check_packages(requirements: Sequence[Requirement], version_of: Callable[[str], str | None]) -> list[Check]:
    """Compare the installed packages with the ranges of pyproject.toml.

    Args:
        requirements: medtrain's own, extras included.
        version_of: Returns the installed version of a package, or None.
    """
    core = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = {r.name: version_of(r.name) for r in core}
    problems = []
    for requirement in core:
        problem = _problem(requirement, found[requirement.name])
        if problem is not None:
            hint = f"pip install '{requirement.name}{requirement.specifier}'"
            problems.append(Check("packages", "error", problem, hint, {"package": requirement.name}))
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "numpy", "nibabel") if found.get(name))
    good = len(core) - len(problems)
    summary = f"{good} of {len(core)} within their ranges ({versions})"
    return [Check("packages", "note" if problems else "ok", summary, facts={"versions": found}), *problems]


def check_extras(
    extras: Sequence[str], requirements: Sequence[Requirement], version_of: Callable[[str], str | None]
) -> list[Check]:
    """Say which optional packages are there and how to install the others.

    Args:
        extras: Names of the extras.
        requirements: medtrain's own, extras included.
        version_of: Returns the installed version of a package, or None.
    """
    checks = []
    for extra in extras:
        if extra in _MEANT_FOR_DEVELOPERS:
            continue
        # a package that is needed in any case does not belong to the extra
        members = [
            r
            for r in requirements
            if r.marker is not None and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
        ]
        topic = f"extra {extra}"
        problems = [p for p in (_problem(r, version_of(r.name)) for r in members) if p is not None]
        facts = {"packages": {r.name: version_of(r.name) for r in members}}
        if problems:
            checks.append(Check(topic, "note", "; ".join(problems), f"pip install 'medtrain[{extra}]'", facts))
        else:
            listed = ", ".join(f"{r.name} {version_of(r.name)}" for r in members)
            checks.append(Check(topic, "ok", listed, facts=facts))
    return checks


def _problem(requirement: Requirement, version: str | None) -> str | None:
    if version is None:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is outside {requirement.specifier}"


def check_torch() -> list[Check]:
    """Import torch and torchvision and look at the devices they find."""
    checks = []
    for package in ("torch", "torchvision"):
        try:
            importlib.import_module(package)
        except Exception as error:  # a broken binary raises whatever its loader raises
            reason = str(error).strip().splitlines() or [type(error).__name__]
            message = f"{package} is installed and cannot be imported: {reason[0]}"
            hint = "install torch and torchvision anew, together, from the same index"
            checks.append(Check("torch", "error", message, hint))
            break
    return checks or [*_check_cuda(), *_check_mps(), _check_cpu()]


def _check_cuda() -> list[Check]:
    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch warns about a driver that is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    facts: dict[str, Any] = {"torch": torch.__version__, "built_for": torch.version.cuda, "available": available}
    if not available:
        driver = shutil.which("nvidia-smi")
        if driver is None:
            return [Check("cuda", "note", "no NVIDIA GPU; training runs on the CPU", facts=facts)]
        if torch.version.cuda is None:
            message = f"an NVIDIA driver is installed and torch {torch.__version__} is built without CUDA"
            return [Check("cuda", "warning", message, "install a torch build for CUDA", facts)]
        reason = str(caught[0].message).splitlines()[0] if caught else "no device was found"
        message = f"an NVIDIA driver is installed and torch cannot use it: {reason}"
        hint = f"compare the driver with CUDA {torch.version.cuda}: nvidia-smi"
        return [Check("cuda", "warning", message, hint, facts)]
    return [_check_gpu(index) for index in range(torch.cuda.device_count())]


def _check_gpu(index: int) -> Check:
    import torch

    properties = torch.cuda.get_device_properties(index)
    topic = f"cuda:{index}"
    facts = {"name": properties.name, "memory_gib": round(properties.total_memory / _GIB, 1)}
    try:
        with torch.cuda.device(index):
            free, _ = torch.cuda.mem_get_info()
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            total = float(torch.ones(8, device=topic).sum())
    except RuntimeError as error:  # no kernels for this GPU, a device in exclusive use, ...
        reason = str(error).strip().splitlines()[0]
        return Check(topic, "error", f"{properties.name} does not compute: {reason}", "nvidia-smi", facts)
    assert total == 8.0
    facts |= {"free_gib": round(free / _GIB, 1), "bf16": bf16, "capability": f"{properties.major}.{properties.minor}"}
    message = (
        f"{properties.name}, {facts['memory_gib']} GiB ({facts['free_gib']} free), "
        f"compute capability {facts['capability']}, bf16 {'yes' if bf16 else 'no'}"
    )
    return Check(topic, "ok", message, facts=facts)


def _check_mps() -> list[Check]:
    import torch

    return [Check("mps", "ok", "Apple GPU")] if torch.backends.mps.is_available() else []


def _check_cpu() -> Check:
    import torch

    from medtrain.engine.precision import cpu_has_bf16
    from medtrain.run.threads import LIMIT, available_cores, available_threads

    cores, threads, bf16 = available_cores(), available_threads(), cpu_has_bf16()
    capability = torch.backends.cpu.get_cpu_capability()
    facts = {"cores": cores, "threads": threads, "capability": capability, "bf16": bf16}
    message = (
        f"{cores} cores, {threads} threads, {capability}, "
        f"bf16 {'native (trainer.precision=auto uses it)' if bf16 else 'not native (trainer.precision=auto is fp32)'}"
    )
    if threads < cores:
        return Check("cpu", "note", message, f"unset {LIMIT} to use every core", facts)
    return Check("cpu", "ok", message, facts=facts)


def check_memory() -> Check:
    """Look at the memory this process may use, a container's limit included."""
    import torch

    from medtrain.engine.device import memory_gib

    total = memory_gib(torch.device("cpu"))
    available = _available_memory_gib()
    facts = {"total_gib": round(total, 1), "available_gib": available}
    message = f"{total:.1f} GiB" + ("" if available is None else f", {available:.1f} available now")
    if total < _LITTLE_MEMORY_GIB:
        hint = "use small patches: data.patch_size=[...], data.batch_size=2"
        return Check("memory", "warning", f"{message}: little for 3-D training", hint, facts)
    return Check("memory", "ok", message, facts=facts)


def _available_memory_gib() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else round(kib / 2**20, 1)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Check]:
    """Look at the shared memory through which data workers hand over batches (64 MiB in a default container)."""
    if not folder.is_dir():
        return []  # not Linux: another mechanism is used
    usage = shutil.disk_usage(folder)
    facts = {"total_gib": round(usage.total / _GIB, 2), "free_gib": round(usage.free / _GIB, 2)}
    message = f"{facts['free_gib']} of {facts['total_gib']} GiB free"
    if usage.free < _LITTLE_SHM_GIB * _GIB:
        hint = "start the container with --shm-size=8g, or train with data.num_workers=0"
        return [Check("shm", "warning", f"{message}: data workers may be killed", hint, facts)]
    return [Check("shm", "ok", message, facts=facts)]


def check_disk(outputs: Path) -> Check:
    """Look at the disk that runs are written to, and whether it can be written to.

    Args:
        outputs: The folder; its nearest existing parent counts while it does not exist.
    """
    folder = outputs.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    facts = {"folder": str(outputs.absolute()), "free_gib": round(free, 1)}
    message = f"{free:.1f} GiB free at {outputs}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{outputs} cannot be written to: {error.strerror}"
        return Check("disk", "error", reason, "work in another folder, or set run.root=PATH", facts)
    if free < _NO_DISK_GIB:
        return Check("disk", "error", message, "free some space, or set run.root=PATH and data.store=PATH", facts)
    if free < _LITTLE_DISK_GIB:
        hint = "prepared cases and checkpoints take gigabytes; set run.root=PATH and data.store=PATH"
        return Check("disk", "warning", message, hint, facts)
    return Check("disk", "ok", message, facts=facts)


def check_wandb(environment: Mapping[str, str]) -> Check:
    """Say how the wandb logger would work: it never asks for a key and needs none offline.

    Args:
        environment: The environment variables.
    """
    mode = environment.get("WANDB_MODE")
    if mode:
        return Check("wandb", "ok", f"{mode} (WANDB_MODE)", facts={"mode": mode})
    if environment.get("WANDB_API_KEY"):
        return Check("wandb", "ok", "online (WANDB_API_KEY is set)", facts={"mode": "online"})
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    path = Path(environment.get("NETRC") or Path.home() / ".netrc")
    try:
        known = host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if known:
        return Check("wandb", "ok", f"online (a key for {host} is in {path})", facts={"mode": "online"})
    hint = "`wandb login` stores a key; `wandb sync` sends offline runs later"
    return Check("wandb", "note", "offline: no key is stored", hint, {"mode": "offline"})


def check_components() -> Check:
    """Count the built-in components."""
    counts = {group: len(registry.names(group)) for group in registry.GROUPS}
    empty = [group for group, count in counts.items() if count == 0]
    if empty:
        message = f"no component in: {', '.join(empty)}"
        return Check("components", "error", message, "the installation is damaged: install medtrain anew", counts)
    return Check("components", "ok", f"{sum(counts.values())} in {len(counts)} groups", facts=counts)


def check_plugins() -> Check:
    """Import the installed plug-ins."""
    try:
        loaded = registry.load_plugins()
    except MedtrainError as error:
        return Check("plug-ins", "error", error.message, error.hint)
    return Check("plug-ins", "ok", ", ".join(loaded) or "none installed", facts={"plugins": loaded})
