"""Explaining components and keys."""

from __future__ import annotations

from typing import Any

import pytest

from medtrain.config.describe import describe_target
from medtrain.errors import ConfigError, UsageError


def test_a_component(conf: Any) -> None:
    text = describe_target("model=unet", width=80)
    first, empty, summary, *_ = text.splitlines()
    assert first.startswith("model=unet  (")
    assert (empty, summary) == ("", "Encode and decode.")
    assert "  model.dropout\n      float >= 0 and < 1; default 0.0\n      0.1 in conf/model/unet.yaml\n" in text
    assert "  model.channels\n      list of int >= 1; default [8, 16]\n      Per level.\n" in text
    assert "  model.norm\n      one of instance, batch, group; default instance\n" in text


@pytest.mark.usefixtures("conf")
def test_required_values_and_bare_names() -> None:
    text = describe_target("swin")
    assert text.startswith("model=swin  (")
    assert "  model.heads\n      int >= 1; required\n      Number.\n" in text


@pytest.mark.usefixtures("conf")
def test_one_key() -> None:
    assert describe_target("optimizer.lr") == "  optimizer.lr\n      float > 0; default 0.001\n      Rate.\n\n"
    assert describe_target("callbacks.early_stopping.patience").startswith("  callbacks.early_stopping.patience\n")
    assert describe_target("seed").startswith("  seed\n      int >= 0; default 0\n")


@pytest.mark.usefixtures("conf")
def test_one_of_many() -> None:
    assert "callbacks.early_stopping.patience" in describe_target("callbacks=early_stopping")
    with pytest.raises(UsageError, match="say which callbacks"):
        describe_target("callbacks")


def test_a_preset(conf: Any) -> None:
    conf.write(
        "experiment/big.yaml",
        "# @package _global_\ndefaults:\n  - override /optimizer: sgd\nseed: 5\nmodel:\n  channels: [1]\n",
    )
    assert describe_target("experiment=big") == "experiment=big\n\n  optimizer=sgd\n  seed=5\n  model.channels=[1]\n"


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("modl=unet", "unknown group `modl`", "did you mean `model`?"),
        ("unett", "there is nothing called `unett`", "did you mean `unet`?"),
        ("zzz", "there is nothing called `zzz`", "`medtrain list` shows what there is"),
        ("default", "`default` is an option of several groups: trainer=default, run=default", None),
        ("optimizer.lrr", "optimizer=adamw has no key `lrr`; its keys are: lr, rules", "did you mean `optimizer.lr`?"),
    ],
)
def test_mistakes(target: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        describe_target(target)
    assert caught.value.message.startswith(message)
    assert caught.value.hint == hint


@pytest.mark.usefixtures("conf")
def test_an_unknown_option() -> None:
    with pytest.raises(ConfigError, match="unknown model `unett`"):
        describe_target("model=unett")
