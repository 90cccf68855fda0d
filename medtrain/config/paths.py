"""Where the shipped configs lie and how the groups behave. Standard library only: completion reads it."""

from __future__ import annotations

import re
from pathlib import Path

from medtrain.errors import MedtrainError
from medtrain.registry import GROUPS

MULTI_GROUPS = ("callbacks", "logger")
"""Groups of which any number can be chosen (`logger=[csv,jsonl]`); each option lies under its own key."""

PRESET_GROUPS = ("experiment", "debug")
"""Groups that are no component: their files change values of the whole config."""

ALL_GROUPS = (*GROUPS, *PRESET_GROUPS)
"""Everything that can be chosen."""

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


def default_choices() -> dict[str, str]:
    """What the shipped train.yaml chooses in each group, as written."""
    return dict(_DEFAULT_LINE.findall((conf_dir() / "train.yaml").read_text(encoding="utf-8")))
