"""What the README tells a reader to type is composed and checked, and every name in it exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medtrain.config.catalog import component_of, options, parameters
from medtrain.config.compose import load_config
from medtrain.config.paths import ALL_GROUPS
from medtrain.config.sweeps import load_sweep

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

TABLE = ["data=csv", "data.path=labels.csv", "data.images=file", "data.targets=diagnosis"]
"""What `...` stands for among labelled images."""

NOT_THERE = ("--import", "--worker", "--serve", "--wandb", "--report", "experiment=SWEEP", "dropuot")
"""Commands on what the reader makes first."""


def _commands() -> list[str]:
    blocks = "\n".join(FENCE.findall(TEXT)).replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line).removeprefix("$ ").strip() for line in blocks.splitlines()]
    composed = [line for line in lines if re.match(r"medtrain (train|sweep|show|data (check|prepare))\b", line)]
    return [line for line in composed if not any(word in line for word in NOT_THERE)]


COMMANDS = _commands()


def test_there_are_commands_of_both_families() -> None:
    assert len(COMMANDS) > 20
    assert any("data=msd" in line for line in COMMANDS)
    assert any("data=csv" in line for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_valid(line: str) -> None:
    words = shlex.split(line, comments=True)
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    if words[1] == "sweep":
        varies = any(mark in word for word in overrides if not word.endswith("]") for mark in "(,")
        load_sweep(overrides if varies else [*overrides, "optimizer.lr=1e-3,1e-2"])
    elif "..." in words and not any(word.startswith("data=") for word in words):
        load_config([*TABLE, *overrides])
    else:
        load_config(overrides)


def test_every_option_and_key_of_the_readme_exists() -> None:
    for group, name in re.findall(r"(?<![\w.])([a-z]+)=([a-z]\w*)(?![\w./])", TEXT):
        if group in ALL_GROUPS and name not in ("my_net", "dic_ce"):
            assert name in options(group), f"{group}={name}"
    for group, key in re.findall(r"`([a-z]+)\.([a-z_]+)", TEXT):
        if group in ALL_GROUPS and key not in ("json", "yaml"):
            # callbacks and loggers are several at a time, by name
            assert key in _keys(group) or (group in ("callbacks", "logger") and key in options(group)), f"{group}.{key}"


def _keys(group: str) -> set[str]:
    return {key for option in options(group) for key in parameters(group, component_of(group, option))}
