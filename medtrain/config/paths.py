"""Where the shipped configs lie and how the groups behave. Standard library only: completion reads it."""

from __future__ import annotations

import re
from pathlib import Path

from medtrain.errors import MedtrainError
from medtrain.registry import GROUPS, SWEEP_GROUPS

MULTI_GROUPS = ("callbacks", "logger")
"""Groups of which any number can be chosen (`logger=[csv,jsonl]`); each option lies under its own key."""

PRESET_GROUPS = ("experiment", "debug")
"""Groups that are no component: their files change values of the whole config."""

FILE_GROUPS = (*PRESET_GROUPS, "sweep")
"""Groups of which a file of the user can be chosen by its path."""

COMPONENT_GROUPS = (*GROUPS, *SWEEP_GROUPS)
"""The groups of components, of every command."""

ALL_GROUPS = (*COMPONENT_GROUPS, *PRESET_GROUPS)
"""Everything that can be chosen, in some command."""

ROOT_KEYS = ("seed",)
"""Keys that belong to no group; `medtrain.config.schema` has their types."""

_DEFAULT_LINE = re.compile(r"^  - (\w+): (\S.*?)\s*(?:#.*)?$", re.MULTILINE)


def conf_dir() -> Path:
    """The shipped configs: `medtrain/conf` in an installed wheel, `conf` beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    where = package / "conf"
    raise MedtrainError(f"the shipped configs are missing: no train.yaml in {where}", hint="reinstall medtrain")


def groups_of(config_name: str) -> tuple[str, ...]:
    """The groups of components in a primary config: a sweep has some more than a run."""
    return COMPONENT_GROUPS if config_name == "sweep" else GROUPS


def default_choices(config_name: str = "train") -> dict[str, str]:
    """What the shipped train.yaml, and sweep.yaml on top of it, chooses in each group, as written."""
    found: dict[str, str] = {}
    for name in ("train",) if config_name == "train" else ("train", config_name):
        found |= _DEFAULT_LINE.findall((conf_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    return {group: option for group, option in found.items() if group in ALL_GROUPS}
