"""Where the shipped configs lie and how the groups behave. Standard library only: completion reads it."""

from __future__ import annotations

from pathlib import Path

from medtrain.errors import MedtrainError

MULTI_GROUPS = ("callbacks", "logger")
"""Groups of which any number can be chosen (`logger=[csv,jsonl]`); each option lies under its own key."""

PRESET_GROUPS = ("experiment", "debug")
"""Groups that are no component: their files change values of the whole config."""


def conf_dir() -> Path:
    """The shipped configs: `medtrain/conf` in an installed wheel, `conf` beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise MedtrainError(
        f"the shipped configs are missing: no train.yaml in {package / 'conf'}", hint="reinstall medtrain"
    )
