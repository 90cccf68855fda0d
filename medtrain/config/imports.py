"""Import what registers components: the modules a user names, and installed plug-ins."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from medtrain.errors import UsageError
from medtrain.registry import load_plugins


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, with the working directory on the path, and every installed plug-in.

    Raises:
        MedtrainError: A module or a plug-in cannot be imported.
    """
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            hint = "give the dotted name of a module, e.g. --import my_lab.nets"
            raise UsageError(f"--import {module}: {error}", hint=hint) from error
        except Exception as error:  # whatever the user's own code raises
            raise UsageError(f"--import {module}: {type(error).__name__}: {error}") from error
    load_plugins()
