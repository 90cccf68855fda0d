"""The configuration of an existing run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medtrain.config.compose import check_saved, import_modules
from medtrain.errors import MedtrainError


def load_saved(run_dir: Path, overrides: Sequence[str] = (), *, imports: Sequence[str] = ()) -> dict[str, Any]:
    """Read and check the configuration a run was started with, changed by overrides of values.

    Args:
        run_dir: The run's folder.
        overrides: `KEY=VALUE`.
        imports: Modules to import first, because they register components of the run.

    Raises:
        MedtrainError: The folder holds no run.
        ConfigError: Lists every problem.
    """
    import_modules(imports)
    path = run_dir / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = "holds no run" if run_dir.is_dir() else "does not exist"
        raise MedtrainError(f"{run_dir} {what}", hint="`medtrain runs` lists the runs") from error
    except yaml.YAMLError as error:
        raise MedtrainError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise MedtrainError(f"{path} is not a configuration")
    return check_saved(tree, overrides, origin=str(path)).tree
