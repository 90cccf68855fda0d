"""Read the config of a run back, with the changes a later command asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medtrain.config.compose import apply_values
from medtrain.config.imports import import_modules
from medtrain.config.overrides import parse
from medtrain.config.sources import COMMAND_LINE, Sources
from medtrain.config.tree import OriginTree
from medtrain.config.validate import validate
from medtrain.errors import ConfigError, MedtrainError, Problem, UsageError

CONFIG_FILE = "config.yaml"


def load_saved(run: Path, overrides: Sequence[str] = (), *, imports: Sequence[str] = ()) -> dict[str, Any]:
    """Read and check a run's config.

    Args:
        run: The run's folder.
        overrides: `KEY=VALUE`; which of them a command allows is for the command to say. Components cannot be
            exchanged.
        imports: Modules to import first; a run never names modules to import by itself.

    Raises:
        UsageError: The folder is not a run.
        ConfigError: Lists every problem.
    """
    import_modules(imports)
    file = Path(run) / CONFIG_FILE
    tree = OriginTree()
    tree.merge(read_config(file), str(file))
    request = parse(overrides, Sources())
    exchanged = [
        Problem(f"{group}={option}", "the components of a run cannot be exchanged", None, COMMAND_LINE)
        for group, option in request.chosen.items()
    ]
    problems = [*request.problems, *exchanged, *apply_values(request.values, tree, request.broken)]
    checked, invalid = validate(tree.values, tree.origins, skip=request.broken)
    problems += invalid
    if problems:
        raise ConfigError(problems)
    return checked


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.yaml as it is.

    Raises:
        UsageError: It is missing.
        MedtrainError: It is no config.
    """
    hint = "give the folder of a run; `medtrain runs` lists them"
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", hint=hint)
    if not file.is_file():
        if (file.parent / "status.json").is_file():
            hint = "it was stopped before it had begun: start it again with the command that made it"
        raise UsageError(f"{file.parent} is not a run: it has no {CONFIG_FILE}", hint=hint)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedtrainError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise MedtrainError(f"{file} is not a config: it must be a mapping of keys to values")
    return content
