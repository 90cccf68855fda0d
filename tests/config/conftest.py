"""A small world of its own for the config tests: toy components and a toy conf/, so that messages are stable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hydra.core.config_store import ConfigStore

from medtrain import registry
from medtrain.config import sources
from medtrain.config.paths import COMPONENT_GROUPS
from medtrain.registry import Format, Range, register
from medtrain.sweep.settings import SweepSettings


def _parse_duration(text: str) -> str:
    if not text.endswith(("step", "ep")):
        raise ValueError("it needs a unit")
    return text


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule.

    Args:
        pattern: What it applies to.
        lr_mult: Factor.
    """

    pattern: str
    lr_mult: Annotated[float, Range(ge=0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Settings.

    Args:
        max_steps: Steps.
        every: Cadence.
        compile: Whether.
    """

    max_steps: Annotated[int, Range(ge=1)] | None = None
    every: Annotated[str, Format(_parse_duration, '"500step" or "10ep"')] = "10ep"
    compile: bool = False


def unet(
    *,
    out_channels: Annotated[int, Range(ge=1)] = 2,
    channels: tuple[Annotated[int, Range(ge=1)], ...] = (8, 16),
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    norm: Literal["instance", "batch", "group"] = "instance",
) -> dict[str, Any]:
    """Encode and decode.

    Args:
        out_channels: Classes.
        channels: Per level.
        dropout: Probability.
        norm: Kind.
    """
    return {"out_channels": out_channels, "channels": channels, "dropout": dropout, "norm": norm}


def swin(*, heads: Annotated[int, Range(ge=1)], depth: int = 2) -> dict[str, int]:
    """Attend.

    Args:
        heads: Number.
        depth: Blocks.
    """
    return {"heads": heads, "depth": depth}


def adamw(*, lr: Annotated[float, Range(gt=0)] = 1e-3, rules: list[Rule] | None = None) -> None:
    """Step.

    Args:
        lr: Rate.
        rules: Rules.
    """


def sgd(*, lr: Annotated[float, Range(gt=0)] = 0.01, momentum: float = 0.9) -> None:
    """Step.

    Args:
        lr: Rate.
        momentum: Inertia.
    """


def folder(
    *, root: str | None = None, fold: Annotated[int, Range(ge=0)] | None = 0, merge: dict[str, list[str]] | None = None
) -> None:
    """Read.

    Args:
        root: Where.
        fold: Which.
        merge: Labels.
    """


def early_stopping(*, patience: Annotated[int, Range(ge=1)] = 10) -> None:
    """Stop.

    Args:
        patience: Evaluations.
    """


def plain(*, level: Literal["low", "high"] = "low") -> None:
    """Do something.

    Args:
        level: How much.
    """


def sampler(*, startup: Annotated[int, Range(ge=1)] = 10) -> None:
    """Ask.

    Args:
        startup: Random trials.
    """


TOYS: dict[str, dict[str, Callable[..., Any]]] = {
    "task": {"segmentation": plain, "classification": plain},
    "model": {"unet": unet, "swin": swin},
    "data": {"folder": folder},
    "loss": {"dice_ce": plain, "focal": plain},
    "augment": {"light": plain, "none": plain},
    "optimizer": {"adamw": adamw, "sgd": sgd},
    "scheduler": {"cosine": plain},
    "trainer": {"default": Trainer},
    "inference": {"sliding_window": plain},
    "callbacks": {"early_stopping": early_stopping, "curves": plain},
    "logger": {"csv": plain, "jsonl": plain},
    "run": {"default": plain},
    "sweep": {"default": SweepSettings},
    "sampler": {"auto": plain, "tpe": sampler},
    "pruner": {"auto": plain, "median": plain},
}

TRAIN = """\
defaults:
  - _self_
  - task: segmentation
  - model: unet
  - loss: dice_ce
  - augment: light
  - optimizer: adamw
  - scheduler: cosine
  - trainer: default
  - inference: sliding_window
  - callbacks: [curves]
  - logger: [csv, jsonl]
  - run: default
  - data: folder
  - optional trial: null
  - optional local: default
  - experiment: null
  - debug: null
seed: 0
"""

SWEEP = """\
defaults:
  - train
  - sampler: auto
  - pruner: auto
  - sweep: default
  - override /trial: quiet
  - _self_
"""

QUIET = """\
# @package _global_
defaults:
  - override /callbacks: []
  - override /logger: [csv]
trainer:
  compile: true
"""


class Conf:
    """A folder of configs that a test can add files to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> Path:
        """Write a file below the folder."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conf]:
    """The toy world: its components, its conf/ as the shipped one, and no plug-ins."""
    monkeypatch.setattr(registry, "_STATE", registry._State(plugins_loaded=True))
    monkeypatch.setattr(registry, "builtin_modules", dict)
    stored = copy.copy(ConfigStore.instance().repo)
    ConfigStore.instance().repo = {key: node for key, node in stored.items() if key not in COMPONENT_GROUPS}
    for group, components in TOYS.items():
        for name, target in components.items():
            register(group, name)(target)
    toy = Conf(tmp_path / "conf")
    toy.write("train.yaml", TRAIN)
    toy.write("sweep.yaml", SWEEP)
    toy.write("trial/quiet.yaml", QUIET)
    toy.write("model/unet.yaml", "defaults: [schema/unet@_here_, _self_]\ndropout: 0.1\n")
    monkeypatch.setattr(sources, "conf_dir", lambda: toy.root)
    yield toy
    ConfigStore.instance().repo = stored
