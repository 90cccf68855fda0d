"""CONTRIBUTING.md keeps its word: its example works as written, its paths exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_USE = """
import torch
from medtrain import registry
from medtrain.config.compose import load_config

words = ["model=tinynet", "model.width=32", "data=msd_liver"]
config = load_config(words, config_dirs=["conf"], imports=["tinynet"]).tree["model"]
assert config == {"name": "tinynet", "width": 32}, config
assert registry.get("model", "tinynet").params["width"].doc == "Features of the hidden layers."
for dims in (2, 3):
    model = registry.build("model", config, spatial_dims=dims, in_channels=2, num_classes=3)
    assert model(torch.ones(1, 2, *(4,) * dims)).shape == (1, 3, *(4,) * dims)
"""


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_example_model_works_outside_the_repository(repository: Path, tmp_path: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,), (config,) = _blocks(text, "python"), _blocks(text, "yaml")
    (tmp_path / "tinynet.py").write_text(code, encoding="utf-8")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tinynet.yaml").write_text(config, encoding="utf-8")

    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _USE], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_path_it_names_exists(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`((?:medtrain|conf|tests|scripts)/[\w/.]*)`", prose)
    assert len(named) > 10
    missing = [name for name in named if not (repository / name).exists() and "tinynet" not in name]
    assert not missing


def test_every_make_target_it_names_exists(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
